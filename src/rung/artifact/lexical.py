"""TF-IDF features of texts, exactly as scikit-learn computes them, saved as JSON and arrays.

A text is two unit vectors side by side: one of its words and pairs of words, one of its runs of two to five characters,
which also match misspelled and inflected words, and languages without spaces.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np

from rung.artifact.decoder import ArtifactReader, ArtifactWriter, Composition
from rung.data.rows import Example
from rung.engines.base import Floats
from rung.errors import ArtifactError, EngineError, needed_by

BLOCKS: dict[str, dict[str, Any]] = {  # settings of scikit-learn's TfidfVectorizer
    "words": {"ngram_range": (1, 2), "token_pattern": r"(?u)\b\w+\b", "sublinear_tf": True},
    "characters": {"analyzer": "char_wb", "ngram_range": (2, 5), "sublinear_tf": True},
}
MOST_TERMS = 100_000  # of each block; the most frequent are kept
FILE = "lexicon.json"
TERMS = 6  # of a character of text: words, pairs of words, and four lengths of runs
COUNTING = 1000  # operations that one term takes before it is a number


def vectorizer(block: str, **settings: Any) -> Any:
    """Make scikit-learn's TfidfVectorizer with the settings of a block."""
    with needed_by("TF-IDF", error=EngineError):
        from sklearn.feature_extraction.text import TfidfVectorizer
    return TfidfVectorizer(**BLOCKS[block], dtype=np.float64, **settings)


@dataclass(frozen=True)
class Lexicon:
    """The terms of the training texts, by block, each in the order of its columns, with their IDF.

    Example:
        >>> Lexicon.fit(["a lost card", "a new card"]).features(["my card"]).shape  # doctest: +SKIP
        (1, 47)
    """

    terms: dict[str, tuple[str, ...]]
    idf: dict[str, Floats]

    @classmethod
    def fit(cls, texts: Sequence[str], *, most_terms: int = MOST_TERMS, blocks: Sequence[str] = tuple(BLOCKS)) -> Self:
        """Collect the terms of the texts."""
        return cls.fit_with_blocks(texts, most_terms=most_terms, blocks=blocks)[0]

    @classmethod
    def fit_with_blocks(
        cls, texts: Sequence[str], *, most_terms: int = MOST_TERMS, blocks: Sequence[str] = tuple(BLOCKS)
    ) -> tuple[Self, list[Any]]:
        """Collect the terms of the texts, and compute their TF-IDF. Terms, which take the time, are counted once."""
        terms, idf, matrices = dict[str, tuple[str, ...]](), dict[str, Floats](), list[Any]()
        for block in blocks:
            fitted = vectorizer(block, max_features=most_terms)
            try:
                matrices.append(fitted.fit_transform(texts))
            except ValueError:  # not one word in the texts
                continue
            terms[block] = tuple(fitted.get_feature_names_out().tolist())
            idf[block] = fitted.idf_
        return cls(terms, idf), matrices

    @cached_property
    def _vectorizers(self) -> list[Any]:
        made = []
        for block, terms in self.terms.items():
            made.append(vectorizer(block, vocabulary={term: column for column, term in enumerate(terms)}))
            made[-1].idf_ = self.idf[block]
        return made

    def blocks(self, texts: Sequence[str]) -> list[Any]:
        """Compute the TF-IDF of texts, a sparse matrix [texts, terms] for each block."""
        return [each.transform(texts) for each in self._vectorizers]

    def features(self, texts: Sequence[str]) -> Any:
        """Compute the TF-IDF of texts, a sparse matrix of the shape [texts, terms of all blocks]."""
        return side_by_side(self.blocks(texts), len(texts))

    def save(self, writer: ArtifactWriter) -> None:
        """Write the terms as a file of JSON, and the IDF as arrays."""
        (writer.folder / FILE).write_text(json.dumps(self.terms, ensure_ascii=False), "utf-8")
        for block, idf in self.idf.items():
            writer.arrays[f"lexicon.{block}"] = idf

    @classmethod
    def load(cls, reader: ArtifactReader) -> Self:
        """Read what `save` wrote; raise ArtifactError `artifact-damaged` if terms and IDF do not fit each other."""
        file = reader.folder / FILE
        terms: Any = json.loads(file.read_text("utf-8")) if file.is_file() else None
        idf = {name: reader.arrays.get(f"lexicon.{name}") for name in BLOCKS}
        fits = isinstance(terms, dict) and all(
            name in BLOCKS and isinstance(own, list) and all(isinstance(term, str) for term in own)
            and len(set(own)) == len(own) and (known := idf[name]) is not None and known.shape == (len(own),)
            and bool(np.isfinite(known).all())
            for name, own in terms.items()
        )  # fmt: skip
        if not isinstance(terms, dict) or not fits:
            raise ArtifactError(
                "artifact-damaged", f"{file}: the terms do not fit their IDF", hint="copy the whole folder again"
            )
        return cls(
            {name: tuple(own) for name, own in terms.items()},
            {name: array for name, array in idf.items() if name in terms and array is not None},
        )


def side_by_side(blocks: Sequence[Any], rows: int) -> Any:
    """Join the sparse matrices of blocks to one of all their columns."""
    from scipy.sparse import csr_matrix, hstack

    return hstack(blocks, format="csr") if blocks else csr_matrix((rows, 0))


def lexical_flops(artifact: Composition, rows: Sequence[Example], outputs: int) -> float:
    """Estimate the operations to count the terms of one row and to weigh them for so many outputs."""
    characters = sum(len(artifact.prompt.question(row.inputs)) for row in rows) / max(1, len(rows))
    return characters * TERMS * (2 * outputs + COUNTING)
