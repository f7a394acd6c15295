"""Metrics of labels: one label a row, several labels a row, and ranked rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rung.artifact.lookup import outputs_of
from rung.data.texts import canonical
from rung.errors import DataError
from rung.evaluation.metrics.base import f1, some

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
