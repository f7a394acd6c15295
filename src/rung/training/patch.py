"""Whole tensors that replace those of a base model: what partial and full fine-tuning make."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch

from rung.errors import ArtifactError
from rung.training.changes import BASE_FINGERPRINT, OUTPUT, Change, plain_parameters, read_into, write_tensors


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
