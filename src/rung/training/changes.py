"""Changes of a base model's weights: what the training loop needs of them, and how they are kept on disk.

`rung.engines.changes` says which files a change consists of, and opens it by its kind.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Self
from weakref import WeakKeyDictionary

import torch
from torch.utils.hooks import RemovableHandle

from rung.engines.changes import BASE_FINGERPRINT, adapter_digest, settings_for
from rung.errors import ArtifactError, EngineError, TrainingError
from rung.models.cache import cache_dir, publish
from rung.training.distributed import checksums, current

OUTPUT = "lm_head.weight"  # the output layer's own tensor, even where it is tied to the input embeddings
MEANING: Mapping[str, Any] = {  # settings without which an adapter's tensors do not say what they do; PEFT's defaults
    "peft_type": "", "r": 8, "lora_alpha": 8, "alpha_pattern": {}, "use_rslora": False, "use_dora": False,
    "feedforward_modules": [],
}  # fmt: skip
RUNG_SETTINGS = {"r": "rank", "lora_alpha": "alpha", "alpha_pattern": "alpha_pattern"}  # what a rung calls them
# Settings of LoRA that make it another computation, and what each of them does.
UNSUPPORTED: Mapping[str, str] = {
    "layer_replication": "repeats layers of the base model",
    "alora_invocation_tokens": "acts only on the tokens after a text that invokes it",
    "arrow_config": "routes between other adapters",
    "kasa_config": "takes a part out of the base model's weights",
    "megatron_config": "is made for layers of Megatron",
    "monteclora_config": "draws its update at random",
    "use_bdlora": "has matrices in blocks",
    "use_qalora": "averages groups of inputs",
}
# Initializations that leave the base model as it is.
UNCHANGING_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
_PARAMETERS: WeakKeyDictionary[Any, dict[str, torch.nn.Parameter]] = WeakKeyDictionary()


class Trainable(ABC):
    """What the loop trains: parameters, and callbacks during the run."""

    sharded: ClassVar[bool] = False  # whether each of several processes holds a part of every parameter

    @abstractmethod
    def enable(self) -> None:
        """Switch it on."""

    @abstractmethod
    def disable(self) -> None:
        """Switch it off."""

    @abstractmethod
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """What training moves, by name, in a fixed order."""

    def lean(self) -> AbstractContextManager[None]:
        """Run it with fewer operations and the same result inside the block, where that is possible."""
        return nullcontext()

    def penalty(self) -> torch.Tensor | None:
        """What training adds to the loss of every step, if anything."""
        return None

    def stepped(self, step: int, steps: int) -> None:  # noqa: B027
        """Called after an optimizer step, counted from 1; gradients are still there."""

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint has to keep besides the parameters."""
        return {}

    def set_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restore the result of `state`."""
        assert not state


class Change(Trainable):
    """A change of a base model's weights. It starts switched off; switched off, the model is exactly the base model."""

    prefix: tuple[int, ...] = ()  # ids of virtual tokens that precede every prompt (soft prompts)
    family: str | None = None  # changes of different families cannot be on the model at once; None fits with all

    def remove(self) -> None:
        """Take it off the model for good: where nothing but switching was done, switch it off."""
        self.disable()

    @abstractmethod
    def write(self, folder: Path, fingerprint: str) -> None:
        """Write its current state into a folder, with the fingerprint of its base model."""

    def checksums(self, folder: Path) -> dict[str, int]:
        """The checksum of each tensor that `write` has written into a folder; of a part of it where it is sharded."""
        return checksums(folder)

    @abstractmethod
    def read(self, folder: Path) -> None:
        """Set it to a folder's contents; an ArtifactError if tensors are missing, unexpected or of another shape."""

    def merged(self) -> dict[str, torch.Tensor]:
        """The base model's parameters with the change in them, only those that it changes.

        Names are those of the plain model's parameters, and `lm_head.weight` for an output layer that gets a tensor of
        its own. The model itself stays as it is.

        Raises:
            TrainingError: `export-unsupported`: no tensors of the base model have the same effect.
        """
        raise cannot_merge("it adds computation that the base model's tensors cannot express")


