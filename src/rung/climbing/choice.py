"""Which arm a climb makes next: what takes seconds, then the bases, then what is expected to gain most a second."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rung.artifact.artifact import Artifact
from rung.climbing.arms import FIRST_ROWS, Arm, ClimbState, Left
from rung.climbing.budget import duration_text
from rung.climbing.worth import Belief, Promise, score_belief
from rung.data.rows import Data
from rung.evaluation import racing
from rung.evaluation.result import YARDSTICK
from rung.machine import Machine
from rung.models.reference import is_endpoint
from rung.rungs.base import Applicability, Cost, Rung

STAGES = 3  # of the ramp: rungs on top of each other, at most
ELITES = 3  # arms that further rungs are put on
# Expected improvement over the leader, a share, below which an arm is put off: in all, and for a minute of its time
# where there is no budget. On top of other rungs, twice as much is asked for.
LEAST_GAIN, GAIN_A_MINUTE = 0.0025, 0.005
FIRST = 8  # rows of the first look at a race
FEW = 3 * FIRST  # rows that a race is expected to take where the arm is not the better choice
CHEAP_SECONDS = 3.0  # an arm that takes no longer, or no longer than a base's first look, goes before the bases
CHEAP_SHARE = 0.25  # of the budget, after which the bases come first
DEAR = 0.1  # share of the budget that the rows of a base may take before the rungs: 16 of them, at least 2
SLIVER = 0.1  # of the time left that a yardstick's first look may take to go before all, whatever it promises


def looks(rows: int, *, whole: bool) -> tuple[int, ...]:
    """List the numbers of rows after which a race is looked at: growing multiples of 8, and `rows`.

    A statistic of the `whole` set is looked at once.
    """
    if not rows:
        return ()
    return (rows,) if whole else racing.looks(rows, first=FIRST)


def with_next(steps: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Pair every look with the one after it, the last with itself."""
    return zip(steps, (*steps[1:], *steps[-1:]), strict=True)


def applicable(rung: Rung, artifact: Artifact, data: Data, machine: Machine) -> tuple[Applicability, Cost | None]:
    """Say whether a rung can be put on an artifact on this machine, and what it is expected to take."""
    if rung.name in artifact.path:
        return Applicability(False, "it is there already"), None
    verdict = rung.applies(artifact, data)
    if not verdict.applies:
        return verdict, None
    cost = rung.estimate(artifact, data, machine)
    if cost.memory_bytes > machine.memory_bytes:
        needed, available = cost.memory_bytes / 2**30, machine.memory_bytes / 2**30
        return Applicability(
            False, f"it needs about {needed:.1f} GiB of memory, and {available:.1f} GiB are available"
        ), None
    return verdict, cost


@dataclass(frozen=True, slots=True)
class Prospect:
    """An arm that could be made next, and what is expected of it.

    Attributes:
        fit_seconds, row_seconds: to make it once, and to answer a row.
        seconds: to make it and to answer the rows that its race is expected to take.
        first_seconds: to make it and to answer the rows of the first look.
    """

    name: str
    rung: Rung
    base: Arm
    cost: Cost
    promise: Promise
    fit_seconds: float
    row_seconds: float
    seconds: float
    first_seconds: float

    @property
    def worth(self) -> float:
        """The expected improvement a second."""
        return self.promise.gain / max(self.seconds, 0.1)

    @property
    def arm(self) -> Arm:
        """The arm that it becomes."""
        return Arm(
            self.name, self.rung.family, self.rung, self.base, self.cost, self.fit_seconds, self.row_seconds
        )  # fmt: skip


def leading(state: ClimbState) -> Belief:
    """What is known of the leader's score."""
    leader = state.arms.get(state.leader)
    return score_belief(state.scores(leader, state.search) if leader else ())


def expected(state: ClimbState, rung: Rung, base: Arm, name: str, cost: Cost, leader: Belief) -> Prospect:
    """Say what is expected of a rung on top of a base, corrected by what was measured."""
    own = score_belief(state.scores(base, state.search))
    closed = state.task.corpus is not None and not rung.reads_corpus and state.some(base).retriever is None
    promise = state.worth.promise(rung, base.depth + 1, own, leader, state.margin, closed_book=closed)
    fit = state.paces.fit_seconds(cost, trains=rung.trains_weights)
    pace = state.paces.row_seconds(name, cost)
    n = len(state.search) or len(state.confirm)
    few = min(n, FEW)
    rows = few + promise.chance * (n - few)
    fits = max(1.0, state.fits * rows / n) if rung.learns or base.learns else 1.0
    return Prospect(name, rung, base, cost, promise, fit, pace, fits * fit + rows * pace, fit + min(n, FIRST) * pace)


