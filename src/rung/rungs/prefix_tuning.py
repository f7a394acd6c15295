"""Prefix tuning: learned keys and values in every layer (Li and Liang 2021, https://arxiv.org/abs/2101.00190).

They start as the keys and values of the prompt's own instruction, which with few rows matters most (section 7.4), and
are trained directly; the paper's network that makes them from smaller vectors steadies a start from noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rung.artifact.artifact import Artifact
from rung.rungs.soft_prompts import SoftPrompted
from rung.rungs.tuned import Auto

if TYPE_CHECKING:
    from rung.engines.torch_engine import TorchEngine
    from rung.training.changes import Change
    from rung.training.examples import TokenizedExample


@dataclass(frozen=True, kw_only=True)
class PrefixTuning(SoftPrompted):
    """Train the keys and values of virtual tokens on the training rows.

    Attributes:
        projection: hidden size of a network that makes them, started at random; None trains them directly.
    """

    name: ClassVar[str] = "prefix-tuning"

    projection: int | None = None
    learning_rate: float | Auto = 1e-2

    def change(self, engine: TorchEngine, artifact: Artifact, rows: Sequence[TokenizedExample]) -> Change:
        """Put on a prefix that acts like the instruction, or a network's."""
        del rows
        from rung.training.peft import peft
        from rung.training.soft_prompts import SoftPrompt, keys_values_of

        config = peft().PrefixTuningConfig(
            num_virtual_tokens=self.virtual_tokens, prefix_projection=self.projection is not None,
            encoder_hidden_size=self.projection, task_type="CAUSAL_LM",
        )  # fmt: skip
        start = None
        if self.projection is None:
            start = keys_values_of(engine.model, self.text_tokens(engine, artifact))
        return SoftPrompt(engine.model, config, start=start)
