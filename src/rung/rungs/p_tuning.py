"""P-tuning: a small network makes the virtual tokens' embeddings (Liu et al. 2021, https://arxiv.org/abs/2103.10385).

The network ties the tokens to each other while they are trained (section 3); what is kept is what it made. The paper's
is a bidirectional LSTM of two layers and an MLP of two (`encoder: lstm`). The default, 20 tokens and an MLP as wide as
the model, is that of PEFT's comparison of methods (method_comparison/MetaMathQA/experiments/ptuning), and the rate the
middle one of those tried there with an MLP: 5e-5, 1e-3 and 5e-3. In the warm-up the loss may rise by some nats with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from rung.artifact.artifact import Artifact
from rung.rungs.soft_prompts import SoftPrompted
from rung.rungs.tuned import Auto

if TYPE_CHECKING:
    from rung.engines.torch_engine import TorchEngine
    from rung.training.changes import Change
    from rung.training.examples import TokenizedExample


@dataclass(frozen=True, kw_only=True)
class PTuning(SoftPrompted):
    """Train a prompt encoder on the training rows.

    Attributes:
        encoder: an MLP of three layers, or a bidirectional LSTM of two and an MLP of two.
        encoder_size: its hidden size; by default that of the model.
    """

    name: ClassVar[str] = "p-tuning"

    encoder: Literal["mlp", "lstm"] = "mlp"
    encoder_size: int | None = None
    learning_rate: float | Auto = 1e-3

    def change(self, engine: TorchEngine, artifact: Artifact, rows: Sequence[TokenizedExample]) -> Change:
        """Put on a soft prompt with a fresh encoder."""
        del artifact, rows
        from rung.training.peft import peft
        from rung.training.soft_prompts import SoftPrompt

        config = peft().PromptEncoderConfig(
            num_virtual_tokens=self.virtual_tokens, encoder_reparameterization_type=self.encoder.upper(),
            encoder_hidden_size=self.encoder_size, task_type="CAUSAL_LM",
        )  # fmt: skip
        return SoftPrompt(engine.model, config)