def start_from(change: Change, folder: Path, *, fingerprint: str) -> None:
    """Set a fresh change to the contents of `folder`, so that training continues from there.

    Raises:
        ArtifactError: the folder holds no change, it belongs to another base model, or it is of another kind, shape or
            scale: the same tensors would then mean something else.
        EngineError: it changes the base model itself.
    """
    theirs = settings_for(folder, fingerprint)
    check_supported(theirs)
    with tempfile.TemporaryDirectory() as scratch:
        change.write(Path(scratch), fingerprint)
        ours = settings_for(Path(scratch), fingerprint)
    # The vectors that a prompt encoder computed are a soft prompt like any other.
    for settings in (ours, theirs):
        if settings.get("peft_type") == "P_TUNING":
            settings["peft_type"] = "PROMPT_TUNING"
    ours, theirs = (
        {key: one.get(key) or default for key, default in MEANING.items()}
        | {"feedforward_modules": sorted(one.get("feedforward_modules") or ())}
        for one in (ours, theirs)
    )
    if wrong := [key for key in MEANING if ours[key] != theirs[key]]:
        differences = ", ".join(f"{key} {theirs[key]} instead of {ours[key]}" for key in wrong)
        own = ", ".join(f"{RUNG_SETTINGS[key]}: {theirs[key]}" for key in wrong if key in RUNG_SETTINGS)
        raise ArtifactError(
            "adapter-mismatch", f"training cannot go on from {folder}: {differences}",
            hint=f"set {own}" if len(own.split(", ")) == len(wrong) and own
            else "give the rung that it was trained with, or measure it as it is: `trained-adapter`",
        )  # fmt: skip
    change.read(folder)


def check_supported(values: dict[str, Any]) -> None:
    """Refuse an adapter with this adapter_config.json if it would not run as PEFT runs it, or changes the base model.

    Raises:
        EngineError: it holds biases, adds layers, initializes itself (PiSSA, OLoRA, CorDA, LoftQ) with a part of the
            weights that PEFT takes out of the base model, which others share, or computes something else than LoRA.
    """
    does = ", ".join(f"{what} ({key})" for key, what in UNSUPPORTED.items() if is_set(values.get(key)))
    if (biases := values.get("bias", "none")) != "none":
        does = f"holds the base model's biases besides its updates (bias: {biases})"
    elif (start := values.get("init_lora_weights", True)) not in UNCHANGING_STARTS:
        does = f"takes its start out of the base model's weights (init_lora_weights: {start})"
    if does:
        raise unsupported_adapter(does)


def is_set(value: Any) -> bool:
    """Whether a setting switches something on: an empty object does, as it stands for PEFT's defaults."""
    return value not in (None, False, [])


def unsupported_adapter(does: str) -> EngineError:
    """The error that Rung does not run an adapter as PEFT does, because of what it does."""
    hint = "if PEFT's merge_and_unload can merge it, use the merged folder as the model"
    return EngineError("adapter-unsupported", f"the adapter {does}", hint=hint)


def keep(change: Change, fingerprint: str) -> Path:
    """Write a change to Rung's cache under the hash of its contents, and say where.

    Of processes that train together, the first one writes there; what it wrote must be what all of them have.
    """
    world = current()
    with tempfile.TemporaryDirectory() as scratch:
        change.write(Path(scratch), fingerprint)
        digest = world.text_of_first(adapter_digest(Path(scratch)) if world.first else "")
        folder = cache_dir() / "adapters" / digest[:32]
        if world.first:
            publish(folder, lambda target: shutil.copytree(scratch, target, dirs_exist_ok=True))
        if not world.alone:
            world.verify(change.checksums(Path(scratch)), folder, parts=change.sharded)
    return folder


def cannot_merge(why: str) -> TrainingError:
    """The error that a change does not go into the base model's tensors."""
    return TrainingError(
        "export-unsupported", f"this adapter cannot be merged: {why}",
        hint="serve it as it is: the artifact runs unmerged",
    )  # fmt: skip


