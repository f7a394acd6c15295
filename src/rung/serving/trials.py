"""Which artifact answers a request while another is tried beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rung.artifact.parts import Generate
from rung.data.rows import example_id
from rung.feedback.records import as_read
from rung.feedback.trials import arm_of
from rung.serving.served import ServedArtifact


def answering(served: ServedArtifact, row: Mapping[str, Any], limit: int | None = None) -> ServedArtifact:
    """Return what answers a row that asks for the artifact's own answer: in an A/B trial, a share is the challenger's.

    Args:
        served: what the client named.
        row: the input columns; the same input is always answered by the same artifact.
        limit: the most tokens that the client wants; where it may cut an answer, the row takes no part in a trial.
    """
    trial = served.trial
    if trial is None or trial.challenger is None:
        return served
    if _cuts(limit, served) or _cuts(limit, trial.challenger):
        return outside(served)
    record = trial.record
    read = example_id(as_read(served.artifact, row))
    if record.mode == "ab" and arm_of(read, share=record.share, salt=record.token) == "b":
        return trial.challenger
    return served


def outside(served: ServedArtifact) -> ServedArtifact:
    """Return what answers a request that takes no part in a trial: it asks for another answer than was measured."""
    return replace(served, trial=None)


def _cuts(limit: int | None, served: ServedArtifact) -> bool:
    decoder = served.artifact.decoder
    return limit is not None and isinstance(decoder, Generate) and limit < decoder.max_tokens
