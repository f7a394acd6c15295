"""Several labels a row, or none: answers and references are JSON lists of labels, in any order."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rung.errors import DataError
from rung.evaluation.metrics.base import f1, some


@dataclass(frozen=True, slots=True)
class LabelF1:
    """The whole set: F1 over all decisions (`micro`), its mean over the labels (`macro`), rows all right (`exact`)."""

    micro: float
    macro: float
    exact: float


def labels_exact(prediction: str, references: Sequence[str]) -> float:
    """Return 1 if exactly the expected labels were given (subset accuracy), else 0."""
    found = _given(prediction)
    return float(found is not None and any(found == _wanted(reference) for reference in some(references)))


def labels_f1(prediction: str, references: Sequence[str]) -> float:
    """Return the F1 over the row's labels, the best over all references; 1 if no label is expected and none given.

    The mean over rows is what scikit-learn calls `average="samples"`. What is no JSON list of texts scores 0.
    """
    wanted = [_wanted(reference) for reference in some(references)]
    found = _given(prediction)
    return 0.0 if found is None else max(f1(len(found & labels), len(found), len(labels)) for labels in wanted)


def label_f1(predictions: Sequence[str], expected: Sequence[str], labels: Sequence[str]) -> LabelF1:
    """Return micro and macro F1 over `labels`, and the share of rows that are all right.

    A label that is neither expected nor given anywhere has an F1 of 0, as in scikit-learn with `zero_division=0`. An
    answer that cannot be read gives no labels.

    Raises:
        ValueError: If the two differ in length or are empty.
        DataError: `bad-labels-reference` if an expected answer is no JSON list of texts.
    """
    if len(predictions) != len(expected) or not expected:
        raise ValueError(f"need as many predictions as expected answers, got {len(predictions)} and {len(expected)}")
    found = [_given(text) for text in predictions]
    wanted = [_wanted(text) for text in expected]
    shared, given, true = Counter[str](), Counter[str](), Counter[str]()
    for answer, truth in zip(found, wanted, strict=True):
        shared.update((answer or frozenset()) & truth)
        given.update(answer or ())
        true.update(truth)
    totals = [given[label] + true[label] for label in labels]
    each = [2 * shared[label] / total if total else 0.0 for label, total in zip(labels, totals, strict=True)]
    every = given.total() + true.total()
    return LabelF1(
        micro=2 * shared.total() / every if every else 0.0,
        macro=sum(each) / len(each),
        exact=sum(answer == truth for answer, truth in zip(found, wanted, strict=True)) / len(wanted),
    )


def _given(text: str) -> frozenset[str] | None:
    """Return the labels of an answer, or None if it is no JSON list of texts."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        return None
    return frozenset(value)


def _wanted(text: str) -> frozenset[str]:
    labels = _given(text)
    if labels is None:
        raise DataError(
            "bad-labels-reference",
            f"an expected answer is no JSON list of labels: {text[:80]!r}",
            hint='with `kind: multilabel`, an expected answer reads ["one label", "another"]',
        )
    return labels
