"""Nearest: the decoder that answers with the most similar rows of a table, by exact cosine."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from rung.artifact.decoder import Answer, ArtifactReader, ArtifactWriter, Change, Composition, Promptless
from rung.artifact.rendering import Given
from rung.data.rows import Example
from rung.engines.base import Floats
from rung.engines.opening import open_encoder
from rung.models.reference import resolve
from rung.progress import Progress

BLOCK = 256  # queries compared with the table together


@dataclass(frozen=True, slots=True)
class Nearest(Promptless):
    """The k most similar rows of a table.

    Attributes:
        k: how many rows an answer lists.
        encoder: reference of the sentence encoder.
        rows: the table's input columns.
        outputs: the output of each row.
        vectors: unit vectors of the rows, shape [rows, dimension].
    """

    kind: ClassVar[str] = "nearest"
    fixed: ClassVar[bool] = True
    refusals: ClassVar[Mapping[Change, str]] = {
        **Promptless.refusals,
        "prompt": "the rows are ranked without a prompt",
        "demonstrations": "the table is searched as it is, without a prompt",
        "reasoning": "a search does not write",
        "training": "the rows are ranked by the sentence encoder, not by the model",
        "servers": "a search answers, and such servers run language models",
    }
    k: int
    encoder: str
    rows: tuple[Mapping[str, Any], ...]
    outputs: tuple[str, ...]
    vectors: Floats

    def row_flops(self, artifact: Composition, rows: Sequence[Example]) -> float:
        """Estimate one reading of the row by the encoder; the comparison costs almost nothing."""
        return self.encoder_flops(artifact, rows, self.encoder)

    def as_dict(self, writer: ArtifactWriter) -> dict[str, Any]:
        """Save the vectors as an array."""
        writer.arrays["nearest"] = self.vectors
        return {
            "k": self.k, "encoder": self.encoder, "encoder_fingerprint": resolve(self.encoder).fingerprint,
            "rows": [dict(row) for row in self.rows], "outputs": self.outputs,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], reader: ArtifactReader) -> Self:
        """Read the table back; the encoder must be the one that computed the vectors."""
        settings = {**values, "vectors": reader.arrays["nearest"]}
        reader.check_model(settings["encoder"], settings.pop("encoder_fingerprint"))
        return super(Nearest, cls).from_dict(settings, reader)

    def answer(
        self, artifact: Composition, examples: Sequence[Example], *, full: bool, passages: Given, progress: Progress
    ) -> list[Answer]:
        """Look up every example's text in the table."""
        del full, passages  # there are no labels, and no documents
        encoder = open_encoder(self.encoder, progress=progress)
        start = time.perf_counter()
        texts = [artifact.prompt.question(example.inputs) for example in examples]
        lists = self.find(encoder.embed(texts, progress=progress))
        seconds = (time.perf_counter() - start) / len(examples)
        return [
            Answer(answer, None, None, len(encoder.encode(text)), 0, seconds, ({"role": "user", "content": text},))
            for answer, text in zip(lists, texts, strict=True)
        ]

    def find(self, queries: Floats) -> list[str]:
        """Find the k most similar rows of each unit vector [queries, dimension], as a JSON list, best first.

        Each row is {"output", "similarity", "row"}; equally similar rows keep the table's order.
        """
        answers = []
        for start in range(0, len(queries), BLOCK):
            for values in queries[start : start + BLOCK] @ self.vectors.T:
                best = [int(i) for i in np.argsort(-values, kind="stable")[: self.k]]
                rows = [
                    {"output": self.outputs[i], "similarity": round(float(values[i]), 4), "row": dict(self.rows[i])}
                    for i in best
                ]
                answers.append(json.dumps(rows, ensure_ascii=False))
        return answers


def outputs_of(answer: str) -> Sequence[str]:
    """List the outputs in an answer, the most similar row's first."""
    return [one["output"] for one in json.loads(answer)]
