"""Batch calibration: subtract the model's input-independent label bias.

Zhou et al. 2024, "Batch Calibration" (https://arxiv.org/abs/2309.17249), equation 4: the contextual prior of a label is
its mean score over a batch of unlabelled inputs; subtracting it removes the bias of the prompt and of the label's own
wording. On BANKING77 it lifts the embedded model's zero-shot accuracy by tens of points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from rung.engines.base import Floats

Normalization = Literal["sum", "mean"]


def divisors(continuations: Sequence[Sequence[int]], normalization: Normalization) -> Floats:
    """Divide each label's log-likelihood by 1, or by its number of tokens."""
    if normalization == "sum":
        return np.ones(len(continuations), np.float32)
    return np.array([len(c) for c in continuations], np.float32)


def batch_bias(logprobs: Floats, divisor: Floats) -> Floats:
    """Average the normalized score of every label over unlabelled rows: [rows, labels] to [labels]."""
    bias: Floats = (logprobs / divisor).mean(0).astype(np.float32)
    return bias


def probabilities(logprobs: Floats, divisor: Floats, bias: Floats) -> Floats:
    """Softmax over labels of the calibrated scores, shape [rows, labels]."""
    value = (logprobs / divisor - bias).astype(np.float64)
    value -= value.max(-1, keepdims=True)
    weights = np.exp(value)
    result: Floats = (weights / weights.sum(-1, keepdims=True)).astype(np.float32)
    return result
