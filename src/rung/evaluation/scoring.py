"""Score an artifact on examples: the one place where answers meet what was expected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rung.artifact.artifact import Artifact
from rung.artifact.decoder import Answer
from rung.artifact.parts import Signature
from rung.data.rows import Data, Example, labels_of
from rung.evaluation.metrics import (
    METRICS,
    Case,
    Metric,
    corpus_bleu,
    corpus_chrf,
    exact_match,
    get_metric,
    label_f1,
    macro_f1,
)
from rung.evaluation.rag_metrics import measure, sources, summary
from rung.evaluation.result import Comparison, Prediction
from rung.evaluation.statistics import compare as compare_scores
from rung.evaluation.statistics import mean_interval
from rung.progress import QUIET, Progress

if TYPE_CHECKING:
    from rung.evaluation.rag_metrics import FaithfulnessJudge
    from rung.task import Task


def metric_of(artifact: Artifact, folder: Path | None = None) -> Metric:
    """Open the metric of the artifact's task; `folder` is where a metric of the user's own is looked for first."""
    shape = artifact.signature
    return get_metric(shape.metric, folder, shape.metric_settings, refusal=shape.refusal)


def evaluate(
    artifact: Artifact,
    examples: Sequence[Example],
    split: Literal["test", "validation"],
    *,
    full: bool = False,
    folder: Path | None = None,
    judge: FaithfulnessJudge | None = None,
    progress: Progress = QUIET,
) -> list[Prediction]:
    """Answer `examples` and score each by the task's metric.

    Args:
        artifact: what answers.
        examples: rows with expected outputs.
        split: which split they are.
        full: also compute every label's probability.
        folder: where a metric of the user's own is looked for first: the task file's folder.
        judge: judges how faithful answers from documents are to them; without, that is not measured.
        progress: told of every batch.
    """
    metric = metric_of(artifact, folder)
    answers = artifact.answer(examples, full=full, progress=progress)
    scores = metric.scores(cases(examples, answers))
    faithful: dict[int, float] = {}
    if judge is not None and artifact.retriever is not None:
        asked = {row: answer for row, answer in enumerate(answers) if not answer.refused}
        shares = judge.judge([one.text for one in asked.values()], [sources(one) for one in asked.values()])
        faithful = dict(zip(asked, shares, strict=True))
    outside, kind = (
        artifact.decoder.out_of_scope,
        artifact.signature.kind,
    )  # to abstain is right where the row is out of scope
    return [
        Prediction(
            id=example.id,
            source=example.source,
            split=split,
            inputs=dict(example.inputs),
            prompt=artifact.decoder.text(artifact, answer.messages),
            expected=example.outputs,
            prediction=answer.text,
            score=1.0 if answer.abstained and outside in labels_of(example.outputs[0], kind) else score.value,
            confidence=answer.confidence,
            tokens=answer.prompt_tokens + answer.completion_tokens,
            seconds=answer.seconds,
            dropped_demonstrations=answer.dropped_demonstrations,
            abstained=answer.abstained,
            note=score.note,
            retrieval=None if artifact.retriever is None else measure(answer, example, score.value, faithful.get(row)),
            steps=tuple(asdict(step) for step in answer.steps),
            stopped=answer.stopped,
        )
        for row, (example, answer, score) in enumerate(zip(examples, answers, scores, strict=True))
    ]


def cases(examples: Sequence[Example], answers: Sequence[Answer]) -> list[Case]:
    """Return what a metric scores: every answer beside what was expected and the row's columns."""
    return [
        Case(answer.text, example.outputs, {**example.inputs, **example.extra})
        for example, answer in zip(examples, answers, strict=True)
    ]


def compare(
    a: Artifact, b: Artifact, examples: Sequence[Example], *, seed: int = 0, progress: Progress = QUIET
) -> Comparison:
    """Compare two artifacts on the same rows: the difference b - a with its interval, rows fixed and broken, and p."""
    scores = [[row.score for row in evaluate(artifact, examples, "test", progress=progress)] for artifact in (a, b)]
    r = compare_scores(*scores, seed=seed)
    return Comparison(
        a.name, b.name, a.signature.metric, r.n, r.delta, r.low, r.high, r.p, r.p, r.fixed, r.broken, r.method
    )


