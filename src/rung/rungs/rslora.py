"""Rank-stabilized LoRA (Kalajdzievski 2023, https://arxiv.org/abs/2312.03732).

The update is scaled by alpha / sqrt(rank) instead of alpha / rank, so that higher ranks learn as fast as low ones and
are worth their memory. Alpha 16 is the paper's; rank 64 is where PEFT's own comparison finds it ahead of LoRA.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from rung.rungs.lora import LoRA


@dataclass(frozen=True, kw_only=True)
class RsLoRA(LoRA):
    """Train low-rank updates of every linear layer, scaled so that the rank may be high.

    Attributes:
        rank: rank of the updates.
        alpha: their scale, over the root of the rank.
    """

    name: ClassVar[str] = "rslora"
    variant: ClassVar[Mapping[str, bool]] = {"use_rslora": True}

    rank: int = 64
    alpha: int = 16

    def alpha_at(self, rank: int) -> int:
        """Return alpha itself: the root of the rank is the stabilized scale, whatever the rank."""
        del rank
        return self.alpha
