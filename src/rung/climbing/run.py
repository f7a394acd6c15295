"""The climb itself: stage after stage from zero-shot up, then the confirmation and the report's records."""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import rung
from rung.advice import advise
from rung.artifact import Artifact
from rung.artifact_files import fingerprint
from rung.climbing.arms import STAGES, most_arms
from rung.climbing.confidence import can_be_fitted, fit_confidence, measure_confidence
from rung.climbing.confirm import beats, compare_all, recommend
from rung.climbing.plan import plan
from rung.climbing.race import RaceResult, answer_rows, race
from rung.climbing.store import RunStore, open_run
from rung.data.types import Data
from rung.engines.engine_choice import settled
from rung.errors import ConfigError, RungError
from rung.evaluation.answering import summary
from rung.evaluation.expected import check_expected
from rung.evaluation.racing import race_order
from rung.evaluation.result import ClimbResult, Comparison, Prediction, RungResult, Status
from rung.evaluation.scoring import notes, score_interval
from rung.machine import Machine, this_machine
from rung.models.reference import is_endpoint, resolve
from rung.parts import Head, Mixture
from rung.progress import QUIET, Progress
from rung.rungs import DEFAULT, build
from rung.rungs.base import Rung, taken_from
from rung.rungs.costs import prediction_flops
from rung.rungs.other_model import other_models
from rung.task import Task

AMORTIZED = 10_000  # predictions over which training is shared when costs are compared
CONFIRM_SHARE = 0.25  # of the budget, kept for the test split
SERVED = "served"  # the name of an incumbent that is no zero-shot


@dataclass(frozen=True, slots=True)
class ClimbOptions:
    """How to climb.

    Attributes:
        budget_seconds: rungs that are not expected to fit are skipped; None for no limit.
        rungs: names of the rungs to try; empty for the task's own choice or the default.
        seed: of everything random.
        engine: which engine runs the model.
        out: folder for run folders.
        resume: go on with the latest run of the same climb, if there is one.
    """

    budget_seconds: float | None = None
    rungs: tuple[str, ...] = ()
    seed: int = 0
    engine: str = "auto"
    out: Path = Path("runs")
    resume: bool = False


def _engine(task: Task, options: ClimbOptions, progress: Progress) -> str:
    """Return the engine of all artifacts; where text is generated, what `auto` stands for is settled first."""
    if task.output.kind == "category":
        return options.engine
    return settled(task.model, options.engine, progress=progress)


@dataclass
class _Climb:
    """A climb under way."""

    task: Task
    data: Data
    options: ClimbOptions
    rungs: tuple[Rung, ...]
    models: tuple[Rung, ...]  # of the rungs, those that are raced alone before the others
    machine: Machine
    store: RunStore
    progress: Progress
    artifacts: dict[str, Artifact]
    families: dict[str, str]
    beaten: dict[str, str]
    out: dict[str, tuple[Status, str]]
    trail: list[str]
    tried: list[tuple[str, tuple[object, ...], str]]  # rung, what it took of its base, name of what it made

    @property
    def task_metric(self) -> str:
        """Name of the metric."""
        return self.artifacts[self.trail[0]].shape.metric


@dataclass(frozen=True)
class Climb:
    """A finished climb: what was found, and the folder that holds artifacts and predictions."""

    result: ClimbResult
    folder: Path
    predictions: Mapping[str, Sequence[Prediction]]

    @property
    def recommended(self) -> Artifact:
        """The recommended artifact, ready to predict, save and serve."""
        return self.artifact(self.result.recommended)

    def artifact(self, name: str) -> Artifact:
        """Load one of the climb's artifacts by name."""
        found = {r.name: r.artifact for r in self.result.rungs}.get(name)
        if found is None:
            known = ", ".join(r.name for r in self.result.rungs if r.artifact)
            raise ConfigError("unknown-rung", f"the climb has no artifact {name!r}", hint=f"it has {known}")
        return Artifact.load(found)


