"""How sure is an answer? A calibration turns a decoder's probabilities into confidences, and says when to abstain.

`rung.evaluation.calibration` fits and measures calibrations; an artifact only applies its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

CalibrationMethod = Literal["temperature", "isotonic"]
Probs = npt.NDArray[np.float64]
ProbsLike = Sequence[float] | npt.NDArray[np.floating]
Decisions = Sequence[bool] | npt.NDArray[np.bool_]

SMALLEST = 1e-30  # replaces a probability that was rounded to zero


@dataclass(frozen=True, slots=True)
class Calibration:
    """Turns a decoder's probabilities into confidences, and says below which confidence it abstains.

    Attributes:
        method: `temperature` or `isotonic`.
        temperature: divides log-probabilities; above 1 it lowers the confidence of the likeliest label.
        thresholds: the isotonic map, as (probability, confidence) pairs, both increasing; linear in between.
        abstain_below: an answer with less confidence is marked as abstained; None for never.
        out_of_scope: the label whose rows should be abstained on, if there is one.
    """

    method: CalibrationMethod = "temperature"
    temperature: float = 1.0
    thresholds: tuple[tuple[float, float], ...] = ()
    abstain_below: float | None = None
    out_of_scope: str | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Read the JSON form: the fields by name."""
        return cls(**{**values, "thresholds": tuple((float(at), float(value)) for at, value in values["thresholds"])})

    def scaled(self, probabilities: ProbsLike) -> tuple[float, ...]:
        """Apply the temperature to the probabilities of all labels; isotonic regression does not change them."""
        return tuple(tempered(np.asarray([probabilities], np.float64), self.temperature)[0].tolist())

    def scaled_each(self, probabilities: ProbsLike) -> tuple[float, ...]:
        """Apply the temperature to independent probabilities, each that its own label is right."""
        return tuple(tempered(of_yes_and_no(np.asarray(probabilities, np.float64)), self.temperature)[..., 1].tolist())

    def of(self, probability: float) -> float:
        """Turn an answer's probability (after `scaled`) into a confidence; the isotonic map is flat beyond its ends."""
        if self.method == "temperature":
            return probability
        at, value = zip(*self.thresholds, strict=True)
        return float(np.interp(probability, at, value))

    def abstains(self, confidence: float) -> bool:
        """Say whether an answer of this confidence is marked as abstained."""
        return self.abstain_below is not None and confidence < self.abstain_below


def tempered(probabilities: Probs, temperature: float) -> Probs:
    """Compute softmax(log p / temperature) along the last axis."""
    if temperature == 1.0:
        return probabilities
    result: Probs = softmax(np.log(np.maximum(probabilities, SMALLEST)) / temperature)
    return result


def softmax(logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Compute softmax along the last axis, in the precision of `logits`."""
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    result: npt.NDArray[Any] = weights / weights.sum(-1, keepdims=True)
    return result


def of_yes_and_no(probs: Probs) -> Probs:
    """Give the probabilities of no and yes to "is the label right?", shape [..., 2]."""
    return np.stack([1 - probs, probs], -1)


def of_decisions(probabilities: ProbsLike, given: Decisions) -> Probs:
    """Compute the probability that all label decisions, assumed independent, are right, along the last axis."""
    probs = np.asarray(probabilities)
    result: Probs = np.where(given, probs, 1 - probs).prod(-1)
    return result
