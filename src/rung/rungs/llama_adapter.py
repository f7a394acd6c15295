"""LLaMA-Adapter, PEFT's adaption prompt (Zhang et al. 2023, https://arxiv.org/abs/2303.16199).

Ten learnt tokens for each of the upper layers (30 of 32 in the paper: all but the first two), which attention reads
through a gate that is closed at first. Rate and weight decay are the paper's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rung.artifact.artifact import Artifact
from rung.data.rows import Data
from rung.models.reference import resolve
from rung.rungs.tuned import Auto, Tuned

if TYPE_CHECKING:
    from rung.engines.torch_engine import TorchEngine
    from rung.training.changes import Change
    from rung.training.examples import TokenizedExample

LOWEST = 2  # layers that get no prompt


@dataclass(frozen=True, kw_only=True)
class LlamaAdapter(Tuned):
    """Train prompts that the upper layers attend to through gates.

    Attributes:
        tokens: length of each prompt.
        top_layers: how many layers get one, counted from the output; without, all but the first two.
    """

    name: ClassVar[str] = "llama-adapter"

    tokens: int = 10
    top_layers: int | None = None
    learning_rate: float | Auto = 9e-3
    weight_decay: float = 0.02

    def reason_against(self, artifact: Artifact, data: Data) -> str:
        """Say if the model's attention is of an unknown kind, or has fewer layers than asked for."""
        del data
        from rung.training.adapters import check
        from rung.training.layers import decoder_layers, reason_unknown, skeleton

        files = resolve(artifact.model)
        if reason := reason_unknown(files, check):
            return reason
        depth = len(decoder_layers(skeleton(files)))
        if self.top_layers is not None and not 0 < self.top_layers <= depth:
            return f"prompts are asked for {self.top_layers} layers, and the model has {depth}"
        return ""

    def change(self, engine: TorchEngine, artifact: Artifact, rows: Sequence[TokenizedExample]) -> Change:
        """Make fresh prompts; their gates are closed at first."""
        del artifact, rows
        from rung.training.adapters import AdaptionPrompt
        from rung.training.layers import decoder_layers

        layers = self.top_layers or max(1, len(decoder_layers(engine.model)) - LOWEST)
        return AdaptionPrompt(engine.model, self.tokens, layers)
