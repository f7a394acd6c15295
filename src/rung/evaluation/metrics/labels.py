"""Metrics of labels: one label a row, several labels a row, and ranked rows."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rung.artifact.lookup import outputs_of
from rung.data.rows import Example
from rung.data.texts import canonical
from rung.errors import ConfigError, DataError, suggest
from rung.evaluation.metrics.base import Case, Metric, RowScore, f1, some

OTHER = "(other)"  # every prediction that is not one of the labels


@dataclass(frozen=True, slots=True)
class Confusion:
    """`count` rows of the label `expected` were predicted to be `predicted`; `rows` are their indices."""

    expected: str
    predicted: str
    count: int
    rows: tuple[int, ...]


def accuracy(prediction: str, references: Sequence[str]) -> float:
    """Score 1 if the prediction is one of the references, but for outer whitespace and Unicode's form, else 0."""
    return float(any(canonical(prediction) == canonical(reference) for reference in some(references)))


def macro_f1(predictions: Sequence[str], expected: Sequence[str]) -> float:
    """Average the F1 of each label that occurs in `expected`.

    Any other prediction counts against the label that it missed, and adds no label.

    Raises:
        ValueError: the two differ in length or are empty.
    """
    pairs = _pairs(predictions, expected)
    hits = Counter(truth for guess, truth in pairs if guess == truth)
    guessed = Counter(guess for guess, _ in pairs)
    true = Counter(truth for _, truth in pairs)
    return sum(2 * hits[label] / (guessed[label] + true[label]) for label in true) / len(true)


