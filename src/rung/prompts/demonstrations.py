"""The Demonstrations part of an artifact: which solved rows the prompt shows before the question.

Sources: nearest neighbours as demonstrations: Liu et al. 2022, "What makes good in-context examples for GPT-3?"
(https://arxiv.org/abs/2101.06804); maximal marginal relevance: Carbonell and Goldstein 1998
(https://doi.org/10.1145/290941.291025). The most similar row is last, next to the question.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from rung.data.cells import text_of
from rung.data.rows import Example, Span
from rung.engines.base import Floats
from rung.retrieval.index import terms

Selection = Literal["fixed", "random", "balanced", "knn", "mmr"]
COMPARED: tuple[Selection, ...] = ("knn", "mmr")  # selections that compare rows


class Words:
    """Compares rows by their words, which needs no library: cosines of TF-IDF vectors, with the IDF of BM25.

    The words are those that the search in documents uses.
    """

    def __init__(self, rows: Sequence[Example]) -> None:
        counts = [_counts(row) for row in rows]
        n, found = len(rows), Counter(term for own in counts for term in own)
        self._idf = {term: math.log(1 + (n - rows_with + 0.5) / (rows_with + 0.5)) for term, rows_with in found.items()}
        self._weights = [self._weighed(own) for own in counts]  # by row, of each of its words
        places: dict[str, list[int]] = defaultdict(list)
        for place, own in enumerate(self._weights):
            for term in own:
                places[term].append(place)
        self._places = {
            term: (np.array(rows_with), np.array([self._weights[place][term] for place in rows_with], np.float32))
            for term, rows_with in places.items()
        }

    def _weighed(self, counts: Mapping[str, int]) -> dict[str, float]:
        known = {term: (1 + math.log(count)) * self._idf[term] for term, count in counts.items() if term in self._idf}
        norm = math.hypot(*known.values())
        return {term: weight / norm for term, weight in known.items()}

    def similarity(self, row: Example) -> Floats:
        """The cosine of a row with each row of the pool."""
        cosines = np.zeros(len(self._weights), np.float32)
        for term, weight in self._weighed(_counts(row)).items():
            places, weights = self._places[term]
            cosines[places] += np.float32(weight) * weights
        return cosines

    def between(self, some: Sequence[int], others: Sequence[int]) -> Floats:
        """The cosines of rows of the pool with others of them, shape [some, others]."""
        weights = self._weights
        return np.array(
            [[sum(w * weights[b].get(term, 0.0) for term, w in weights[a].items()) for b in others] for a in some],
            np.float32,
        )


def _counts(row: Example) -> Counter[str]:
    return Counter(term for value in row.inputs.values() for term in terms(text_of(value)))


@dataclass(frozen=True)
class Demonstrations:
    """A pool of solved rows and the rule that picks from it."""

    # `fixed`: the same k rows for every question, chosen by seed; `random`: other k rows for each question, seeded by
    # its id; `balanced`: the same rows for all, with labels as even as possible; `knn`: the k most similar; `mmr`:
    # similar to the question but not to each other.
    selection: Selection
    k: int  # most rows shown
    pool: tuple[Example, ...]  # the rows to choose from
    # One unit vector per pool row, shape [pool, size]; only `knn` and `mmr` have them, unless they compare words.
    embeddings: Floats | None = None
    encoder: str = ""  # reference of the model that made them; empty: `knn` and `mmr` compare words
    token_budget: int = 1024  # most tokens of the demonstrations; the least similar are dropped first
    diversity: float = 0.3  # weight of dissimilarity in `mmr`, 0 to 1
    seed: int = 0  # of the random choices
    order: int = 0  # 0 shows the most similar row last; another number shuffles them, alike for every question
    sets: int = 1  # how many disjoint sets of k rows are shown, one prompt each; their label scores are averaged
    member: int = 0  # the set that this one shows
    words: Words | None = field(default=None, compare=False, repr=False)  # of the pool, where they are compared

    def __post_init__(self) -> None:
        """Read the words of the pool, where they are compared."""
        if self.selection in COMPARED and not self.encoder and self.words is None:
            object.__setattr__(self, "words", Words(self.pool))

    @property
    def needs_vectors(self) -> bool:
        """Whether questions have to be embedded."""
        return self.selection in COMPARED and bool(self.encoder)

    @property
    def same_for_all(self) -> bool:
        """Whether all questions are shown the same rows."""
        return self.selection in ("fixed", "balanced")

    def choose(self, question: Example, vector: Floats | None, cost: Callable[[Example], int]) -> tuple[Example, ...]:
        """Choose the rows to show for one question, in the order shown; never the question itself."""
        chosen = [self.pool[i] for i in self._ranked(question, vector) if self.pool[i].id != question.id]
        kept, spent = [], 0
        for example in chosen[self.member : self.k * self.sets : self.sets]:
            spent += cost(example)
            if spent > self.token_budget:
                break
            kept.append(example)
        if self.order:
            random.Random(self.order).shuffle(kept)
        return tuple(reversed(kept))

    def members(self) -> tuple[Demonstrations, ...]:
        """Split into the sets, one by one; they get rows in turn, best first."""
        return tuple(replace(self, member=i) for i in range(self.sets))

    def _ranked(self, question: Example, vector: Floats | None) -> Sequence[int]:
        """Rank pool positions, best first, one more than k in case the question itself is among them."""
        want = min(self.k * self.sets + 1, len(self.pool))
        if self.selection == "random":
            return random.Random(f"{self.seed}/{question.id}").sample(range(len(self.pool)), want)
        if self.selection == "balanced":
            return balanced(self.pool, want, self.seed)
        if self.selection == "fixed":
            return random.Random(self.seed).sample(range(len(self.pool)), want)
        similarity = self._similarity(question, vector)
        if self.selection == "knn":
            return [int(i) for i in np.argsort(-similarity, kind="stable")[:want]]
        return self._marginal(similarity, want)

    def _similarity(self, question: Example, vector: Floats | None) -> Floats:
        if self.words is not None:
            return self.words.similarity(question)
        if self.embeddings is None or vector is None:
            raise ValueError(f"selection {self.selection} needs embeddings")
        return self.embeddings @ vector

    def _between(self, some: Sequence[int], others: Sequence[int]) -> Floats:
        if self.words is not None:
            return self.words.between(some, others)
        assert self.embeddings is not None
        return self.embeddings[some] @ self.embeddings[others].T

    def _marginal(self, similarity: Floats, k: int) -> list[int]:
        """Greedy maximal marginal relevance over the 4k nearest rows."""
        candidates = [int(i) for i in np.argsort(-similarity, kind="stable")[: 4 * k]]
        chosen: list[int] = []
        while candidates and len(chosen) < k:
            near = self._between(candidates, chosen).max(1) if chosen else np.zeros(len(candidates))
            value = (1 - self.diversity) * similarity[candidates] - self.diversity * near
            chosen.append(candidates.pop(int(np.argmax(value))))
        return chosen


def balanced(pool: Sequence[Example], k: int, seed: int) -> list[int]:
    """Choose k pool positions label by label in turn, in an order shuffled by seed."""
    rng = random.Random(seed)
    by_label: dict[str, list[int]] = defaultdict(list)
    for i in rng.sample(range(len(pool)), len(pool)):
        by_label[pool[i].outputs[0]].append(i)
    queues = list(by_label.values())
    order = [queue[turn] for turn in range(max(map(len, queues), default=0)) for queue in queues if turn < len(queue)]
    return order[:k]


def pool_as_json(pool: Sequence[Example]) -> list[dict[str, Any]]:
    """Convert the pool to JSON values for `demonstrations.json`."""
    return [
        {"id": e.id, "inputs": dict(e.inputs), "outputs": list(e.outputs), "source": e.source}
        | ({} if e.spans is None else {"spans": [asdict(span) for span in e.spans]})
        for e in pool
    ]


def pool_from_json(rows: Sequence[Mapping[str, Any]]) -> tuple[Example, ...]:
    """Rebuild the pool from `pool_as_json`."""
    examples = []
    for row in rows:
        spans = tuple(Span(**span) for span in row["spans"]) if "spans" in row else None
        examples.append(Example(row["id"], row["inputs"], tuple(row["outputs"]), row["source"], spans=spans))
    return tuple(examples)
