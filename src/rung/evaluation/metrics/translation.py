"""Translations: chrF and BLEU as sacrebleu computes them, with all references at once."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal

from rung.errors import needed_by
from rung.evaluation.metrics.base import some


def chrf(prediction: str, references: Sequence[str]) -> float:
    """Return chrF2 of one text: F2 over character 6-grams (Popović 2015), over 100."""
    return _sentence("chrf", prediction, references)


def bleu(prediction: str, references: Sequence[str]) -> float:
    """Return the BLEU of one text with effective order and exponential smoothing (Papineni et al. 2002), over 100.

    BLEU is made for whole sets: the mean over rows is fit to compare two systems on the same rows, and is not the
    figure that papers print. `corpus_bleu` gives that.
    """
    return _sentence("bleu", prediction, references)


def corpus_bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return BLEU over the whole set, over 100; rows may have different numbers of references."""
    return _corpus("bleu", predictions, references)


def corpus_chrf(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return chrF2 over the whole set, over 100; rows may have different numbers of references."""
    return _corpus("chrf", predictions, references)


def _sentence(kind: Literal["bleu", "chrf"], prediction: str, references: Sequence[str]) -> float:
    score = float(_scorer(kind, one=True).sentence_score(prediction, list(some(references))).score)
    return min(1.0, score / 100)  # rounding takes a perfect text a hair above 100


def _corpus(kind: Literal["bleu", "chrf"], predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    most = max(len(some(row)) for row in references)
    # sacrebleu wants one list per reference stream; None stands where a row has fewer than the others.
    streams = [[row[k] if k < len(row) else None for row in references] for k in range(most)]
    return min(1.0, float(_scorer(kind, one=False).corpus_score(list(predictions), streams).score) / 100)


@functools.cache
def _scorer(kind: Literal["bleu", "chrf"], *, one: bool) -> Any:
    with needed_by(f"the metric {kind}"):
        from sacrebleu.metrics import BLEU, CHRF
    return CHRF() if kind == "chrf" else BLEU(effective_order=one)
