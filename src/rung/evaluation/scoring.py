"""Score an artifact on rows: the one place that compares answers with expected answers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rung.artifact.artifact import Artifact
from rung.artifact.decoder import Answer
from rung.artifact.parts import Signature
from rung.data.kinds import BALANCED
from rung.data.rows import SHOWN, Data, Example, labels_of
from rung.data.texts import canonical
from rung.errors import ConfigError, DataError, suggest
from rung.evaluation.decision import gains_only_on
from rung.evaluation.metrics.base import Case, Metric, RowScore
from rung.evaluation.metrics.labels import label_f1, label_statistic, macro_f1, macro_f1_interval
from rung.evaluation.metrics.numbers import number_statistics
from rung.evaluation.metrics.registry import AT_K, METRICS, get_metric
from rung.evaluation.metrics.text import corpus_bleu, corpus_chrf, quasi_exact_match
from rung.evaluation.prices import token_money
from rung.evaluation.racing import betting_capital, bounded_below, sign_capital
from rung.evaluation.rag_metrics import FaithfulnessJudge, measure, sources, summary
from rung.evaluation.result import YARDSTICK, Comparison, Prediction, RungResult, Split
from rung.evaluation.statistics import PairedComparison, is_binary, mean_interval
from rung.evaluation.statistics import compare as compare_scores
from rung.progress import QUIET, Progress, default_progress

if TYPE_CHECKING:
    from rung.task import Task


REWARDED_BY = "rewarded_by"  # in an artifact's record: the metrics on which a rung was trained
UNSEEN = ("quasi_exact_match", "chrf", "rougeL")  # metrics of texts that say whether another reward was gamed
EQUAL = {"tolerance": 0.0}
CUT = "the input was cut to fit the context"


def metric_of(artifact: Artifact, folder: Path | None = None) -> Metric:
    """Load the metric of the artifact's task; `folder` is searched first for a function of the user."""
    task = artifact.signature
    return get_metric(task.metric, folder, task.metric_settings, refusal=task.refusal)


def exact_metric(shape: Signature) -> str:
    """Name the metric by which an answer is right or wrong as a whole."""
    return {"json": "json_exact", "number": "within"}.get(shape.kind, "quasi_exact_match")


def unseen_metrics(shape: Signature, rewarded: Collection[str]) -> list[Metric]:
    """Name metrics of a task by which nothing was rewarded: of two kinds, as a reward can be gamed on one."""
    names = {"json": ("json_exact", "json_field_f1"), "number": ("within",)}.get(shape.kind, UNSEEN)
    unseen = [name for name in names if name not in rewarded][:2]
    return [get_metric(name, settings=EQUAL if name == "within" else None) for name in unseen]


def own_reward(arm: Artifact, answers: Sequence[Prediction], before: Sequence[Prediction], metric: Metric) -> str:
    """Say why an arm may not be recommended that was trained on its own metric; empty if it may.

    It may if it also gains by a metric that it was not rewarded by, or if the metric only says right or wrong.

    Args:
        arm: an artifact of the arm, whose record says by what it was rewarded.
        answers: its answers.
        before: those that the artifact gave to the same rows before it was trained so.
        metric: the task's metric, by which both were scored.
    """
    rewarded = {name for each in arm.settings.values() for name in each.get(REWARDED_BY, ())}
    if metric.name not in rewarded or metric.binary or not answers:
        return ""

    def gain(other: Metric) -> float:
        sides = [
            [score.value for score in other.scores([Case(row.prediction, row.expected, row.inputs) for row in rows])]
            for rows in (answers, before)
        ]
        return sum(sides[0]) - sum(sides[1])

    own = sum(row.score for row in answers) - sum(row.score for row in before)
    unseen = {other.name: gain(other) for other in unseen_metrics(arm.signature, rewarded)}
    if not gains_only_on(own, unseen):
        return ""
    return f"it gains by {metric.name}, which it was rewarded for, and not by {' or '.join(unseen)}"


