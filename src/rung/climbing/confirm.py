"""The confirmation: finalists once on the untouched test split, then the recommendation.

Zero-shot is the incumbent. A finalist may be recommended only if it significantly beats zero-shot on the test rows;
among those the cheapest is taken that no other significantly beats. All pairs are tested, with Holm's correction over
all of them, at level 0.05.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from rung.evaluation.result import Comparison
from rung.evaluation.statistics import compare, holm

LEVEL = 0.05


def compare_all(scores: Mapping[str, Sequence[float]], metric: str, *, seed: int) -> list[Comparison]:
    """Compare every pair of artifacts on the same rows; p-values are corrected over all pairs (Holm 1979).

    Args:
        scores: per artifact, one score per test row, in the same order; earlier ones are taken as `a`.
        metric: name of the metric.
        seed: of the bootstrap, where scores are not 0 or 1.
    """
    pairs = list(combinations(scores, 2))
    raw = [compare(scores[a], scores[b], seed=seed) for a, b in pairs]
    adjusted = holm([result.p for result in raw])
    return [
        Comparison(a, b, metric, r.n, r.delta, r.low, r.high, p, r.p, r.fixed, r.broken, r.method)
        for (a, b), r, p in zip(pairs, raw, adjusted, strict=True)
    ]


def beats(comparisons: Sequence[Comparison], winner: str, loser: str) -> bool:
    """Say whether `winner` significantly beats `loser`."""
    for c in comparisons:
        if {c.a, c.b} == {winner, loser}:
            return c.p < LEVEL and (c.delta > 0) == (c.b == winner) and c.delta != 0
    return False


def recommend(comparisons: Sequence[Comparison], costs: Mapping[str, float], incumbent: str) -> str:
    """Return the cheapest finalist that beats the incumbent and that nothing beats; else the incumbent.

    Args:
        comparisons: all pairs.
        costs: per finalist, what it costs to use; less is cheaper.
        incumbent: zero-shot.
    """
    better = [name for name in costs if name != incumbent and beats(comparisons, name, incumbent)]
    unbeaten = [name for name in better if not any(beats(comparisons, other, name) for other in better)]
    return min(unbeaten, key=lambda name: costs[name], default=incumbent)
