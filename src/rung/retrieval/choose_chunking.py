"""Choose how documents are cut by what is found: each candidate is indexed and asked the same questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rung.evaluation.rag_metrics import span_recall
from rung.progress import QUIET, Progress
from rung.retrieval.build import build
from rung.retrieval.corpus import Corpus
from rung.retrieval.fusion_weight import LabelledQuery
from rung.retrieval.search import SearchSettings


@dataclass(frozen=True, slots=True)
class Chunking:
    """A candidate: passages of at most `tokens` tokens, of which `overlap` begin the next one too."""

    tokens: int
    overlap: int = 0


@dataclass(frozen=True, slots=True)
class ChunkingScore:
    """What a candidate found: the span recall of every query, and the characters read for it on average."""

    chunking: Chunking
    recalls: tuple[float, ...]
    characters: float

    @property
    def recall(self) -> float:
        """Mean span recall."""
        return sum(self.recalls) / len(self.recalls)


def choose_chunking(
    corpus: Corpus,
    base: Path,
    queries: Sequence[LabelledQuery],
    candidates: Sequence[Chunking],
    folder: Path,
    *,
    budget: int = 1000,
    settings: SearchSettings | None = None,
    progress: Progress = QUIET,
) -> list[ChunkingScore]:
    """Return every candidate with what it finds, best first; of equals the one that reads less.

    All candidates may hand the same number of tokens to the reader, so small passages are not punished for being
    small: a candidate with passages of n tokens is asked for `budget // n` of them. Use validation queries.

    Args:
        corpus: the documents; its own chunk settings are not looked at.
        base: the folder from which relative paths resolve.
        queries: with their gold spans.
        candidates: what to try.
        folder: where the indexes are built, one below it for each candidate.
        budget: tokens of passages for one question.
        settings: how to search.
        progress: told of every build.
    """
    scores = []
    for one in candidates:
        cut = corpus.model_copy(update={"chunk_tokens": one.tokens, "overlap_tokens": one.overlap, "store": None})
        index = build(folder / f"{one.tokens}-{one.overlap}", cut, base, progress=progress)
        k = max(1, budget // one.tokens)
        results = index.search([query.text for query in queries], k, settings or SearchSettings())
        recalls = tuple(span_recall(passages, query.spans, k) for passages, query in zip(results, queries, strict=True))
        read = sum(len(passage.text) for passages in results for passage in passages) / len(queries)
        scores.append(ChunkingScore(one, recalls, read))
    return sorted(scores, key=lambda score: (-score.recall, score.characters))
