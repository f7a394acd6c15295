"""Stage after stage: fit every rung that applies on top of the leader, race the artifacts, go on from the winner."""

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
from rung.climbing.plan import STAGES, plan
from rung.climbing.store import RunStore
from rung.data.rows import Data, Example
from rung.engines.api_options import ApiBudget
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
    candidates: Sequence[Artifact], rows: Sequence[Example], store: RunStore, *,
    folder: Path | None = None, progress: Progress = QUIET,
) -> RaceResult:  # fmt: skip
    """Race artifacts over validation rows in race order; see `rung.evaluation.racing` for the rule and its error rate.

    The store keeps the answers, so that an interrupted race continues; a metric of the user's own is found in the task
    file's `folder`.
    """
    named = {artifact.name: artifact for artifact in candidates}

    def ask(name: str, until: int) -> list[float]:
        answers = answer_rows(named[name], rows[:until], "validation", store, folder=folder, progress=progress)
        return [answer.score for answer in answers]

    binary = metric_of(candidates[0], folder).binary
    return racing.race(tuple(named), ask, len(rows), binary=binary)


def answer_rows(
    artifact: Artifact, rows: Sequence[Example], split: Literal["test", "validation"], store: RunStore, *,
    folder: Path | None = None, progress: Progress = QUIET,
) -> list[Prediction]:  # fmt: skip
    """Answer the rows that the store does not have yet; return the answers to all."""
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


@dataclass
class ClimbState:
    """What the stages of a climb and its conclusion share."""

    task: Task
    data: Data
    options: ClimbOptions
    rungs: tuple[Rung, ...]  # all rungs to try
    models: tuple[Rung, ...]  # those among them that are raced alone before the others
    machine: Machine
    store: RunStore
    progress: Progress
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    families: dict[str, str] = field(default_factory=dict)  # of the artifacts
    beaten: dict[str, str] = field(default_factory=dict)  # why an artifact left the race
    out: dict[str, tuple[Status, str]] = field(default_factory=dict)  # rungs that made no artifact, and why
    trail: list[str] = field(default_factory=list)  # names of the leaders, stage by stage
    # Rung, its cache key on the base, name of the artifact that it made.
    tried: list[tuple[str, tuple[object, ...], str]] = field(default_factory=list)

    @property
    def task_metric(self) -> str:
        """Name of the metric."""
        return self.artifacts[self.trail[0]].signature.metric


LEVEL = 0.05  # of the tests on the test split, after Holm's correction over all pairs


def compare_all(scores: Mapping[str, Sequence[float]], metric: str, *, seed: int) -> list[Comparison]:
    """Compare every pair of artifacts on the same rows, with p-values corrected over all pairs (Holm 1979).

    `scores` has one score per row; the earlier artifact of a pair is `a`. `seed` is that of the bootstrap, used for
    scores other than 0 and 1.
    """
    pairs = list(combinations(scores, 2))
    raw = [compare(scores[a], scores[b], seed=seed) for a, b in pairs]
    adjusted = holm([result.p for result in raw])
    return [Comparison.of(a, b, metric, tested, p) for (a, b), tested, p in zip(pairs, raw, adjusted, strict=True)]


def beats(comparisons: Sequence[Comparison], winner: str, loser: str) -> bool:
    """Whether `winner` is significantly better than `loser`."""
    for c in comparisons:
        if {c.a, c.b} == {winner, loser}:
            return c.p < LEVEL and (c.delta > 0) == (c.b == winner) and c.delta != 0
    return False


def recommend(comparisons: Sequence[Comparison], costs: Mapping[str, float], incumbent: str) -> str:
    """Choose the cheapest finalist that beats the incumbent on the test rows and that no other beats; else it."""
    better = [name for name in costs if name != incumbent and beats(comparisons, name, incumbent)]
    unbeaten = [name for name in better if not any(beats(comparisons, other, name) for other in better)]
    return min(unbeaten, key=lambda name: costs[name], default=incumbent)


CONFIRM_SHARE = 0.25  # of the budget, kept for the test split


