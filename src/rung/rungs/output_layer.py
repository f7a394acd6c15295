"""Training the output layer alone: a softmax regression on the model's last hidden states.

It cannot change what the model understands of a row, only which tokens it says to it, and it costs one pass over the
rows and then nearly nothing. As linear probes do, it bears a much larger learning rate than the layers below (Kumar et
al. 2022, https://arxiv.org/abs/2202.10054, train the head alone first because it leaves the features as they are).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rung.artifact.artifact import Artifact
from rung.models.reference import last_layers, layer_list, output_size, resolve, tensor_sizes
from rung.rungs.costs import FORWARD, FROZEN_BASE, Sizes
from rung.rungs.tuned import Auto, Tuned

if TYPE_CHECKING:
    from rung.engines.torch_engine import TorchEngine
    from rung.training.changes import Change
    from rung.training.examples import TokenizedExample


@dataclass(frozen=True, kw_only=True)
class OutputLayer(Tuned):
    """Train the output layer; where it shares its matrix with the input embeddings, it gets one of its own."""

    name: ClassVar[str] = "output-layer"
    family: ClassVar[str] = "partial"

    learning_rate: float | Auto = 1e-3

    def change(self, engine: TorchEngine, artifact: Artifact, rows: Sequence[TokenizedExample]) -> Change:
        """Copy the output layer."""
        del artifact, rows
        from rung.training.patch import Patch, output_names

        return Patch(engine.model, output_names(engine.model).__contains__, trained=True)

    def frozen_layers(self, model: Any) -> int | None:
        """All of them: they run once."""
        del model
        return None

    def operations(self, artifact: Artifact, s: Sizes, rows: int, tokens: float) -> float:
        """One forward pass in all, then the output layer at the answers of every epoch."""
        files = resolve(artifact.model)
        tensors = tensor_sizes(files.folder)
        layers = sum(tensors[name] for name in last_layers(tensors, layer_list(tensors)[1]))
        return FORWARD * layers * tokens + self.epochs * FROZEN_BASE * output_size(files.folder) * rows * s.answer

    def trained_size(self, artifact: Artifact, s: Sizes) -> int:
        """Return the size of the output layer."""
        del s
        return output_size(resolve(artifact.model).folder)