def readings_of(signature: Signature, folder: Path, texts: Sequence[str]) -> list[str]:
    """What answers come to by the task's metric, without expected ones; empty for those that are invalid."""
    reading = get_metric(signature.metric, folder, signature.metric_settings).reading
    assert reading is not None
    return [reading(text) for text in texts]


def evaluate(
    artifact: Artifact, examples: Sequence[Example], split: Split, *,
    folder: Path | None = None, judge: FaithfulnessJudge | None = None, full: bool = False, progress: Progress = QUIET,
) -> list[Prediction]:  # fmt: skip
    """Answer `examples` and score each by the task's metric; with `full`, compute the probability of every label.

    `folder` is the task file's, searched first for a metric of the user. `judge` measures the faithfulness of answers
    from documents; None skips that.
    """
    metric = metric_of(artifact, folder)
    if examples and (artifact.retriever is not None or artifact.demonstrations is not None):
        artifact.decoder.render(artifact, examples[:1])  # loads what the rows' seconds should not include
    answers = artifact.answer(examples, full=full or metric.top > 0, progress=progress)
    scores = metric.scores(cases(examples, answers), progress)
    if metric.top:
        scores = [_at_k(artifact, example, answer, metric) for example, answer in zip(examples, answers, strict=True)]
    faithful: dict[int, float] = {}
    if judge is not None and artifact.retriever is not None:
        asked = {row: answer for row, answer in enumerate(answers) if not answer.refused}
        shares = judge.judge([answer.text for answer in asked.values()], [sources(a) for a in asked.values()], progress)
        faithful = dict(zip(asked, shares, strict=True))
    # Abstaining is right where the row is out of scope.
    outside, kind = artifact.decoder.out_of_scope, artifact.signature.kind
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
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            cached_tokens=answer.cached_tokens,
            seconds=answer.seconds,
            dropped_demonstrations=answer.dropped_demonstrations,
            abstained=answer.abstained,
            note=score.note or (CUT if answer.truncated_characters else ""),
            retrieval=None if artifact.retriever is None else measure(answer, example, score.value, faithful.get(row)),
            steps=tuple(asdict(step) for step in answer.steps),
            stopped=answer.stopped,
            money=token_money(artifact, answer.prompt_tokens, answer.completion_tokens, answer.cached_tokens),
            probs=None if answer.probabilities is None else tuple(round(p, 4) for p in answer.probabilities),
        )
        for row, (example, answer, score) in enumerate(zip(examples, answers, scores, strict=True))
    ]


def cases(examples: Sequence[Example], answers: Sequence[Answer]) -> list[Case]:
    """Pair every answer with the expected answers and the row's columns, for a metric to score."""
    return [
        Case(answer.text, example.outputs, {**example.inputs, **example.extra})
        for example, answer in zip(examples, answers, strict=True)
    ]


def row_values(metric: Metric, rows: Sequence[Prediction]) -> list[float]:
    """The numbers whose mean is the metric: the rows' scores, or those of a statistic of the whole set."""
    if metric.whole is None or not rows:
        return [row.score for row in rows]
    # What counts as right may differ from the first expected answer.
    return metric.whole(
        [row.expected[0] if row.score == 1 else row.prediction for row in rows], [row.expected[0] for row in rows]
    )


def compare_rows(
    metric: Metric, a: Sequence[Prediction], b: Sequence[Prediction], *, seed: int
) -> PairedComparison:  # fmt: skip
    """Compare b with a on the same rows; rows are fixed and broken by their own scores."""
    found = compare_scores(row_values(metric, a), row_values(metric, b), seed=seed)
    gains = [after.score - before.score for before, after in zip(a, b, strict=True)]
    return replace(found, fixed=sum(gain > 0 for gain in gains), broken=sum(gain < 0 for gain in gains))


