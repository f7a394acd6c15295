"""DoRA: weight-decomposed low-rank adaptation (Liu et al. 2024, https://arxiv.org/abs/2402.09353).

LoRA changes the direction of each weight, a learnt number its length. The paper trains at a lower rate than LoRA (1e-4
to 2e-4 against 3e-4); so does this, relative to `lora`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from rung.rungs.lora import LoRA
from rung.rungs.tuned import Auto


@dataclass(frozen=True, kw_only=True)
class DoRA(LoRA):
    """Train low-rank updates of the direction of every linear layer's weights, and their length apart."""

    name: ClassVar[str] = "dora"
    variant: ClassVar[Mapping[str, bool]] = {"use_dora": True}

    learning_rate: float | Auto = 5e-4
