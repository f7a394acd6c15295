"""Full fine-tuning: every parameter is trained.

AdamW at a learning rate of 2e-5 to 5e-5 with small weight decay (Devlin et al. 2019, https://arxiv.org/abs/1810.04805,
appendix A.3), which rises over the first tenth of the steps: without that, few rows often train nothing (Mosbach et al.
2021, https://arxiv.org/abs/2006.04884).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rung.artifact.artifact import Artifact
from rung.models.reference import output_size, resolve
from rung.rungs.costs import FULL, Sizes
from rung.rungs.tuned import Auto, Tuned

if TYPE_CHECKING:
    from rung.engines.torch_engine import TorchEngine
    from rung.training.changes import Change
    from rung.training.examples import TokenizedExample


@dataclass(frozen=True, kw_only=True)
class Full(Tuned):
    """Train every parameter; matrices that the base model shares stay shared."""

    name: ClassVar[str] = "full"
    family: ClassVar[str] = "full"
    training_flops: ClassVar[int] = FULL

    learning_rate: float | Auto = 5e-5
    warmup: float = 0.1
    weight_decay: float = 0.01

    def change(self, engine: TorchEngine, artifact: Artifact, rows: Sequence[TokenizedExample]) -> Change:
        """Copy all of the model's parameters."""
        del artifact, rows
        from rung.training.changes import plain_parameters
        from rung.training.patch import Patch

        return Patch(engine.model, plain_parameters(engine.model).__contains__, trained=True)

    def trained_size(self, artifact: Artifact, s: Sizes) -> int:
        """Return the size of the model."""
        del artifact
        return s.parameters

    def trained_embeddings(self, artifact: Artifact) -> int:
        """Return the size of the embeddings: a vector for every token, as in the output layer."""
        return output_size(resolve(artifact.model).folder)
