"""LoRA on all linear layers (Hu et al. 2021, https://arxiv.org/abs/2106.09685).

Adapting every linear layer and a learning rate about ten times that of full fine-tuning are what closes the gap to it
(Biderman et al. 2024, https://arxiv.org/abs/2405.09673; Schulman et al. 2025, "LoRA Without Regret").
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from rung.artifact.artifact import Artifact
from rung.data.rows import Data, Example
from rung.machine import Machine
from rung.progress import Progress
from rung.rungs.base import Applicability, Cost, rung, skip
from rung.rungs.costs import inference_cost, sizes, text_tokens
from rung.rungs.fine_tune import FineTune, weights_folder
from rung.training.config import BLOCK_TOKENS, Count, LearningRate, NonNegative, Share, Supervise, Truncation

if TYPE_CHECKING:
    from rung.engines.torch_engine import TorchEngine
    from rung.training.changes import Change
    from rung.training.examples import TokenizedExample, TrainingReport


ADAPTATION = "domain-adaptation"  # the rung that trains an adapter of this very kind on plain text


@rung("lora", family="parameter-efficient", order=740, default=True)
@dataclass(frozen=True, kw_only=True)
class LoRA(FineTune):
    """Train low-rank updates of every linear layer on the training rows.

    Attributes:
        rank: rank of the updates.
        alpha: their scale, over rank.
        dropout: on the updates' input; above 0 the gradient is noisy by design.
    """

    variant: ClassVar[Mapping[str, bool]] = {}  # PEFT's switches for the methods built on LoRA

    rank: Count = 16
    alpha: Count = 32
    dropout: Share = 0.0
    learning_rate: LearningRate = 1e-3

    def resumed_adapter(self, artifact: Artifact) -> Path | None:
        """Go on from the adapter of a domain adaptation, if it is one of the same shape and scale."""
        made = artifact.settings.get(artifact.weights.method, {})
        same = all(made.get(name) == getattr(self, name) for name in ("rank", "alpha"))
        if type(self) is not LoRA or self.continue_from or artifact.weights.method != ADAPTATION or not same:
            return None
        return artifact.weights.adapter

    def alpha_at(self, rank: int) -> int:
        """Return the alpha with which updates of another rank have the size of this one's."""
        return round(self.alpha * rank / self.rank)

    def change(self, engine: TorchEngine, artifact: Artifact, rows: Sequence[TokenizedExample]) -> Change:
        """Put a fresh adapter on the model, its updates zero at first: on the layers of one that it goes on from."""
        del artifact, rows
        from rung.training.peft import PeftAdapter, adapted_layers, peft

        start = weights_folder(Path(self.continue_from)) if self.continue_from else None
        config = peft().LoraConfig(
            r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, task_type="CAUSAL_LM",
            **adapted_layers(engine.model, start), **self.variant,
        )  # fmt: skip
        engine.make_room(str(config.peft_type.value))
        return PeftAdapter(engine.model, config)


# --------------------
# Rank-stabilized LoRA (Kalajdzievski 2023, https://arxiv.org/abs/2312.03732).
#
# The update is scaled by alpha / sqrt(rank) instead of alpha / rank, so that higher ranks learn as fast as low ones and
# are worth their memory. Alpha 16 is the paper's; rank 64 is where PEFT's own comparison finds it ahead of LoRA.


@rung("rslora", family="parameter-efficient", order=750)
@dataclass(frozen=True, kw_only=True)
class RsLoRA(LoRA):
    """Train low-rank updates of every linear layer, scaled so that the rank may be high.

    Attributes:
        rank: rank of the updates.
        alpha: their scale, over the root of the rank.
    """

    variant: ClassVar[Mapping[str, bool]] = {"use_rslora": True}

    rank: Count = 64
    alpha: Count = 16

    def alpha_at(self, rank: int) -> int:
        """Return alpha itself: the root of the rank is the stabilized scale, whatever the rank."""
        del rank
        return self.alpha


# --------------------
# DoRA: weight-decomposed low-rank adaptation (Liu et al. 2024, https://arxiv.org/abs/2402.09353).
#
# LoRA changes the direction of each weight, a learnt number its length. The paper trains at a lower rate than LoRA
# (1e-4
# to 2e-4 against 3e-4); so does this, relative to `lora`.


@rung("dora", family="parameter-efficient", order=760)
@dataclass(frozen=True, kw_only=True)
class DoRA(LoRA):
    """Train low-rank updates of the direction of every linear layer's weights, and their length apart."""

    variant: ClassVar[Mapping[str, bool]] = {"use_dora": True}

    learning_rate: LearningRate = 5e-4


# --------------------
# QLoRA: LoRA on a base model held in 4 bits (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314).
#
# The base is quantized to 4-bit NormalFloat with double quantization, and what is trained runs on that base ever after:
# the artifact answers with the weights it was measured on. Worth it where a model does not fit in memory otherwise; a
# model that fits is faster and a little better with `lora`. Settings are those of `lora`: the paper finds that the rank
# hardly matters once every linear layer is adapted.


NEEDED = ("bitsandbytes", "accelerate")


@rung("qlora", family="parameter-efficient", order=770, topics=("quantized base",))
@dataclass(frozen=True, kw_only=True)
class QLoRA(LoRA):
    """Train low-rank updates of every linear layer on a base model in 4 bits."""

    quantization: ClassVar[str] = "nf4"

    def reason_against(self, artifact: Artifact, data: Data) -> str:
        """Say what is missing for a base in 4 bits."""
        del data
        if missing := [name for name in NEEDED if find_spec(name) is None]:
            return f"a base model in 4 bits needs {' and '.join(missing)}: uv pip install {' '.join(missing)}"
        if artifact.engine not in ("auto", "torch"):
            return f"only the torch engine runs a base model in 4 bits, and the artifact asks for {artifact.engine}"
        return ""


