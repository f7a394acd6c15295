"""The search of a climb: one arm after the other is made and raced against the leader, the most promising first.

Arms that take seconds go first, then the bases that they are compared with, then what is expected to gain most a second
(`rung.climbing.worth`). Every arm answers the rows in the same order, in growing looks, until it is decided whether it
leads. It is dropped when the leader clearly beats it, or when it has nearly no chance to be the better choice. Training
is raced after a quarter and a half of its steps, before the rest is paid for. As soon as an arm leads, it is compared
with the incumbent on the rows of the confirmation.
"""

from __future__ import annotations

from rung.artifact.artifact import Artifact
from rung.climbing.arms import FIRST_ROWS, Arm, ClimbState, FitFailed, Left, raise_failed
from rung.climbing.budget import NO_LIMITS, TimeUp, duration_text
from rung.climbing.choice import (
    FIRST,
    Prospect,
    affordable,
    looks,
    next_arm,
    order_ahead,
    prospects,
    put_off,
    with_next,
)
from rung.climbing.confirm import better, prove, seconds_to_confirm
from rung.climbing.worth import score_belief
from rung.evaluation.racing import CHEAPER, eliminate, futile

RESERVED = 0.4  # share of the budget that may be kept for confirming, at most; a quarter of it while nothing leads
LEARNING = 1.0  # exponent of the optimistic power law by which errors fall with the steps of training
PATIENCE = 3.0  # times its expected seconds, and half of what is left, are what an arm may take of a budget
OVERRAN = "it took longer than expected, and the budget was left to others"
SURE = 0.95  # probability that another model is better than the first, from which the ramp starts from it


def search(state: ClimbState) -> None:
    """Make and race arms until none is left that is worth it; the budget may end it at any moment.

    A resumed climb first takes the arms that it had chosen, in the same order, so that it ends the same. One that had
    ended without a budget chooses no others, although estimates may differ by now, unless it is asked for more rungs.
    """
    for name in [entry["name"] for entry in state.store.all_noted("chosen")]:
        _keep_reserve(state)
        if name not in state.arms:
            if (chosen := next((each for each in prospects(state) if each.name == name), None)) is not None:
                _run(state, chosen)
        elif not state.arms[name].raced:
            _run(state, state.arms[name])
    asked = {"rungs": sorted(rung.name for rung in state.rungs), "named": sorted(state.named)}
    ended = state.store.noted("searched", **asked) is not None
    if ended:
        for line in prospects(state):
            other = Left("skipped", "put off when the climb ended", line.rung.family, again=True)
            state.left.setdefault(line.name, put_off(state, line) or other)
        return
    while True:
        _keep_reserve(state)
        if (following := next_arm(state)) is None:
            break
        state.store.note("chosen", name=following.name)
        order_ahead(state, following)
        _run(state, following)
    if state.budget.limits == NO_LIMITS:
        state.store.note("searched", **asked)


def not_tried(state: ClimbState) -> None:
    """Record what the budget did not reach."""
    for line in prospects(state):
        if line.name not in state.left:
            reason = f"not tried: the budget was used up; expected to take {duration_text(line.seconds)}"
            state.left[line.name] = Left(
                "skipped", reason, line.rung.family, again=True, lacked_budget=True, seconds=line.seconds,
                gain=line.promise.gain,
            )  # fmt: skip


def _keep_reserve(state: ClimbState) -> None:
    """Leave time for the confirmation, as much as it is expected to take by now."""
    if (whole := state.budget.limits.seconds) is not None:
        compared = state.leader != state.incumbent and state.arms[state.incumbent].raced
        state.budget.reserve = min((RESERVED if compared else RESERVED / 4) * whole, seconds_to_confirm(state))


def _run(state: ClimbState, chosen: Prospect | Arm) -> None:
    """Race a base, or make an arm and race it; then confirm what leads."""
    if isinstance(chosen, Prospect):
        state.left.pop(chosen.name, None)
        arm = state.arms[chosen.name] = chosen.arm
    else:
        arm = chosen
    began, left, outer = state.budget.spent(), state.budget.left(), state.budget.reserve
    if isinstance(chosen, Prospect) and left < float("inf"):  # one wrong estimate must not cost the others their time
        state.budget.reserve += max(0.0, left - max(PATIENCE * chosen.seconds, left / 2))
    try:
        _race(state, arm)
    except FitFailed as error:
        state.failed(error.arm, error.cause)
    except TimeUp:
        state.budget.unwind()
        state.budget.reserve = outer
        if arm.rung is not None and not (arm.artifacts and state.scores(arm, state.search)):
            took = duration_text(state.budget.spent() - began)
            reason = f"stopped after {took}: {OVERRAN if state.budget.left() > 0 else 'the budget was used up'}"
            state.left[arm.name] = Left("skipped", reason, arm.family, again=True, lacked_budget=True)
            state.overran.add(arm.name)
            del state.arms[arm.name]
        if state.budget.left() <= 0:
            raise
    finally:
        state.budget.reserve = outer
    _learn(state, arm)
    _choose_model(state)
    prove(state)


def _learn(state: ClimbState, arm: Arm) -> None:
    """Remember what the rung did to its base, on the rows that both answered."""
    if arm.rung is None or arm.base is None or arm.name not in state.arms:
        return
    own, base = state.scores(arm, state.search), state.scores(arm.base, state.search)
    n = min(len(own), len(base))
    if n >= FIRST:
        state.worth.learn(arm.rung.name, arm.family, score_belief(own[:n]).mean, score_belief(base[:n]).mean)