def compare(
    a: Artifact, b: Artifact, examples: Sequence[Example], *, folder: Path | None = None, seed: int = 0,
    progress: Progress | None = None,
) -> Comparison:  # fmt: skip
    """Compare two artifacts on the same rows: the difference b - a with its interval, rows fixed and broken, and p.

    `folder` is searched first for a metric of the user.

    Raises:
        DataError: `too-few-rows`: there are none; `bad-row`: one has no expected answer, such as a dict.
    """
    if not len(examples):
        hint = "few rows are all trained on: give new ones as `data.test`, or set `data.split.method: holdout`"
        raise DataError("too-few-rows", "there are no rows to compare on", hint=hint)
    for number, row in enumerate(examples, start=1):
        if not isinstance(row, Example) or not row.outputs:
            problem = f"row {number}, of type {type(row).__name__}, is no row of a task with its expected answer"
            hint = "give what the task reads: data = task.read(), then data.test; Task(..., data=rows) takes your rows"
            raise DataError("bad-row", problem, hint=hint)
    progress = progress or default_progress()
    rows = [evaluate(artifact, examples, "test", folder=folder, progress=progress) for artifact in (a, b)]
    return compare_answers(a, b, *rows, folder=folder, seed=seed)


def compare_answers(
    a: Artifact, b: Artifact, answers_a: Sequence[Prediction], answers_b: Sequence[Prediction], *,
    folder: Path | None = None, seed: int = 0,
) -> Comparison:  # fmt: skip
    """The same with their answers to these rows."""
    found = compare_rows(metric_of(a, folder), answers_a, answers_b, seed=seed)
    return Comparison.of(a.name, b.name, a.signature.metric, found)


def related(
    results: Sequence[RungResult], answers: Mapping[str, Sequence[Prediction]], recommended: str, metric: Metric, *,
    seed: int,
) -> list[RungResult]:  # fmt: skip
    """Add to every measured rung how it compares with the best yardstick, and to a beaten one with the recommended.

    Both comparisons are on the rows of the rung's split that both answered, in the order in which they were answered;
    `answers` are those of all rungs. A beaten rung was stopped because of its scores, so an interval of its mean alone
    would be too low; its difference to the recommended rung has an interval by betting, valid at every stop.
    """
    known = {name: {(row.split, row.id): row for row in rows} for name, rows in answers.items()}
    measured = {r.name: r for r in results if r.score is not None}
    yardsticks = [name for name, r in measured.items() if r.family == YARDSTICK]
    shared = set.intersection(*(set(known.get(name, ())) for name in yardsticks)) if yardsticks else set()
    totals = {
        name: sum(row_values(metric, [known[name][key] for key in sorted(shared)])) for name in yardsticks if shared
    }
    best = max(totals, key=lambda name: totals[name], default=None)

    def pair(rung: RungResult, other: str) -> tuple[list[Prediction], list[Prediction]]:
        own, others = known.get(rung.name, {}), known.get(other, {})
        keys = [key for key in own if key[0] == rung.split and key in others]
        return [others[key] for key in keys], [own[key] for key in keys]

    def finished(rung: RungResult) -> RungResult:
        if rung.name not in measured:
            return rung
        held, stopped = None, None
        if best is not None and rung.name != best and (rows := pair(rung, best))[0]:
            held = Comparison.of(best, rung.name, rung.metric, compare_rows(metric, *rows, seed=seed))
        if (
            rung.status in ("beaten", "stopped")
            and metric.whole is None  # else only the budget ends a race, not the scores
            and rung.name not in (recommended, results[0].name)
            and (rows := pair(rung, recommended))[0]
        ):
            stopped = _at_stop(recommended, rung, *([row.score for row in each] for each in rows))
        if stopped is None:
            return replace(rung, yardstick=held)
        return replace(rung, yardstick=held, stopped=stopped, low=None, high=None)

    return [finished(rung) for rung in results]


def _at_stop(other: str, rung: RungResult, theirs: Sequence[float], own: Sequence[float]) -> Comparison:
    """Compare a stopped rung with another on the same rows; p and interval are valid at every stop."""
    difference = np.array(own) - np.array(theirs)
    exact, mean = is_binary(own) and is_binary(theirs), float(difference.mean())
    low, high = (bounded_below(each, 0.025, exact=exact) for each in (difference, -difference))
    capital = [(sign_capital if exact else betting_capital)(each).max() for each in (difference, -difference)]
    p = min(1.0, 2 * math.exp(-max(0.0, *map(float, capital))))
    fixed, broken = int((difference > 0).sum()), int((difference < 0).sum())
    return Comparison(
        other, rung.name, rung.metric, len(own), mean, min(low, mean), max(-high, mean), p, fixed, broken, "betting"
    )