def macro_f1_interval(
    predictions: Sequence[str], expected: Sequence[str], *, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Give the 95 % interval of `macro_f1` by the percentile bootstrap over rows (Efron 1979)."""
    pairs = _pairs(predictions, expected)
    codes = {label: code for code, label in enumerate(dict.fromkeys(truth for _, truth in pairs))}
    true = np.array([codes[truth] for _, truth in pairs])
    found = np.array([codes.get(guess, len(codes)) for guess, _ in pairs])
    rng, values = np.random.default_rng(seed), []
    for _ in range(resamples):
        rows = rng.integers(len(pairs), size=len(pairs))
        wanted = np.bincount(true[rows], minlength=len(codes))
        given = np.bincount(found[rows], minlength=len(codes) + 1)[: len(codes)]
        hits = np.bincount(true[rows][true[rows] == found[rows]], minlength=len(codes))
        occurs = wanted > 0
        values.append(float((2 * hits[occurs] / (given[occurs] + wanted[occurs])).mean()))
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


_OF_A_LABEL = re.compile(r"(?P<what>precision|recall|f(?P<beta>\d+(?:\.\d+)?)):(?P<label>.+)")


def label_statistic(name: str, predictions: Sequence[str], expected: Sequence[str]) -> float | None:
    """Compute a statistic of a whole set by its name; None for a name of another kind.

    `macro_f1`, `macro_f2` (F-beta of each label that occurs, averaged), `balanced_accuracy` (the mean of the labels'
    recalls), and of one label `recall:fraud`, `precision:fraud`, `f1:fraud`, `f0.5:fraud`. A precision or recall of
    nothing is 0, as in scikit-learn with `zero_division=0`.

    Example:
        >>> label_statistic("recall:b", ["a", "a"], ["a", "b"])
        0.0

    Raises:
        ValueError: the two differ in length or are empty.
    """
    pairs = _pairs(predictions, expected)
    found, true = Counter(guess for guess, _ in pairs), Counter(truth for _, truth in pairs)
    hits = Counter(truth for guess, truth in pairs if guess == truth)

    def f_beta(label: str, beta: float) -> float:
        return (1 + beta**2) * hits[label] / (found[label] + beta**2 * true[label] or 1)

    if name == "balanced_accuracy":
        return sum(hits[label] / true[label] for label in true) / len(true)
    if macro := re.fullmatch(r"macro_f(\d+(?:\.\d+)?)", name):
        return sum(f_beta(label, float(macro[1])) for label in true) / len(true)
    if (of := _OF_A_LABEL.fullmatch(name)) is None:
        return None
    label = canonical(of["label"])
    if of["beta"]:
        return f_beta(label, float(of["beta"]))
    return hits[label] / ((true if of["what"] == "recall" else found)[label] or 1)


def label_costs_metric(settings: Mapping[str, Any]) -> Metric:
    """Make the metric from `LabelCostSettings`: 1 - the cost of the answer / the largest cost."""
    costs = {(canonical(truth), canonical(guess)): float(cost) for truth, row in settings["costs"].items()
             for guess, cost in row.items()}  # fmt: skip
    largest = max(*costs.values(), settings["other"], 0.0)
    if any(cost < 0 or truth == guess for (truth, guess), cost in costs.items()):
        raise ConfigError(
            "bad-setting", "the metric label_costs: a cost is negative, or that of a right answer",
            hint="write `costs: {fraud: {ok: 10}}`: answering ok where fraud is expected costs 10",
        )  # fmt: skip

    def score(case: Case) -> RowScore:
        guess, truths = canonical(case.prediction), [canonical(reference) for reference in some(case.references)]
        cost = 0.0 if guess in truths else min(costs.get((truth, guess), settings["other"]) for truth in truths)
        return RowScore(1 - cost / largest)

    def check(examples: Sequence[Example]) -> None:
        labels = {canonical(label) for example in examples for label in example.outputs}
        if unknown := [label for pair in costs for label in pair if label not in labels]:
            raise ConfigError(
                "bad-setting", f"the metric label_costs names {unknown[0]!r}, which is no label of the rows",
                hint=suggest(unknown[0], sorted(labels)),
            )  # fmt: skip

    return Metric(
        "label_costs", None, "1 - cost of the answer / largest cost", ("category",),
        rows=lambda cases: [score(case) for case in cases], check=check,
    )  # fmt: skip


def confusion(predictions: Sequence[str], expected: Sequence[str], labels: Sequence[str]) -> list[Confusion]:
    """List the pairs of labels that were confused, most frequent first, ties in the order of `labels`.

    Predictions that are none of the labels are counted under `OTHER`.

    Raises:
        ValueError: lengths differ, there are no rows, or an expected label is none of `labels`.
    """
    order = {canonical(label): rank for rank, label in enumerate(labels)}
    rows: dict[tuple[str, str], list[int]] = {}
    for row, (guess, truth) in enumerate(_pairs(predictions, expected)):
        if truth not in order:
            raise ValueError(f"row {row}: expected label {truth!r} is not one of the labels")
        if guess != truth:
            rows.setdefault((truth, guess if guess in order else OTHER), []).append(row)
    pairs = [Confusion(truth, guess, len(indices), tuple(indices)) for (truth, guess), indices in rows.items()]
    return sorted(pairs, key=lambda c: (-c.count, order[c.expected], order.get(c.predicted, len(order))))


def cohens_kappa(first: Sequence[str], second: Sequence[str]) -> float:
    """Measure the agreement of two raters beyond chance (Cohen 1960): 1 is full, 0 is chance.

    If both raters gave the same label to everything, they agree fully: 1.

    Raises:
        ValueError: the two differ in length or are empty.
    """
    pairs = _pairs(first, second)
    n = len(pairs)
    observed = sum(a == b for a, b in pairs) / n
    left, right = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    chance = sum(left[label] * right[label] for label in left) / n**2
    return (observed - chance) / (1 - chance) if chance < 1 else 1.0


def _pairs(predictions: Sequence[str], expected: Sequence[str]) -> list[tuple[str, str]]:
    if len(predictions) != len(expected) or not expected:
        raise ValueError(f"need as many predictions as expected answers, got {len(predictions)} and {len(expected)}")
    return [(canonical(guess), canonical(truth)) for guess, truth in zip(predictions, expected, strict=True)]


# ---- several labels a row, or none: answers and references are JSON lists of labels, in any order


class LabelF1(NamedTuple):
    """The whole set: F1 over all decisions (`micro`), and the mean F1 of the labels (`macro`)."""

    micro: float
    macro: float


def labels_exact(prediction: str, references: Sequence[str]) -> float:
    """Score 1 if exactly the expected labels were given (subset accuracy), else 0."""
    found = _given(prediction)
    return float(found is not None and any(found == _wanted(reference) for reference in some(references)))


def labels_f1(prediction: str, references: Sequence[str]) -> float:
    """Compute the F1 over the row's labels, the best over all references; 1 if no label is expected and none given.

    The mean over rows is scikit-learn's `average="samples"`. An answer that is not a JSON list of texts scores 0.
    """
    wanted = [_wanted(reference) for reference in some(references)]
    found = _given(prediction)
    return 0.0 if found is None else max(f1(len(found & labels), len(found), len(labels)) for labels in wanted)


def label_f1(predictions: Sequence[str], expected: Sequence[str], labels: Sequence[str]) -> LabelF1:
    """Compute micro and macro F1 over `labels`.

    A label that is neither expected nor given anywhere has an F1 of 0, as in scikit-learn with `zero_division=0`. An
    unreadable answer gives no labels.

    Raises:
        ValueError: the two differ in length or are empty.
        DataError: `bad-reference`: an expected answer is not a JSON list of texts.
    """
    pairs = _pairs(predictions, expected)
    found, wanted = [_given(answer) for answer, _ in pairs], [_wanted(truth) for _, truth in pairs]
    shared, given, true = Counter[str](), Counter[str](), Counter[str]()
    for answer, truth in zip(found, wanted, strict=True):
        shared.update((answer or frozenset()) & truth)
        given.update(answer or ())
        true.update(truth)
    labels = [canonical(label) for label in labels]
    totals = [given[label] + true[label] for label in labels]
    each = [2 * shared[label] / total if total else 0.0 for label, total in zip(labels, totals, strict=True)]
    every = given.total() + true.total()
    return LabelF1(2 * shared.total() / every if every else 0.0, sum(each) / len(each))


def _given(text: str) -> frozenset[str] | None:
    """Read the labels of an answer; None if it is not a JSON list of texts."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        return None
    return frozenset(map(canonical, value))


def _wanted(text: str) -> frozenset[str]:
    labels = _given(text)
    if labels is None:
        raise DataError(
            "bad-reference", f"an expected answer is not a JSON list of labels: {text[:80]!r}",
            hint='with `kind: multilabel`, write an expected answer as ["one label", "another"]',
        )  # fmt: skip
    return labels


# ---- ranked rows: is the expected output among them, and how early?


def recall_at_k(prediction: str, references: Sequence[str]) -> float:
    """Score 1 if one of the ranked rows has an expected output, else 0."""
    return float(reciprocal_rank(prediction, references) > 0)


def recall_at_1(prediction: str, references: Sequence[str]) -> float:
    """Score 1 if the first row has an expected output, else 0."""
    return float(reciprocal_rank(prediction, references) == 1)


def reciprocal_rank(prediction: str, references: Sequence[str]) -> float:
    """Score 1 / rank of the first row with an expected output, 0 if there is none. Its mean is the MRR."""
    wanted = set(map(canonical, some(references)))
    ranked = enumerate(outputs_of(prediction), start=1)
    return next((1 / rank for rank, output in ranked if canonical(output) in wanted), 0.0)
