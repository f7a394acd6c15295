"""What the rungs that train soft prompts share: the base model stays as it is, and learned tokens come first."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rung.artifact.artifact import Artifact
from rung.errors import TrainingError
from rung.rungs.tuned import Auto, Tuned

if TYPE_CHECKING:
    from rung.engines.torch_engine import TorchEngine


@dataclass(frozen=True, kw_only=True)
class SoftPrompted(Tuned, ABC):
    """A rung that trains virtual tokens before every prompt.

    Attributes:
        virtual_tokens: how many; each takes a place of the context.
    """

    family: ClassVar[str] = "soft prompts"

    virtual_tokens: int = 20
    batch_size: int | Auto = 4  # soft prompts need many steps rather than exact ones
    epochs: int = 5

    @property
    def prefix_tokens(self) -> int:
        """How many virtual tokens will stand before every prompt."""
        return self.virtual_tokens

    def text_tokens(self, engine: TorchEngine, artifact: Artifact) -> list[int]:
        """Return as many tokens of the artifact's own instruction as there are virtual ones, repeated if need be.

        Raises:
            TrainingError: the prompt has no instruction.
        """
        from rung.training.soft_prompts import tiled

        tokens = engine.encode(artifact.prompt.head())
        if not tokens:
            raise TrainingError(
                "no-instruction",
                f"{self.name} starts from the prompt's instruction, and there is none",
                hint="give the task an `instruction`, or use p-tuning, which starts from nothing",
            )
        return tiled(tokens, self.virtual_tokens)
