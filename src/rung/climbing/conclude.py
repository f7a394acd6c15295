"""The end of a climb: the finalists on the test split, the recommendation, and the records of the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from rung._version import __version__
from rung.advice import advise
from rung.artifact.artifact import Artifact
from rung.artifact.confidence import Calibration, CalibrationMethod, of_decisions
from rung.artifact.decoder import Answer
from rung.climbing.next_steps import next_steps
from rung.climbing.race import ClimbState, answer_rows, compare_all, recommend
from rung.data.rows import LABELLED, Example, labels_of
from rung.errors import ConfigError
from rung.evaluation import calibration
from rung.evaluation.prices import Prices, order_of_cheaper, price_per_row
from rung.evaluation.rag_metrics import summary
from rung.evaluation.result import ClimbResult, Comparison, Prediction, RungResult
from rung.evaluation.scoring import notes, related
from rung.evaluation.statistics import mean_interval
from rung.progress import QUIET, Progress


def can_be_fitted(artifact: Artifact) -> bool:
    """Whether the artifact gives every label a probability."""
    return artifact.signature.kind in LABELLED and artifact.decoder.gives_probs


def fit_confidence(
    artifact: Artifact, rows: Sequence[Example], method: CalibrationMethod = "temperature", *,
    abstain_below: float | None = None, out_of_scope: str | None = None, progress: Progress = QUIET,
) -> Artifact:  # fmt: skip
    """Fit an artifact's confidences on validation rows, which it was not trained on; its answers do not change.

    Answers with less confidence than `abstain_below` are marked as abstained, which is right on rows of the label
    `out_of_scope`. Raises ConfigError without label probabilities, enough rows for the method, or that label.
    """
    if not can_be_fitted(artifact):
        raise ConfigError(
            "no-probabilities", f"{artifact.name} gives its labels no probabilities",
            hint="confidence needs a category task whose labels are scored, or a trained head (the rungs features, "
            "llm-features)",
        )  # fmt: skip
    decoder = artifact.decoder
    if out_of_scope is not None and out_of_scope not in artifact.signature.labels:
        hint = f"the labels are {', '.join(artifact.signature.labels)}"
        message = f"`out_of_scope` is {out_of_scope!r}, which is not among the labels"
        raise ConfigError("unknown-label", message, hint=hint)
    if not rows:
        raise ConfigError("too-few-rows", "the validation split has no rows", hint="give `data.validation`")
    plain = replace(artifact, decoder=decoder.with_confidence(None))
    answers = plain.answer(rows, full=True, progress=progress)
    fitted = replace(_fitted(artifact, answers, rows, method), abstain_below=abstain_below, out_of_scope=out_of_scope)
    return replace(artifact, decoder=decoder.with_confidence(fitted))


def _fitted(
    artifact: Artifact, answers: Sequence[Answer], rows: Sequence[Example], method: CalibrationMethod
) -> Calibration:
    """Fit the probability of the one label, or those of all label decisions where a row has several."""
    labels, kind = artifact.signature.labels, artifact.signature.kind
    probs = np.array([answer.probabilities for answer in answers])
    if kind == "category":
        return calibration.fit(method, probs, [labels.index(row.outputs[0]) for row in rows])
    given, truth = ([_listed(labels, text) for text in texts] for texts in (
        [answer.text for answer in answers], [row.outputs[0] for row in rows],
    ))  # fmt: skip
    return calibration.fit_each(method, probs, np.array(given), np.array(truth))


def _listed(labels: Sequence[str], text: str) -> list[bool]:
    """Whether a JSON list of labels names each label."""
    listed = labels_of(text, "multilabel")
    return [label in listed for label in labels]


def measure_confidence(
    artifact: Artifact, rows: Sequence[Example], *, fitted_on: int, seed: int = 0, progress: Progress = QUIET
) -> dict[str, Any]:
    """Measure the confidence of an artifact from `fit_confidence` on test rows; see `calibration.describe`."""
    decoder = artifact.decoder
    fitted = decoder.confidence
    assert fitted is not None
    plain = replace(artifact, decoder=decoder.with_confidence(None))
    answers = plain.answer(rows, full=True, progress=progress)
    given = [set(labels_of(answer.text, artifact.signature.kind)) for answer in answers]
    expected = [set(labels_of(row.outputs[0], artifact.signature.kind)) for row in rows]
    values = calibration.describe(
        fitted, [answer.confidence or 0.0 for answer in answers],
        [_confidence(artifact, fitted, answer) for answer in answers],
        [float(a == b) for a, b in zip(given, expected, strict=True)], fitted_on=fitted_on,
        out_of_scope=[fitted.out_of_scope in labels for labels in expected], seed=seed,
    )  # fmt: skip
    return {"artifact": artifact.name, **values}


def _confidence(artifact: Artifact, fitted: Calibration, answer: Answer) -> float:
    """The fitted artifact's confidence in the same answer; fitting never changes which labels are given."""
    assert answer.probabilities is not None
    if artifact.signature.kind == "category":
        return fitted.of(fitted.scaled(answer.probabilities)[int(np.argmax(answer.probabilities))])
    given = _listed(artifact.signature.labels, answer.text)
    return fitted.of(float(of_decisions(fitted.scaled_each(answer.probabilities), given)))


