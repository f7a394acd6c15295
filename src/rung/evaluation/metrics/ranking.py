"""Metrics of ranked rows: is the expected output among them, and how early?"""

from __future__ import annotations

from collections.abc import Sequence

from rung.artifact.lookup import outputs_of
from rung.evaluation.metrics.base import some


def recall_at_k(prediction: str, references: Sequence[str]) -> float:
    """Return 1 if one of the rows found has an expected output, else 0."""
    return float(reciprocal_rank(prediction, references) > 0)


def recall_at_1(prediction: str, references: Sequence[str]) -> float:
    """Return 1 if the first row found has an expected output, else 0."""
    return float(reciprocal_rank(prediction, references) == 1)


def reciprocal_rank(prediction: str, references: Sequence[str]) -> float:
    """Return 1 / the rank of the first row with an expected output; 0 where none has. Its mean is the MRR."""
    wanted = set(some(references))
    return next((1 / rank for rank, output in enumerate(outputs_of(prediction), start=1) if output in wanted), 0.0)
