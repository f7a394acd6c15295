"""Prompt tuning: learned input embeddings before every prompt (Lester et al. 2021, https://arxiv.org/abs/2104.08691).

They start as the embeddings of the prompt's own instruction: from words, small models learn far more than from noise
(Lester et al. 2021, section 3.2; PEFT's comparison of methods on Llama-3.2-3B: 0.343 on GSM8K against 0.057).
The rate is far above that of weights (0.3 in the paper): an embedding has to move by about its own size.
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
class PromptTuning(SoftPrompted):
    """Train the embeddings of virtual tokens on the training rows."""

    name: ClassVar[str] = "prompt-tuning"

    learning_rate: float | Auto = 0.2

    def change(self, engine: TorchEngine, artifact: Artifact, rows: Sequence[TokenizedExample]) -> Change:
        """Put on a soft prompt that repeats the instruction."""
        del rows
        from rung.training.peft import peft
        from rung.training.soft_prompts import SoftPrompt, embeddings_of

        config = peft().PromptTuningConfig(num_virtual_tokens=self.virtual_tokens, task_type="CAUSAL_LM")
        start = embeddings_of(engine.model, self.text_tokens(engine, artifact))
        return SoftPrompt(engine.model, config, start=start)