def next_arm(state: ClimbState) -> Prospect | Arm | None:
    """Choose the next arm; None if nothing that is left is worth it."""
    waiting = [arm for arm in state.arms.values() if not arm.raced]
    lines = prospects(state)
    if not lines and len(state.arms) == 1:
        return None  # nothing to compare the incumbent with
    whole = state.budget.limits.seconds
    late = whole is not None and state.budget.spent() > CHEAP_SHARE * whole
    late = late and first_look(state, waiting) < state.budget.left()
    measure = [line for line in lines if is_measure(state, line)]
    for chosen in (*measure, *waiting, *in_order(state, lines, ())) if late else in_order(state, lines, waiting):
        if isinstance(chosen, Arm):
            return chosen
        if (left := put_off(state, chosen)) is None:
            return chosen
        state.left[chosen.name] = left
    return None


def order_ahead(state: ClimbState, following: Prospect | Arm) -> None:
    """Have idle workers begin with the arms that would be next if this one changed nothing, for as long as it takes.

    What takes longest begins first, or the climb would wait for it at the end, with one worker busy. Then come the
    first rows of the confirmation, which whatever is in the race at the end has to answer, and more rows of the arms,
    which may lose before; not where rows cost money.
    """
    if state.crew is None:
        return

    def takes(each: Prospect | Arm) -> float:
        return first_look(state, [each]) if isinstance(each, Arm) else each.seconds

    waiting = [arm for arm in state.arms.values() if not arm.raced]
    others = [each for each in in_order(state, prospects(state), waiting) if each.name != following.name]
    if isinstance(following, Prospect):  # while a base is looked at, several workers answer its rows
        others.sort(key=takes, reverse=True)
    idle = state.crew.workers - 1
    begun: list[tuple[Arm, float]] = []  # with the seconds of a row
    room = idle * takes(following)
    for number, each in enumerate(others):
        if number >= 2 * idle and room <= 0:
            return
        if isinstance(each, Arm) or put_off(state, each) is None:
            arm = each if isinstance(each, Arm) else each.arm
            state.order(arm, state.search, FEW, ahead=True)
            room -= takes(each)
            begun.append((arm, state.row_seconds(each) if isinstance(each, Arm) else each.row_seconds))
    for arm in state.alive():
        if state.confirm is not state.search and room > 0:
            state.order(arm, state.confirm, FIRST, ahead=True)
            room -= FIRST * state.row_seconds(arm)
    if is_endpoint(state.task.model) or state.budget.limits.money is not None:
        return
    for until in range(2 * FEW, len(state.search) + FEW, FEW):
        for arm, pace in begun:
            if room > 0:
                state.order(arm, state.search, until, ahead=True)
                room -= FEW * pace


def first_look(state: ClimbState, waiting: Sequence[Arm]) -> float:
    """The seconds that the first look at the next base is expected to take."""
    if not waiting:
        return 0.0
    rows = min(FIRST, affordable(state, waiting[0]))
    return state.opening(state.some(waiting[0])) + rows * state.row_seconds(waiting[0])


def affordable(state: ClimbState, base: Arm) -> int:
    """How many rows a base answers before the rungs: 16, or fewer where these take a large part of the budget."""
    whole, most = state.budget.limits.seconds, min(2 * FIRST, len(state.search))
    if whole is None:
        return most
    return max(min(FIRST_ROWS, most), min(most, int(DEAR * whole / max(state.row_seconds(base), 1e-9))))


def is_measure(state: ClimbState, line: Prospect) -> bool:
    """Whether the arm is what others are held against and takes next to nothing."""
    return line.rung.family == YARDSTICK and line.first_seconds <= min(CHEAP_SECONDS, SLIVER * state.budget.left())


def in_order(state: ClimbState, lines: Sequence[Prospect], waiting: Sequence[Arm]) -> Iterator[Prospect | Arm]:
    """Put first what takes no longer than a base's first look while one waits, then the bases, the others by worth."""
    ranked = sorted(lines, key=lambda line: (-line.worth, len(line.base.path)))
    short = max(CHEAP_SECONDS, first_look(state, waiting))
    cheap = [line for line in ranked if line.seconds <= short] if waiting else []
    yield from cheap
    yield from waiting
    yield from (line for line in ranked if line not in cheap)


