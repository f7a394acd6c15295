"""LoRA on all linear layers (Hu et al. 2021, https://arxiv.org/abs/2106.09685).

Adapting every linear layer and a learning rate about ten times that of full fine-tuning are what closes the gap to it
(Biderman et al. 2024, https://arxiv.org/abs/2405.09673; Schulman et al. 2025, "LoRA Without Regret").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rung.artifact.artifact import Artifact
from rung.rungs.tuned import Auto, Tuned, weights_folder

if TYPE_CHECKING:
    from rung.engines.torch_engine import TorchEngine
    from rung.training.changes import Change
    from rung.training.examples import TokenizedExample

ADAPTATION = "domain-adaptation"  # the rung that trains an adapter of this very kind on plain text


@dataclass(frozen=True, kw_only=True)
class LoRA(Tuned):
    """Train low-rank updates of every linear layer on the training rows.

    Attributes:
        rank: rank of the updates.
        alpha: their scale, over rank.
        dropout: on the updates' input; above 0 the gradient is noisy by design.
    """

    name: ClassVar[str] = "lora"
    variant: ClassVar[Mapping[str, bool]] = {}  # PEFT's switches for the methods built on LoRA

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    learning_rate: float | Auto = 1e-3

    def goes_on_from(self, artifact: Artifact) -> Path | None:
        """Go on from the adapter of a domain adaptation, if it is one of the same shape and scale."""
        made = artifact.settings.get(artifact.weights.method, {})
        same = all(made.get(name) == getattr(self, name) for name in ("rank", "alpha"))
        if self.name != LoRA.name or self.continue_from or artifact.weights.method != ADAPTATION or not same:
            return None
        return artifact.weights.adapter

    def alpha_at(self, rank: int) -> int:
        """Return the alpha with which updates of another rank have the size of this one's."""
        return round(self.alpha * rank / self.rank)

    def change(self, engine: TorchEngine, artifact: Artifact, rows: Sequence[TokenizedExample]) -> Change:
        """Put a fresh adapter on the model, its updates zero at first: on the layers of one that it goes on from."""
        del artifact, rows
        from rung.training.peft import PeftAdapter, peft, places

        start = weights_folder(Path(self.continue_from)) if self.continue_from else None
        config = peft().LoraConfig(
            r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, task_type="CAUSAL_LM",
            **places(engine.model, start), **self.variant,
        )  # fmt: skip
        engine.make_room(str(config.peft_type.value))
        return PeftAdapter(engine.model, config)
