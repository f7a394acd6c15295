"""Index: the passages of a corpus, searched: what it holds, as its place says, and the table of passages."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from rung.engines.base import Floats
from rung.engines.encoders import SentenceEncoder
from rung.engines.opening import open_encoder
from rung.errors import ArtifactError
from rung.models.reference import resolve
from rung.progress import QUIET, Progress
from rung.retrieval.corpus import Corpus
from rung.retrieval.passage import Passage
from rung.retrieval.store import MANIFEST, Hits, Ids, Place, Store, condition, open_place, place_of, unreachable

# --------------------
# Search: candidates by words (BM25) and by meaning (vectors), fused, without near-duplicates, perhaps reranked.


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
        reranked: passages that a reranker reads.
    """

    mode: Mode = "hybrid"
    weight: float | None = WEIGHT
    candidates: int = 100
    filters: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    duplicate: float = 0.98
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


# --------------------
# The terms of a text for BM25, in any script: words, and pairs of characters where words are not spaced.


# Scripts written without spaces: Thai, Lao, Burmese, Khmer, Japanese and Chinese (with the extension planes).
UNSPACED = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005\u3040-\u30ff"
    r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
RUN = re.compile(rf"[{UNSPACED}]+|[^\W_{UNSPACED}]+(?:['’][^\W_{UNSPACED}]+)?")
FIRST = re.compile(f"[{UNSPACED}]")
STEM = 6  # letters of a word that count: `payments`, `payment` and `Zahlungen`, `Zahlung` become one term each
LONGEST = 64  # characters of a term with digits; longer ones are no words
MARKS = {ord(mark): None for mark in map(chr, range(0x300, 0x370))}  # combining accents of Latin, Greek and Cyrillic


def terms(text: str) -> list[str]:
    """Return the terms of a text in order: without case, accents and compatibility forms.

    Words are runs of letters and digits, cut after six letters, which does for many languages what a stemmer does for
    one (McNamee & Mayfield, Character n-gram tokenization for European language text retrieval, 2004); what holds a
    digit is kept whole. A run of a script without spaces becomes its pairs of characters, as is usual for Chinese,
    Japanese and Korean (Nie & Ren, Chinese information retrieval: using characters or words?, 1999).
    """
    found = []
    for run in RUN.findall(_folded(text)):
        if _unspaced(run[0]):
            found += [first + second for first, second in pairwise(run)] or [run]
        else:
            word = run.replace("’", "'").removesuffix("'s")
            found.append(word[: STEM if word.isalpha() else LONGEST])
    return found


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKD", text.casefold()).translate(MARKS)


def _unspaced(character: str) -> bool:
    return FIRST.match(character) is not None


FORMAT = 1  # of the table and of how documents are read and cut: another number means another index
SPARE = 3  # times k: candidates looked at, as some may be duplicates
DEFAULT = SearchSettings()


class Told(BaseModel):
    """What was said of a source that was not, or not wholly, read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    what: str
    left_out: bool


class Manifest(BaseModel):
    """What an index holds. It is published last, so that an index that has one is complete.

    `sources` maps the files to their sha256, which is empty for what has none; `version` is that of the table.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int
    fingerprint: str
    corpus: Corpus
    encoder: str
    encoder_fingerprint: str
    dimension: int
    tokens: int
    table: str
    version: int
    passages: int
    documents: int
    sources: dict[str, str]
    problems: list[Told]