def mismatch(what: str) -> ArtifactError:
    """The error that a change does not fit the model."""
    return ArtifactError("adapter-mismatch", what, hint="open it on the model that it was trained on")


def load_tensors(file: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file; an ArtifactError if it is damaged, or holds values that are no numbers."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    hint = "its training has diverged, or the file is damaged: fetch or train it again"
    try:
        tensors: dict[str, torch.Tensor] = load_file(file)
    except SafetensorError as broken:
        raise ArtifactError("artifact-damaged", f"{file}: {broken}", hint=hint) from broken
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            problem = f"{file}: the tensor {name} holds values that are no numbers (NaN or infinite)"
            raise ArtifactError("artifact-damaged", problem, hint=hint)
    return tensors


def read_tensors(
    file: Path, expected: Mapping[str, torch.Tensor], base: Mapping[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """Read a safetensors file; an ArtifactError if its tensors' names or shapes are not those that are expected.

    PEFT writes the embeddings and the output layer of the base model beside updates of them. Such copies are left out
    where they equal the tensors in `base`, which other changes share, and refused where they do not.
    """
    tensors = load_tensors(file)
    for name in sorted(tensors.keys() - expected.keys()):
        plain = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        own = (base or {}).get(plain)
        if own is None or own.shape != tensors[name].shape:
            continue
        copy = tensors.pop(name).to(own.device)
        # The base model may run, or have run when the copy was made, at a lower precision.
        if not (torch.equal(copy.to(own.dtype), own) or torch.equal(own.to(copy.dtype), copy)):
            raise ArtifactError(
                "adapter-mismatch", f"{file}: {name} is not the base model's {plain}",
                hint="open it on the model that it was trained on, or merge it into that one with PEFT's "
                "merge_and_unload, and use the merged folder as the model",
            )  # fmt: skip
    have, want = ({k: tuple(v.shape) for k, v in part.items()} for part in (tensors, expected))
    if wrong := sorted(k for k in have.keys() | want.keys() if have.get(k) != want.get(k)):
        raise mismatch(
            f"the adapter in {file.parent} does not fit: {len(wrong)} tensors missing, unexpected or of another shape, "
            f"first {wrong[0]}"
        )
    return tensors


def read_into(parameters: dict[str, torch.nn.Parameter], file: Path) -> None:
    """Set parameters to the tensors of a safetensors file; an ArtifactError if it holds others, or of other shapes."""
    tensors = read_tensors(file, parameters)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def write_tensors(tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    """Write tensors into a safetensors file."""
    from safetensors.torch import save_file

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(plain, file, metadata={"format": "pt"})


def write_settings(file: Path, fingerprint: str, values: Mapping[str, Any]) -> None:
    """Write a change's settings, with the fingerprint of its base model, as JSON."""
    file.write_text(json.dumps({BASE_FINGERPRINT: fingerprint, **values}, indent=2), "utf-8")


def plain_parameters(model: Any) -> dict[str, torch.nn.Parameter]:
    """The base model's own parameters by the names they have before anything is put on it.

    The first call remembers them: later the modules around them may be PEFT's.
    """
    if model not in _PARAMETERS:
        _PARAMETERS[model] = dict(model.named_parameters())
    return _PARAMETERS[model]


def forget_parameters(model: Any) -> None:
    """Keep the model's own parameters no longer: it gets others for good."""
    _PARAMETERS.pop(model, None)


@contextmanager
def enabled(change: Change) -> Iterator[None]:
    """Switch a change on while the block runs."""
    change.enable()
    try:
        yield
    finally:
        change.disable()


class Hooked(Change):
    """A change that consists of forward hooks: it is on as long as they are, and nothing of the model is touched."""

    _handles: tuple[RemovableHandle, ...] = ()

    @abstractmethod
    def hooks(self) -> Iterator[RemovableHandle]:
        """Register the hooks, and yield the handle of each."""

    def enable(self) -> None:
        """Register the hooks."""
        if not self._handles:
            self._handles = tuple(self.hooks())

    def disable(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = ()


# ---- whole tensors: what partial and full fine-tuning make


class Patch(Change):
    """New values for some of a model's tensors.

    Where the output layer shares its tensor with the input embeddings and only the output layer is changed, it has a
    tensor of its own as long as the patch is on.

    A patch that is trained holds its tensors in float32: a model in bfloat16 has 8 bits of mantissa, in which most
    steps of an optimizer would vanish (Micikevicius et al. 2018, https://arxiv.org/abs/1710.03740, section 3.1). The
    model runs on these tensors rounded to its own precision, and the rounded ones are written.

    `chosen` says by name which tensors are replaced: names are those of the plain model's parameters, and
    `lm_head.weight` also where it is tied. `trained` says whether the patch will be trained.
    """

    def __init__(self, model: Any, chosen: Callable[[str], bool], *, trained: bool = False) -> None:
        self._old = {name: p for name, p in plain_parameters(model).items() if chosen(name)}
        entries = [(m, key, p) for m in model.modules() for key, p in m._parameters.items() if p is not None]
        self._entries = [(m, key, name) for name, old in self._old.items() for m, key, p in entries if p is old]
        if tied_output(model) and chosen(OUTPUT):
            tied = model.get_output_embeddings().weight
            head = next(m for m in model.get_output_embeddings().modules() if m._parameters.get("weight") is tied)
            self._old[OUTPUT] = tied
            self._entries = [entry for entry in self._entries if entry[0] is not head] + [(head, "weight", OUTPUT)]
        self._new = {
            name: torch.nn.Parameter(p.detach().to(torch.float32 if trained else p.dtype, copy=True), False)
            for name, p in self._old.items()
        }
        self._on = False

    @classmethod
    def from_dict(cls, model: Any, values: dict[str, Any]) -> Self:
        """Make a patch of the tensors that a patch.json names."""
        names = set(values.get("tensors", ()))
        own = {OUTPUT} if tied_output(model) else set()
        if unknown := sorted(names - plain_parameters(model).keys() - own):
            raise mismatch(f"the patch replaces {unknown[0]}, which the model does not have")
        return cls(model, names.__contains__)

    def enable(self) -> None:
        """Exchange the modules' entries; nothing is copied, unless the patch is trained at a higher precision."""
        if not self._on:
            self._put_new()
            self._on = True

    def disable(self) -> None:
        """Put the base model's own tensors back."""
        if self._on:
            self._put(self._old)
            self._on = False

    def stepped(self, step: int, steps: int) -> None:
        """Round the tensors again after an optimizer step."""
        del step, steps
        if self._on:
            self._put_new()

    def _put_new(self) -> None:
        # Rounding is part of the graph, so that gradients reach the tensors that are trained.
        with torch.inference_mode(False), torch.enable_grad():
            self._put({name: tensor.to(self._old[name].dtype) for name, tensor in self._new.items()})

    def _put(self, tensors: dict[str, Any]) -> None:
        for module, key, name in self._entries:
            module._parameters[key] = tensors[name]

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The new tensors."""
        return dict(self._new)

    def write(self, folder: Path, fingerprint: str) -> None:
        """Write patch.json and patch.safetensors."""
        write_settings(folder / "patch.json", fingerprint, {"tensors": sorted(self._new)})
        write_tensors(self.merged(), folder / "patch.safetensors")

    def read(self, folder: Path) -> None:
        """Set the tensors to those of a patch.safetensors."""
        read_into(self._new, folder / "patch.safetensors")

    def merged(self) -> dict[str, torch.Tensor]:
        """The new tensors; `lm_head.weight` is among them also where the base model ties it."""
        return {name: p.detach().to(self._old[name].dtype) for name, p in self._new.items()}


def output_names(model: Any) -> frozenset[str]:
    """The names of the output layer's tensors; `lm_head.weight` for one that is tied."""
    if tied_output(model):
        return frozenset([OUTPUT])
    own = list(model.get_output_embeddings().parameters())
    return frozenset(name for name, p in plain_parameters(model).items() if any(p is q for q in own))


def tied_output(model: Any) -> bool:
    """Whether the output layer shares its matrix with the input embeddings."""
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight
