"""Completions and rewritten texts: how little has to be edited, and whether the right words were edited."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rung.errors import ConfigError
from rung.evaluation.metrics.base import Case, Metric, RowsFunction, Score, some

_ORDERS = (1, 2, 3, 4)
_WORD = re.compile(r"\w+|[^\w\s]")


def edit_similarity(prediction: str, references: Sequence[str]) -> float:
    """Return 1 - Levenshtein distance / length of the longer text, in characters; the best over all references."""
    return max(_similarity(prediction.strip(), reference.strip()) for reference in some(references))


def _similarity(a: str, b: str) -> float:
    longest = max(len(a), len(b))
    return 1 - _distance(a, b) / longest if longest else 1.0


def _distance(a: str, b: str) -> int:
    """Return how many characters have to be inserted, deleted or replaced."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


def sari(source: str, prediction: str, references: Sequence[str]) -> float:
    """Return SARI: the mean of how well words were kept, deleted and added, over 1- to 4-grams of lower-case words.

    Punctuation marks are words of their own.

    Xu et al., Optimizing statistical machine translation for text simplification, TACL 2016, with the later correction
    of the recall of kept words, and 1 for parts in which there is nothing to do.
    """
    parts = [_sari_parts(_ngrams(source, n), _ngrams(prediction, n), [_ngrams(r, n) for r in some(references)])
             for n in _ORDERS]  # fmt: skip
    return sum(map(sum, parts)) / (3 * len(_ORDERS))


def _sari_parts(
    source: Counter[str], answer: Counter[str], references: Sequence[Counter[str]]
) -> tuple[float, float, float]:
    """Return F1 of kept, precision of deleted and F1 of added n-grams; counts are weighted by the references."""
    wanted = Counter[str]()
    for reference in references:
        wanted.update(reference)
    n = len(references)
    had = Counter({gram: n * count for gram, count in source.items()})
    has = Counter({gram: n * count for gram, count in answer.items()})
    kept, keepable = had & has, had & wanted
    right = kept & wanted
    keep = _harmonic(_mean_ratio(right, kept), right.total() / keepable.total() if keepable else 1.0)
    deleted = had - has
    delete = _mean_ratio(deleted - wanted, deleted)
    added, addable = answer.keys() - source.keys(), wanted.keys() - source.keys()
    hits = len(added & wanted.keys())
    add = _harmonic(hits / len(added) if added else 1.0, hits / len(addable) if addable else 1.0)
    return keep, delete, add


def _mean_ratio(right: Counter[str], all_of: Counter[str]) -> float:
    return sum(count / all_of[gram] for gram, count in right.items()) / len(all_of) if all_of else 1.0


def _harmonic(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _ngrams(text: str, n: int) -> Counter[str]:
    words = _WORD.findall(text.lower())
    return Counter(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))


def sari_metric(settings: Mapping[str, Any]) -> Metric:
    """Return SARI as a metric of rows; `source` names the column that was rewritten."""
    return Metric(
        "sari", None, "words kept, deleted and added as in the references", ("text",), rows=_rows(settings["source"])
    )


def _rows(column: str) -> RowsFunction:
    def scores(cases: Sequence[Case]) -> list[Score]:
        for case in cases:
            if column not in case.row:
                raise ConfigError(
                    "metric-column", f"the metric sari reads the column {column!r}, which the row lacks",
                    hint=f"`metric.source` must be one of the task's inputs: {', '.join(case.row)}",
                )  # fmt: skip
        return [Score(sari(str(case.row[column]), case.prediction, case.references)) for case in cases]

    return scores