def climb(
    task: Task,
    budget: str | float | None = None,
    *,
    progress: Progress = QUIET,
    options: ClimbOptions = ClimbOptions(),
    incumbent: Artifact | None = None,
    data: Data | None = None,
) -> Climb:
    """Climb: measure every rung that applies, confirm, recommend.

    With an incumbent, rungs are put on top of it as well as on zero-shot, and what is recommended has to beat it
    significantly; in the result it is the first, under the name `served`.

    Args:
        task: the task, with its data.
        budget: most time to spend, as seconds or text such as `10m`; replaces that of `options`.
        progress: told of every step.
        options: everything else.
        incumbent: the artifact to beat; None for zero-shot.
        data: rows to climb on in place of those that the task names.

    Raises:
        ConfigError: the data has no validation or test rows, or a rung's name is unknown.
    """
    if budget is not None:
        options = replace(options, budget_seconds=parse_duration(budget))
    data = task.read() if data is None else data
    for split in ("validation", "test"):
        if not getattr(data, split):
            raise ConfigError(
                "empty-split", f"the {split} split has no rows", hint=f"give `data.{split}`, or a fraction to split off"
            )
    check_expected(task, data)
    names = chosen_rungs(task, options)
    options = replace(options, engine=_engine(task, options, progress))  # a run never mixes engines, nor when resumed
    identity: dict[str, Any] = {
        "task": task.name, "task_fingerprint": task.fingerprint(), "data_fingerprint": data.fingerprint,
        "rungs": list(names), "seed": options.seed, "engine": options.engine, "version": rung.__version__,
    }  # fmt: skip
    if incumbent is not None:
        # Its path becomes one name, so that a rung that made it may be put on top again, with new rows.
        incumbent = replace(incumbent, path=("zero-shot", SERVED))
        identity["incumbent"] = _fingerprint(incumbent)
    if task.corpus is not None and "retrieval" in names:
        from rung.retrieval.build import build_index

        # Documents that change make another climb: all its rows are answered from the same ones.
        identity["corpus_fingerprint"] = build_index(task, progress=progress).fingerprint
    store = open_run(options.out, identity, resume=options.resume)
    models = other_models(task)
    state = _Climb(
        task, data, options, (*models, *build(names, task, options.seed)), models, this_machine(), store, progress,
        {}, {}, {}, {}, [], [],
    )  # fmt: skip
    start = Artifact.zero_shot(task.only(task.model), data.labels, engine=options.engine)
    bases = [store.kept(one.name) or store.keep(one) for one in (incumbent, start) if one is not None]
    for base in bases:
        state.artifacts[base.name], state.families[base.name] = base, "served" if base.name == SERVED else "prompting"
    state.trail.append(bases[0].name)
    survivors = _stages(state, bases)
    result = _confirm(state, survivors)
    predictions = {name: tuple(store.predictions(name).values()) for name in state.artifacts}
    return Climb(result, store.folder, predictions)


def _fingerprint(artifact: Artifact) -> str:
    with TemporaryDirectory() as folder:
        return fingerprint(artifact.save(Path(folder) / "artifact"))


def parse_duration(text: str | float) -> float:
    """Return seconds of `90`, `90s`, `10m`, `1.5h` or `1h30m`.

    Raises:
        ConfigError: the text is no duration.
    """
    if not isinstance(text, str):
        return float(text)
    found = re.fullmatch(r"(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s?)?", text.strip())
    try:
        if found is None or not any(found.groups()):
            raise ValueError(text)
        hours, minutes, seconds = (float(part or 0) for part in found.groups())
    except ValueError:
        raise ConfigError(
            "bad-duration", f"{text!r} is no duration", hint="write `90s`, `10m`, `1.5h` or `1h30m`"
        ) from None
    return 3600 * hours + 60 * minutes + seconds


def chosen_rungs(task: Task, options: ClimbOptions) -> tuple[str, ...]:
    """Return the rungs to try: the command's choice, else the task's, else the default; less the excluded ones."""
    names = options.rungs or tuple(task.constraints.rungs or ()) or DEFAULT
    return tuple(name for name in names if name not in (task.constraints.exclude or ()) and name != "zero-shot")


def _stages(state: _Climb, bases: Sequence[Artifact]) -> tuple[str, ...]:
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


def _fit_stage(state: _Climb, bases: Sequence[Artifact], rungs: Sequence[Rung]) -> list[Artifact]:
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


def _twin(state: _Climb, base: Artifact, rung_: Rung, name: str) -> str | None:
    """Return the name under which the rung was tried with the same result to expect; else note that it is tried."""
    taken = taken_from(rung_, base)
    if taken is None:
        return None
    for other, before, twin in state.tried:
        if other == rung_.name and before == taken:
            return twin
    state.tried.append((rung_.name, taken, name))
    return None


