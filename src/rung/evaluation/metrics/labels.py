"""One label a row: accuracy, and views of the whole set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rung.evaluation.metrics.base import some

OTHER = "(other)"  # stands for every prediction that is not one of the labels


@dataclass(frozen=True, slots=True)
class Confusion:
    """`count` rows of the label `expected` were predicted to be `predicted`; `rows` are their indices."""

    expected: str
    predicted: str
    count: int
    rows: tuple[int, ...]


def accuracy(prediction: str, references: Sequence[str]) -> float:
    """Return 1 if the prediction is one of the references, outer whitespace aside, else 0."""
    return float(any(prediction.strip() == reference.strip() for reference in some(references)))


def macro_f1(predictions: Sequence[str], expected: Sequence[str]) -> float:
    """Return the mean over the labels that occur in `expected` of each label's F1.

    Predictions of any other text count against the label they missed, and add no label of their own.

    Raises:
        ValueError: If the two differ in length or are empty.
    """
    pairs = _pairs(predictions, expected)
    hits = Counter(truth for guess, truth in pairs if guess == truth)
    guessed = Counter(guess for guess, _ in pairs)
    true = Counter(truth for _, truth in pairs)
    return sum(2 * hits[label] / (guessed[label] + true[label]) for label in true) / len(true)


def confusion(predictions: Sequence[str], expected: Sequence[str], labels: Sequence[str]) -> list[Confusion]:
    """Return the pairs of labels that were confused, most frequent first, ties in the order of `labels`.

    Predictions that are none of the labels are gathered under `OTHER`.

    Raises:
        ValueError: If lengths differ, there are no rows, or an expected label is none of `labels`.
    """
    order = {label.strip(): rank for rank, label in enumerate(labels)}
    rows: dict[tuple[str, str], list[int]] = {}
    for row, (guess, truth) in enumerate(_pairs(predictions, expected)):
        if truth not in order:
            raise ValueError(f"row {row}: expected label {truth!r} is not one of the labels")
        if guess != truth:
            rows.setdefault((truth, guess if guess in order else OTHER), []).append(row)
    found = [Confusion(truth, guess, len(indices), tuple(indices)) for (truth, guess), indices in rows.items()]
    return sorted(found, key=lambda c: (-c.count, order[c.expected], order.get(c.predicted, len(order))))


def cohens_kappa(first: Sequence[str], second: Sequence[str]) -> float:
    """Return the agreement of two raters beyond chance (Cohen 1960): 1 is full, 0 what chance gives.

    Two raters who both gave one and the same label to everything agree fully: 1.

    Raises:
        ValueError: If the two differ in length or are empty.
    """
    pairs = _pairs(first, second)
    n = len(pairs)
    observed = sum(a == b for a, b in pairs) / n
    left, right = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    chance = sum(left[label] * right[label] for label in left) / n**2
    return (observed - chance) / (1 - chance) if chance < 1 else 1.0


def _pairs(predictions: Sequence[str], expected: Sequence[str]) -> list[tuple[str, str]]:
    if len(predictions) != len(expected) or not expected:
        raise ValueError(f"need as many predictions as expected labels, got {len(predictions)} and {len(expected)}")
    return [(guess.strip(), truth.strip()) for guess, truth in zip(predictions, expected, strict=True)]
