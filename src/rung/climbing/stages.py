"""Stage after stage: fit every rung that applies on what leads, race, and go on from the winner."""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from typing import Any

from rung.artifact.artifact import Artifact
from rung.climbing.arms import STAGES, most_arms
from rung.climbing.confirm import beats, compare_all
from rung.climbing.plan import plan
from rung.climbing.race import RaceResult, race
from rung.climbing.state import State
from rung.errors import RungError
from rung.evaluation.racing import race_order
from rung.evaluation.result import Status
from rung.rungs.base import Rung, taken_from

CONFIRM_SHARE = 0.25  # of the budget, kept for the test split


def run_stages(state: State, bases: Sequence[Artifact]) -> tuple[str, ...]:
    """Race stage after stage, the first on top of all bases; return the names of those never beaten.

    Every rung is put on top of retrieval from the start: what reads documents has to be tuned reading them, and a rung
    that won without documents could not be put on top of them any more.
    """
    incumbent, contenders = bases[0], list(bases)
    stages = [*([state.models] if state.models else []), *[state.rungs] * STAGES]
    arms = most_arms(bases, state.models, state.rungs, state.data)
    for stage, rungs in enumerate(stages):
        new = _fit_stage(state, bases if stage == 0 else (incumbent,), rungs)
        if stage == bool(state.models):
            new += _fit_stage(state, [base for base in new if base.path[-1] == "retrieval"], rungs)
        if not new and stage > bool(state.models):
            break
        contenders = [*contenders, *new]
        rows = race_order(state.data.validation)
        result = race(contenders, rows, state.store, arms=arms, folder=state.task.folder, progress=state.progress)
        _note_beaten(state, result)
        contenders = [state.artifacts[name] for name in result.survivors]
        leader = _leader(state, contenders, rows)
        if leader.name != incumbent.name and _clearly_better(state, leader, incumbent, result, rows):
            state.trail.append(leader.name)
            incumbent = leader
        elif rungs is not state.models:  # the ramp goes on from the first model where no other is clearly better
            break
    return tuple(artifact.name for artifact in contenders)


def _fit_stage(state: State, bases: Sequence[Artifact], rungs: Sequence[Rung]) -> list[Artifact]:
    """Fit every rung that applies on top of a base and fits the budget, cheapest first, on the plainest base first."""
    lines = [(base, line) for base in bases for line in plan(base, rungs, state.data, state.machine)]
    made = []
    for base, line in sorted(lines, key=lambda pair: (not pair[1].applies, pair[1].seconds, len(pair[0].path))):
        name = base.step(line.rung.name, {}).name
        if name in state.artifacts or name in state.out:
            continue  # an earlier stage has tried it
        if not line.applies:
            if len(base.path) == 1:  # higher up, not applying is the rule and says nothing
                state.out[name] = ("skipped", line.reason)
            continue
        state.families[name] = line.rung.family
        if (twin := _twin(state, base, line.rung, name)) is not None:
            state.out[name] = ("skipped", f"it would be {twin} again, for it reads nothing that {base.name} adds")
            continue
        artifact = _fitted(state, base, line.rung, name, line.seconds)
        if artifact is not None:
            state.artifacts[name] = artifact
            made.append(artifact)
    return made


def _twin(state: State, base: Artifact, rung_: Rung, name: str) -> str | None:
    """Return the name under which the rung was tried with the same result to expect; else note that it is tried."""
    taken = taken_from(rung_, base)
    if taken is None:
        return None
    for other, before, twin in state.tried:
        if other == rung_.name and before == taken:
            return twin
    state.tried.append((rung_.name, taken, name))
    return None


def _fitted(state: State, base: Artifact, rung_: Rung, name: str, expected: float) -> Artifact | None:
    """Return the fitted artifact, from the run folder if it is there; None where it failed or was skipped."""
    if (artifact := state.store.kept(name)) is not None and state.store.noted("fitted", name=name):
        return artifact
    events: tuple[Status, ...] = ("failed", "skipped")
    for event in events:
        if (entry := state.store.noted(event, name=name)) is not None:
            state.out[name] = (event, entry["reason"])
            return None
    budget = state.options.budget_seconds
    left = None if budget is None else budget * (1 - CONFIRM_SHARE) - state.store.spent()
    if left is not None and expected > left:
        reason = f"it is expected to take {expected:.0f} s and {max(left, 0):.0f} s of the budget are left"
        _leave_out(state, "skipped", name, reason)
        return None
    start = time.perf_counter()
    try:
        artifact = state.store.keep(rung_.fit(base, state.data, progress=state.progress))
    except RungError as error:
        _leave_out(state, "failed", name, f"{error} [{error.code}]")
        return None
    except Exception as error:
        # One broken rung must not cost the others their results: it is reported, with its traceback beside it.
        folder = state.store.folder / "rungs" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "error.txt").write_text(traceback.format_exc())
        _leave_out(state, "failed", name, f"{type(error).__name__}: {error}; see {folder / 'error.txt'}")
        return None
    state.store.note("fitted", name=name, fit_seconds=round(time.perf_counter() - start, 3))
    return artifact


def _leave_out(state: State, status: Status, name: str, reason: str) -> None:
    state.out[name] = (status, reason)
    state.store.note(status, name=name, reason=reason)


def _note_beaten(state: State, result: RaceResult) -> None:
    for name, e in result.beaten.items():
        state.beaten[name] = f"beaten by {e.by} after {e.n} rows: {e.fixed} fixed / {e.broken} broken, p = {e.p:.2g}"


def _scores(state: State, name: str, rows: Sequence[Any]) -> list[float]:
    known = state.store.predictions(name)
    return [known["validation", row.id].score for row in rows]


def _leader(state: State, contenders: Sequence[Artifact], rows: Sequence[Any]) -> Artifact:
    """Return the survivor with the best mean; the earlier (cheaper) one of equals. One alone need not be scored."""
    if len(contenders) == 1:
        return contenders[0]
    means = {artifact.name: sum(_scores(state, artifact.name, rows)) for artifact in contenders}
    return max(contenders, key=lambda artifact: means[artifact.name])


def _clearly_better(
    state: State, leader: Artifact, incumbent: Artifact, result: RaceResult, rows: Sequence[Any]
) -> bool:
    if incumbent.name in result.beaten:
        return True
    pair = {name: _scores(state, name, rows) for name in (incumbent.name, leader.name)}
    return beats(compare_all(pair, state.task_metric, seed=state.options.seed), leader.name, incumbent.name)