def _fitted(state: _Climb, base: Artifact, rung_: Rung, name: str, expected: float) -> Artifact | None:
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


def _leave_out(state: _Climb, status: Status, name: str, reason: str) -> None:
    state.out[name] = (status, reason)
    state.store.note(status, name=name, reason=reason)


def _note_beaten(state: _Climb, result: RaceResult) -> None:
    for name, e in result.beaten.items():
        state.beaten[name] = f"beaten by {e.by} after {e.n} rows: {e.fixed} fixed / {e.broken} broken, p = {e.p:.2g}"


def _scores(state: _Climb, name: str, rows: Sequence[Any]) -> list[float]:
    known = state.store.predictions(name)
    return [known["validation", row.id].score for row in rows]


def _leader(state: _Climb, contenders: Sequence[Artifact], rows: Sequence[Any]) -> Artifact:
    """Return the survivor with the best mean; the earlier (cheaper) one of equals. One alone need not be scored."""
    if len(contenders) == 1:
        return contenders[0]
    means = {artifact.name: sum(_scores(state, artifact.name, rows)) for artifact in contenders}
    return max(contenders, key=lambda artifact: means[artifact.name])


def _clearly_better(
    state: _Climb, leader: Artifact, incumbent: Artifact, result: RaceResult, rows: Sequence[Any]
) -> bool:
    if incumbent.name in result.beaten:
        return True
    pair = {name: _scores(state, name, rows) for name in (incumbent.name, leader.name)}
    return beats(compare_all(pair, state.task_metric, seed=state.options.seed), leader.name, incumbent.name)


def _confirm(state: _Climb, survivors: Sequence[str]) -> ClimbResult:
    """Run the finalists on the test split once, compare, recommend, and gather the records."""
    finalists = list(dict.fromkeys([*state.trail, *survivors]))
    zero = finalists[0]
    predictions = {
        name: answer_rows(
            state.artifacts[name],
            state.data.test,
            "test",
            state.store,
            folder=state.task.folder,
            progress=state.progress,
        )
        for name in finalists
    }
    scores = {name: [row.score for row in rows] for name, rows in predictions.items()}
    comparisons = compare_all(scores, state.task_metric, seed=state.options.seed)
    results = [_result(state, name, predictions.get(name)) for name in state.artifacts]
    costs = {r.name: r.cost for r in results if r.name in finalists}
    best = recommend(comparisons, costs, zero)
    confidence, unsure = _fit_confidence(state, best)
    results += [_left_out(state, name, *why) for name, why in state.out.items()]
    state.store.note("confirmed", recommended=best)
    return ClimbResult(
        task=state.task.name,
        metric=state.task_metric,
        model=", ".join(state.task.models),
        engine=state.options.engine,
        seed=state.options.seed,
        version=rung.__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(state.store.spent(), 1),
        budget_seconds=state.options.budget_seconds,
        recommended=best,
        decision=decision(best, zero, results, comparisons),
        rungs=tuple(results),
        comparisons=tuple(comparisons),
        data=state.data.report.as_dict(),
        notes=(
            *unsure,
            *(
                f"{name}: {count} of {len(rows)} test rows: {note}"
                for name, rows in predictions.items()
                for note, count in notes(rows).items()
            ),
        ),
        confidence=confidence,
        advice=advise(state.task, state.data, state.machine).as_dict(),
    )


def _fit_confidence(state: _Climb, best: str) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """Fit the recommended artifact's confidence if the task asks for it; return what the report shows, and notes."""
    wanted, artifact = state.task.confidence, state.artifacts[best]
    if wanted is None:
        return None, ()
    if not can_be_fitted(artifact):
        return None, (f"confidence was not fitted: {best} writes its answers, so its labels have no probabilities",)
    rows = state.data.validation
    fitted = fit_confidence(
        artifact, rows, wanted.method, abstain_below=wanted.abstain_below, out_of_scope=wanted.out_of_scope,
        progress=state.progress,
    )  # fmt: skip
    state.artifacts[best] = state.store.keep(fitted)
    seed, progress = state.options.seed, state.progress
    return measure_confidence(fitted, state.data.test, fitted_on=len(rows), seed=seed, progress=progress), ()


