"""The index of a corpus: find passages by words (BM25) and by meaning (vectors), fused and without near-duplicates."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from rung.data.spec import Corpus
from rung.engines.base import Floats
from rung.engines.encoders import SentenceEncoder
from rung.engines.opening import open_encoder
from rung.errors import ArtifactError
from rung.models.reference import resolve
from rung.retrieval.chunking import sentence_spans
from rung.retrieval.documents import Problem
from rung.retrieval.passage import Passage
from rung.retrieval.store import (
    MANIFEST,
    Ids,
    IndexLocation,
    PassageTable,
    condition,
    is_of_lancedb,
    location_of,
    open_location,
    table_hashes,
    unreachable,
)
from rung.yamlfile import json_value, unsealed

FORMAT = 3  # of the table and of how documents are read and cut: another number means another index
SPARE = 3  # times k: candidates looked at, as some may be duplicates

SearchMode = Literal["hybrid", "bm25", "dense"]
# Gets queries and the passages of each; returns a score for each passage: larger is more relevant.
Rerank = Callable[[Sequence[str], Sequence[Sequence[Passage]]], Sequence[Sequence[float]]]

RRF = 60  # the constant of reciprocal rank fusion, as its authors set it
WEIGHT = 0.3  # of the dense scores, chosen on half of the questions of chunking_eval
FEWEST_LABELLED = 30  # labelled queries from which a weight is learned


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """How passages are searched."""

    mode: SearchMode = "hybrid"  # `bm25` looks for words, `dense` for meaning, `hybrid` for both
    weight: float | None = WEIGHT  # of dense scores against BM25, 0 to 1 (`learn_weight` fits it); None fuses by ranks
    candidates: int = 100  # passages that each search contributes
    # Values by `document`, `source`, `title` or a column of `corpus.metadata`; of several values, one has to match.
    filters: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    duplicate: float = 0.98  # passages with this cosine to a better one are left out; above 1 none is
    reranked: int = 20  # passages that a reranker reads


DEFAULT = SearchSettings()


# ---- fusion


Ranked = tuple[Ids, Floats] | None  # row ids and scores, best first; None where a search was not made


def fuse(dense: tuple[Ids, Floats] | None, words: tuple[Ids, Floats] | None, weight: float | None) -> dict[int, float]:
    """Score every candidate, best first; ties go to the smaller row id.

    Each search gives row ids and scores, best first: cosines (`dense`) and BM25 (`words`). `weight` is that of the
    dense scores; None uses reciprocal rank fusion.
    """
    fused: dict[int, float] = {}
    if dense is None or words is None:
        ids, scores = dense or words or (np.zeros(0, np.int64), np.zeros(0, np.float32))
        fused = {int(row): float(score) for row, score in zip(ids, scores, strict=True)}
    elif weight is None:
        for ids, _ in (dense, words):
            for rank, row in enumerate(ids.tolist(), start=1):
                fused[row] = fused.get(row, 0.0) + 1 / (RRF + rank)
    else:
        # Convex combination of scaled scores; a candidate that one search did not find counts as its last one there.
        # Bruch, Gai & Ingber, An analysis of fusion functions for hybrid retrieval, ACM TOIS 42 (2023).
        for (ids, scores), share in ((dense, weight), (words, 1 - weight)):
            low, high = (float(scores.min()), float(scores.max())) if len(ids) else (0.0, 0.0)
            for row, score in zip(ids.tolist(), scores.tolist(), strict=True):
                fused[row] = fused.get(row, 0.0) + share * ((score - low) / (high - low) if high > low else 1.0)
    return dict(sorted(fused.items(), key=lambda item: (-item[1], item[0])))


def without_duplicates(vectors: Floats, threshold: float) -> list[int]:
    """Keep, in order, the positions of vectors whose cosine to each vector kept before is below the threshold."""
    kept: list[int] = []
    for position in range(len(vectors)):
        if not kept or float((vectors[kept] @ vectors[position]).max()) < threshold:
            kept.append(position)
    return kept


# ---- terms for BM25

# Scripts written without spaces: Thai, Lao, Burmese, Khmer, Japanese and Chinese (with the extension planes).
UNSPACED = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005\u3040-\u30ff"
    r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
# Vowels and other marks of Indic and related scripts, which belong to the word; Python's `\w` has only letters.
SIGNS = "".join(
    sign for sign in map(chr, (*range(0x900, 0x1000), *range(0x1700, 0x1C80), *range(0xA800, 0xAC00)))
    if unicodedata.category(sign)[0] == "M" and not re.match(f"[{UNSPACED}]", sign)
)  # fmt: skip
LETTERS = rf"(?:[^\W_{UNSPACED}]|[{SIGNS}])+"
RUN = re.compile(rf"[{UNSPACED}]+|{LETTERS}(?:['’]{LETTERS})?")
FIRST = re.compile(f"[{UNSPACED}]")
STEM = 6  # letters of a word that count: `payments`, `payment` and `Zahlungen`, `Zahlung` become one term each
LONGEST = 64  # characters of a term with digits; longer ones are no words
# Left out: accents of Latin, Greek and Cyrillic; points of Hebrew; vowels of Arabic and its tatweel; and what is not
# seen, soft hyphens and joiners. The zero-width space stays: it divides words.
MARKS = dict.fromkeys(
    (
        *range(0x300, 0x370), *range(0x591, 0x5BE), 0x5BF, 0x5C1, 0x5C2, 0x5C4, 0x5C5, 0x5C7, *range(0x610, 0x61B),
        0x640, *range(0x64B, 0x660), 0x670, *range(0x6D6, 0x6DD), *range(0x6DF, 0x6E5), 0x6E7, 0x6E8,
        *range(0x6EA, 0x6EE), 0xAD, 0x200C, 0x200D, 0x2060, 0xFEFF,
    )
)  # fmt: skip


def terms(text: str) -> list[str]:
    """Split a text of any script into terms, without case, accents and compatibility forms.

    Words are runs of letters and digits, cut after six letters, which does for many languages what a stemmer does for
    one (McNamee & Mayfield, Character n-gram tokenization for European language text retrieval, 2004); a run with a
    digit is kept whole. A run of a script without spaces becomes its pairs of characters, as is usual for Chinese,
    Japanese and Korean (Nie & Ren, Chinese information retrieval: using characters or words?, 1999).
    """
    result = []
    for run in RUN.findall(unicodedata.normalize("NFKD", text.casefold()).translate(MARKS)):
        if FIRST.match(run):
            result += [first + second for first, second in pairwise(run)] or [run]
        else:
            word = run.replace("’", "'").removesuffix("'s")
            if word.isalpha():
                result.append(word[:STEM])
                continue
            letters = [place for place, sign in enumerate(word) if sign not in SIGNS]  # each with its signs
            stemmed = len(letters) > STEM and all(word[place].isalpha() for place in letters)
            result.append(word[: letters[STEM] if stemmed else LONGEST])
    return result


# ---- the index


class Manifest(BaseModel):
    """The content of an index. It is published last, so an index with a manifest is complete.

    `sources` maps the files to their sha256, which is empty for what has none; `files` does that for the table's own;
    `version` is that of the table.
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
    files: dict[str, str]
    version: int
    passages: int
    documents: int
    sources: dict[str, str]
    problems: list[Problem]


