"""LoRA and the methods built on it: rsLoRA, DoRA, QLoRA, AdaLoRA, and domain adaptation on plain text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from rung.artifact.artifact import Artifact
from rung.data.rows import Data
from rung.errors import ConfigError
from rung.machine import Machine
from rung.models.reference import resolve
from rung.models.tokenizer import Tokenizer
from rung.progress import Progress
from rung.rungs.base import Applicability, Cost, rung, skip
from rung.rungs.costs import inference_cost, sizes, text_tokens
from rung.rungs.fine_tune import FineTune, weights_folder
from rung.training.config import (
    BLOCK_TOKENS,
    Count,
    LearningRate,
    Names,
    NonNegative,
    Pattern,
    Share,
    Supervise,
    Truncation,
)

if TYPE_CHECKING:
    from rung.engines.torch_engine import TorchEngine
    from rung.training.changes import Change
    from rung.training.examples import TokenizedExample, TrainingReport

ADAPTATION = "domain-adaptation"  # the rung whose adapter `lora` continues from
QLORA_LIBRARIES = ("bitsandbytes", "accelerate")
PLACES = (
    "target_modules", "target_parameters", "rank_pattern", "alpha_pattern", "modules_to_save", "trained_tokens",
)  # fmt: skip
EXCLUSIVE = "adalora in training"  # PEFT keeps a budget only for the first AdaLoRA adapter of a model


@rung("lora", family="parameter-efficient", order=740, default=True)
@dataclass(frozen=True, kw_only=True)
class LoRA(FineTune):
    """Train low-rank updates of every linear layer on the training rows.

    LoRA is from Hu et al. 2021, https://arxiv.org/abs/2106.09685. Adapting every linear layer, and a learning rate
    about ten times that of full fine-tuning, close the gap to it (Biderman et al. 2024,
    https://arxiv.org/abs/2405.09673; Schulman et al. 2025, "LoRA Without Regret").

    Attributes:
        rank: rank of the updates.
        alpha: the updates are scaled by alpha / rank.
        dropout: on the updates' input; above 0 the gradient is noisy by design.
        target_modules: names of the layers that are updated, such as `q_proj`; by default all linear layers of the text
            model but the output layer and the routers of experts.
        target_parameters: names of tensors of experts that are updated too, such as `mlp.experts.down_proj`.
        rank_pattern: other ranks for some layers, by a regular expression for the end of their names.
        alpha_pattern: other alphas for some layers.
        modules_to_save: names of modules that are trained as a whole, such as `lm_head` or `embed_tokens`.
        trained_tokens: tokens whose embeddings are trained, such as `<|tool|>`.
    """

    variant: ClassVar[Mapping[str, bool]] = {}  # PEFT's switches for the methods built on LoRA

    rank: Count = 16
    alpha: Count = 32
    dropout: Share = 0.0
    target_modules: Names = ()
    target_parameters: Names = ()
    rank_pattern: Pattern = field(default_factory=dict)
    alpha_pattern: Pattern = field(default_factory=dict)
    modules_to_save: Names = ()
    trained_tokens: Names = ()
    learning_rate: LearningRate = 1e-3

    @property
    def named_places(self) -> list[str]:
        """Which of the settings that say what is updated are set."""
        return [name for name in PLACES if getattr(self, name)]

    def reason_against(self, artifact: Artifact) -> str:
        """Say what is wrong with the places that are named, if anything."""
        named = self.named_places
        if named and self.continue_from:
            return f"`continue_from` brings its own {named[0]}: leave that setting out"
        if self.target_parameters and (self.dropout or self.variant.get("use_dora")):
            return "PEFT updates experts (target_parameters) without dropout and without DoRA only"
        if named:
            from rung.training.layers import skeleton

            files = resolve(artifact.model)
            self._places(skeleton(files))
            self._token_ids(Tokenizer.load(files.folder))
        return ""

    def resumed_adapter(self, artifact: Artifact) -> Path | None:
        """Continue from the adapter of a domain adaptation, if it has the same rank and scale."""
        trained = artifact.settings.get(artifact.weights.method, {})
        names = ("rank", "alpha", *PLACES)
        # Settings of a loaded artifact are JSON: tuples are lists there.
        same = json.dumps([trained.get(n) or None for n in names]) == json.dumps(
            [getattr(self, n) or None for n in names]
        )
        if type(self) is not LoRA or self.continue_from or artifact.weights.method != ADAPTATION or not same:
            return None
        return artifact.weights.adapter

    def alpha_at(self, rank: int) -> int:
        """The alpha with which updates of another rank have the size of this one's."""
        return round(self.alpha * rank / self.rank)

    def divides_base(self, artifact: Artifact) -> bool:
        """LoRA and rsLoRA on linear layers read nothing of the base model but what its layers compute."""
        if type(self) not in (LoRA, RsLoRA) or self.continue_from or self.resumed_adapter(artifact) is not None:
            return False
        return not (self.target_parameters or self.modules_to_save or self.trained_tokens)

    def change(self, engine: TorchEngine, artifact: Artifact) -> Change:
        """Put a fresh adapter, whose updates are zero, on all linear layers, or on those of `continue_from`."""
        del artifact
        from rung.engines.changes import stands_alone
        from rung.training.peft import PeftAdapter

        config = self._config(engine)
        engine.make_room("alone" if stands_alone(vars(config)) else str(config.peft_type.value))
        return PeftAdapter(engine.model, config)

    def reached_share(self, engine: TorchEngine) -> float | None:
        """The share of the weights of the model's layers that the adapter updates."""
        from rung.training.targets import reached_share

        return reached_share(engine.model, self._config(engine))

    def _config(self, engine: TorchEngine) -> Any:
        from rung.training.peft import peft
        from rung.training.targets import places_of

        if self.continue_from:
            places = places_of(weights_folder(Path(self.continue_from)), engine.model)
        else:
            places = self._places(engine.model)
            if self.trained_tokens:
                places["trainable_token_indices"] = self._token_ids(engine.tokenizer)
        return peft().LoraConfig(
            r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, task_type="CAUSAL_LM", **places,
            **self.variant,
        )  # fmt: skip

    def _places(self, model: Any) -> dict[str, Any]:
        from rung.training.targets import chosen_places

        return chosen_places(
            model, target_modules=self.target_modules, target_parameters=self.target_parameters,
            modules_to_save=self.modules_to_save,
            patterns={"rank_pattern": self.rank_pattern, "alpha_pattern": self.alpha_pattern},
        )  # fmt: skip

    def _token_ids(self, tokenizer: Tokenizer) -> list[int]:
        ids = {token: tokenizer.token_id(token) for token in self.trained_tokens}
        if unknown := [token for token, number in ids.items() if number is None]:
            problem = f"trained_tokens: the model's vocabulary has no token {unknown[0]!r}"
            hint = (
                "add it with transformers (`tokenizer.add_tokens`, `model.resize_token_embeddings`), save both into a "
                "folder, and use the folder as the model"
            )
            raise ConfigError("bad-setting", problem, hint=hint)
        return [number for number in ids.values() if number is not None]


@rung("rslora", family="parameter-efficient", order=750)
@dataclass(frozen=True, kw_only=True)
class RsLoRA(LoRA):
    """Train low-rank updates of every linear layer, scaled so that the rank may be high.

    Rank-stabilized LoRA (Kalajdzievski 2023, https://arxiv.org/abs/2312.03732) scales the update by alpha / sqrt(rank)
    instead of alpha / rank, so that high ranks learn as fast as low ones and are worth their memory. Alpha 16 is the
    paper's; rank 64 is where PEFT's own comparison finds it ahead of LoRA.

    Attributes:
        rank: rank of the updates.
        alpha: the updates are scaled by alpha / sqrt(rank).
    """

    variant: ClassVar[Mapping[str, bool]] = {"use_rslora": True}

    rank: Count = 64
    alpha: Count = 16

    def alpha_at(self, rank: int) -> int:
        """Alpha itself: the scale already adjusts to the rank."""
        del rank
        return self.alpha


@rung("dora", family="parameter-efficient", order=760)
@dataclass(frozen=True, kw_only=True)
class DoRA(LoRA):
    """Train low-rank updates of the direction of every linear layer's weights, and their length separately.

    Weight-decomposed low-rank adaptation (Liu et al. 2024, https://arxiv.org/abs/2402.09353). The paper's learning rate
    is lower than LoRA's (1e-4 to 2e-4 against 3e-4), and so is this one.
    """

    variant: ClassVar[Mapping[str, bool]] = {"use_dora": True}

    learning_rate: LearningRate = 5e-4


@rung("qlora", family="parameter-efficient", order=770, topics=("quantized base",))
@dataclass(frozen=True, kw_only=True)
class QLoRA(LoRA):
    """Train low-rank updates of every linear layer on a base model in 4 bits.

    QLoRA (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314) holds the base model in 4-bit NormalFloat with double
    quantization, and the artifact answers with the same 4-bit weights. It is for models that do not fit in memory
    otherwise: a model that fits is faster and a little better with `lora`. Settings are those of `lora`: the paper
    finds that the rank hardly matters once every linear layer is adapted.
    """

    quantization: ClassVar[str] = "nf4"

    def reason_against(self, artifact: Artifact) -> str:
        """Say what is missing for a base model in 4 bits, or wrong with the places that are named."""
        if missing := [name for name in QLORA_LIBRARIES if find_spec(name) is None]:
            return f"a base model in 4 bits needs {' and '.join(missing)}: uv pip install {' '.join(missing)}"
        if artifact.engine not in ("auto", "torch"):
            return f"only the torch engine runs a base model in 4 bits, and the artifact asks for {artifact.engine}"
        return super().reason_against(artifact)


@rung("adalora", family="parameter-efficient", order=780)
@dataclass(frozen=True, kw_only=True)
class AdaLoRA(FineTune):
    """Train low-rank updates of every linear layer, and move rank to the layers that need it.

    Adaptive budget allocation (Zhang et al. 2023, https://arxiv.org/abs/2303.10512). Averaged over the layers, updates
    start at one and a half times the target rank, and give up the singular values that matter least (section 4.1 and
    the paper's budget schedule; beta 0.85, penalty 0.1 and the shares of the schedule follow its appendix, where the
    budget falls after about 15 % of the steps and has fallen by half). The result is a LoRA adapter with a rank for
    each layer.

    Singular values start at zero between small vectors, so the update grows far more slowly than LoRA's. The learning
    rate is above the paper's (5e-4 to 2.2e-3 over thousands of steps), for shorter runs.

    Attributes:
        rank: mean rank in the end.
        initial_rank: rank of every layer in the beginning; by default one and a half times `rank`.
        alpha: the updates are scaled by alpha / initial rank.
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

    def reason_against(self, artifact: Artifact) -> str:
        """Say what is wrong with the schedule of ranks, if anything."""
        del artifact
        if not 0 < self.rank < self._first_rank():
            return f"its ranks cannot fall from {self._first_rank()} to {self.rank}"
        if self.start < 0 or self.end < 0 or self.start + self.end >= 1:
            return f"its ranks have no time to fall: {self.start:.0%} of the steps come before, {self.end:.0%} after"
        return ""

    def _first_rank(self) -> int:
        return self.initial_rank if self.initial_rank is not None else math.ceil(1.5 * self.rank)

    def change(self, engine: TorchEngine, artifact: Artifact) -> Change:
        """Put a fresh adapter, whose singular values are zero, on the model."""
        del artifact
        from rung.training.peft import AdaLora, peft
        from rung.training.targets import all_linear

        config = peft().AdaLoraConfig(
            target_r=self.rank, init_r=self._first_rank(), lora_alpha=self.alpha, lora_dropout=self.dropout,
            deltaT=self.interval, orth_reg_weight=self.orthogonality, task_type="CAUSAL_LM", total_step=1,
            **all_linear(engine.model),
        )  # fmt: skip
        engine.make_room(EXCLUSIVE)
        return AdaLora(engine.model, config, start=self.start, end=self.end)


@rung(ADAPTATION, family="parameter-efficient", order=730, default=True, topics=("domain text",))
@dataclass(frozen=True, kw_only=True)
class DomainAdaptation(LoRA):
    """Train low-rank updates of every linear layer to continue the text of `data.text`.

    Continued pretraining on text of the domain, before any task (Gururangan et al. 2020,
    https://arxiv.org/abs/2004.10964), here with LoRA (Biderman et al. 2024, https://arxiv.org/abs/2405.09673). The rung
    `lora` continues from its adapter. The learning rate is lower than a task's: it is between those that Biderman et
    al. search for continued pretraining (1e-5 to 5e-4), as there is far more to read, and more to forget.

    Attributes:
        block_tokens: the text is cut into blocks of this many tokens, at most the context.
    """

    learning_rate: LearningRate = 2e-4
    epochs: Count = 1
    block_tokens: Annotated[int, Field(ge=2)] = BLOCK_TOKENS  # the first token of a block is not trained on

    # All of a block is trained on, and every block fits.
    supervise: Supervise = field(default="auto", init=False, repr=False)
    truncation: Truncation = field(default="error", init=False, repr=False)

    def suits(self, artifact: Artifact, data: Data) -> Applicability:
        """It needs text."""
        if not data.text:
            return skip("the task names no plain text: set `data.text`", final=True)
        return super().suits(artifact, data)

    def training_rows(
        self, artifact: Artifact, engine: TorchEngine, data: Data, report: TrainingReport, progress: Progress
    ) -> list[TokenizedExample]:
        """The blocks of the text; training rows are not read."""
        del artifact, progress
        from rung.training.examples import text_blocks

        report.rows = len(data.text)
        return text_blocks(engine, data.text, self.block_tokens)

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """Four operations per parameter and token of the text; predicting costs as much as before."""
        use, s = inference_cost(artifact, data, machine), sizes(artifact, data)
        tokens = text_tokens(artifact, data)
        blocks = math.ceil(tokens / self.block_tokens)
        return self._training_cost(artifact, machine, use, s, tokens / blocks, blocks)