def decision(best: str, zero: str, results: Sequence[RungResult], comparisons: Sequence[Comparison]) -> str:
    """Return the recommendation in one sentence, with its numbers."""
    scores = {r.name: r for r in results}
    if best == zero:
        return f"Stay with {zero}: no rung significantly beats it on {scores[zero].n} test rows."
    c = next(c for c in comparisons if {c.a, c.b} == {zero, best})
    sign = 1 if c.b == best else -1
    delta, low, high = (100 * sign * v for v in (c.delta, c.low if sign > 0 else c.high, c.high if sign > 0 else c.low))
    fixed, broken = (c.fixed, c.broken) if sign > 0 else (c.broken, c.fixed)
    p = "p < 0.001" if c.p < 0.001 else f"p = {c.p:.3f}"
    return (
        f"Use {best}: {delta:+.1f} pp [{low:+.1f}, {high:+.1f}] over {zero} on {c.n} test rows, "
        f"{fixed} fixed / {broken} broken, {p}; nothing measured is significantly better, "
        f"and nothing as good is cheaper."
    )


def _result(state: _Climb, name: str, test: Sequence[Prediction] | None) -> RungResult:
    """Gather what is known of one artifact: on the test split if it was confirmed, else on the rows of its race."""
    artifact = state.artifacts[name]
    validation = [row for (split, _), row in state.store.predictions(name).items() if split == "validation"]
    rows = list(test) if test is not None else validation
    scores = [row.score for row in rows]
    mean = sum(scores) / len(scores)
    interval = score_interval(scores, seed=state.options.seed)
    fitted = state.store.noted("fitted", name=name)
    fit_seconds = float(fitted["fit_seconds"]) if fitted else 0.0
    settings = {key: dict(value) for key, value in artifact.settings.items()}
    losses = tuple((int(s), float(v)) for s, v in settings.get(artifact.path[-1], {}).pop("losses", ()))
    folder = state.store.artifact_folder(name)
    return RungResult(
        name=name,
        family=state.families[name],
        metric=state.task_metric,
        status="confirmed" if test is not None else "beaten",
        split="test" if test is not None else "validation",
        reason=state.beaten.get(name, ""),
        path=artifact.path,
        score=mean,
        low=interval.low,
        high=interval.high,
        n=len(rows),
        validation_score=sum(row.score for row in validation) / len(validation) if validation else None,
        seconds=sum(row.seconds for row in rows),
        fit_seconds=fit_seconds,
        tokens=sum(row.tokens for row in rows),
        overflow_rows=sum(row.dropped_demonstrations > 0 for row in rows),
        dropped_demonstrations=sum(row.dropped_demonstrations for row in rows),
        retrieval=summary(found) if (found := [row.retrieval for row in rows if row.retrieval is not None]) else None,
        trainable_parameters=trainable_parameters(artifact),
        artifact_bytes=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        cost=_cost(state, artifact),
        artifact=str(folder),
        settings=settings,
        losses=losses,
    )


def trainable_parameters(artifact: Artifact) -> int:
    """Return the number of parameters that training set: the adapter's, or the head's and its tuned encoder's."""
    if isinstance(artifact.decoder, Mixture):
        return sum(map(trainable_parameters, artifact.decoder.members))
    if isinstance(artifact.decoder, Head):
        encoder = 0 if artifact.decoder.tuned is None else resolve(artifact.decoder.reference).parameters
        return int(artifact.decoder.weight.size + artifact.decoder.intercept.size) + encoder
    return artifact.weights.trainable_parameters


def _cost(state: _Climb, artifact: Artifact) -> float:
    """Return operations per prediction, training shared among the predictions to come; the same on every machine."""
    if is_endpoint(artifact.model):
        rows = state.store.predictions(artifact.name).values()
        return sum(row.tokens for row in rows) / max(1, len(rows))
    fit = 0.0
    base = replace(state.artifacts["zero-shot"], model=artifact.model)
    for rung_ in state.rungs:
        if rung_.name in artifact.path:
            fit += rung_.estimate(base, state.data, state.machine).fit_flops
    return prediction_flops(artifact, state.data) + fit / AMORTIZED


def _left_out(state: _Climb, name: str, status: Status, reason: str) -> RungResult:
    return RungResult(
        name=name, family=state.families.get(name, ""), metric=state.task_metric, status=status, reason=reason
    )