def summarize(
    artifact: Artifact, examples: Sequence[Example], split: Literal["test", "validation"], *,
    folder: Path | None = None, judge: FaithfulnessJudge | None = None, statistics: Sequence[str] = (),
    progress: Progress = QUIET,
) -> dict[str, Any]:  # fmt: skip
    """Score an artifact by the task's metric and by every other metric without settings that suits its kind.

    `statistics` names further statistics of the whole set (see `label_statistic`), and `accuracy@K`, the share of rows
    with the expected label among the K most probable. Without being named, `accuracy@3` and `accuracy@5` are measured
    where the artifact gives probabilities.

    Returns: {"artifact", "split", "n", "metrics": {name: {"score", "low", "high"}}, "whole": {name: score}, "notes":
    {note: rows}}: intervals at 95 %, scores of the whole set, and the notes of the task's metric. Where the artifact
    abstains, the metrics include `coverage`, the share of rows that are answered, and `answered`, the task's metric on
    those. Where it searches documents, `retrieval` has `rung.evaluation.rag_metrics.summary`.
    """
    task, deep = artifact.signature, {int(found[1]) for name in statistics if (found := AT_K.fullmatch(name))}
    rows = evaluate(artifact, examples, split, folder=folder, judge=judge, full=bool(deep), progress=progress)
    scores = {task.metric: row_values(metric_of(artifact, folder), rows)}
    for name, metric in METRICS.items():
        # On all rows, the mean of its scores would be the accuracy; `whole` has the statistic itself.
        if task.kind in metric.kinds and name not in scores and name != BALANCED:
            metric = get_metric(name, refusal=task.refusal)
            scores[name] = [metric(row.prediction, row.expected) for row in rows]
    for k in sorted({3, 5} | deep) if task.kind == "category" and all(row.probs for row in rows) else ():
        if 1 <= k < len(task.labels):
            scores[f"accuracy@{k}"] = [
                float(any(label in row.expected for label in top_k(task.labels, row.prediction, row.probs or (), k)))
                for row in rows
            ]
    if artifact.decoder.abstains:
        scores["coverage"] = [float(not row.abstained) for row in rows]
        if answered := [row.score for row in rows if not row.abstained]:
            scores["answered"] = answered
    whole = _whole(task, rows)
    if task.kind == "category":
        answers, expected = [row.prediction for row in rows], [row.expected[0] for row in rows]
        asked = {name: label_statistic(name, answers, expected) for name in statistics}
        whole |= {name: value for name, value in asked.items() if value is not None}
    values: dict[str, Any] = {
        "artifact": artifact.name, "split": split, "n": len(rows),
        "metrics": {name: _mean(each) for name, each in scores.items()}, "whole": whole,
        "notes": notes(rows),
    }  # fmt: skip
    if retrieval := [row.retrieval for row in rows if row.retrieval is not None]:
        values["retrieval"] = summary(retrieval)
    return values


def top_k(labels: Sequence[str], answer: str, probs: Sequence[float], k: int) -> list[str]:
    """The answer, and then the labels by probability, k in all."""
    return sorted(labels, key=lambda label: (label != answer, -probs[labels.index(label)]))[:k]


def _at_k(artifact: Artifact, example: Example, answer: Answer, metric: Metric) -> RowScore:
    """Score 1 if an expected label is among the most probable ones."""
    if answer.probabilities is None:
        raise no_probabilities(artifact, metric)
    ranked = top_k(artifact.signature.labels, answer.text, answer.probabilities, metric.top)
    return RowScore(float(any(label in example.outputs for label in ranked)))


def no_probabilities(artifact: Artifact, metric: Metric) -> ConfigError:
    """The error where `accuracy@K` cannot be measured."""
    return ConfigError(
        "no-probabilities", f"{artifact.name} gives its labels no probabilities, which {metric.name} needs",
        hint="label scoring and trained heads give them; or use `metric: accuracy`",
    )  # fmt: skip


