"""Yardsticks: the same answer for every row, that of the most similar training row, and a number linear in the text."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from rung.artifact.decoder import (
    Answer,
    ArtifactReader,
    ArtifactWriter,
    Change,
    Composition,
    Promptless,
    with_confidence,
)
from rung.artifact.heads import features, token_counter
from rung.artifact.lexical import Lexicon, lexical_flops
from rung.artifact.rendering import Given
from rung.data.rows import Example
from rung.data.texts import number_text
from rung.engines.base import Floats
from rung.errors import ArtifactError
from rung.models.reference import resolve
from rung.progress import Progress

BLOCK = 256  # rows compared with the table together


@dataclass(frozen=True, slots=True)
class ConstantAnswer(Promptless):
    """One answer for every row, whatever it says.

    Attributes:
        constant: the answer.
        shares: for categories, the share of the training rows of each label, which is its probability.
    """

    kind: ClassVar[str] = "constant-answer"
    constant: str
    shares: tuple[float, ...] = ()

    @property
    def gives_probs(self) -> bool:
        """Whether the probability of every label is known."""
        return bool(self.shares)

    def without_confidence(self) -> Self:
        """Do nothing: no confidence is fitted."""
        return self

    def row_flops(self, artifact: Composition, rows: Sequence[Example]) -> float:
        """Estimate nothing: a constant costs nothing."""
        del artifact, rows
        return 0.0

    def answer(
        self, artifact: Composition, examples: Sequence[Example], *, full: bool, passages: Given, progress: Progress
    ) -> list[Answer]:
        """Give the answer to every example."""
        del full, passages, progress
        texts = [artifact.prompt.question(example.inputs) for example in examples]
        answers = [Answer(self.constant, None, None, 0, 0, 0.0, ({"role": "user", "content": text},)) for text in texts]
        if not self.shares:
            return answers
        shares, best = np.array(self.shares), artifact.signature.labels.index(self.constant)
        return [with_confidence(answer, shares, best, None) for answer in answers]


@dataclass(frozen=True, slots=True)
class CopiedRow(Promptless):
    """The answer of the most similar training row, by cosine.

    Attributes:
        encoder: reference of the sentence encoder; None compares TF-IDF.
        outputs: the answer of each training row.
        vectors: unit vectors of the rows, shape [rows, dimension]: an array, or a sparse matrix with a lexicon.
        lexicon: the terms of the rows, for TF-IDF.
    """

    kind: ClassVar[str] = "copied-row"
    refusals: ClassVar[Mapping[Change, str]] = {
        **Promptless.refusals,
        "training": "rows are compared as they are, not as a trained model reads them",
    }
    encoder: str | None
    outputs: tuple[str, ...]
    vectors: Any
    lexicon: Lexicon | None = None

    def row_flops(self, artifact: Composition, rows: Sequence[Example]) -> float:
        """Estimate one reading of the row; the comparison costs almost nothing."""
        if self.encoder is None:
            return lexical_flops(artifact, rows, 1)
        return self.encoder_flops(artifact, rows, self.encoder)

    def as_dict(self, writer: ArtifactWriter) -> dict[str, Any]:
        """Save the vectors as arrays."""
        if self.lexicon is None:
            writer.arrays["copied.vectors"] = self.vectors
        else:
            self.lexicon.save(writer)
            for part in ("data", "indices", "indptr"):
                writer.arrays[f"copied.{part}"] = getattr(self.vectors, part)
        fingerprint = None if self.encoder is None else resolve(self.encoder).fingerprint
        return {"encoder": self.encoder, "encoder_fingerprint": fingerprint, "outputs": self.outputs}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], reader: ArtifactReader) -> Self:
        """Read the vectors back; an encoder must be the one that computed them."""
        settings: dict[str, Any] = dict(values)
        fingerprint, rows = settings.pop("encoder_fingerprint"), len(settings["outputs"])
        if settings["encoder"] is None:
            settings["lexicon"] = lexicon = Lexicon.load(reader)
            settings["vectors"] = _sparse(reader, (rows, sum(map(len, lexicon.terms.values()))))
        else:
            reader.check_model(settings["encoder"], fingerprint)
            settings["vectors"] = vectors = reader.arrays["copied.vectors"]
            if len(vectors) != rows:
                raise _damaged(reader, f"{len(vectors)} vectors of {rows} rows")
        return super(CopiedRow, cls).from_dict(settings, reader)

    def answer(
        self, artifact: Composition, examples: Sequence[Example], *, full: bool, passages: Given, progress: Progress
    ) -> list[Answer]:
        """Copy the answer of the row that is most like each example."""
        del full, passages  # a copied label has no probability, and no documents are shown
        count = token_counter(artifact, self.encoder, progress)
        start = time.perf_counter()
        texts = [artifact.prompt.question(example.inputs) for example in examples]
        if self.lexicon is None:
            assert self.encoder is not None
            queries = features(artifact, self.encoder, texts, progress=progress)
        else:
            queries = self.lexicon.features(texts)
        copied = [self.outputs[row] for row in self.nearest(queries)]
        seconds = (time.perf_counter() - start) / len(examples)
        return [
            Answer(output, None, None, count(text), 0, seconds, ({"role": "user", "content": text},))
            for output, text in zip(copied, texts, strict=True)
        ]

    def nearest(self, queries: Any) -> list[int]:
        """Find the row most similar to each query [queries, dimension]; of equal rows, the first."""
        found: list[int] = []
        for start in range(0, queries.shape[0], BLOCK):
            similarity = queries[start : start + BLOCK] @ self.vectors.T
            dense: Floats = similarity.toarray() if self.lexicon is not None else similarity
            found += dense.argmax(1).tolist()
        return found


@dataclass(frozen=True, slots=True)
class NumberHead(Promptless):
    """A number that is linear in the features of a text, held between the least and the greatest of the training rows.

    Attributes:
        encoder: reference of the sentence encoder whose vectors are features; None for TF-IDF alone.
        weight: shape [1, features], the encoder's first.
        intercept: shape [1].
        low, high: the least and the greatest answer.
        whole: whether answers have no decimals.
        lexicon: the terms whose TF-IDF are features.
    """

    kind: ClassVar[str] = "number-head"
    encoder: str | None
    weight: Floats
    intercept: Floats
    low: float
    high: float
    whole: bool
    lexicon: Lexicon

    def row_flops(self, artifact: Composition, rows: Sequence[Example]) -> float:
        """Estimate one reading of the row."""
        encoding = 0.0 if self.encoder is None else self.encoder_flops(artifact, rows, self.encoder)
        return encoding + lexical_flops(artifact, rows, 1)

    def trainable_parameters(self, artifact: Composition) -> int:
        """Count the weights."""
        del artifact
        return int(self.weight.size + 1)

    def as_dict(self, writer: ArtifactWriter) -> dict[str, Any]:
        """Save the weights as arrays."""
        writer.arrays["number.weight"], writer.arrays["number.intercept"] = self.weight, self.intercept
        self.lexicon.save(writer)
        fingerprint = None if self.encoder is None else resolve(self.encoder).fingerprint
        return {
            "encoder": self.encoder, "encoder_fingerprint": fingerprint, "low": self.low, "high": self.high,
            "whole": self.whole,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], reader: ArtifactReader) -> Self:
        """Read the weights back; an encoder must be the one that computed the features."""
        settings: dict[str, Any] = dict(values)
        fingerprint = settings.pop("encoder_fingerprint")
        if settings["encoder"] is not None:
            reader.check_model(settings["encoder"], fingerprint)
        arrays = {name: reader.arrays[f"number.{name}"] for name in ("weight", "intercept")}
        return super(NumberHead, cls).from_dict(settings | arrays | {"lexicon": Lexicon.load(reader)}, reader)

    def answer(
        self, artifact: Composition, examples: Sequence[Example], *, full: bool, passages: Given, progress: Progress
    ) -> list[Answer]:
        """Compute the number of every example."""
        del full, passages
        count = token_counter(artifact, self.encoder, progress)
        start = time.perf_counter()
        texts = [artifact.prompt.question(example.inputs) for example in examples]
        terms, weight = self.lexicon.features(texts), self.weight[0].astype(np.float64)
        values = terms @ weight[len(weight) - terms.shape[1] :] + float(self.intercept[0])
        if self.encoder is not None:
            vectors = features(artifact, self.encoder, texts, progress=progress)
            values = values + vectors.astype(np.float64) @ weight[: vectors.shape[1]]
        values = values.clip(self.low, self.high)
        seconds = (time.perf_counter() - start) / len(examples)
        written = [number_text(float(round(value) if self.whole else f"{value:.6g}")) for value in values.tolist()]
        return [
            Answer(number, None, None, count(text), 0, seconds, ({"role": "user", "content": text},))
            for number, text in zip(written, texts, strict=True)
        ]


def _sparse(reader: ArtifactReader, shape: tuple[int, int]) -> Any:
    """Rebuild a sparse matrix from its arrays; raise ArtifactError `artifact-damaged` if they make none."""
    from scipy.sparse import csr_matrix

    try:
        parts = tuple(reader.arrays[f"copied.{part}"] for part in ("data", "indices", "indptr"))
        matrix = csr_matrix(parts, shape=shape)
        matrix.check_format(full_check=True)
    except (KeyError, ValueError) as error:
        raise _damaged(reader, str(error)) from error
    return matrix


def _damaged(reader: ArtifactReader, problem: str) -> ArtifactError:
    message = f"{reader.folder}: the table of the training rows does not fit: {problem}"
    return ArtifactError("artifact-damaged", message, hint="copy the whole folder again")
