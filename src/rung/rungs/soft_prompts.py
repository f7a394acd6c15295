"""Soft prompts: virtual tokens before every prompt are trained, and the base model stays as it is."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle, islice
from typing import TYPE_CHECKING, Literal

from rung.artifact.artifact import Artifact
from rung.errors import TrainingError
from rung.rungs.base import rung
from rung.rungs.fine_tune import FineTune
from rung.training.config import Auto, Count, LearningRate

if TYPE_CHECKING:
    from rung.engines.torch_engine import TorchEngine
    from rung.training.changes import Change


@dataclass(frozen=True, kw_only=True)
class SoftPromptRung(FineTune):
    """A rung that trains virtual tokens before every prompt.

    Attributes:
        virtual_tokens: how many; each takes up one token of the context.
    """

    virtual_tokens: Count = 20
    batch_size: Count | Auto = 4  # soft prompts need many steps rather than exact ones
    epochs: Count = 5

    @property
    def prefix_tokens(self) -> int:
        """How many virtual tokens precede every prompt."""
        return self.virtual_tokens

    def instruction_tokens(self, engine: TorchEngine, artifact: Artifact) -> list[int]:
        """The tokens of the artifact's own instruction, as many as virtual tokens, repeated if need be.

        Raises:
            TrainingError: the prompt has no instruction.
        """
        tokens = engine.encode(artifact.prompt.head())
        if not tokens:
            raise TrainingError(
                "tuning-unsupported", f"{self.name} starts from the prompt's instruction, and there is none",
                hint="give the task an `instruction`, or use p-tuning, which starts from nothing",
            )  # fmt: skip
        return list(islice(cycle(tokens), self.virtual_tokens))


@rung("prompt-tuning", family="soft prompts", order=600)
@dataclass(frozen=True, kw_only=True)
class PromptTuning(SoftPromptRung):
    """Train the embeddings of virtual tokens on the training rows.

    Prompt tuning (Lester et al. 2021, https://arxiv.org/abs/2104.08691). The embeddings start as those of the prompt's
    own instruction: from words, small models learn far more than from noise (section 3.2; PEFT's comparison of methods
    on Llama-3.2-3B: 0.343 on GSM8K against 0.057). The learning rate is far above that of weights (0.3 in the paper):
    an embedding has to move by about its own size.
    """

    learning_rate: LearningRate = 0.2

    def change(self, engine: TorchEngine, artifact: Artifact) -> Change:
        """Put on a soft prompt that repeats the instruction."""
        from rung.training.peft import peft
        from rung.training.soft_prompts import SoftPrompt, embeddings_of

        config = peft().PromptTuningConfig(num_virtual_tokens=self.virtual_tokens, task_type="CAUSAL_LM")
        start = embeddings_of(engine.model, self.instruction_tokens(engine, artifact))
        return SoftPrompt(engine.model, config, start=start)


@rung("p-tuning", family="soft prompts", order=610)
@dataclass(frozen=True, kw_only=True)
class PTuning(SoftPromptRung):
    """Train a prompt encoder on the training rows.

    In P-tuning (Liu et al. 2021, https://arxiv.org/abs/2103.10385) a small network computes the virtual tokens'
    embeddings, which ties the tokens to each other in training (section 3); only its output is kept. The paper's
    network is a bidirectional LSTM of two layers and an MLP of two (`encoder: lstm`). The default, 20 tokens and an MLP
    as wide as the model, is that of PEFT's comparison of methods (method_comparison/MetaMathQA/experiments/ptuning),
    and the learning rate is the middle one of those tried there with an MLP: 5e-5, 1e-3 and 5e-3. In the warm-up the
    loss may rise by some nats with it.

    Attributes:
        encoder: an MLP of three layers, or a bidirectional LSTM of two and an MLP of two.
        encoder_size: its hidden size; by default that of the model.
    """

    encoder: Literal["mlp", "lstm"] = "mlp"
    encoder_size: Count | None = None
    learning_rate: LearningRate = 1e-3

    def change(self, engine: TorchEngine, artifact: Artifact) -> Change:
        """Put on a soft prompt with a fresh encoder."""
        del artifact
        from rung.training.peft import peft
        from rung.training.soft_prompts import SoftPrompt

        config = peft().PromptEncoderConfig(
            num_virtual_tokens=self.virtual_tokens, encoder_reparameterization_type=self.encoder.upper(),
            encoder_hidden_size=self.encoder_size, task_type="CAUSAL_LM",
        )  # fmt: skip
        return SoftPrompt(engine.model, config)


@rung("prefix-tuning", family="soft prompts", order=620)
@dataclass(frozen=True, kw_only=True)
class PrefixTuning(SoftPromptRung):
    """Train the keys and values of virtual tokens on the training rows.

    Prefix tuning (Li and Liang 2021, https://arxiv.org/abs/2101.00190). The keys and values start as those of the
    prompt's own instruction, which matters most with few rows (section 7.4), and are trained directly. The paper's
    network, which computes them from smaller vectors, stabilizes a start from noise.

    Attributes:
        projection: hidden size of a network that computes them, started at random; null trains them directly.
    """

    projection: Count | None = None
    learning_rate: LearningRate = 1e-2

    def change(self, engine: TorchEngine, artifact: Artifact) -> Change:
        """Put on a prefix that acts like the instruction, or one that a fresh network computes."""
        from rung.training.peft import peft
        from rung.training.soft_prompts import SoftPrompt, keys_values_of

        config = peft().PrefixTuningConfig(
            num_virtual_tokens=self.virtual_tokens, prefix_projection=self.projection is not None,
            encoder_hidden_size=self.projection, task_type="CAUSAL_LM",
        )  # fmt: skip
        start = None
        if self.projection is None:
            start = keys_values_of(engine.model, self.instruction_tokens(engine, artifact))
        return SoftPrompt(engine.model, config, start=start)