def _mean(scores: Sequence[float]) -> dict[str, float]:
    low, high = mean_interval(scores, seed=0)
    return {"score": sum(scores) / len(scores), "low": low, "high": high}


def _whole(task: Signature, rows: Sequence[Prediction]) -> dict[str, float]:
    """Compute what is only defined for the whole set: F1 over labels, BLEU and chrF of the corpus, refusals."""
    answers = [row.prediction for row in rows]
    whole: dict[str, float] = {}
    if task.kind == "category":
        expected = [row.expected[0] for row in rows]
        low, high = macro_f1_interval(answers, expected)
        whole = {"macro_f1": macro_f1(answers, expected), "macro_f1_low": low, "macro_f1_high": high}
        return {**whole, BALANCED: label_statistic(BALANCED, answers, expected) or 0.0}
    if task.kind == "multilabel":
        micro, macro = label_f1(answers, [row.expected[0] for row in rows], task.labels)
        return {"micro_f1": micro, "macro_f1": macro}
    if task.kind == "number":
        return number_statistics(answers, [row.expected[0] for row in rows])
    if task.metric in ("bleu", "chrf"):
        references = [row.expected for row in rows]
        whole |= {"corpus_bleu": corpus_bleu(answers, references), "corpus_chrf": corpus_chrf(answers, references)}
    if task.refusal:
        refused = [quasi_exact_match(answer, [task.refusal]) for answer in answers]
        due = [max(quasi_exact_match(text, [task.refusal]) for text in row.expected) for row in rows]
        right = sum(a * b for a, b in zip(refused, due, strict=True))
        whole |= {"refusals_due": sum(due) / len(due), "refusals_given": sum(refused) / len(refused)}
        whole |= {"refusal_precision": right / sum(refused)} if any(refused) else {}
        whole |= {"refusal_recall": right / sum(due)} if any(due) else {}
    return whole


def notes(rows: Sequence[Prediction]) -> dict[str, int]:
    """Count the metric's notes on rows, by the part before the first colon, most frequent first."""
    return dict(Counter(row.note.split(":")[0] for row in rows if row.note).most_common())


def check_suits(artifact: Artifact, task: Task, rows: Sequence[Example]) -> None:
    """Check that an artifact reads the inputs of a task and gives its kind of answers, before any inference.

    Raises:
        DataError: `missing-column`: the task lacks an input; `unknown-label`: the artifact can give no expected label.
        ConfigError: `bad-option`: the task's answers are of another kind.
    """
    shape = artifact.signature
    for name in shape.inputs:
        if name not in task.inputs:
            problem = f"{artifact.name} reads {name!r}, which is no input of the task {task.name}"
            raise DataError(
                "missing-column", problem, hint=f"name the columns as they were: {suggest(name, task.inputs)}"
            )
    if task.output.kind != shape.kind:
        problem = f"{artifact.name} gives answers of the kind {shape.kind}, and the task {task.name} expects"
        hint = f"give a task with `kind: {shape.kind}`, such as the one that the artifact was made for"
        raise ConfigError("bad-option", f"{problem} {task.output.kind}", hint=hint)
    expected = {label for row in rows for output in row.outputs for label in labels_of(output, shape.kind)}
    if shape.labels and expected and not {*map(canonical, expected)} & {*map(canonical, shape.labels)}:
        problem = f"no row expects a label that {artifact.name} can give, so every score would be 0: the rows expect"
        shown = ", ".join(map(repr, sorted(expected)[:SHOWN]))
        raise DataError("unknown-label", f"{problem} {shown}", hint=f"it gives {', '.join(shape.labels[:SHOWN])}")


def validate_references(task: Task, data: Data) -> None:
    """Validate the metric and the references before any inference, so that errors surface at once, not hours later.

    Raises:
        ConfigError: the metric is unknown, or a setting or a file of it is wrong.
        DataError: the metric cannot score by an expected answer; the message names its place.
    """
    metric = get_metric(task.metric_name, task.folder, task.metric_settings, refusal=task.output.refusal or "")
    if metric.check is not None:
        metric.check((*data.train, *data.validation, *data.test))