class Index:
    """An index that was built; see `rung.retrieval.build` for how.

    Attributes:
        folder: where it is: a folder, or the URL of an object store.
        manifest: what it holds.
    """

    def __init__(self, folder: Place, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self._store = Store(open_place(folder).tables, manifest.table, len(manifest.corpus.metadata))

    @classmethod
    def open(cls, folder: Place) -> Self:
        """Open an index to search it; it stays as it is, even while it is updated.

        Raises:
            ArtifactError: there is no complete index, it is damaged, or was made with another encoder.
            MachineError: LanceDB is not installed.
        """
        folder = place_of(folder)
        manifest = read_manifest(folder)
        if manifest is None:
            raise ArtifactError(
                "index-missing", f"{folder} holds no complete index", hint="`rung index build TASK` builds or goes on"
            )
        encoder = resolve(manifest.encoder).fingerprint
        if encoder != manifest.encoder_fingerprint:
            raise ArtifactError(
                "index-mismatch",
                f"the index was made with another version of {manifest.encoder}: {manifest.encoder_fingerprint[:12]}, "
                f"this is {encoder[:12]}",
                hint="build the index again, or put the encoder back that it was made with",
            )
        index = cls(folder, manifest)
        index._check_table()
        return index

    def _check_table(self) -> None:
        try:
            self._store.checkout(self.manifest.version)
            passages = self._store.count()
        except LookupError as problem:
            raise _damaged(self.folder, str(problem)) from problem
        except (ValueError, RuntimeError, OSError) as problem:  # LanceDB's own, by what is missing
            if isinstance(self.folder, str):
                raise unreachable(self.folder, problem) from problem
            raise _damaged(self.folder, str(problem).splitlines()[0]) from problem
        if passages != self.manifest.passages:
            raise _damaged(self.folder, f"its table has {passages} passages instead of {self.manifest.passages}")

    @property
    def fingerprint(self) -> str:
        """Changes when a search may find something else: documents, settings, encoder."""
        return self.manifest.fingerprint

    @cached_property
    def encoder(self) -> SentenceEncoder:
        """The encoder of queries, loaded at the first search."""
        return open_encoder(self.manifest.encoder)

    def __len__(self) -> int:
        """Return the number of passages."""
        return self.manifest.passages

    # ---- searching

    def search(
        self,
        queries: Sequence[str],
        k: int = 5,
        settings: SearchSettings = DEFAULT,
        *,
        rerank: Rerank | None = None,
        progress: Progress = QUIET,
    ) -> list[list[Passage]]:
        """Return the best passages of every query, best first.

        Args:
            queries: the texts to look for; nothing but the input of a row, never its label.
            k: passages per query; fewer are returned where there are no more.
            settings: how to search.
            rerank: orders the first `settings.reranked` passages anew; `score` is then its score.
            progress: told that passages are reranked.

        Raises:
            ConfigError: a filter names a column that passages do not have.
        """
        if not queries or k < 1:
            return [[] for _ in queries]
        dense, words = self.candidates(queries, settings)
        fused = [
            fuse(None if dense is None else dense[row], None if words is None else words[row], settings.weight)
            for row in range(len(queries))
        ]
        wanted = max(k, settings.reranked) if rerank else k
        shortlists = [list(scores)[: wanted * SPARE] for scores in fused]
        rows = self._store.take(sorted({one for ids in shortlists for one in ids}), vectors=True)
        found = [
            self._choose([(rows[one], scores[one]) for one in ids], wanted, settings)
            for ids, scores in zip(shortlists, fused, strict=True)
        ]
        if rerank is None:
            return found
        progress.start("reranking")
        best = _reranked(queries, found, rerank, k)
        progress.finish()
        return best

    def candidates(self, queries: Sequence[str], settings: SearchSettings) -> tuple[Hits | None, Hits | None]:
        """Return what the dense search and BM25 find for every query, before fusion; None for a search not made."""
        where = condition(settings.filters, self.manifest.corpus.metadata)
        dense = words = None
        if settings.mode != "bm25":
            dense = self._store.nearest(embed_queries(self.encoder, queries), settings.candidates, where)
        if settings.mode != "dense":
            asked = [" ".join(dict.fromkeys(terms(query))) for query in queries]
            words = self._store.matching(asked, settings.candidates, where)
        return dense, words

    def _choose(self, rows: list[tuple[dict[str, Any], float]], k: int, settings: SearchSettings) -> list[Passage]:
        """Leave out near-duplicates of better passages, and keep the first k."""
        if not rows:
            return []
        vectors = np.stack([row["vector"] for row, _ in rows])
        kept = without_duplicates(vectors, settings.duplicate)
        return [self._passage(*rows[position]) for position in kept[:k]]

    def _passage(self, row: dict[str, Any], score: float) -> Passage:
        names = self.manifest.corpus.metadata
        return Passage(
            row["id"], row["document"], row["title"], row["text"], row["page"], row["start"], row["end"], score,
            {name: row[f"metadata_{number}"] for number, name in enumerate(names)},
        )  # fmt: skip


def embed_queries(encoder: SentenceEncoder, queries: Sequence[str]) -> Floats:
    """Return one unit vector per query; of a query longer than the encoder reads, the mean of its windows."""
    windows: list[str] = []
    owners: list[int] = []
    for number, query in enumerate(queries):
        parts = _windows(encoder, query)
        windows += parts
        owners += [number] * len(parts)
    vectors = encoder.embed(windows)
    sums = np.zeros((len(queries), vectors.shape[1]), np.float32)
    np.add.at(sums, owners, vectors)
    sums /= np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    return sums


def _windows(encoder: SentenceEncoder, query: str) -> list[str]:
    if len(encoder.encode(query)) <= encoder.limit:
        return [query]
    from rung.retrieval.chunking import Chunker

    chunks = Chunker(lambda text: len(encoder.encode(text)), encoder.limit).cut(query, "", markdown=False)
    return [chunk.embedded for chunk in chunks]


def _reranked(queries: Sequence[str], found: list[list[Passage]], rerank: Rerank, k: int) -> list[list[Passage]]:
    best = []
    for passages, scores in zip(found, rerank(queries, found), strict=True):
        order = sorted(range(len(passages)), key=lambda position: -scores[position])
        best.append([replace(passages[position], score=float(scores[position])) for position in order[:k]])
    return best


def read_manifest(folder: Place) -> Manifest | None:
    """Return what the index holds, or None where none is complete, or it has another format.

    Raises:
        ArtifactError: it cannot be read.
    """
    try:
        text = open_place(folder).read()
        if text is None:
            return None
        manifest = Manifest.model_validate_json(text)
    except (ValidationError, ValueError) as problem:
        raise _damaged(folder, f"{MANIFEST} cannot be read: {str(problem).splitlines()[0]}") from problem
    return manifest if manifest.format == FORMAT else None


def _damaged(folder: Place, what: str) -> ArtifactError:
    return ArtifactError(
        "index-missing", f"the index {folder} is damaged: {what}", hint="`rung index build TASK --again`"
    )
