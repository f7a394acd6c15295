"""Cluster texts by their embeddings, name the clusters, and compare them with labels.

Clusters come from k-means, with a given number of clusters or the number with the best silhouette, or from HDBSCAN. On
unit vectors the squared Euclidean distance is 2 - 2 cosine, so distance and angle give the same neighbours.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rung.data.cells import json_text, text_of
from rung.data.examples import column as value_of
from rung.data.rows import Record
from rung.data.sources import read_rows
from rung.engines.base import Constraint, Engine, Floats, GenerateRequest, Sampling
from rung.errors import ConfigError, DataError
from rung.models.files import replacing
from rung.models.messages import Message, Messages
from rung.progress import QUIET, Progress

ClusteringMethod = Literal["kmeans", "hdbscan"]
SILHOUETTE_ROWS = 2000  # a sample is enough to compare numbers of clusters; its cost is quadratic
MAX_CLUSTERS = 100  # largest number that `auto` tries
STARTS = 3  # of k-means; the best is kept
NOISE = -1


@dataclass(frozen=True)
class Grouping:
    """Clusters of rows."""

    # The cluster of each row, shape [rows], numbered from 0, the largest first; -1 for HDBSCAN's noise.
    clusters: npt.NDArray[np.int64]
    centrality: Floats  # cosine of each row with its cluster's mean, shape [rows]; 0 for noise
    silhouette: float | None  # mean over the rows in clusters, in [-1, 1] (Rousseeuw 1987); None for one cluster
    tried: Mapping[int, float] = field(default_factory=dict)  # the silhouette of every number of clusters tried

    @property
    def count(self) -> int:
        """Number of clusters."""
        return int(self.clusters.max(initial=NOISE)) + 1

    def central(self, cluster: int, texts: Sequence[str], count: int) -> list[str]:
        """List up to `count` different texts of a cluster, the most central first."""
        rows = np.flatnonzero(self.clusters == cluster)
        ranked = rows[np.argsort(-self.centrality[rows], kind="stable")]
        return list(dict.fromkeys(texts[row] for row in ranked))[:count]


def group(
    vectors: Floats, *, k: int | None = None, method: ClusteringMethod = "kmeans", min_cluster_size: int = 5,
    seed: int = 0, progress: Progress = QUIET,
) -> Grouping:  # fmt: skip
    """Group unit vectors, shape [rows, dimension].

    k-means makes k clusters, or the number with the best silhouette. HDBSCAN (Campello et al. 2013) finds the number
    itself and leaves rows out; its `min_cluster_size` is in rows. `seed` is that of k-means' starts and of the
    silhouette's sample.

    Raises:
        ConfigError: `bad-option`: there are fewer different rows than clusters, or `k` is given to HDBSCAN.
    """
    different = len(np.unique(vectors, axis=0))
    if method == "hdbscan":
        if k is not None:
            raise ConfigError("bad-option", "hdbscan finds the number of clusters itself", hint="leave --k out")
        if len(vectors) < max(2, min_cluster_size):
            raise ConfigError(
                "bad-option", f"{len(vectors)} rows are fewer than the minimum of a cluster, {min_cluster_size}",
                hint="lower --min-cluster-size, or give more rows",
            )  # fmt: skip
        from sklearn.cluster import HDBSCAN

        labels = HDBSCAN(min_cluster_size, copy=True).fit(vectors).labels_.astype(np.int64)
        return _finished(vectors, labels, seed)
    if k is not None:
        if not 1 <= k <= different:
            raise ConfigError(
                "bad-option", f"{different} different rows cannot form {k} clusters", hint="choose a smaller --k"
            )
        return _finished(vectors, _kmeans(vectors, k, seed), seed)
    if different < 3:
        raise ConfigError(
            "bad-option", f"the number of clusters cannot be chosen from {different} different rows",
            hint="give more rows, or --k",
        )  # fmt: skip
    return _best(vectors, candidates(different), seed, progress)


def candidates(different: int) -> list[int]:
    """List the numbers of clusters that `auto` tries: all up to 10, then a tenth more each time."""
    numbers, limit = [2], min(MAX_CLUSTERS, different - 1)
    while (following := max(numbers[-1] + 1, round(numbers[-1] * 1.1))) <= limit:
        numbers.append(following)
    return numbers


def _best(vectors: Floats, numbers: Sequence[int], seed: int, progress: Progress) -> Grouping:
    progress.start("numbers of clusters", len(numbers))
    labels, tried = {}, {}
    for k in numbers:
        labels[k] = _kmeans(vectors, k, seed)
        value = _silhouette(vectors, labels[k], seed)
        tried[k] = -1.0 if value is None else value
        progress.advance(1)
    progress.finish()
    best = max(numbers, key=lambda k: tried[k])
    return _finished(vectors, labels[best], seed, tried)


def _kmeans(vectors: Floats, k: int, seed: int) -> npt.NDArray[np.int64]:
    from sklearn.cluster import KMeans

    labels: npt.NDArray[np.int64] = KMeans(k, n_init=STARTS, random_state=seed).fit(vectors).labels_.astype(np.int64)
    return labels


def _silhouette(vectors: Floats, clusters: npt.NDArray[np.int64], seed: int) -> float | None:
    """Compute the mean silhouette over a sample of the rows in clusters."""
    from sklearn.metrics import silhouette_score

    rows = np.flatnonzero(clusters != NOISE)
    if len(rows) > SILHOUETTE_ROWS:
        rows = np.random.default_rng(seed).choice(rows, SILHOUETTE_ROWS, replace=False)
    sampled = clusters[rows]
    if not 2 <= len(np.unique(sampled)) < len(rows):
        return None
    return float(silhouette_score(vectors[rows], sampled))


def _finished(
    vectors: Floats, labels: npt.NDArray[np.int64], seed: int, tried: Mapping[int, float] | None = None
) -> Grouping:
    """Number clusters by size, and compute how central each row is."""
    old_numbers, sizes = np.unique(labels[labels != NOISE], return_counts=True)
    numbers = {int(old): new for new, old in enumerate(old_numbers[np.argsort(-sizes, kind="stable")])}
    clusters = np.array([numbers.get(int(label), NOISE) for label in labels], np.int64)
    centrality = np.zeros(len(vectors), np.float32)
    for cluster in range(len(numbers)):
        rows = clusters == cluster
        mean = vectors[rows].mean(0)
        centrality[rows] = vectors[rows] @ (mean / max(float(np.linalg.norm(mean)), 1e-12))
    return Grouping(clusters, centrality, _silhouette(vectors, clusters, seed), tried or {})


# ---- names, written by a model that reads the most central texts of a cluster

EXAMPLES = 8  # central texts of each cluster that the model reads
CHARACTERS = 300  # of each text, so that they fit any model
_LETTER = "0-9A-Za-zÀ-ɏͰ-῿぀-퟿"  # ranges, because engines differ on negated classes beyond ASCII
_WORD = f"[{_LETTER}][{_LETTER}'&-]{{0,19}}"
WORDS = f"{_WORD}( {_WORD}){{0,4}}"  # one to five words
_ASK = "What do all these texts have in common? Name their shared topic in one to five words, and write nothing else."


def question(texts: Sequence[str]) -> Messages:
    """Write the prompt for a name."""
    lines = [f"- {' '.join(text.split())[:CHARACTERS]}" for text in texts]
    system: Message = {"role": "system", "content": _ASK}
    return (system, {"role": "user", "content": "\n".join(lines)})


def names(engine: Engine, clusters: Sequence[Sequence[str]], *, progress: Progress = QUIET) -> list[str]:
    """Name each cluster by its central texts, in one to five words; a number distinguishes equal names."""
    constraint = Constraint("regex", WORDS)
    requests = [GenerateRequest(question(texts), Sampling(max_tokens=64), constraint) for texts in clusters]
    unique: list[str] = []
    for generation in engine.generate(requests, progress=progress):
        name = plain = generation.text.strip().rstrip(".,:;")
        number = 1
        while name in unique:
            number += 1
            name = f"{plain} ({number})"
        unique.append(name)
    return unique


# ---- tables: the texts to group, a summary, and every row with its cluster

TABLE_KINDS = (".csv", ".jsonl")  # of `write_clusters`


def read_texts(data: Path, column: str) -> tuple[list[Record], list[str]]:
    """Read the rows of a table and their texts.

    Raises:
        DataError: `bad-row`: a row has no text, so it cannot be grouped.
    """
    records = list(read_rows(data))
    texts = [text_of(value_of(record, column)).strip() for record in records]
    for record, text in zip(records, texts, strict=True):
        if not text:
            raise DataError("bad-row", f"{record.source}: {column!r} is empty", hint="leave out rows without a text")
    return records, texts


def summary(grouping: Grouping, cluster_names: Sequence[str], texts: Sequence[str]) -> dict[str, Any]:
    """The groups as plain values."""
    sizes = [int((grouping.clusters == number).sum()) for number in range(grouping.count)]
    return {
        "rows": len(texts),
        "clusters": [
            {"name": name, "rows": size, "central": grouping.central(number, texts, 3)}
            for number, (name, size) in enumerate(zip(cluster_names, sizes, strict=True))
        ],
        "noise": len(texts) - sum(sizes),
        "silhouette": grouping.silhouette,
        "tried": [{"k": k, "silhouette": value} for k, value in grouping.tried.items()],
    }


def label_agreement(records: Sequence[Record], label: str, grouping: Grouping) -> dict[str, Any]:
    """Compare the groups with a column of labels. Noise of HDBSCAN counts as one more cluster.

    The adjusted Rand index (Hubert and Arabie 1985) is 1 for the same groups and 0 for chance, in [-0.5, 1]. Normalized
    mutual information is relative to the mean of both entropies, in [0, 1].
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    labels, clusters = [text_of(value_of(record, label)) for record in records], grouping.clusters.tolist()
    return {
        "labels": len(set(labels)),
        "adjusted_rand": float(adjusted_rand_score(labels, clusters)),
        "normalized_mutual_information": float(normalized_mutual_info_score(labels, clusters)),
    }


def write_clusters(out: Path, records: Sequence[Record], grouping: Grouping, cluster_names: Sequence[str]) -> None:
    """Write every row with `cluster`, `cluster_name` and `centrality`; the file appears when it is complete.

    Raises:
        DataError: `duplicate-name`: the table already has one of these columns.
    """
    for name in ("cluster", "cluster_name", "centrality"):
        if any(name in record.values for record in records):
            raise DataError("duplicate-name", f"the table already has a column {name!r}", hint="rename it first")
    numbers, near = grouping.clusters.tolist(), grouping.centrality.astype(float).round(4).tolist()
    given = [{name: value_of(record, name) for name in record.values} for record in records]
    rows = [
        {**values, "cluster": k, "cluster_name": cluster_names[k] if k >= 0 else "", "centrality": centrality}
        for values, k, centrality in zip(given, numbers, near, strict=True)
    ]
    with replacing(out) as scratch, scratch.open("w", encoding="utf-8", newline="") as file:
        if out.suffix.lower() == ".csv":
            heads = list(dict.fromkeys(name for row in rows for name in row))
            writer = csv.DictWriter(file, heads, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json_text(row) + "\n" for row in rows)
