"""The end of a climb: finalists on the test split, the recommendation, and the records of the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import rung
from rung.advice import advise
from rung.artifact.artifact import Artifact
from rung.artifact.parts import Head, Mixture
from rung.climbing.confidence import can_be_fitted, fit_confidence, measure_confidence
from rung.climbing.confirm import compare_all, recommend
from rung.climbing.race import answer_rows
from rung.climbing.state import State
from rung.evaluation.rag_metrics import summary
from rung.evaluation.result import ClimbResult, Comparison, Prediction, RungResult, Status
from rung.evaluation.scoring import notes, score_interval
from rung.models.reference import is_endpoint, resolve
from rung.rungs.costs import prediction_flops

AMORTIZED = 10_000  # predictions over which training is shared when costs are compared


def conclude(state: State, survivors: Sequence[str]) -> ClimbResult:
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


def _fit_confidence(state: State, best: str) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """Fit the recommended artifact's confidence if the task asks for it; return what the report shows, and notes."""
    wanted, artifact = state.task.confidence, state.artifacts[best]
    if wanted is None:
        return None, ()
    if not can_be_fitted(artifact):
        return None, (f"confidence was not fitted: {best} gives its labels no probabilities",)
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


def _result(state: State, name: str, test: Sequence[Prediction] | None) -> RungResult:
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


def _cost(state: State, artifact: Artifact) -> float:
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


def _left_out(state: State, name: str, status: Status, reason: str) -> RungResult:
    return RungResult(
        name=name, family=state.families.get(name, ""), metric=state.task_metric, status=status, reason=reason
    )
