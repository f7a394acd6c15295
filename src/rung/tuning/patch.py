"""Whole tensors that replace those of a base model: what partial and full fine-tuning make."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch

from rung.errors import ArtifactError
from rung.tuning.changes import BASE_FINGERPRINT, OUTPUT, Change, fit_tensors, plain_parameters


class Patch(Change):
    """New values for some of a model's tensors, the others untouched.

    Where the output layer shares its tensor with the input embeddings and only the output layer is changed, it gets a
    tensor of its own for as long as the patch is on.

    Args:
        model: the base model.
        chosen: says by name which tensors are replaced; names are those of the plain model's parameters, and
            `lm_head.weight` also where it is tied.
    """

    def __init__(self, model: Any, chosen: Callable[[str], bool]) -> None:
        base = plain_parameters(model)
        self._old = {name: p for name, p in base.items() if chosen(name)}
        entries = [(m, key, p) for m in model.modules() for key, p in m._parameters.items() if p is not None]
        self._places = [(m, key, name) for name, old in self._old.items() for m, key, p in entries if p is old]
        if OUTPUT not in base and chosen(OUTPUT):
            head = model.get_output_embeddings()
            self._old[OUTPUT] = head.weight
            self._places = [place for place in self._places if place[0] is not head] + [(head, "weight", OUTPUT)]
        self._new = {name: torch.nn.Parameter(p.detach().clone(), requires_grad=False) for name, p in self._old.items()}
        self._on = False

    @classmethod
    def from_dict(cls, model: Any, values: dict[str, Any]) -> Self:
        """Make a patch of the tensors that a patch.json names."""
        names = set(values["tensors"])
        if unknown := sorted(names - plain_parameters(model).keys() - {OUTPUT}):
            raise ArtifactError(
                "adapter-mismatch",
                f"the patch replaces {unknown[0]}, which the model does not have",
                hint="open it on the model that it was trained on",
            )
        return cls(model, names.__contains__)

    def enable(self) -> None:
        """Exchange the modules' entries; nothing is copied."""
        if not self._on:
            self._put(self._new)
            self._on = True

    def disable(self) -> None:
        """Put the base model's own tensors back."""
        if self._on:
            self._put(self._old)
            self._on = False

    def _put(self, tensors: dict[str, torch.nn.Parameter]) -> None:
        for module, key, name in self._places:
            module._parameters[key] = tensors[name]

    def remove(self) -> None:
        """Switch it off; nothing else was changed."""
        self.disable()

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Return the new tensors."""
        return dict(self._new)

    def merged(self) -> dict[str, torch.Tensor]:
        """Return the new tensors."""
        return {name: tensor.detach() for name, tensor in self._new.items()}

    def write(self, folder: Path, fingerprint: str) -> None:
        """Write patch.json and patch.safetensors."""
        from safetensors.torch import save_file

        values = {BASE_FINGERPRINT: fingerprint, "tensors": sorted(self._new)}
        (folder / "patch.json").write_text(json.dumps(values, indent=2), "utf-8")
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self._new.items()}
        save_file(tensors, folder / "patch.safetensors", metadata={"format": "pt"})

    def read(self, folder: Path) -> None:
        """Set the tensors to those of a patch.safetensors."""
        from safetensors.torch import load_file

        tensors = load_file(folder / "patch.safetensors")
        fit_tensors(tensors, dict(self._new), folder)
        with torch.no_grad():
            for name, tensor in tensors.items():
                self._new[name].copy_(tensor)

    def merged(self) -> dict[str, torch.Tensor]:
        """Return the new tensors; `lm_head.weight` is among them also where the base model ties it."""
        return {name: tensor.detach() for name, tensor in self._new.items()}