def summarize(
    artifact: Artifact,
    examples: Sequence[Example],
    split: Literal["test", "validation"],
    *,
    folder: Path | None = None,
    judge: FaithfulnessJudge | None = None,
    progress: Progress = QUIET,
) -> dict[str, Any]:
    """Score an artifact by its metric and by every other of its kind that rows can be scored by.

    Returns:
        {"artifact", "split", "n", "metrics": {name: {"score", "low", "high"}}, "whole": {name: score}, "notes":
        {note: rows}}: intervals at 95 %, views of the whole set, and what the task's metric said of rows. Where the
        artifact abstains, the metrics hold `coverage` too, the share of rows that are answered, and `answered`, the
        task's metric on those; where documents are looked up, `retrieval` too, what
        `rung.evaluation.rag_metrics.summary` tells.
    """
    rows = evaluate(artifact, examples, split, folder=folder, judge=judge, progress=progress)
    shape = artifact.signature
    scores = {shape.metric: [row.score for row in rows]}
    for name, metric in METRICS.items():
        if shape.kind in metric.kinds and name not in scores:
            metric = get_metric(name, refusal=shape.refusal)
            scores[name] = [metric(row.prediction, row.expected) for row in rows]
    metrics = {}
    for name, values in scores.items():
        interval = mean_interval(values, seed=0)
        metrics[name] = {"score": sum(values) / len(values), "low": interval.low, "high": interval.high}
    if artifact.decoder.abstains:
        metrics |= _abstaining(rows)
    told = {
        "artifact": artifact.name, "split": split, "n": len(rows), "metrics": metrics,
        "whole": _whole(shape, rows), "notes": notes(rows),
    }  # fmt: skip
    found = [row.retrieval for row in rows if row.retrieval is not None]
    return {**told, "retrieval": summary(found)} if found else told


def _whole(shape: Signature, rows: Sequence[Prediction]) -> dict[str, float]:
    """Return what can only be said of the whole set: F1 over labels, BLEU and chrF over the corpus, refusals."""
    answers = [row.prediction for row in rows]
    if shape.kind == "category":
        return {"macro_f1": macro_f1(answers, [row.expected[0] for row in rows])}
    if shape.kind == "multilabel":
        found = label_f1(answers, [row.expected[0] for row in rows], shape.labels)
        return {"micro_f1": found.micro, "macro_f1": found.macro}
    whole: dict[str, float] = {}
    if shape.metric in ("bleu", "chrf"):
        references = [row.expected for row in rows]
        whole |= {"corpus_bleu": corpus_bleu(answers, references), "corpus_chrf": corpus_chrf(answers, references)}
    if shape.refusal:
        refused = [exact_match(answer, [shape.refusal]) for answer in answers]
        due = [max(exact_match(text, [shape.refusal]) for text in row.expected) for row in rows]
        right = sum(a * b for a, b in zip(refused, due, strict=True))
        whole |= {"refusals_due": sum(due) / len(due), "refusals_given": sum(refused) / len(refused)}
        whole |= {"refusal_precision": right / sum(refused)} if any(refused) else {}
        whole |= {"refusal_recall": right / sum(due)} if any(due) else {}
    return whole


def notes(rows: Sequence[Prediction]) -> dict[str, int]:
    """Count what the metric said of rows, by the part before the first colon, most frequent first."""
    return dict(Counter(row.note.split(":")[0] for row in rows if row.note).most_common())


def _abstaining(rows: Sequence[Prediction]) -> dict[str, dict[str, float]]:
    """Return the share of rows that are answered, and the mean score of those."""
    answered = [row.score for row in rows if not row.abstained]
    values = {"coverage": [float(not row.abstained) for row in rows], "answered": answered}
    return {
        name: {"score": sum(scores) / len(scores), "low": interval.low, "high": interval.high}
        for name, scores in values.items()
        if scores and (interval := mean_interval(scores, seed=0))
    }


def validate_references(task: Task, data: Data) -> None:
    """Validate the metric and the references before any inference, so that errors surface at once, not hours later.

    Raises:
        ConfigError: the metric is unknown, or a setting or a file of it is wrong.
        DataError: the metric cannot score by an expected answer; the message names its place.
    """
    metric = get_metric(task.metric_name, task.folder, task.metric_settings, refusal=task.output.refusal or "")
    if metric.check is not None:
        metric.check((*data.train, *data.validation, *data.test))
