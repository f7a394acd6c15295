"""Score an artifact on examples: the one place where answers meet what was expected."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rung.artifact import Artifact
from rung.data.types import Example
from rung.evaluation.metrics import METRICS, Metric, get_metric
from rung.evaluation.result import Comparison, Prediction
from rung.evaluation.statistics import Interval, is_binary, mean_interval, wilson
from rung.evaluation.statistics import compare as compare_scores
from rung.parts import Answer
from rung.progress import QUIET, Progress


def evaluate(
    artifact: Artifact,
    examples: Sequence[Example],
    split: Literal["test", "validation"],
    *,
    full: bool = False,
    folder: Path | None = None,
    progress: Progress = QUIET,
) -> list[Prediction]:
    """Answer `examples` and score each by the task's metric.

    Args:
        artifact: what answers.
        examples: rows with expected outputs.
        split: which split they are.
        full: also compute every label's probability.
        folder: where a metric of the user's own is looked for first: the task file's folder.
        progress: told of every batch.
    """
    metric = get_metric(artifact.shape.metric, folder)
    answers = artifact.answer(examples, full=full, progress=progress)
    outside = artifact.out_of_scope
    return [
        Prediction(
            id=example.id,
            source=example.source,
            split=split,
            inputs=dict(example.inputs),
            prompt=artifact.text(answer.messages),
            expected=example.outputs,
            prediction=answer.text,
            score=_score(metric, answer, example, outside),
            confidence=answer.confidence,
            tokens=answer.prompt_tokens + answer.completion_tokens,
            seconds=answer.seconds,
            dropped_demonstrations=answer.dropped_demonstrations,
            abstained=answer.abstained,
        )
        for example, answer in zip(examples, answers, strict=True)
    ]


def _score(metric: Metric, answer: Answer, example: Example, out_of_scope: str | None) -> float:
    """Score one answer; to abstain is right where the row is out of scope."""
    if answer.abstained and out_of_scope in example.outputs:
        return 1.0
    return float(metric.function(answer.text, example.outputs))


def compare(
    a: Artifact, b: Artifact, examples: Sequence[Example], *, seed: int = 0, progress: Progress = QUIET
) -> Comparison:
    """Compare two artifacts on the same rows: the difference b - a with its interval, rows fixed and broken, and p."""
    scores = [[row.score for row in evaluate(artifact, examples, "test", progress=progress)] for artifact in (a, b)]
    r = compare_scores(*scores, seed=seed)
    return Comparison(
        a.name, b.name, a.shape.metric, r.n, r.delta, r.low, r.high, r.p, r.p, r.fixed, r.broken, r.method
    )


def summarize(
    artifact: Artifact, examples: Sequence[Example], split: Literal["test", "validation"], *, progress: Progress = QUIET
) -> dict[str, Any]:
    """Score an artifact by every metric of its kind that rows can be scored by.

    Returns:
        {"artifact", "split", "n", "metrics": {name: {"score", "low", "high"}}}, intervals at 95 %. Where the artifact
        abstains, also `coverage`, the share of rows that are answered, and `answered`, the task's metric on those.
    """
    rows = evaluate(artifact, examples, split, progress=progress)
    own = artifact.shape.metric
    names = [own, *(name for name, m in METRICS.items() if artifact.shape.kind in m.kinds and name != own)]
    metrics = {}
    for name in names:
        metric = get_metric(name)
        scores = [float(metric.function(row.prediction, row.expected)) for row in rows]
        interval = score_interval(scores)
        metrics[name] = {"score": sum(scores) / len(scores), "low": interval.low, "high": interval.high}
    if artifact.abstains:
        metrics |= _abstaining(rows)
    return {"artifact": artifact.name, "split": split, "n": len(rows), "metrics": metrics}


def _abstaining(rows: Sequence[Prediction]) -> dict[str, dict[str, float]]:
    """Return the share of rows that are answered, and the mean score of those."""
    answered = [row.score for row in rows if not row.abstained]
    values = {"coverage": [float(not row.abstained) for row in rows], "answered": answered}
    return {
        name: {"score": sum(scores) / len(scores), "low": interval.low, "high": interval.high}
        for name, scores in values.items()
        if scores and (interval := score_interval(scores))
    }


def score_interval(scores: Sequence[float], *, seed: int = 0) -> Interval:
    """Return the 95 % interval of a mean score: Wilson's for 0/1 scores, the bootstrap's otherwise."""
    if is_binary(scores):
        return wilson(round(sum(scores)), len(scores))
    return mean_interval(scores, seed=seed)
