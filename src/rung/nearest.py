"""Nearest: the decoder that answers with the most similar rows of a table, by exact cosine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from rung.engines.base import Engine, Floats

BLOCK = 256  # queries compared with the table together


@dataclass(frozen=True)
class Nearest:
    """The k most similar rows of a table.

    Attributes:
        k: how many rows an answer lists.
        encoder: reference of the sentence encoder.
        rows: the table's input columns.
        outputs: the output column of each row.
        vectors: unit vectors of the rows, shape [rows, dimension].
    """

    kind: ClassVar[str] = "nearest"
    k: int
    encoder: str
    rows: tuple[Mapping[str, Any], ...]
    outputs: tuple[str, ...]
    vectors: Floats

    def room(self, engine: Engine) -> int:
        """Return how many tokens the answer takes behind the prompt: none, as no model writes it."""
        del engine
        return 0

    def find(self, queries: Floats) -> list[str]:
        """Return for each unit vector, shape [queries, dimension], its rows as a JSON list, the most similar first.

        Each is {"output", "similarity", "row"}; equally similar rows come in the table's order.
        """
        answers = []
        for start in range(0, len(queries), BLOCK):
            similarity = queries[start : start + BLOCK] @ self.vectors.T
            for values in similarity:
                best = np.argsort(-values, kind="stable")[: self.k]
                answers.append(json.dumps([self._found(int(i), float(values[i])) for i in best], ensure_ascii=False))
        return answers

    def _found(self, row: int, similarity: float) -> dict[str, Any]:
        return {"output": self.outputs[row], "similarity": round(similarity, 4), "row": dict(self.rows[row])}


def outputs_of(answer: str) -> Sequence[str]:
    """Return the outputs in an answer, the most similar row's first."""
    return [one["output"] for one in json.loads(answer)]
