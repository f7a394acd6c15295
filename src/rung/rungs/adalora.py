"""AdaLoRA: adaptive budget allocation (Zhang et al. 2023, https://arxiv.org/abs/2303.10512).

Updates start at one and a half times the rank aimed at, on average over the layers, and singular values are given up
where they matter least (the paper's section 4.1 and its budget schedule; beta 0.85, penalty 0.1 and the shares of the
schedule follow its appendix, where the budget falls after about 15 % of the steps and has fallen by half).

Singular values start at zero between small vectors, so at equal rates the update grows far more slowly than LoRA's:
the rate is the upper end of the paper's (5e-4 to 2.2e-3 over thousands of steps), and more, for shorter runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rung.artifact.artifact import Artifact
from rung.data.rows import Data
from rung.rungs.tuned import Auto, Tuned

if TYPE_CHECKING:
    from rung.engines.torch_engine import TorchEngine
    from rung.training.changes import Change
    from rung.training.examples import TokenizedExample


EXCLUSIVE = "adalora in training"  # PEFT keeps a budget for the first AdaLoRA adapter of a model alone


@dataclass(frozen=True, kw_only=True)
class AdaLoRA(Tuned):
    """Train low-rank updates of every linear layer, and move rank to the layers that need it.

    What it makes is a LoRA adapter with a rank of its own for each layer.

    Attributes:
        rank: mean rank in the end.
        initial_rank: rank of every layer in the beginning; without, one and a half times `rank`.
        alpha: scale of the updates, over the initial rank.
        start: share of the steps before ranks fall.
        end: share of the steps after they have fallen.
        interval: steps between two allocations.
        orthogonality: weight of the penalty that keeps the singular vectors orthogonal.
        dropout: on the updates' input.
    """

    name: ClassVar[str] = "adalora"

    rank: int = 8
    initial_rank: int | None = None
    alpha: int = 24
    start: float = 0.15
    end: float = 0.5
    interval: int = 1
    orthogonality: float = 0.1
    dropout: float = 0.0
    learning_rate: float | Auto = 5e-3

    def reason_against(self, artifact: Artifact, data: Data) -> str:
        """Say what is wrong with the schedule of ranks, if anything."""
        del artifact, data
        if not 0 < self.rank < self._first_rank():
            return f"its ranks cannot fall from {self._first_rank()} to {self.rank}"
        if self.start < 0 or self.end < 0 or self.start + self.end >= 1:
            return f"its ranks have no time to fall: {self.start:.0%} of the steps come before, {self.end:.0%} after"
        return ""

    def _first_rank(self) -> int:
        return self.initial_rank if self.initial_rank is not None else math.ceil(1.5 * self.rank)

    def change(self, engine: TorchEngine, artifact: Artifact, rows: Sequence[TokenizedExample]) -> Change:
        """Put a fresh adapter on the model; its singular values are zero at first."""
        del artifact, rows
        from rung.training.adalora import AdaLora
        from rung.training.peft import linear_layers, peft

        config = peft().AdaLoraConfig(
            target_r=self.rank, init_r=self._first_rank(), lora_alpha=self.alpha, lora_dropout=self.dropout,
            deltaT=self.interval, orth_reg_weight=self.orthogonality, target_modules=linear_layers(engine.model),
            task_type="CAUSAL_LM", total_step=1,
        )  # fmt: skip
        engine.make_room(EXCLUSIVE)
        return AdaLora(engine.model, config, start=self.start, end=self.end)
