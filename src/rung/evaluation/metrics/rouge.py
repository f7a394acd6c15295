"""Summaries: ROUGE (Lin 2004) with Porter stemming, against the best of several references."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from rung.errors import needed_by
from rung.evaluation.metrics.base import some


def rouge1(prediction: str, references: Sequence[str]) -> float:
    """Return ROUGE-1 F: shared words, the best over all references."""
    return _rouge("rouge1", prediction, references)


def rouge2(prediction: str, references: Sequence[str]) -> float:
    """Return ROUGE-2 F: shared word pairs, the best over all references."""
    return _rouge("rouge2", prediction, references)


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """Return ROUGE-L F: longest common subsequence of words, the best over all references."""
    return _rouge("rougeL", prediction, references)


def _rouge(kind: str, prediction: str, references: Sequence[str]) -> float:
    scorer = _scorer(kind)
    return max(float(scorer.score(reference, prediction)[kind].fmeasure) for reference in some(references))


@functools.cache
def _scorer(kind: str) -> Any:
    # The package brings NLTK and takes seconds to import, hence only here and only once.
    with needed_by(f"the metric {kind}"):
        from rouge_score.rouge_scorer import RougeScorer
    return RougeScorer([kind], use_stemmer=True)