def conclude(state: ClimbState, survivors: Sequence[str]) -> ClimbResult:
    """Run the finalists on the test split once, compare them, recommend one, and collect the records."""
    finalists = list(dict.fromkeys([*state.trail, *survivors]))
    zero = finalists[0]
    test, store, folder = state.data.test, state.store, state.task.folder
    predictions = {
        name: answer_rows(state.artifacts[name], test, "test", store, folder=folder, progress=state.progress)
        for name in finalists
    }
    scores = {name: [row.score for row in rows] for name, rows in predictions.items()}
    comparisons = compare_all(scores, state.task_metric, seed=state.options.seed)
    results = [_result(state, name, predictions.get(name)) for name in state.artifacts]
    costs = {r.name: r.cost for r in results if r.name in finalists}
    best = recommend(comparisons, costs, zero)
    confidence, unsure = _fit_confidence(state, best)
    for name, (status, reason) in state.out.items():
        family = state.families.get(name, "")
        results.append(RungResult(name=name, family=family, metric=state.task_metric, status=status, reason=reason))
    state.store.note("confirmed", recommended=best)
    remarks = [
        f"{name}: {count} of {len(rows)} test rows: {note}"
        for name, rows in predictions.items()
        for note, count in notes(rows).items()
    ]
    answers = {name: tuple(state.store.predictions(name).values()) for name in state.artifacts}
    rungs = tuple(related(results, answers, best, seed=state.options.seed))
    advised = next_steps(
        state.artifacts["zero-shot"], state.data, results, best, answers, store.folder,
        p=next((c.p for c in comparisons if {c.a, c.b} == {zero, best}), None), seed=state.options.seed,
        progress=state.progress,
    )  # fmt: skip
    paid, prices, seconds = state.store.paid(), Prices.of(state.task), state.store.spent()
    money = paid.money + seconds / 3600 * prices.machine_hour if prices.known(state.task.models) else None
    return ClimbResult(
        task=state.task.name, metric=state.task_metric, model=", ".join(state.task.models),
        engine=state.options.engine, seed=state.options.seed, version=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"), seconds=round(seconds, 1),
        budget_seconds=state.options.budget_seconds, recommended=best,
        decision=decision(best, zero, results, comparisons), rungs=rungs, comparisons=tuple(comparisons),
        data=state.data.report.as_dict(), notes=(*unsure, *remarks), confidence=confidence,
        advice=advise(state.task, state.data, state.machine).as_dict(), money=money, endpoint_money=paid.money,
        endpoint_tokens=(paid.prompt_tokens, paid.completion_tokens), prices=prices.as_dict(), next_steps=advised,
    )  # fmt: skip


def _fit_confidence(state: ClimbState, best: str) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """Fit the recommended artifact's confidence if the task asks for it; return the report's part on it, and notes."""
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
    """The recommendation in one sentence, with its numbers."""
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


def _result(state: ClimbState, name: str, test: Sequence[Prediction] | None) -> RungResult:
    """The report's record of an artifact: on the test split if it was confirmed, else on the rows of its race."""
    artifact = state.artifacts[name]
    validation = [row for (split, _), row in state.store.predictions(name).items() if split == "validation"]
    rows = list(test) if test is not None else validation
    scores = [row.score for row in rows]
    interval = mean_interval(scores, seed=state.options.seed)
    fitted = state.store.noted("fitted", name=name) or {"fit_seconds": 0.0, "fit_money": 0.0}
    settings = {key: dict(value) for key, value in artifact.settings.items()}
    losses = tuple((int(s), float(v)) for s, v in settings.get(artifact.path[-1], {}).pop("losses", ()))
    folder = state.store.artifact_folder(name)
    below = ["+".join(artifact.path[1:end]) for end in range(2, len(artifact.path) + 1)]
    fits = [entry for one in below if (entry := state.store.noted("fitted", name=one)) is not None]
    fit = {key: sum(entry[key] for entry in fits) for key in ("fit_seconds", "fit_money")}
    operations = artifact.decoder.row_flops(artifact, state.data.train or state.data.validation)
    return RungResult(
        name=name, family=state.families[name], metric=state.task_metric,
        status="confirmed" if test is not None else "beaten", split="test" if test is not None else "validation",
        reason=state.beaten.get(name, ""), path=artifact.path, score=sum(scores) / len(scores),
        low=interval.low, high=interval.high, n=len(rows),
        validation_score=sum(row.score for row in validation) / len(validation) if validation else None,
        seconds=sum(row.seconds for row in rows), fit_seconds=fitted["fit_seconds"], fit_money=fitted["fit_money"],
        prompt_tokens=sum(row.prompt_tokens for row in rows),
        completion_tokens=sum(row.completion_tokens for row in rows),
        cached_tokens=sum(row.cached_tokens for row in rows),
        overflow_rows=sum(row.dropped_demonstrations > 0 for row in rows),
        dropped_demonstrations=sum(row.dropped_demonstrations for row in rows),
        uses_llm=artifact.decoder.uses_llm,
        retrieval=summary(found) if (found := [row.retrieval for row in rows if row.retrieval is not None]) else None,
        trainable_parameters=artifact.decoder.trainable_parameters(artifact),
        artifact_bytes=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        price_per_1000=None if (price := price_per_row(rows, artifact, state.task, **fit)) is None else 1000 * price,
        cost=order_of_cheaper(rows, artifact, state.task, operations, **fit), artifact=str(folder), settings=settings,
        losses=losses,
    )  # fmt: skip
