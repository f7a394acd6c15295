"""How good retrieval is, apart from answers: recall@k, reciprocal rank, nDCG@k, and the share of gold spans found."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from rung.data.rows import Span
from rung.retrieval.passage import Passage


def recall_at_k(ranked: Sequence[str], relevant: Collection[str], k: int) -> float:
    """Return the share of the relevant ids that stand among the first k.

    Raises:
        ValueError: nothing is relevant.
    """
    _need(relevant)
    return len(set(ranked[:k]) & set(relevant)) / len(set(relevant))


def reciprocal_rank(ranked: Sequence[str], relevant: Collection[str]) -> float:
    """Return 1 / rank of the first relevant id, or 0 where none was found; its mean is MRR.

    Raises:
        ValueError: nothing is relevant.
    """
    _need(relevant)
    return next((1 / rank for rank, one in enumerate(ranked, start=1) if one in relevant), 0.0)


def ndcg_at_k(ranked: Sequence[str], gains: Mapping[str, float], k: int) -> float:
    """Return the normalized discounted cumulative gain of the first k ids; ids without a gain have none.

    Järvelin & Kekäläinen, Cumulated gain-based evaluation of IR techniques, ACM TOIS 20 (2002).

    Raises:
        ValueError: no gain is above 0.
    """
    ideal = _discounted(sorted(gains.values(), reverse=True)[:k])
    if ideal <= 0:
        raise ValueError("nothing is relevant")
    return _discounted([gains.get(one, 0.0) for one in ranked[:k]]) / ideal


def span_recall(passages: Sequence[Passage], gold: Sequence[Span], k: int) -> float:
    """Return the share of the gold characters that the first k passages hold; no character counts twice.

    Raises:
        ValueError: the gold spans hold no character.
    """
    wanted, found = _characters(gold), _characters(passages[:k])
    _need(wanted)
    return len(wanted & found) / len(wanted)


def _characters(pieces: Sequence[Span | Passage]) -> set[tuple[str, int]]:
    return {(piece.document, place) for piece in pieces for place in range(piece.start, piece.end)}


def _discounted(gains: Sequence[float]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))


def _need(relevant: Collection[object]) -> None:
    if not relevant:
        raise ValueError("nothing is relevant")
