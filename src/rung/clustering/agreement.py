"""How far clusters agree with labels. Noise of HDBSCAN counts as one more cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from math import comb, log


def adjusted_rand(labels: Sequence[Hashable], clusters: Sequence[Hashable]) -> float:
    """Return the adjusted Rand index (Hubert and Arabie 1985): 1 for the same groups, 0 as by chance, in [-0.5, 1]."""
    together, of_labels, of_clusters = _counts(labels, clusters)
    both = sum(comb(n, 2) for n in together.values())
    one, other = (sum(comb(n, 2) for n in counts.values()) for counts in (of_labels, of_clusters))
    pairs = comb(len(labels), 2)
    expected = one * other / pairs if pairs else 0.0
    most = (one + other) / 2
    return (both - expected) / (most - expected) if most != expected else 1.0


def normalized_mutual_information(labels: Sequence[Hashable], clusters: Sequence[Hashable]) -> float:
    """Return mutual information over the mean of both entropies, in [0, 1]; 1 where there is one group of each."""
    together, of_labels, of_clusters = _counts(labels, clusters)
    n = len(labels)
    shared = sum(c / n * log(n * c / (of_labels[a] * of_clusters[b])) for (a, b), c in together.items())
    entropies = [-sum(c / n * log(c / n) for c in counts.values()) for counts in (of_labels, of_clusters)]
    if not any(entropies):
        return 1.0
    return max(0.0, shared) / (sum(entropies) / 2)


def _counts(
    labels: Sequence[Hashable], clusters: Sequence[Hashable]
) -> tuple[Counter[tuple[Hashable, Hashable]], Counter[Hashable], Counter[Hashable]]:
    return Counter(zip(labels, clusters, strict=True)), Counter(labels), Counter(clusters)