def run_stages(state: ClimbState, bases: Sequence[Artifact]) -> tuple[str, ...]:
    """Race stage after stage, the first on top of all bases; return the names of the artifacts never beaten.

    Rungs that open the ramp, such as retrieval, get all other rungs on top of them in the first stage already: a model
    has to be tuned with the documents that it will read, and documents cannot be added below a rung that won.
    """
    incumbent, contenders = bases[0], list(bases)
    stages = [*([state.models] if state.models else []), *[state.rungs] * STAGES]
    for stage, rungs in enumerate(stages):
        new = _fit_stage(state, bases if stage == 0 else (incumbent,), rungs)
        if stage == bool(state.models):
            opening = {rung_.name for rung_ in rungs if rung_.opens_ramp}
            new += _fit_stage(state, [base for base in new if base.path[-1] in opening], rungs)
        if not new and stage > bool(state.models):
            break
        contenders = [*contenders, *new]
        rows = race_order(state.data.validation)
        result = race(contenders, rows, state.store, folder=state.task.folder, progress=state.progress)
        for name, e in result.beaten.items():
            state.beaten[name] = str(e)
        contenders = [state.artifacts[name] for name in result.survivors]
        leader = _leader(state, contenders, rows)
        if leader.name != incumbent.name and _clearly_better(state, leader, incumbent, result, rows):
            state.trail.append(leader.name)
            incumbent = leader
        elif rungs is not state.models:  # without a clearly better model, the ramp goes on from the first one
            break
    return tuple(artifact.name for artifact in contenders)


def _fit_stage(state: ClimbState, bases: Sequence[Artifact], rungs: Sequence[Rung]) -> list[Artifact]:
    """Fit every rung that applies and fits the budget: the cheapest first, and on the simplest base first."""
    lines = [(base, line) for base in bases for line in plan(base, rungs, state.data, state.machine)]
    fitted = []
    for base, line in sorted(lines, key=lambda pair: (not pair[1].applies, pair[1].seconds, len(pair[0].path))):
        name = base.step(line.rung.name, {}).name
        if name in state.artifacts or name in state.out:
            continue  # an earlier stage tried it
        if not line.applies:
            if len(base.path) == 1:  # on higher bases most rungs do not apply, and listing them would not help
                state.out[name] = ("skipped", line.reason)
            continue
        state.families[name] = line.rung.family
        if (twin := _twin(state, base, line.rung, name)) is not None:
            state.out[name] = ("skipped", f"it would equal {twin}, because it reads nothing that {base.name} adds")
            continue
        artifact = _fitted(state, base, line.rung, name, line.seconds)
        if artifact is not None:
            state.artifacts[name] = artifact
            fitted.append(artifact)
    return fitted


def _twin(state: ClimbState, base: Artifact, rung_: Rung, name: str) -> str | None:
    """Name the artifact that the rung already made from an equivalent base; if there is none, remember this one."""
    key = rung_.cache_key(base)
    if key is None:
        return None
    for other, other_key, twin in state.tried:
        if other == rung_.name and other_key == key:
            return twin
    state.tried.append((rung_.name, key, name))
    return None


def _fitted(state: ClimbState, base: Artifact, rung_: Rung, name: str, expected: float) -> Artifact | None:
    """Fit the rung, or load the artifact from the run folder; None if the rung fails or is skipped."""
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
    start, paid = time.perf_counter(), ApiBudget.process()
    try:
        artifact = state.store.keep(rung_.fit(base, state.data, progress=state.progress))
    except RungError as error:
        _leave_out(state, "failed", name, f"{error} [{error.code}]")
        return None
    except Exception as error:
        # One broken rung must not cost the others their results: the report names it, and its traceback is kept.
        folder = state.store.folder / "rungs" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "error.txt").write_text(traceback.format_exc())
        _leave_out(state, "failed", name, f"{type(error).__name__}: {error}; see {folder / 'error.txt'}")
        return None
    seconds, money = round(time.perf_counter() - start, 3), (ApiBudget.process() - paid).money
    state.store.note("fitted", name=name, fit_seconds=seconds, fit_money=money)
    return artifact


def _leave_out(state: ClimbState, status: Status, name: str, reason: str) -> None:
    state.out[name] = (status, reason)
    state.store.note(status, name=name, reason=reason)


def _scores(state: ClimbState, name: str, rows: Sequence[Any]) -> list[float]:
    known = state.store.predictions(name)
    return [known["validation", row.id].score for row in rows]


def _leader(state: ClimbState, contenders: Sequence[Artifact], rows: Sequence[Any]) -> Artifact:
    """The survivor with the best mean; of equals, the earlier (cheaper) one. A single survivor has no scores."""
    if len(contenders) == 1:
        return contenders[0]
    means = {artifact.name: sum(_scores(state, artifact.name, rows)) for artifact in contenders}
    return max(contenders, key=lambda artifact: means[artifact.name])


def _clearly_better(
    state: ClimbState, leader: Artifact, incumbent: Artifact, result: RaceResult, rows: Sequence[Any]
) -> bool:
    if incumbent.name in result.beaten:
        return True
    pair = {name: _scores(state, name, rows) for name in (incumbent.name, leader.name)}
    return beats(compare_all(pair, state.task_metric, seed=state.options.seed), leader.name, incumbent.name)
