"""Small trained parts in every layer: bottleneck adapters, IA3, LLaMA-Adapter; and adapters trained elsewhere."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rung.artifact.artifact import Artifact
from rung.artifact.parts import Weights
from rung.data.rows import Data
from rung.engines.opening import open_torch
from rung.machine import Machine
from rung.models import embedded
from rung.models.hub import read_settings as read_config
from rung.models.reference import ModelFiles, hub_name, resolve
from rung.progress import QUIET, Progress
from rung.rungs.base import OK, Applicability, Cost, Rung, rung, skip
from rung.rungs.costs import inference_cost
from rung.rungs.fine_tune import FineTune, weights_folder
from rung.training.config import Count, LearningRate, NonNegative

if TYPE_CHECKING:
    from rung.engines.torch_engine import TorchEngine
    from rung.training.changes import Change

WITHOUT_PROMPT = 2  # the first layers, which get no prompt of LLaMA-Adapter by default


@rung("bottleneck", family="parameter-efficient", order=720)
@dataclass(frozen=True, kw_only=True)
class BottleneckAdapter(FineTune):
    """Train small networks after the layers' sublayers.

    They have residual connections and a width of 64, as in Houlsby et al. 2019 (https://arxiv.org/abs/1902.00751), and
    follow only the feed-forward networks, which Pfeiffer et al. 2021 (https://arxiv.org/abs/2005.00247) found to be
    enough at half the cost. The learning rate is the middle of Houlsby's range for that width (3e-4 to 3e-3).

    Attributes:
        size: width of each network.
        placement: `houlsby`: after attention and feed-forward networks; `pfeiffer`: only after the latter.
    """

    size: Count = 64
    placement: Literal["houlsby", "pfeiffer"] = "pfeiffer"
    learning_rate: LearningRate = 1e-3

    def reason_against(self, artifact: Artifact) -> str:
        """Say if the model's sublayers are not known."""
        from rung.training.adapters import sublayers
        from rung.training.layers import reason_unknown

        return reason_unknown(resolve(artifact.model), lambda model: sublayers(model, self.placement))

    def change(self, engine: TorchEngine, artifact: Artifact) -> Change:
        """Put fresh networks after the sublayers; they change next to nothing at first."""
        del artifact
        from rung.training.adapters import Bottleneck

        return Bottleneck(engine.model, self.size, self.placement)


@rung("ia3", family="parameter-efficient", order=700)
@dataclass(frozen=True, kw_only=True)
class IA3(FineTune):
    """Train vectors that scale keys, values and inner activations.

    Infused adapter by inhibiting and amplifying inner activations (Liu et al. 2022, https://arxiv.org/abs/2205.05638):
    vectors of ones at first scale the keys, the values and the inner activations of the feed-forward networks, a few
    hundredths of a percent of the parameters. The learning rate is that of the paper's recipe (T-Few), 3e-3.
    """

    learning_rate: LearningRate = 3e-3

    def reason_against(self, artifact: Artifact) -> str:
        """Say if the places of these activations in the model are not known."""
        from rung.training.layers import ia3_targets, reason_unknown

        return reason_unknown(resolve(artifact.model), ia3_targets)

    def change(self, engine: TorchEngine, artifact: Artifact) -> Change:
        """Put fresh vectors, all ones, on the model."""
        del artifact
        from rung.training.layers import ia3_targets
        from rung.training.peft import PeftAdapter, peft

        targets, inner = ia3_targets(engine.model)
        config = peft().IA3Config(target_modules=targets, feedforward_modules=inner, task_type="CAUSAL_LM")
        engine.make_room(str(config.peft_type.value))
        return PeftAdapter(engine.model, config)


@rung("llama-adapter", family="parameter-efficient", order=710)
@dataclass(frozen=True, kw_only=True)
class LlamaAdapter(FineTune):
    """Train prompts that the upper layers attend to through gates.

    PEFT's adaption prompt (Zhang et al. 2023, https://arxiv.org/abs/2303.16199): ten trained tokens for each of the
    upper layers (30 of 32 in the paper: all but the first two), which attention reads through a gate that is closed at
    first. Learning rate and weight decay are the paper's.

    Attributes:
        tokens: length of each prompt.
        top_layers: how many layers get one, counted from the output; by default all but the first two.
    """

    tokens: Count = 10
    top_layers: Count | None = None
    learning_rate: LearningRate = 9e-3
    weight_decay: NonNegative = 0.02

    def reason_against(self, artifact: Artifact) -> str:
        """Say if the model's attention is of an unknown kind, or has fewer layers than asked for."""
        from rung.training.adapters import check
        from rung.training.layers import decoder_layers, reason_unknown, skeleton

        files = resolve(artifact.model)
        if reason := reason_unknown(files, check):
            return reason
        depth = len(decoder_layers(skeleton(files)))
        if self.top_layers is not None and not 0 < self.top_layers <= depth:
            return f"prompts are asked for {self.top_layers} layers, and the model has {depth}"
        return ""

    def change(self, engine: TorchEngine, artifact: Artifact) -> Change:
        """Make fresh prompts; their gates are closed at first."""
        del artifact
        from rung.training.adapters import AdaptionPrompt
        from rung.training.layers import decoder_layers

        layers = self.top_layers or max(1, len(decoder_layers(engine.model)) - WITHOUT_PROMPT)
        return AdaptionPrompt(engine.model, self.tokens, layers)


@rung("trained-adapter", family="parameter-efficient", order=725)
@dataclass(frozen=True, kw_only=True)
class TrainedAdapter(Rung):
    """Put an adapter that was trained elsewhere on the model, without training.

    It may be of any kind that Rung trains, with PEFT's files or Rung's. It is measured and served like any artifact.

    Attributes:
        folder: folder of the adapter, or of an artifact that has one.
    """

    needs = ("open weights", "untuned")
    learns = False

    folder: str | None = None

    def suits(self, artifact: Artifact, data: Data) -> Applicability:
        """It needs to know which."""
        del artifact, data
        return OK if self.folder else skip("no adapter is named: `rungs: {trained-adapter: {folder: FOLDER}}`")

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """Cost of answering, as before."""
        return inference_cost(artifact, data, machine)

    def fit(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> Artifact:
        """Copy the adapter to the cache, verified on the model.

        Raises:
            ArtifactError: the folder holds no adapter, or one that does not fit the model.
            EngineError: `adapter-unsupported`: it changes the base model itself.
        """
        del data
        from rung.engines.changes import attach, read_settings
        from rung.training.changes import keep

        assert self.folder, "`suits` has checked it"
        source, engine = weights_folder(Path(self.folder).expanduser()), open_torch(artifact.model)
        named = read_settings(source).get("base_model_name_or_path")
        if isinstance(named, str) and (why := another_model(named, resolve(artifact.model))):
            progress.say(f"warning: the adapter in {source} names {named} as its base model, and {why}")
        engine.make_room(str(source))  # a family that no other has
        change = attach(engine.model, source, fingerprint=engine.base_fingerprint)
        try:
            folder = keep(change, engine.base_fingerprint)
            size = sum(p.numel() for p in change.parameters().values())
        finally:
            change.remove()
        return artifact.step(self.name, {"folder": self.folder}, weights=Weights(self.name, folder, size))


# ---- the base model that an adapter names

SIZE = re.compile(r"(\d+(?:\.\d+)?)([mb])")  # in a model's name, such as 1.5b
FORMATS = {"meta", "hf", "unsloth", "bnb", "gguf", "awq", "gptq", "4bit", "8bit", "int4", "int8", "fp8", "fp16", "bf16"}


def another_model(named: str, files: ModelFiles) -> str:
    """Say why these files are plainly not the model that an adapter names as its base; empty if they may be it.

    Only Hub ids say which model they mean, not folders: they are compared without their owner, as many models are
    copied, and without formats. A folder is known by the Hub id in its path or its settings, else by its size.
    """
    if hub_name(named) is None:
        return ""
    config = read_config(files.folder / "config.json")
    cached = re.search(r"models--[\w.-]+?--([\w.-]+)", str(files.folder))
    own = [hub_name(files.reference), hub_name(str(config.get("_name_or_path"))), cached and cached[1]]
    if embedded.find(files.reference) is not None:
        own.append(files.name)
    theirs, known = _words(named), [name for name in own if name]
    if known and theirs not in map(_words, known):
        return f"the model here is {known[0]}"
    sizes = [float(size[1]) * (1e9 if size[2] == "b" else 1e6) for word in theirs if (size := SIZE.fullmatch(word))]
    if sizes and not known and not config.get("quantization_config") and not 0.5 < files.parameters / sizes[0] < 2:
        return f"the model here has {files.parameters:,} parameters"
    return ""


def _words(name: str) -> list[str]:
    """The words of a model's name that tell models apart."""
    words = re.split(r"[-_]", name.rpartition("/")[2].partition("@")[0].lower())
    return [word for word in words if word not in FORMATS]
