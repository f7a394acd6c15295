"""Search: candidates by words (BM25) and by meaning (vectors), fused, without near-duplicates, perhaps reranked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from rung.engines.base import Floats
from rung.retrieval.passage import Passage
from rung.retrieval.store import Ids

Mode = Literal["hybrid", "bm25", "dense"]
# Queries and the passages of each to a score for each passage: larger is more relevant.
Rerank = Callable[[Sequence[str], Sequence[Sequence[Passage]]], Sequence[Sequence[float]]]

RRF = 60  # the constant of reciprocal rank fusion, as its authors set it
WEIGHT = 0.3  # of the dense scores, chosen on half of the questions of chunking_eval
FEWEST_LABELLED = 30  # labelled queries from which a weight is learned


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """How passages are searched.

    Attributes:
        mode: `bm25` looks for words, `dense` for meaning, `hybrid` for both.
        weight: of the dense scores against those of BM25, 0 to 1; `learn_weight` finds one for other documents. None
            fuses by ranks.
        candidates: passages that each search hands to the fusion.
        filters: values by `document`, `source`, `title` or a column of `corpus.metadata`; several mean one of them.
        duplicate: passages with this cosine to a better one are left out; above 1 none is.
        diversity: 0 orders by relevance alone; above, passages are chosen by maximal marginal relevance.
        reranked: passages that a reranker reads.
    """

    mode: Mode = "hybrid"
    weight: float | None = WEIGHT
    candidates: int = 100
    filters: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    duplicate: float = 0.98
    diversity: float = 0.0
    reranked: int = 20


def fuse(dense: tuple[Ids, Floats] | None, words: tuple[Ids, Floats] | None, weight: float | None) -> dict[int, float]:
    """Return the score of every candidate, best first; ties go to the smaller row id.

    Args:
        dense: row ids and cosines, best first.
        words: row ids and BM25 scores, best first.
        weight: of the dense scores; None for reciprocal rank fusion.
    """
    if dense is None or words is None:
        ids, scores = dense or words or (np.zeros(0, np.int64), np.zeros(0, np.float32))
        found = {int(one): float(score) for one, score in zip(ids, scores, strict=True)}
    elif weight is None:
        found = {}
        for ids, _ in (dense, words):
            for rank, one in enumerate(ids, start=1):
                found[int(one)] = found.get(int(one), 0.0) + 1 / (RRF + rank)
    else:
        found = _combined(dense, words, weight)
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _combined(dense: tuple[Ids, Floats], words: tuple[Ids, Floats], weight: float) -> dict[int, float]:
    """Convex combination of scaled scores; a candidate that one search did not find counts as its last one there.

    Bruch, Gai & Ingber, An analysis of fusion functions for hybrid retrieval, ACM TOIS 42 (2023).
    """
    found: dict[int, float] = {}
    for (ids, scores), share in ((dense, weight), (words, 1 - weight)):
        if len(ids):
            low, high = float(scores.min()), float(scores.max())
            for one, score in zip(ids, scores, strict=True):
                scaled = (float(score) - low) / (high - low) if high > low else 1.0
                found[int(one)] = found.get(int(one), 0.0) + share * scaled
    return found


def without_duplicates(vectors: Floats, threshold: float) -> list[int]:
    """Return the positions, in order, of vectors whose cosine to each one kept before is below the threshold."""
    kept: list[int] = []
    for position in range(len(vectors)):
        if not kept or float((vectors[kept] @ vectors[position]).max()) < threshold:
            kept.append(position)
    return kept


def diverse(relevance: npt.NDArray[np.float64], vectors: Floats, k: int, diversity: float) -> list[int]:
    """Return k positions chosen by maximal marginal relevance (Carbonell & Goldstein, SIGIR 1998).

    Relevance is scaled to 0..1; each next one maximizes `(1 - diversity) * relevance - diversity * largest cosine to
    those chosen`.
    """
    spread = float(relevance.max() - relevance.min())
    scaled = (relevance - relevance.min()) / spread if spread else np.ones_like(relevance)
    nearest = np.full(len(relevance), -np.inf)
    chosen: list[int] = []
    while len(chosen) < min(k, len(relevance)):
        penalty = np.where(np.isinf(nearest), 0.0, nearest)
        value = (1 - diversity) * scaled - diversity * penalty
        value[chosen] = -np.inf
        best = int(value.argmax())
        chosen.append(best)
        nearest = np.maximum(nearest, vectors @ vectors[best])
    return chosen
