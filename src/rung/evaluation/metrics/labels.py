"""Metrics of labels: one label a row, several labels a row, and ranked rows."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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
    return LabelStatistic(_f_beta(1)).of(predictions, expected)


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
_MACRO = re.compile(r"macro_f(?P<beta>\d+(?:\.\d+)?)")
_Rate = Callable[[float, float, float], float]  # of a label's right answers, all its answers, and its rows


@dataclass(frozen=True, slots=True)
class LabelStatistic:
    """The mean over labels of a rate, such as F1 or recall; see `label_statistic` for its names."""

    rate: _Rate
    label: str | None = None  # the only label that counts; None for each label that is expected somewhere

    @classmethod
    def named(cls, name: str) -> LabelStatistic | None:
        """Find a statistic by its name; None for a name of another kind."""
        if name == "balanced_accuracy":
            return cls(_recall)
        if macro := _MACRO.fullmatch(name):
            return cls(_f_beta(float(macro["beta"])))
        if (of := _OF_A_LABEL.fullmatch(name)) is None:
            return None
        rate = _f_beta(float(of["beta"])) if of["beta"] else _recall if of["what"] == "recall" else _precision
        return cls(rate, canonical(of["label"]))

    def of(self, predictions: Sequence[str], expected: Sequence[str]) -> float:
        """Compute the statistic."""
        counts = _Counts(_pairs(predictions, expected))
        rates = [self.rate(*counts.of(label)) for label in self._labels(counts)]
        return sum(rates) / len(rates)

    def values(self, predictions: Sequence[str], expected: Sequence[str]) -> list[float]:
        """Give each row the number that it adds, so that the mean of the rows is the statistic itself.

        They are the jackknife's: what the statistic loses without the row, times the number of other rows, around the
        statistic. Means of such numbers vary as the statistic does, and rather more (Efron & Stein, The jackknife
        estimate of variance, Annals of Statistics 9, 1981), so paired tests of means
        apply. They may lie outside [0, 1].
        """
        pairs = _pairs(predictions, expected)
        counts, n = _Counts(pairs), len(pairs)
        rates = {label: self.rate(*counts.of(label)) for label in self._labels(counts)}
        lost = {}
        for guess, truth in set(pairs):
            right = guess == truth
            others = {
                label: self.rate(hits - right, given - (label == guess), true - (label == truth))
                for label in {guess, truth} & set(rates)
                for hits, given, true in [counts.of(label)]
            }
            lost[guess, truth] = sum(rates[label] - other for label, other in others.items()) / len(rates)
        mean = sum(lost[pair] for pair in pairs) / n
        whole = sum(rates.values()) / len(rates)
        return [whole + (n - 1) * (lost[pair] - mean) for pair in pairs]

    def metric(self, name: str, description: str) -> Metric:
        """Make the metric of a climb. One row is scored as right or wrong."""

        def check(examples: Sequence[Example]) -> None:
            labels = {canonical(label) for example in examples for label in example.outputs}
            if self.label is not None and self.label not in labels:
                raise ConfigError(
                    "bad-setting", f"the metric {name} names {self.label!r}, which is no label of the rows",
                    hint=suggest(self.label, sorted(labels)),
                )  # fmt: skip

        return Metric(name, accuracy, description, ("category",), check=check, whole=self.values)

    def _labels(self, counts: _Counts) -> list[str]:
        return list(counts.true) if self.label is None else [self.label]


class _Counts:
    """How often each label is expected, answered, and both."""

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        self.found, self.true = Counter(guess for guess, _ in pairs), Counter(truth for _, truth in pairs)
        self.hits = Counter(truth for guess, truth in pairs if guess == truth)

    def of(self, label: str) -> tuple[int, int, int]:
        return self.hits[label], self.found[label], self.true[label]


def _precision(hits: float, found: float, true: float) -> float:
    del true
    return hits / (found or 1)


def _recall(hits: float, found: float, true: float) -> float:
    del found
    return hits / (true or 1)


def _f_beta(beta: float) -> _Rate:
    """Make the rate F-beta of a label: beta above 1 counts recall more than precision."""
    return lambda hits, found, true: (1 + beta**2) * hits / (found + beta**2 * true or 1)


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
    found = LabelStatistic.named(name)
    return None if found is None else found.of(predictions, expected)


def at_k_metric(k: int) -> Metric:
    """Make `accuracy@K` a metric of a climb: whether an expected label is among the K most probable ones."""

    def check(examples: Sequence[Example]) -> None:
        labels = len({canonical(label) for example in examples for label in example.outputs})
        if k >= labels:
            raise ConfigError(
                "bad-setting", f"the metric accuracy@{k} is always 1 with {labels} labels",
                hint="take a smaller number" if labels > 1 else "use `metric: accuracy`",
            )  # fmt: skip

    description = f"an expected label is among the {k} most probable"
    return Metric(f"accuracy@{k}", accuracy, description, ("category",), binary=True, check=check, top=k)


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
        rows=lambda cases, _: [score(case) for case in cases], check=check,
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
