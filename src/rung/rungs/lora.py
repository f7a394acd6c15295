"""LoRA on all linear layers (Hu et al. 2021, https://arxiv.org/abs/2106.09685).

Adapting every linear layer and a learning rate about ten times that of full fine-tuning are what closes the gap to it
(Biderman et al. 2024, https://arxiv.org/abs/2405.09673; Schulman et al. 2025, "LoRA Without Regret").
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rung.artifact import Artifact
from rung.data.types import Data
from rung.engines.opening import open_torch
from rung.errors import TrainingError
from rung.machine import Machine
from rung.models.reference import is_endpoint
from rung.parts import Weights
from rung.progress import QUIET, Progress
from rung.rungs.base import YES, Cost, Verdict, no
from rung.rungs.costs import ACTIVATION_BYTES, FROZEN_BASE, inference_cost, sizes

BYTES_PER_TOKEN = 600_000  # activations kept for the backward pass by the embedded model, measured
TRAINING_NAME = "tuned"


@dataclass(frozen=True)
class LoRA:
    """Train low-rank updates of every linear layer on the training rows.

    Attributes:
        rank: rank of the updates.
        alpha: their scale, over rank.
        learning_rate: peak learning rate.
        epochs: times that every row is seen.
        batch_size: rows per optimizer step; small batches suit LoRA.
        dropout: on the updates' input; above 0 the gradient is noisy by design.
        seed: seed of initialization and order.
    """

    rank: int = 16
    alpha: int = 32
    learning_rate: float = 1e-3
    epochs: int = 3
    batch_size: int = 8
    dropout: float = 0.0
    seed: int = 0
    name: str = "lora"
    family: str = field(default="parameter-efficient")

    def applies(self, artifact: Artifact, data: Data) -> Verdict:
        """It applies to open weights that answer and are not tuned yet."""
        if artifact.decoder.kind == "head":
            return no("the head reads frozen features, which an adapter would change")
        if is_endpoint(artifact.model):
            return no("an endpoint's weights cannot be trained from here")
        if artifact.weights.adapter is not None:
            return no("an adapter is trained already")
        if not data.train:
            return no("there are no training rows")
        return YES

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """Four operations per parameter and token while training, two when predicting."""
        s = sizes(artifact, data)
        use = inference_cost(artifact, data, machine)
        per_row = use.row_tokens - s.decoding + s.answer + s.head / self.batch_size
        tokens = per_row * len(data.train) * self.epochs
        flops = FROZEN_BASE * s.parameters * tokens
        return Cost(
            fit_tokens=round(tokens),
            fit_flops=flops,
            fit_seconds=machine.training_seconds(flops),
            row_tokens=use.row_tokens,
            row_flops=use.row_flops,
            row_seconds=use.row_seconds,
            memory_bytes=round(4 * s.parameters + ACTIVATION_BYTES + self.batch_size * per_row * BYTES_PER_TOKEN),
        )

    def fit(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> Artifact:
        """Return the artifact with the trained adapter.

        Raises:
            TrainingError: there is nothing to learn, memory ran out, or the loss is not a number.
        """
        from rung.engines.low_rank import lean
        from rung.tuning.adapters import add_adapter, drop_adapter, keep_adapter, peft
        from rung.tuning.examples import tokenize
        from rung.tuning.loop import Schedule, train

        engine = open_torch(artifact.model)
        rows = tokenize(artifact, engine, data.train, progress=progress)
        engine.use(None)
        import torch

        torch.manual_seed(self.seed)
        config = peft().LoraConfig(
            r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules="all-linear",
            task_type="CAUSAL_LM",
        )  # fmt: skip
        engine.model = model = add_adapter(engine.model, config, TRAINING_NAME)
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        try:
            schedule = Schedule(self.epochs, self.batch_size, self.learning_rate, seed=self.seed)
            with lean(model, TRAINING_NAME):
                losses = train(model, rows, schedule, progress=progress)
            folder = keep_adapter(model, TRAINING_NAME, engine.files.fingerprint)
        except (MemoryError, torch.OutOfMemoryError) as full:
            raise TrainingError(
                "out-of-memory", f"LoRA ran out of memory: {full}", hint="lower `batch_size`, or shorten the rows"
            ) from full
        finally:
            engine.model = model = drop_adapter(model, TRAINING_NAME)
            model.requires_grad_(False)
            model.eval()
        settings = {
            "rank": self.rank, "alpha": self.alpha, "learning_rate": self.learning_rate, "epochs": self.epochs,
            "batch_size": self.batch_size, "seed": self.seed, "losses": [list(point) for point in losses],
        }  # fmt: skip
        if dropped := sum(row.dropped_demonstrations for row in rows):
            settings["dropped_demonstrations"] = dropped
        return artifact.step(self.name, settings, weights=Weights(self.name, folder, trainable))
