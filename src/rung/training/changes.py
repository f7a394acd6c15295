"""Changes of a base model's weights: put on it from a folder, switched on and off, taken off again.

What training makes is a folder of JSON and safetensors, and the files in it say what kind of change it is:

    adapter_config.json + adapter_model.safetensors   a PEFT adapter, or a soft prompt in PEFT's format
    patch.json          + patch.safetensors           whole tensors that replace those of the base model
    bottleneck.json     + bottleneck.safetensors      small networks behind the layers

The engine keeps the changes it was asked for on its model, at most one of them switched on.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Self

import torch
from torch.utils.hooks import RemovableHandle

from rung.engines.changes import BASE_FINGERPRINT, adapter_digest, settings_for
from rung.errors import ArtifactError, TrainingError
from rung.models.cache import cache_dir, publish

OUTPUT = "lm_head.weight"  # the output layer's own tensor, also where it has none yet
MEANING = (  # settings without which an adapter's tensors do not say what they do
    "peft_type", "r", "lora_alpha", "alpha_pattern", "use_rslora", "use_dora", "feedforward_modules",
)  # fmt: skip


class Trainable(ABC):
    """What the loop trains: parameters, and what it has to hear of the run."""

    @abstractmethod
    def enable(self) -> None:
        """Switch it on."""

    @abstractmethod
    def disable(self) -> None:
        """Switch it off."""

    @abstractmethod
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Return what training moves, by name, in a fixed order."""

    def lean(self) -> AbstractContextManager[None]:
        """Run it with fewer operations and the same result for the time of the block, where there is such a way."""
        return nullcontext()

    def penalty(self) -> torch.Tensor | None:
        """Return what training adds to the loss of every step, if anything."""
        return None

    def stepped(self, step: int, steps: int) -> None:  # noqa: B027
        """Hear of a finished optimizer step, counted from 1; gradients are still there."""

    def state(self) -> dict[str, torch.Tensor]:
        """Return what a checkpoint has to keep beside the parameters."""
        return {}

    def set_state(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from what `state` returned."""
        assert not state

    def finished(self) -> None:  # noqa: B027
        """Hear that training is over, before the change is written."""


class Change(Trainable):
    """A change of a base model's weights. It is made switched off; switched off, the model is exactly the base model.

    Attributes:
        prefix: ids of virtual tokens that stand before every prompt (soft prompts), else nothing.
        family: changes of different families cannot be on the model at once, or None if it gets on with all.
    """

    prefix: tuple[int, ...] = ()
    family: str | None = None

    @abstractmethod
    def remove(self) -> None:
        """Take it off the model for good; the modules are those of the base model again."""

    @abstractmethod
    def write(self, folder: Path, fingerprint: str) -> None:
        """Write it as it stands into a folder, with the fingerprint of its base model."""

    @abstractmethod
    def read(self, folder: Path) -> None:
        """Set it to what stands in a folder.

        Raises:
            ArtifactError: tensors are missing, unexpected or of another shape.
        """

    def merged(self) -> dict[str, torch.Tensor]:
        """Return the base model's parameters as they are with the change in them, those that it changes only.

        Names are those of the plain model's parameters, and `lm_head.weight` for an output layer that gets a tensor of
        its own. The model itself is left as it is.

        Raises:
            TrainingError: `export-unsupported`: no tensors of the base model have the same effect.
        """
        raise cannot_merge("it adds computation that no tensor of the base model can stand for")


def start_from(change: Change, folder: Path, *, fingerprint: str) -> None:
    """Set a fresh change to what stands in `folder`, so that training goes on from there.

    Raises:
        ArtifactError: the folder holds no change, it belongs to another base model, or it is of another kind, shape or
            scale: the same tensors would then mean something else.
        EngineError: it changes the base model itself.
    """
    from rung.training.peft import check_leaves_the_base

    there = settings_for(folder, fingerprint)
    check_leaves_the_base(there)
    with tempfile.TemporaryDirectory() as scratch:
        change.write(Path(scratch), fingerprint)
        here = settings_for(Path(scratch), fingerprint)
    # The vectors that a prompt encoder made are a soft prompt like any other.
    for facts in (here, there):
        if facts.get("peft_type") == "P_TUNING":
            facts["peft_type"] = "PROMPT_TUNING"
    wrong = [key for key in MEANING if here.get(key) != there.get(key)]
    if wrong:
        said = ", ".join(f"{key} {there.get(key)} instead of {here.get(key)}" for key in wrong)
        raise ArtifactError(
            "adapter-mismatch",
            f"training cannot go on from {folder}: {said}",
            hint="give the rung and the settings that it was trained with",
        )
    change.read(folder)


def keep(change: Change, fingerprint: str) -> Path:
    """Write a change to Rung's cache under the hash of its contents and return the folder."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch)
        change.write(source, fingerprint)
        folder = cache_dir() / "adapters" / adapter_digest(source)[:32]

        def build(target: Path) -> None:
            for file in source.iterdir():
                shutil.copyfile(file, target / file.name)

        publish(folder, build)
    return folder


def cannot_merge(why: str) -> TrainingError:
    """Return the error that a change does not go into the base model's tensors."""
    return TrainingError(
        "export-unsupported",
        f"this adapter cannot be merged: {why}",
        hint="serve it as it is: the artifact runs unmerged",
    )


def read_tensors(file: Path, wanted: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file, checked against those that are wanted, in name and shape.

    Raises:
        ArtifactError: they are not those.
    """
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = load_file(file)
    have = {k: tuple(v.shape) for k, v in tensors.items()}
    want = {k: tuple(v.shape) for k, v in wanted.items()}
    if have != want:
        wrong = sorted(k for k in have.keys() | want.keys() if have.get(k) != want.get(k))
        raise ArtifactError(
            "adapter-mismatch",
            f"the adapter in {file.parent} does not fit: {len(wrong)} tensors missing, unexpected or of another shape, "
            f"first {wrong[0]}",
            hint="open it on the model that it was trained on",
        )
    return tensors


def read_into(parameters: dict[str, torch.nn.Parameter], file: Path) -> None:
    """Set parameters to the tensors of a safetensors file.

    Raises:
        ArtifactError: the file holds others, or of other shapes.
    """
    import torch

    tensors = read_tensors(file, dict(parameters))
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def write_tensors(tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    """Write tensors into a safetensors file."""
    from safetensors.torch import save_file

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(plain, file, metadata={"format": "pt"})


def plain_parameters(model: Any) -> dict[str, torch.nn.Parameter]:
    """Return the base model's own parameters by the names they have before anything is put on it.

    The first call remembers them: later the modules around them may be PEFT's.
    """
    if not hasattr(model, "rung_parameters"):
        model.rung_parameters = dict(model.named_parameters())
    found: dict[str, torch.nn.Parameter] = model.rung_parameters
    return found


@contextmanager
def enabled(change: Change) -> Iterator[None]:
    """Switch a change on for the time of the block."""
    change.enable()
    try:
        yield
    finally:
        change.disable()


# --------------------
# Changes that live in forward hooks: nothing of the model itself is touched.


class Hooked(Change):
    """A change that is on for as long as its hooks are."""

    _handles: tuple[RemovableHandle, ...] = ()

    @abstractmethod
    def hooks(self) -> Iterator[RemovableHandle]:
        """Register the hooks, yielding the handle of each."""

    def enable(self) -> None:
        """Put the hooks on."""
        if not self._handles:
            self._handles = tuple(self.hooks())

    def disable(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = ()

    def remove(self) -> None:
        """Switch it off; nothing else was changed."""
        self.disable()


# --------------------
# Whole tensors that replace those of a base model: what partial and full fine-tuning make.


class Patch(Change):
    """New values for some of a model's tensors, the others untouched.

    Where the output layer shares its tensor with the input embeddings and only the output layer is changed, it gets a
    tensor of its own for as long as the patch is on.

    A patch that is trained holds its tensors in float32: a model in bfloat16 has 8 bits of mantissa, in which most
    steps of an optimizer would vanish (Micikevicius et al. 2018, https://arxiv.org/abs/1710.03740, section 3.1). The
    model runs on them rounded to its own precision, and that is what is written.

    Args:
        model: the base model.
        chosen: says by name which tensors are replaced; names are those of the plain model's parameters, and
            `lm_head.weight` also where it is tied.
        trained: whether it will be trained.
    """

    def __init__(self, model: Any, chosen: Callable[[str], bool], *, trained: bool = False) -> None:
        base = plain_parameters(model)
        self._old = {name: p for name, p in base.items() if chosen(name)}
        entries = [(m, key, p) for m in model.modules() for key, p in m._parameters.items() if p is not None]
        self._places = [(m, key, name) for name, old in self._old.items() for m, key, p in entries if p is old]
        if tied_output(model) and chosen(OUTPUT):
            tied = model.get_output_embeddings().weight
            head = next(m for m in model.get_output_embeddings().modules() if m._parameters.get("weight") is tied)
            self._old[OUTPUT] = tied
            self._places = [place for place in self._places if place[0] is not head] + [(head, "weight", OUTPUT)]
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
            raise ArtifactError(
                "adapter-mismatch",
                f"the patch replaces {unknown[0]}, which the model does not have",
                hint="open it on the model that it was trained on",
            )
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
        """Show the model the step that its rounded copies have not seen."""
        del step, steps
        if self._on:
            self._put_new()

    def _put_new(self) -> None:
        # Rounding is part of the graph, so that gradients reach the tensors that are trained.
        with torch.inference_mode(False), torch.enable_grad():
            self._put({name: tensor.to(self._old[name].dtype) for name, tensor in self._new.items()})

    def _put(self, tensors: dict[str, Any]) -> None:
        for module, key, name in self._places:
            module._parameters[key] = tensors[name]

    def remove(self) -> None:
        """Switch it off; nothing else was changed."""
        self.disable()

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Return the new tensors."""
        return dict(self._new)

    def write(self, folder: Path, fingerprint: str) -> None:
        """Write patch.json and patch.safetensors."""
        values = {BASE_FINGERPRINT: fingerprint, "tensors": sorted(self._new)}
        (folder / "patch.json").write_text(json.dumps(values, indent=2), "utf-8")
        write_tensors(self.merged(), folder / "patch.safetensors")

    def read(self, folder: Path) -> None:
        """Set the tensors to those of a patch.safetensors."""
        read_into(self._new, folder / "patch.safetensors")

    def merged(self) -> dict[str, torch.Tensor]:
        """Return the new tensors; `lm_head.weight` is among them also where the base model ties it."""
        return {name: p.detach().to(self._old[name].dtype) for name, p in self._new.items()}


def output_names(model: Any) -> frozenset[str]:
    """Return the names of the output layer's tensors, `lm_head.weight` standing for one that is tied."""
    if tied_output(model):
        return frozenset([OUTPUT])
    own = list(model.get_output_embeddings().parameters())
    return frozenset(name for name, p in plain_parameters(model).items() if any(p is q for q in own))


def tied_output(model: Any) -> bool:
    """Say whether the output layer's matrix is that of the input embeddings."""
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight
