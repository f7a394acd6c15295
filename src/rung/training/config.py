"""The settings of a training run; nothing here needs torch.

The rungs that train weights inherit `TrainConfig`. So a setting has one name in the task file, in Python, in the loop
and in the artifact that records it, and the bounds of its type are checked wherever it is set.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

Auto = Literal["auto"]
OptimizerName = Literal["adamw", "adamw-8bit"]
Precision = Literal["auto", "float32"]
Supervise = Literal["auto", "last", "all"]
Truncation = Literal["error", "truncate_input", "drop"]
AdvantageName = Literal["rloo", "grpo", "dr_grpo", "dapo"]
PairLossName = Literal["sigmoid", "ipo", "hinge", "cdpo", "robust", "sigmoid_norm"]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]
Names = Annotated[tuple[str, ...], Field(strict=False)]
Pattern = Mapping[str, Count]
BLOCK_TOKENS = 512  # of the blocks that plain text is cut into, at most the context
LearningRate = Annotated[float, Field(ge=0)] | Auto


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, how fast and how precisely to train.

    The loop needs numbers for `learning_rate` and `batch_size`; a rung replaces `auto` before it trains.

    Attributes:
        learning_rate: peak learning rate; `auto` tries a third of the default, the default and three times the default,
            each for a tenth of the steps, and takes the one with the lowest loss on held-out training rows.
        epochs: how often every row is seen.
        batch_size: rows per optimizer step; `auto` takes the largest power of two that fits in memory at once, up to 64
            and so that an epoch has at least 16 steps.
        micro_batch_size: rows per forward pass; gradients accumulate to exactly those of the whole batch. By default,
            the largest number that fits in memory and still improves throughput.
        lr_scheduler: how the learning rate falls after warm-up: along a cosine to zero, linearly to zero, or not.
        warmup_ratio: share of the steps in which the learning rate rises.
        max_grad_norm: gradients are clipped to this norm.
        weight_decay: AdamW's (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101), on matrices only.
        optimizer: `adamw`, or `adamw-8bit`, whose moments take a quarter of the memory (needs bitsandbytes).
        precision: `auto` multiplies matrices in the type that is fastest on the hardware, TF32 on CUDA and bfloat16 on
            processors with AMX, with sums in float32; `float32` multiplies in float32.
        label_smoothing: share of the target's probability that is spread evenly over all tokens.
        neftune_alpha: size of the noise on the input embeddings (NEFTune); 0 for none.
        patience: evaluations without a new best metric after which training stops; null trains to the end. Wherever
            there are evaluations, the best weights are kept.
        seed: seed of initialization, order and noise.
    """

    learning_rate: LearningRate
    epochs: Count = 3
    batch_size: Count | Auto = 8
    micro_batch_size: Count | None = None
    lr_scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: Share = 0.06
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    weight_decay: NonNegative = 0.0
    optimizer: OptimizerName = "adamw"
    precision: Precision = "auto"
    label_smoothing: Share = 0.0
    neftune_alpha: NonNegative = 0.0
    patience: Count | None = None
    seed: Annotated[int, Field(ge=0)] = 0

    def warmup_steps(self, steps: int) -> int:
        """The number of steps, of `steps`, in which the learning rate rises."""
        return max(1, round(self.warmup_ratio * steps))

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of `step`, counted from 0."""
        peak, warmup = float(self.learning_rate), self.warmup_steps(steps)
        if step < warmup:
            return peak * (step + 1) / warmup
        if self.lr_scheduler == "constant":
            return peak
        done = (step - warmup) / max(1, steps - warmup)
        return peak * (0.5 * (1 + math.cos(math.pi * done)) if self.lr_scheduler == "cosine" else 1 - done)
