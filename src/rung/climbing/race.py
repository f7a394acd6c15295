"""The race: candidates answer the same validation rows in growing batches; the clearly beaten stop early."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from rung.artifact.artifact import Artifact
from rung.climbing.options import ClimbOptions
from rung.climbing.plan import STAGES, most_arms, plan
from rung.climbing.store import RunStore
from rung.data.rows import Data, Example
from rung.errors import RungError
from rung.evaluation import racing
from rung.evaluation.racing import RaceResult, race_order
from rung.evaluation.result import Comparison, Prediction, Status
from rung.evaluation.scoring import evaluate, metric_of
from rung.evaluation.statistics import compare, holm
from rung.machine import Machine
from rung.progress import QUIET, Progress
from rung.rungs.base import Rung
from rung.task import Task

BATCH = 32  # rows answered between two writes: what a kill may cost


def race(
    candidates: Sequence[Artifact],
    rows: Sequence[Example],
    store: RunStore,
    *,
    arms: int,
    folder: Path | None = None,
    progress: Progress = QUIET,
) -> RaceResult:
    """Race `candidates` over `rows`; see `rung.evaluation.racing` for the rule and its error rate.

    Args:
        candidates: artifacts with different names.
        rows: validation rows in race order.
        store: where answers are kept, and found again after an interruption.
        arms: how many candidates the whole climb may ever compare: the error rate is shared among them.
        folder: of the task file, where a metric of the user's own may lie.
        progress: told of every batch.
    """
    named = {artifact.name: artifact for artifact in candidates}

    def ask(name: str, until: int) -> list[float]:
        rows_ = answer_rows(named[name], rows[:until], "validation", store, folder=folder, progress=progress)
        return [row.score for row in rows_]

    binary = metric_of(candidates[0], folder).binary
    return racing.race(tuple(named), ask, len(rows), arms=arms, binary=binary)


def answer_rows(
    artifact: Artifact,
    rows: Sequence[Example],
    split: Literal["test", "validation"],
    store: RunStore,
    *,
    folder: Path | None = None,
    progress: Progress = QUIET,
) -> list[Prediction]:
    """Return the artifact's answers to `rows`, computing only those that the store does not have."""
    known = store.predictions(artifact.name)
    missing = [row for row in rows if (split, row.id) not in known]
    if missing:
        progress.start(f"{artifact.name} on {split}", len(missing))
        for first in range(0, len(missing), BATCH):
            part = missing[first : first + BATCH]
            store.add(artifact.name, evaluate(artifact, part, split, folder=folder))
            progress.advance(len(part))
        progress.finish()
    return [store.predictions(artifact.name)[split, row.id] for row in rows]


# --------------------
# A climb under way: what its stages and its end share.


@dataclass
class State:
    """A climb under way.

    Attributes:
        rungs: all that are tried.
        models: of the rungs, those that are raced alone before the others.
        artifacts: by name; `families` has the family of each.
        beaten: why an artifact left the race.
        out: rungs that made no artifact, and why.
        trail: names of the leaders, one stage after the other.
        tried: rung, what it took of its base, name of what it made.
    """

    task: Task
    data: Data
    options: ClimbOptions
    rungs: tuple[Rung, ...]
    models: tuple[Rung, ...]
    machine: Machine
    store: RunStore
    progress: Progress
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    families: dict[str, str] = field(default_factory=dict)
    beaten: dict[str, str] = field(default_factory=dict)
    out: dict[str, tuple[Status, str]] = field(default_factory=dict)
    trail: list[str] = field(default_factory=list)
    tried: list[tuple[str, tuple[object, ...], str]] = field(default_factory=list)

    @property
    def task_metric(self) -> str:
        """Name of the metric."""
        return self.artifacts[self.trail[0]].signature.metric


# --------------------
# The confirmation: finalists once on the untouched test split, then the recommendation.
#
# Zero-shot is the incumbent. A finalist may be recommended only if it significantly beats zero-shot on the test rows;
# among those the cheapest is taken that no other significantly beats. All pairs are tested, with Holm's correction over
# all of them, at level 0.05.


LEVEL = 0.05


def compare_all(scores: Mapping[str, Sequence[float]], metric: str, *, seed: int) -> list[Comparison]:
    """Compare every pair of artifacts on the same rows; p-values are corrected over all pairs (Holm 1979).

    Args:
        scores: per artifact, one score per test row, in the same order; earlier ones are taken as `a`.
        metric: name of the metric.
        seed: of the bootstrap, where scores are not 0 or 1.
    """
    pairs = list(combinations(scores, 2))
    raw = [compare(scores[a], scores[b], seed=seed) for a, b in pairs]
    adjusted = holm([result.p for result in raw])
    return [Comparison.of(a, b, metric, tested, p) for (a, b), tested, p in zip(pairs, raw, adjusted, strict=True)]


def beats(comparisons: Sequence[Comparison], winner: str, loser: str) -> bool:
    """Say whether `winner` significantly beats `loser`."""
    for c in comparisons:
        if {c.a, c.b} == {winner, loser}:
            return c.p < LEVEL and (c.delta > 0) == (c.b == winner) and c.delta != 0
    return False


def recommend(comparisons: Sequence[Comparison], costs: Mapping[str, float], incumbent: str) -> str:
    """Return the cheapest finalist that beats the incumbent and that nothing beats; else the incumbent.

    Args:
        comparisons: all pairs.
        costs: per finalist, what it costs to use; less is cheaper.
        incumbent: zero-shot.
    """
    better = [name for name in costs if name != incumbent and beats(comparisons, name, incumbent)]
    unbeaten = [name for name in better if not any(beats(comparisons, other, name) for other in better)]
    return min(unbeaten, key=lambda name: costs[name], default=incumbent)


# --------------------
# Stage after stage: fit every rung that applies on what leads, race, and go on from the winner.


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
            opening = {rung_.name for rung_ in rungs if rung_.opens_ramp}
            new += _fit_stage(state, [base for base in new if base.path[-1] in opening], rungs)
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
    taken = rung_.cache_key(base)
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