def _choose_model(state: ClimbState) -> None:
    """With several models, start the ramp from the one that is clearly better, else from the first, once all raced."""
    if state.model_chosen:
        return
    if all(arm.raced for arm in state.arms.values()) and not prospects(state):
        leads = state.leader != state.incumbent and better(state, state.leader, state.incumbent) >= SURE
        state.model_chosen = state.leader if leads else state.incumbent


# ---- one race


def _race(state: ClimbState, arm: Arm) -> None:
    """Race an arm against the leader until it is decided, or all rows are answered."""
    arm.raced = True
    _make(state, arm)
    if not state.leader:
        state.leader = arm.name
        return
    if arm.name not in state.arms:  # its training was stopped
        return
    steps, enough = looks(len(state.search), whole=state.whole), len(state.search)
    if arm.rung is None and not state.whole:
        if state.budget.limits.seconds is not None:
            state.scores(arm, state.search, min(FIRST_ROWS, enough))  # its speed is measured
        enough = affordable(state, arm)
        steps = (enough, *steps) if enough < FIRST else steps
    for until, later in with_next(steps):
        leader = state.arms[state.leader]
        for each in (leader, arm):
            state.order(each, state.search, until)
        state.order(arm, state.search, later, ahead=True)
        for each in (leader, arm):
            state.scores(each, state.search, until)
        _drop(state, until)
        if arm.dropped or leader.dropped or (later > enough and prospects(state)):
            break  # a base is compared again with what leads later; its rows are dear
    _lead(state, arm)


def _drop(state: ClimbState, until: int) -> None:
    """Drop the arms that an earlier leader beats on the first rows, and those that are not worth further rows."""
    if state.whole:
        return  # bets need scores of single rows
    arms = {arm.name: arm for arm in state.arms.values() if arm.raced}
    seen = {name: own[:until] for name, arm in arms.items() if (own := state.scores(arm, state.search))}
    seen = {name: own for name, own in seen.items() if len(own) == until or arms[name].dropped}
    costs = {name: state.cost(arms[name]) for name in seen}
    for name, e in eliminate(seen, binary=state.scoring.binary, margin=state.margin, costs=costs).items():
        cheaper = costs[name] <= CHEAPER * costs[e.by]
        if cheaper and not futile(seen[e.by], seen[name], margin=state.margin, cheaper=True):
            continue  # proven worse, but by little: it may still be the better choice
        arms[name].dropped = arms[name].dropped or str(e)


def _lead(state: ClimbState, arm: Arm) -> None:
    """Let an arm lead that is better than the leader on the rows that both answered, or equal and cheaper."""
    leader = state.arms[state.leader]
    if leader.dropped and not arm.dropped:
        state.leader = arm.name
    elif not arm.dropped:
        own, other = state.scores(arm, state.search), state.scores(leader, state.search)
        n = min(len(own), len(other))
        ahead, cheaper = sum(own[:n]) - sum(other[:n]), state.cost(arm) < state.cost(leader)
        if ahead > 0 or (ahead == 0 and cheaper):
            state.leader = arm.name
    for each in list(state.alive()):  # against a leader that has just changed
        if each.name != state.leader:
            both = min(len(state.scores(one, state.search)) for one in (each, state.arms[state.leader]))
            if both:
                _drop(state, both)


def _make(state: ClimbState, arm: Arm) -> None:
    """Make the arm that answers the first rows; stop a training that even optimistically does not reach the leader."""
    fold = state.first_fold(arm)
    key = state.key(arm, fold)
    if arm.rung is None or arm.base is None or (state.store.kept(key) and state.store.noted("fitted", name=key)):
        state.made(arm, fold)
        return
    base = state.made(arm.base, state.fold_below(arm, fold))
    began = state.begin()
    try:
        for share, artifact in state.fitting(arm, base, fold):
            if share == 1:
                state.keep(arm, fold, artifact, began)
            elif (reason := _hopeless(state, arm, share, artifact)) is not None:
                state.leave(arm.name, arm.family, "stopped", reason, began[0])
                del state.arms[arm.name]
                return
    except Exception as error:
        raise_failed(arm, error)


def _hopeless(state: ClimbState, arm: Arm, share: float, artifact: Artifact) -> str | None:
    """Say why a training is not worth its other steps: by the optimistic power law it does not reach the leader."""
    if not state.leader or state.leader == arm.name or state.whole:
        return None
    leader, percent = state.arms[state.leader], round(100 * share)
    most = max((n for n in looks(len(state.search), whole=False) if n <= 4 * FIRST), default=0)
    for until in looks(most, whole=False):
        own = state.part_scores(arm, percent, artifact, state.search, until)
        theirs = state.scores(leader, state.search, until)
        seen, bar = score_belief(own), score_belief(theirs)
        highest = 1 - (1 - min(1.0, seen.mean + 2 * seen.sd)) * share**LEARNING
        if highest < bar.mean - 2 * bar.sd or (until == most and highest < bar.mean):
            return (
                f"stopped after {percent} % of its training: {100 * sum(own) / len(own):.0f} % on {until} rows, where "
                f"{leader.name} has {100 * sum(theirs) / until:.0f} %; at best it would reach {100 * highest:.0f} %"
            )
    return None
