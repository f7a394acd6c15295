"""Fine-tuning a model's own weights: all of them, the last layers, or the output layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rung.artifact.artifact import Artifact
from rung.artifact.costs import FORWARD, Sizes
from rung.errors import ConfigError
from rung.models.reference import last_layers, layer_list, output_size, resolve, tensor_sizes
from rung.rungs.base import rung
from rung.rungs.costs import FROZEN_BASE, FULL
from rung.rungs.fine_tune import FineTune
from rung.training.config import Count, LearningRate, NonNegative, Share
from rung.training.distributed import current

if TYPE_CHECKING:
    from rung.engines.torch_engine import TorchEngine
    from rung.training.changes import Change


@rung("full", family="full", order=900)
@dataclass(frozen=True, kw_only=True)
class Full(FineTune):
    """Train every parameter; matrices that the base model shares stay shared.

    AdamW at a learning rate of 2e-5 to 5e-5 with small weight decay (Devlin et al. 2019,
    https://arxiv.org/abs/1810.04805, appendix A.3). The learning rate rises over the first tenth of the steps: without
    that, few rows often train nothing (Mosbach et al. 2021, https://arxiv.org/abs/2006.04884).

    In several processes, each holds a part of the weights, gradients and moments.
    """

    training_flops: ClassVar[int] = FULL

    learning_rate: LearningRate = 5e-5
    warmup_ratio: Share = 0.1
    weight_decay: NonNegative = 0.01

    def change(self, engine: TorchEngine, artifact: Artifact) -> Change:
        """Copy all of the model's parameters."""
        del artifact
        from rung.training.changes import Patch, plain_parameters

        if current().alone:
            return Patch(engine.model, plain_parameters(engine.model).__contains__, trained=True)
        self.check_in_parts({"optimizer": self.optimizer != "adamw", "continue_from": bool(self.continue_from)})
        from rung.training.sharded import ShardedWeights

        return ShardedWeights(engine.model)

    def trained_size(self, artifact: Artifact) -> int:
        """The size of the model."""
        return resolve(artifact.model).parameters

    def trained_embeddings(self, artifact: Artifact) -> int:
        """The size of the embeddings: a vector for every token, as in the output layer."""
        return output_size(resolve(artifact.model).folder)


@rung("last-layers", family="partial", order=810)
@dataclass(frozen=True, kw_only=True)
class LastLayers(FineTune):
    """Train the last decoder layers and the final norm.

    The last quarter of the layers is enough for nine tenths of what full fine-tuning gains (Lee, Tang and Lin 2019,
    https://arxiv.org/abs/1911.03090). The frozen ones run once for all epochs.

    Attributes:
        layers: how many; null for a quarter of the model's.
        output: train the output layer too; where it shares its matrix with the input embeddings, it gets one of its
            own.
    """

    layers: Count | None = None
    output: bool = False
    learning_rate: LearningRate = 1e-4
    warmup_ratio: Share = 0.1
    weight_decay: NonNegative = 0.01

    def change(self, engine: TorchEngine, artifact: Artifact) -> Change:
        """Copy the last layers and the final norm."""
        del artifact
        from rung.training.changes import Patch, output_names, plain_parameters

        sizes = {name: p.numel() for name, p in plain_parameters(engine.model).items()}
        chosen = last_layers(sizes, self._count(layer_list(sizes)[1]))
        if self.output:
            chosen |= output_names(engine.model)
        return Patch(engine.model, chosen.__contains__, trained=True)

    def _count(self, depth: int) -> int:
        """How many of a model's `depth` layers are trained."""
        if self.layers is None:
            return max(1, round(depth / 4))
        if not 1 <= self.layers <= depth:
            raise ConfigError(
                "bad-setting", f"`layers` is {self.layers}, and the model has {depth}", hint=f"choose from 1 to {depth}"
            )
        return self.layers

    def frozen_layers(self, model: Any) -> int | None:
        """All but the last: they run once."""
        from rung.training.changes import plain_parameters

        _, depth = layer_list({name: p.numel() for name, p in plain_parameters(model).items()})
        return depth - self._count(depth)

    def operations(self, artifact: Artifact, s: Sizes, rows: int, tokens: float) -> float:
        """One forward pass of the frozen layers; every epoch all of the others, and the output layer at the answers."""
        files = resolve(artifact.model)
        tensors = tensor_sizes(files.folder)
        _, depth = layer_list(tensors)
        layers, trained = (sum(tensors[n] for n in last_layers(tensors, c)) for c in (depth, self._count(depth)))
        above = FULL * trained * tokens
        above += (FULL if self.output else FROZEN_BASE) * output_size(files.folder) * rows * s.answer
        return FORWARD * (layers - trained) * tokens + self.epochs * above

    def trained_size(self, artifact: Artifact) -> int:
        """The size of the trained layers, and of the output layer if it is trained."""
        folder = resolve(artifact.model).folder
        tensors = tensor_sizes(folder)
        size = sum(tensors[name] for name in last_layers(tensors, self._count(layer_list(tensors)[1])))
        return size + output_size(folder) if self.output else size


@rung("output-layer", family="partial", order=800)
@dataclass(frozen=True, kw_only=True)
class OutputLayer(FineTune):
    """Train the output layer; where it shares its matrix with the input embeddings, it gets one of its own.

    This is a softmax regression on the model's last hidden states. It cannot change what the model understands of a
    row, only which tokens it answers, and costs one pass over the rows and then nearly nothing. Like a linear probe, it
    takes a much larger learning rate than the layers below (Kumar et al. 2022, https://arxiv.org/abs/2202.10054, train
    the head alone first because it leaves the features as they are).
    """

    learning_rate: LearningRate = 1e-3

    def change(self, engine: TorchEngine, artifact: Artifact) -> Change:
        """Copy the output layer."""
        del artifact
        from rung.training.changes import Patch, output_names

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

    def trained_size(self, artifact: Artifact) -> int:
        """The size of the output layer."""
        return output_size(resolve(artifact.model).folder)
