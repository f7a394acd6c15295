"""After the confirmation: fit the recommended artifact's confidence on validation rows, and measure it on test rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rung.artifact import Artifact
from rung.data.types import Example
from rung.errors import ConfigError
from rung.evaluation import confidence
from rung.evaluation.confidence import Confidence, Method
from rung.parts import Answer, Probable
from rung.progress import QUIET, Progress


def can_be_fitted(artifact: Artifact) -> bool:
    """Say whether the artifact gives every label a probability, and one label to a row."""
    return artifact.shape.kind == "category" and isinstance(artifact.decoder, Probable)


def fit_confidence(
    artifact: Artifact,
    rows: Sequence[Example],
    method: Method = "temperature",
    *,
    abstain_below: float | None = None,
    out_of_scope: str | None = None,
    progress: Progress = QUIET,
) -> Artifact:
    """Return the artifact with confidences fitted on `rows`; its answers stay what they are.

    Args:
        artifact: one that scores labels or has a head.
        rows: validation rows, which it was not trained on.
        method: `temperature` or `isotonic`.
        abstain_below: answers with less confidence become abstained.
        out_of_scope: label whose rows are right to abstain on.
        progress: told of every batch.

    Raises:
        ConfigError: the artifact writes its answers, there are no rows, too few for the method, or no such label.
    """
    if not can_be_fitted(artifact):
        raise ConfigError(
            "no-probabilities",
            f"{artifact.name} gives the labels of a row no probabilities that sum to one",
            hint="confidence needs a category task whose labels are scored, or a trained head",
        )
    decoder = artifact.decoder
    assert isinstance(decoder, Probable)
    if out_of_scope is not None and out_of_scope not in artifact.shape.labels:
        raise ConfigError(
            "unknown-label",
            f"`out_of_scope` is {out_of_scope!r}, which is not among the labels",
            hint=f"the labels are {', '.join(artifact.shape.labels)}",
        )
    if not rows:
        raise ConfigError("empty-split", "the validation split has no rows", hint="give `data.validation`")
    plain = replace(artifact, decoder=replace(decoder, confidence=None))
    answers = plain.answer(rows, full=True, progress=progress)
    labels = {label: number for number, label in enumerate(artifact.shape.labels)}
    truth = [labels[row.outputs[0]] for row in rows]
    found = confidence.fit(method, np.array([answer.probabilities for answer in answers]), truth)
    found = replace(found, abstain_below=abstain_below, out_of_scope=out_of_scope)
    return replace(artifact, decoder=replace(decoder, confidence=found))


def measure_confidence(
    artifact: Artifact, rows: Sequence[Example], *, fitted_on: int, seed: int = 0, progress: Progress = QUIET
) -> dict[str, Any]:
    """Return what the report shows of an artifact's confidence, measured on `rows`: see `confidence.describe`.

    Args:
        artifact: one from `fit_confidence`.
        rows: test rows.
        fitted_on: number of rows it was fitted on.
        seed: of the resampling.
        progress: told of every batch.
    """
    decoder = artifact.decoder
    assert isinstance(decoder, Probable)
    fitted = decoder.confidence
    assert fitted is not None
    plain = replace(artifact, decoder=replace(decoder, confidence=None))
    answers = plain.answer(rows, full=True, progress=progress)
    before = [answer.confidence or 0.0 for answer in answers]
    values = confidence.describe(
        fitted,
        before,
        [_confidence(fitted, answer) for answer in answers],
        [float(answer.text == row.outputs[0]) for answer, row in zip(answers, rows, strict=True)],
        fitted_on=fitted_on,
        out_of_scope=[row.outputs[0] == fitted.out_of_scope for row in rows],
        seed=seed,
    )
    return {"artifact": artifact.name, **values}


def _confidence(fitted: Confidence, answer: Answer) -> float:
    """Return what the fitted artifact says of the same answer; fitting never changes which label is likeliest."""
    assert answer.probabilities is not None
    return fitted.of(fitted.scaled(answer.probabilities)[int(np.argmax(answer.probabilities))])
