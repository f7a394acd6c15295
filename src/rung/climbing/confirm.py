"""The confirmation of a climb: finalists answer rows that chose nothing, in looks, until the decision is made.

With folds and no test file, the rows of the search are those of the confirmation: each was answered by what was made
without it. All tests are valid at every look (`rung.evaluation.decision`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from rung.climbing.arms import Arm, ClimbState, FitFailed
from rung.climbing.choice import FIRST, looks, with_next
from rung.evaluation.decision import Decision, Verdict, chance_better, decide, settled
from rung.evaluation.statistics import mean_interval

PROMISING = 0.9  # probability that the leader is better than the incumbent, from which it is confirmed at once
AT_ONCE = 64  # rows that are answered for that, at most
AT_ONCE_SHARE = 0.15  # of the budget that the incumbent's rows may take for that; the rest waits for the end
PRECISE = 0.05  # half the width of the interval around the recommended arm's score that more rows are answered for
FEW_SECONDS = 15.0  # rows that take no longer are all answered
TYPICAL = 40  # rows of the incumbent that a confirmation is expected to take


def weigh(state: ClimbState, without: Mapping[str, str] | None = None, *, last: bool = False) -> Decision | None:
    """Decide by the rows answered so far; None while the incumbent has answered none.

    Arms in `without` are not to be recommended, whatever their score. `last` says that no rows follow.
    """
    scores = confirmed(state)
    if state.incumbent not in scores:
        return None
    n = len(state.confirm)
    allowed = {name: own for name, own in scores.items() if name not in (without or {}) or name == state.incumbent}
    complete = {name for name, own in scores.items() if len(own) == n and len(scores[state.incumbent]) == n}
    found = decide(
        allowed, {name: state.cost(state.arms[name]) for name in allowed}, state.incumbent,
        earlier=earlier(state, allowed), within=state.margin, binary=state.scoring.binary, looked=not state.whole,
        bounded=not state.whole, complete=complete, ended=last and state.budget.limited,
        endings=sum(entry["ended"] for entry in state.store.all_noted("confirmed")), level=state.level,
        seed=state.options.seed,
    )  # fmt: skip
    return found if not state.whole else replace(found, verdicts={
        name: _counted(state, name, verdict) for name, verdict in found.verdicts.items()
    })  # fmt: skip


def _counted(state: ClimbState, name: str, verdict: Verdict) -> Verdict:
    """The verdict with the rows that are fixed and broken, of a statistic that has no scores of rows."""
    own, base = (state.store.predictions(each) for each in (name, state.incumbent))
    keys = [(state.confirm.split, row.id) for row in state.confirm.rows[: verdict.n]]
    gains = [own[key].score - base[key].score for key in keys]
    return replace(verdict, fixed=sum(gain > 0 for gain in gains), broken=sum(gain < 0 for gain in gains))


def confirmed(state: ClimbState) -> dict[str, list[float]]:
    """The scores on the rows of the confirmation of all arms that answered any, the incumbent first."""
    arms = sorted(state.arms.values(), key=lambda arm: arm.name != state.incumbent)
    return {arm.name: own for arm in arms if (own := state.scores(arm, state.confirm))}


def earlier(state: ClimbState, names: Mapping[str, object]) -> dict[str, list[float]]:
    """The scores on the rows of the search, where these are others than those of the confirmation."""
    if state.search is state.confirm:
        return {}
    return {name: state.scores(state.arms[name], state.search) for name in names}


def better(state: ClimbState, name: str, other: str) -> float:
    """The probability that an arm is better than another, by the rows of the search that both answered."""
    own, theirs = (np.array(state.scores(state.arms[each], state.search)) for each in (name, other))
    n = min(len(own), len(theirs))
    return chance_better(own[:n] - theirs[:n]) if n else 0.5


def seconds_to_confirm(state: ClimbState) -> float:
    """The expected seconds of what is left of the confirmation by now.

    Once an arm is proven, the incumbent's answers that prove it serve its successors, too.
    """
    leader, incumbent = state.arms.get(state.leader or state.incumbent), state.arms[state.incumbent]
    assert leader is not None
    rows = min(TYPICAL, len(state.confirm))
    more = 0 if state.proven else max(0, rows - len(state.scores(incumbent, state.confirm)))
    total = more * state.row_seconds(incumbent)
    if leader is not incumbent:
        total += max(0, rows - len(state.scores(leader, state.confirm))) * state.row_seconds(leader)
    if leader.learns and None not in leader.artifacts:
        total += state.fit(leader)["fit_seconds"]
    return total


def prove(state: ClimbState) -> None:
    """Compare a new leader with the incumbent at once, on few rows of the confirmation, and say it if it is proven."""
    name = state.leader
    if name in ("", state.incumbent, state.proven) or not state.arms[state.incumbent].raced or state.whole:
        return
    if better(state, name, state.incumbent) < PROMISING:
        return
    pair = sorted((state.arms[name], state.arms[state.incumbent]), key=state.row_seconds)
    for until in looks(len(state.confirm), whole=state.whole):
        if until > AT_ONCE or _takes_long(state, until):
            return
        for arm in pair:
            state.order(arm, state.confirm, until)
        for arm in pair:
            state.scores(arm, state.confirm, until)
        found = weigh(state)
        if found is not None and name in found.verdicts and found.verdicts[name].outcome == "better":
            state.proven = name
            state.say()
            return


def _takes_long(state: ClimbState, until: int) -> bool:
    """Whether so many rows of the incumbent take a part of the budget that other arms may need more."""
    whole, n = state.budget.limits.seconds, min(until, len(state.confirm))
    return whole is not None and n * state.row_seconds(state.arms[state.incumbent]) > AT_ONCE_SHARE * whole


def confirm(state: ClimbState) -> None:
    """Have the finalists answer rows until each is settled, or the budget is used up; then the best one some more."""
    finalists = [arm for arm in state.arms.values() if arm.raced and not arm.dropped]
    names = dict.fromkeys([state.incumbent, *(arm.name for arm in finalists), *confirmed(state)])
    waiting = {name: state.arms[name] for name in names}
    # What is cheap answers first, so that no row of a dear arm lacks its pair when the budget ends.
    ranked = sorted(waiting, key=lambda name: state.row_seconds(waiting[name]))
    for until, later in with_next(looks(len(state.confirm), whole=state.whole)):
        for name in [name for name in ranked if name in waiting]:
            state.order(waiting[name], state.confirm, until)
        for name in [name for name in ranked if name in waiting]:
            state.order(waiting[name], state.confirm, later, ahead=True)
        for name in [name for name in ranked if name in waiting]:
            answer(state, waiting[name], until)
            if name not in state.arms:
                del waiting[name]
        scores = confirmed(state)
        if not state.whole and (len(waiting) > 1 or len(scores) > 1):
            costs = {name: state.cost(state.arms[name]) for name in scores}
            for name in settled(
                scores, costs, state.incumbent, earlier=earlier(state, scores), within=state.margin,
                binary=state.scoring.binary, level=state.level, seed=state.options.seed,
            ):  # fmt: skip
                waiting.pop(name, None)
        if not waiting:
            break


def narrow(state: ClimbState, name: str) -> None:
    """Have an arm answer more rows until the interval around its score is narrow, all of them if they take seconds."""
    arm, n = state.arms[name], len(state.confirm)
    known = state.scores(arm, state.confirm)
    if (n - len(known)) * state.row_seconds(arm) <= FEW_SECONDS:
        answer(state, arm, n)
        return
    for until, later in with_next(looks(n, whole=state.whole)):
        state.order(arm, state.confirm, until)
        state.order(arm, state.confirm, later, ahead=True)
        answer(state, arm, until)
        low, high = mean_interval(state.scores(arm, state.confirm), seed=state.options.seed)
        if until >= FIRST and (high - low) / 2 <= PRECISE:
            return


def answer(state: ClimbState, arm: Arm, until: int) -> None:
    """Answer rows of the confirmation; an arm that cannot be made for them fails."""
    try:
        state.scores(arm, state.confirm, until)
    except FitFailed as error:
        if error.arm.rung is None or error.arm.name == state.incumbent:
            raise
        state.failed(error.arm, error.cause)
