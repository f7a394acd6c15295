"""After the confirmation: fit the recommended artifact's confidence on validation rows, and measure it on test rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rung.artifact.artifact import Artifact
from rung.artifact.parts import Answer, Head, Probable
from rung.data.labels import labels_of
from rung.data.rows import Example
from rung.errors import ConfigError
from rung.evaluation import calibration as confidence
from rung.evaluation.calibration import Confidence, Method
from rung.progress import QUIET, Progress


def can_be_fitted(artifact: Artifact) -> bool:
    """Say whether the artifact gives every label a probability; of several labels a row, only heads do."""
    if artifact.shape.kind == "multilabel":
        return isinstance(artifact.decoder, Head)
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
            f"{artifact.name} gives its labels no probabilities",
            hint="confidence needs a category task whose labels are scored, or a trained head (the rungs features, "
            "llm-features)",
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
    found = replace(_fitted(artifact, answers, rows, method), abstain_below=abstain_below, out_of_scope=out_of_scope)
    return replace(artifact, decoder=replace(decoder, confidence=found))


def _fitted(artifact: Artifact, answers: Sequence[Answer], rows: Sequence[Example], method: Method) -> Confidence:
    """Fit one label a row by its probability, several by those of all decisions."""
    labels, kind = artifact.shape.labels, artifact.shape.kind
    chances = np.array([answer.probabilities for answer in answers])
    if kind == "category":
        return confidence.fit(method, chances, [labels.index(row.outputs[0]) for row in rows])
    given = [_among(labels, answer.text) for answer in answers]
    return confidence.fit_each(method, chances, np.array(given), np.array([_among(labels, r.outputs[0]) for r in rows]))


def _among(labels: Sequence[str], text: str) -> list[bool]:
    """Say of each label whether a list of them, as answers and expected answers are, holds it."""
    held = labels_of(text, "multilabel")
    return [label in held for label in labels]


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
    said = [set(labels_of(answer.text, artifact.shape.kind)) for answer in answers]
    expected = [set(labels_of(row.outputs[0], artifact.shape.kind)) for row in rows]
    values = confidence.describe(
        fitted,
        [answer.confidence or 0.0 for answer in answers],
        [_confidence(artifact, fitted, answer) for answer in answers],
        [float(a == b) for a, b in zip(said, expected, strict=True)],
        fitted_on=fitted_on,
        out_of_scope=[fitted.out_of_scope in labels for labels in expected],
        seed=seed,
    )
    return {"artifact": artifact.name, **values}


def _confidence(artifact: Artifact, fitted: Confidence, answer: Answer) -> float:
    """Return what the fitted artifact says of the same answer; fitting never changes which labels are given."""
    assert answer.probabilities is not None
    if artifact.shape.kind == "category":
        return fitted.of(fitted.scaled(answer.probabilities)[int(np.argmax(answer.probabilities))])
    given = _among(artifact.shape.labels, answer.text)
    return fitted.of(float(confidence.of_decisions(fitted.scaled_each(answer.probabilities), given)))