# --------------------
# AdaLoRA: adaptive budget allocation (Zhang et al. 2023, https://arxiv.org/abs/2303.10512).
#
# Updates start at one and a half times the rank aimed at, on average over the layers, and singular values are given up
# where they matter least (the paper's section 4.1 and its budget schedule; beta 0.85, penalty 0.1 and the shares of the
# schedule follow its appendix, where the budget falls after about 15 % of the steps and has fallen by half).
#
# Singular values start at zero between small vectors, so at equal rates the update grows far more slowly than LoRA's:
# the rate is the upper end of the paper's (5e-4 to 2.2e-3 over thousands of steps), and more, for shorter runs.


EXCLUSIVE = "adalora in training"  # PEFT keeps a budget for the first AdaLoRA adapter of a model alone


@rung("adalora", family="parameter-efficient", order=780)
@dataclass(frozen=True, kw_only=True)
class AdaLoRA(FineTune):
    """Train low-rank updates of every linear layer, and move rank to the layers that need it.

    What it makes is a LoRA adapter with a rank of its own for each layer.

    Attributes:
        rank: mean rank in the end.
        initial_rank: rank of every layer in the beginning; without, one and a half times `rank`.
        alpha: scale of the updates, over the initial rank.
        start: share of the steps before ranks fall.
        end: share of the steps after they have fallen.
        interval: steps between two allocations.
        orthogonality: weight of the penalty that keeps the singular vectors orthogonal.
        dropout: on the updates' input.
    """

    rank: Count = 8
    initial_rank: Count | None = None
    alpha: Count = 24
    start: Share = 0.15
    end: Share = 0.5
    interval: Count = 1
    orthogonality: NonNegative = 0.1
    dropout: Share = 0.0
    learning_rate: LearningRate = 5e-3

    def reason_against(self, artifact: Artifact, data: Data) -> str:
        """Say what is wrong with the schedule of ranks, if anything."""
        del artifact, data
        if not 0 < self.rank < self._first_rank():
            return f"its ranks cannot fall from {self._first_rank()} to {self.rank}"
        if self.start < 0 or self.end < 0 or self.start + self.end >= 1:
            return f"its ranks have no time to fall: {self.start:.0%} of the steps come before, {self.end:.0%} after"
        return ""

    def _first_rank(self) -> int:
        return self.initial_rank if self.initial_rank is not None else math.ceil(1.5 * self.rank)

    def change(self, engine: TorchEngine, artifact: Artifact, rows: Sequence[TokenizedExample]) -> Change:
        """Put a fresh adapter on the model; its singular values are zero at first."""
        del artifact, rows
        from rung.training.peft import AdaLora, linear_layers, peft

        config = peft().AdaLoraConfig(
            target_r=self.rank, init_r=self._first_rank(), lora_alpha=self.alpha, lora_dropout=self.dropout,
            deltaT=self.interval, orth_reg_weight=self.orthogonality, target_modules=linear_layers(engine.model),
            task_type="CAUSAL_LM", total_step=1,
        )  # fmt: skip
        engine.make_room(EXCLUSIVE)
        return AdaLora(engine.model, config, start=self.start, end=self.end)


# --------------------
# Domain adaptation: LoRA on plain text of the domain, before any task.
#
# Gururangan et al. 2020 (https://arxiv.org/abs/2004.10964); with LoRA, Biderman et al. 2024
# (https://arxiv.org/abs/2405.09673).
#
# The adapter is that of the rung `lora`, which goes on from it when it is put on top.


@rung(ADAPTATION, family="parameter-efficient", order=730, default=True, topics=("domain text",))
@dataclass(frozen=True, kw_only=True)
class DomainAdaptation(LoRA):
    """Train low-rank updates of every linear layer to continue the text of `data.text`.

    The rate is lower than a task's: it is between those that Biderman et al. search for continued pretraining
    (1e-5 to 5e-4), as there is far more to read, and more to forget.

    Attributes:
        block_tokens: the text is cut into blocks of so many tokens, at most the context.
    """

    learning_rate: LearningRate = 2e-4
    epochs: Count = 1
    block_tokens: Annotated[int, Field(ge=2)] = BLOCK_TOKENS  # the first token of a block is not learned

    # All of a block is learnt, and every block fits.
    supervise: Supervise = field(default="auto", init=False, repr=False)
    truncation: Truncation = field(default="error", init=False, repr=False)

    def suits(self, artifact: Artifact, data: Data) -> Applicability:
        """It needs text."""
        if not data.text:
            return skip("the task names no plain text: set `data.text`", final=True)
        return super().suits(artifact, data)

    def training_rows(
        self,
        artifact: Artifact,
        engine: TorchEngine,
        rows: Sequence[Example],
        data: Data,
        report: TrainingReport,
        progress: Progress,
    ) -> list[TokenizedExample]:
        """Return the blocks of the text; training rows are not read."""
        del artifact, rows, progress
        from rung.training.examples import text_blocks

        report.rows = len(data.text)
        return text_blocks(engine, data.text, self.block_tokens)

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """Four operations per parameter and token of the text; predicting costs what it did."""
        use, s = inference_cost(artifact, data, machine), sizes(artifact, data)
        tokens = text_tokens(artifact, data)
        blocks = math.ceil(tokens / self.block_tokens)
        return self._training_cost(artifact, machine, use, s, tokens / blocks, blocks)