class Index:
    """An index in a folder or at the URL of an object store; `rung.retrieval.build` builds it."""

    def __init__(self, folder: IndexLocation, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self._table = PassageTable(open_location(folder).tables, manifest.table, len(manifest.corpus.metadata))
        self._searched: tuple[object, list[tuple[Ranked, Ranked]]] | None = None  # the last search and its key

    @classmethod
    def open(cls, folder: IndexLocation) -> Self:
        """Open an index to search it; it does not change, even while it is updated.

        Raises:
            ArtifactError: there is no complete index, it is damaged, or was made with another encoder.
            MachineError: LanceDB is not installed.
        """
        folder = location_of(folder)
        manifest = read_manifest(folder)
        if manifest is None:
            raise ArtifactError(
                "index-missing", f"{folder} holds no complete index",
                hint="`rung index build TASK` builds it, or finishes a build that stopped",
            )  # fmt: skip
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
        check_files(self.folder, self.manifest)
        try:
            self._table.checkout(self.manifest.version)
            passages = self._table.count()
        except LookupError as problem:
            raise _damaged(self.folder, str(problem)) from problem
        except Exception as problem:
            if not is_of_lancedb(problem):
                raise
            if isinstance(self.folder, str):
                raise unreachable(self.folder, problem) from problem
            raise _damaged(self.folder, str(problem).splitlines()[0]) from problem
        if passages != self.manifest.passages:
            raise _damaged(self.folder, f"its table has {passages} passages instead of {self.manifest.passages}")

    @property
    def fingerprint(self) -> str:
        """Changes with the documents, the settings and the encoder: when a search may find something else."""
        return self.manifest.fingerprint

    @cached_property
    def encoder(self) -> SentenceEncoder:
        """The encoder of queries, loaded at the first search."""
        return open_encoder(self.manifest.encoder, precision=self.manifest.corpus.precision)

    def __len__(self) -> int:
        """Count the passages."""
        return self.manifest.passages

    def sentences(self) -> list[str]:
        """List the sentences of all passages, each once."""
        texts = [text for *_, text in self.places()]
        return list(dict.fromkeys(text[first:last] for text in texts for first, last in sentence_spans(text)))

    def places(self) -> list[tuple[str, int, str, str]]:
        """List document, start, title and text of all passages, in order."""
        return self._table.places()

    # ---- searching

    def search(
        self, queries: Sequence[str], k: int = 5, settings: SearchSettings = DEFAULT, *, rerank: Rerank | None = None
    ) -> list[list[Passage]]:
        """Find at most k passages for every query, best first. A query is the input of a row, never its label.

        `rerank` reorders the first `settings.reranked` passages; their `score` is then its score.

        Raises:
            ConfigError: a filter names a column that passages do not have.
        """
        if not queries or k < 1:
            return [[] for _ in queries]
        fused = self._fused(queries, settings)
        wanted = max(k, settings.reranked) if rerank else k
        shortlists = [list(scores)[: wanted * SPARE] for scores in fused]
        rows = self._table.take(sorted({row for ids in shortlists for row in ids}))
        hits = [
            self._choose([(rows[row], scores[row]) for row in ids], wanted, settings.duplicate)
            for ids, scores in zip(shortlists, fused, strict=True)
        ]
        return hits if rerank is None else _reranked(queries, hits, rerank, k)

    def _fused(self, queries: Sequence[str], settings: SearchSettings) -> list[dict[int, float]]:
        """Score the candidates of every query; for another weight of the same search, nothing is searched again."""
        key = (tuple(queries), replace(settings, weight=None))
        if (last := self._searched) is None or last[0] != key:
            self._searched = last = (key, self._candidates(queries, settings))
        return [fuse(by_meaning, by_words, settings.weight) for by_meaning, by_words in last[1]]

    def _candidates(self, queries: Sequence[str], settings: SearchSettings) -> list[tuple[Ranked, Ranked]]:
        """Search by words, by meaning or by both."""
        where = condition(settings.filters, self.manifest.corpus.metadata)
        dense = words = None
        if settings.mode != "bm25":
            dense = self._table.nearest(self.encoder.embed(queries, role="query"), settings.candidates, where)
        if settings.mode != "dense":
            asked = [" ".join(dict.fromkeys(terms(query))) for query in queries]
            words = self._table.matching(asked, settings.candidates, where)
        none = [None] * len(queries)
        return list(zip(dense or none, words or none, strict=True))

    def _choose(self, rows: list[tuple[dict[str, Any], float]], k: int, duplicate: float) -> list[Passage]:
        """Leave out near-duplicates of better passages, and keep the first k."""
        if not rows:
            return []
        kept = without_duplicates(np.stack([row["vector"] for row, _ in rows]), duplicate)
        return [self._passage(*rows[position]) for position in kept[:k]]

    def _passage(self, row: dict[str, Any], score: float) -> Passage:
        names = self.manifest.corpus.metadata
        return Passage(
            row["id"], row["document"], row["title"], row["text"], row["page"], row["start"], row["end"], score,
            {name: row[f"metadata_{number}"] for number, name in enumerate(names)},
        )  # fmt: skip


def _reranked(queries: Sequence[str], hits: list[list[Passage]], rerank: Rerank, k: int) -> list[list[Passage]]:
    best = []
    for passages, scores in zip(hits, rerank(queries, hits), strict=True):
        order = sorted(range(len(passages)), key=lambda position: -scores[position])
        best.append([replace(passages[position], score=float(scores[position])) for position in order[:k]])
    return best


def read_manifest(folder: IndexLocation) -> Manifest | None:
    """Read the manifest of an index; None where no index is complete, or another version of Rung made it.

    Raises:
        ArtifactError: it cannot be read.
    """
    try:
        if (text := open_location(folder).read()) is None or _is_of_another_version(text):
            return None
        return Manifest.model_validate(unsealed(text.encode(), lambda what: _damaged(folder, f"{MANIFEST} {what}")))
    except (ValidationError, ValueError) as problem:
        raise _damaged(folder, f"{MANIFEST} cannot be read: {str(problem).splitlines()[0]}") from problem


def _is_of_another_version(text: str) -> bool:
    """Whether the text of a manifest has another format, or no hash of itself as in earlier versions."""
    with suppress(ValueError):
        values = json_value(text)
        return isinstance(values, dict) and ("sha256" not in values or values.get("format") != FORMAT)
    return False


def check_files(folder: IndexLocation, manifest: Manifest) -> None:
    """Compare the files of an index in a folder with their hashes.

    A file that is not there is an error of LanceDB if this version needs it, else a newer build has removed it.

    Raises:
        ArtifactError: a file was changed.
    """
    for name, sha256 in table_hashes(folder, manifest.table).items():
        if manifest.files.get(name, sha256) != sha256:
            raise _damaged(folder, f"{name} was changed")


def _damaged(folder: IndexLocation, what: str) -> ArtifactError:
    return ArtifactError(
        "index-missing", f"the index {folder} is damaged: {what}", hint="`rung index build TASK --again`"
    )