def put_off(state: ClimbState, chosen: Prospect) -> Left | None:
    """Say why a candidate is not tried now; None if it is."""
    left, family, seconds, gain = state.budget.left(), chosen.rung.family, chosen.seconds, chosen.promise.gain
    if chosen.first_seconds > left:
        reason = (
            f"it is expected to take {duration_text(chosen.first_seconds)} and {duration_text(max(0.0, left))} "
            f"of the budget are left"
        )
        return Left("skipped", reason, family, again=True, lacked_budget=True, seconds=seconds, gain=gain)
    if (chosen.rung.name in state.named and chosen.base.depth == 0) or not state.leader or is_measure(state, chosen):
        return None
    limited, strict = state.budget.limits.seconds is not None, 2 if chosen.base.depth else 1
    if gain >= strict * LEAST_GAIN and (limited or gain >= strict * GAIN_A_MINUTE * seconds / 60):
        return None
    reason = f"put off: expected to take {duration_text(seconds)} for a gain of {100 * gain:.1f} points"
    return Left("skipped", reason, family, again=True, seconds=seconds, gain=gain)


def prospects(state: ClimbState) -> list[Prospect]:
    """Find the arms that could be made next; record why others are left out."""
    found: list[Prospect] = []
    rungs = state.rungs if state.model_chosen else state.models
    for base in sorted(bases(state), key=lambda arm: len(arm.path)):  # of twins, the one on the simplest base
        opening = base.rung is not None and base.rung.opens_ramp
        alone = {line.rung.name for line in found if line.base.depth == 0}
        for rung in rungs:
            if base.depth and not opening and rung.name in alone:
                continue  # it is measured by itself first
            if (line := _candidate(state, base, rung, found)) is not None:
                found.append(line)
    return found


def bases(state: ClimbState) -> list[Arm]:
    """The arms that rungs are put on: the bases, what opens the ramp, and the best of those that improved on theirs."""
    arms = list(state.arms.values())
    plain = [arm for arm in arms if arm.rung is None]
    if state.model_chosen not in ("", state.incumbent):
        plain = [state.arms[state.model_chosen]]
    opening = [arm for arm in arms if arm.raced and arm.rung is not None and arm.rung.opens_ramp]
    improved = [arm for arm in state.alive() if arm not in (*plain, *opening) and _improved(state, arm)]
    improved.sort(key=lambda arm: -score_belief(state.scores(arm, state.search)).mean)
    return [arm for arm in (*plain, *opening, *improved[:ELITES]) if arm.depth < STAGES]


def _improved(state: ClimbState, arm: Arm) -> bool:
    """Whether the arm is ahead of its base on the rows that both answered."""
    if arm.base is None:
        return False
    own, base = state.scores(arm, state.search), state.scores(arm.base, state.search)
    n = min(len(own), len(base))
    return n >= FIRST and sum(own[:n]) > sum(base[:n])


def _candidate(state: ClimbState, base: Arm, rung: Rung, found: Sequence[Prospect]) -> Prospect | None:
    """Describe a rung on top of a base; None if it does not apply, or was tried or left out before."""
    artifact = state.some(base)
    if rung.name in artifact.path or (rung in state.models and state.model_chosen and base.depth == 0):
        return None
    name = artifact.step(rung.name, {}).name
    if name in state.arms or name in state.overran or (name in state.left and not state.left[name].again):
        return None
    for entry in (*state.store.all_noted("failed"), *state.store.all_noted("stopped")):
        if entry["name"] == name:
            state.left[name] = Left(entry["event"], entry["reason"], rung.family)
            return None
    verdict, cost = applicable(rung, artifact, state.data, state.machine)
    if cost is None:
        if base.depth == 0:  # on higher bases most rungs do not apply, and listing them would not help
            state.left[name] = Left("skipped", verdict.reason, rung.family)
        return None
    if (twin := _twin(state, artifact, rung, found)) is not None:
        reason = f"it would equal {twin}, because it reads nothing that {base.name} adds"
        state.left[name] = Left("skipped", reason, rung.family)
        return None
    made = {part for arm in state.arms.values() if arm.raced and arm.cost for part, _ in arm.cost.shared}
    return expected(state, rung, base, name, cost.given(made), leading(state))


def _twin(state: ClimbState, base: Artifact, rung: Rung, found: Sequence[Prospect]) -> str | None:
    """Name the arm that the rung makes of an equivalent base."""
    if (key := rung.cache_key(base)) is None:
        return None
    made = [(arm.name, arm.rung.name, arm.base) for arm in state.arms.values() if arm.rung and arm.base]
    others = [*made, *((line.name, line.rung.name, line.base) for line in found)]
    return next((n for n, r, b in others if r == rung.name and rung.cache_key(state.some(b)) == key), None)
