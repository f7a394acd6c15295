"""Changes of a base model's weights as an engine sees them: read from a folder, switched on and off, taken off again.

Training makes such a folder of JSON and safetensors. The files in it say what kind of change it is:

    adapter_config.json + adapter_model.safetensors   a PEFT adapter, or a soft prompt in PEFT's format
    patch.json          + patch.safetensors           whole tensors that replace those of the base model
    bottleneck.json     + bottleneck.safetensors      small networks after the layers

`OPENERS` is the one place where an engine names a module of training: it opens a change by its kind.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from rung.errors import ArtifactError, Location, RungError
from rung.models.cache import file_sha256
from rung.yamlfile import read_object

REWARD_HEAD = "reward_head.safetensors"  # beside a change that scores answers: it turns a state into a score
BASE_FINGERPRINT = "rung_base_fingerprint"  # the setting that names the base model
SOFT_PROMPTS = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")
ADAPTION_PROMPT = "ADAPTION_PROMPT"
# What an adapter holds besides updates of layers, so that no other adapter can stand beside it on a model.
WHOLE = ("modules_to_save", "trainable_token_indices", "target_parameters")
# Types of which several adapters stand on a model. Those of others may share tensors, as VeRA's share projections.
TOGETHER = ("LORA", "ADALORA", "IA3")
MAX_PATTERN, MAX_REPEATS = 2000, 3  # characters and repeats of a regular expression for names of layers
OPENERS = {  # kind of change -> module and class; `CLASS.from_dict(model, settings)` puts it on the model
    "patch": ("rung.training.changes", "Patch"),
    "bottleneck": ("rung.training.adapters", "Bottleneck"),
    "adaption-prompt": ("rung.training.adapters", "AdaptionPrompt"),
    "soft-prompt": ("rung.training.soft_prompts", "SoftPrompt"),
    "peft": ("rung.training.peft", "PeftAdapter"),
}


class WeightsChange(Protocol):
    """What an engine needs of a change that is on its model: `rung.training.changes.Change` has the rest."""

    prefix: tuple[int, ...]  # ids of virtual tokens that precede every prompt (soft prompts), else empty
    family: str | None  # changes of different families cannot be on the model at once; None goes with all

    def enable(self) -> None:
        """Switch it on."""

    def disable(self) -> None:
        """Switch it off: the model is exactly the base model."""

    def remove(self) -> None:
        """Take it off the model for good."""

    def read(self, folder: Path) -> None:
        """Set its tensors to those in a folder."""

    def lean(self) -> AbstractContextManager[None]:
        """Run it with fewer operations and the same result inside the block, where that is possible."""

    def merged(self) -> dict[str, Any]:
        """The base model's parameters that it changes, with the change in them."""


def attach(model: Any, folder: Path, *, fingerprint: str) -> Any:
    """Put the change in `folder`, a `rung.training.changes.Change`, on the base model, switched off.

    Raises:
        ArtifactError: the folder holds no change, it belongs to another base model, or it does not fit.
    """
    settings = settings_for(folder, fingerprint)
    module, name = OPENERS[_kind(folder, settings)]
    try:
        change: WeightsChange = getattr(import_module(module), name).from_dict(model, settings)
    except RungError as error:
        error.where = error.where or Location(str(folder))
        raise
    try:
        change.read(folder)
    except BaseException:
        change.remove()
        raise
    return change


def family_of(folder: Path) -> str | None:
    """The family of the change in `folder` (see `WeightsChange`), without loading it."""
    settings = read_settings(folder)
    if _kind(folder, settings) != "peft":
        return None
    return str(folder) if stands_alone(settings) else str(settings["peft_type"])


def stands_alone(settings: Mapping[str, Any]) -> bool:
    """Whether no other adapter can stand on the model beside a PEFT adapter with these settings."""
    return settings["peft_type"] not in TOGETHER or any(settings.get(key) for key in WHOLE)


def settings_for(folder: Path, fingerprint: str) -> dict[str, Any]:
    """The settings of the change in `folder`, checked to be for this base model where they name one."""
    settings = read_settings(folder)
    trained_on = settings.pop(BASE_FINGERPRINT, None)
    if trained_on is not None and trained_on != fingerprint:
        bases = f"{trained_on[:12]}, not {fingerprint[:12]}"
        problem = f"the adapter in {folder} was trained on another base model ({bases})"
        raise ArtifactError("model-mismatch", problem, hint="open it on the model that it was trained on")
    return settings


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of the change in `folder`.

    Raises:
        ArtifactError: the folder holds no change.
    """
    for name in ("adapter_config.json", "patch.json", "bottleneck.json"):
        weights = {"adapter_config.json": "adapter_model"}.get(name, name.removesuffix(".json"))
        if (folder / name).is_file() and (folder / f"{weights}.safetensors").is_file():
            settings = read_object(folder / name)
            if weights == "adapter_model" and not isinstance(settings.get("peft_type"), str):
                problem = f"{folder / name}: peft_type is missing, or no text: the adapter does not say what it is"
                hint = 'write what it was trained as, such as "peft_type": "LORA"'
                raise ArtifactError("artifact-damaged", problem, hint=hint)
            _check_patterns(folder / name, settings)
            return settings
    problem = f"{folder} holds no adapter_model.safetensors and adapter_config.json"
    hint = "pickled adapters (.bin) are not read; save the adapter as safetensors"
    raise ArtifactError("wrong-folder", problem, hint=hint)


def pattern_problem(pattern: str) -> str:
    """Why a regular expression for names of layers is refused; empty if it is not.

    Python's engine has no time limit, and a name has 50 to 100 characters. So no group may be repeated, and a pattern
    has at most three repeats; with these bounds a match takes a thousandth of a second.
    """
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        return f"it is no regular expression: {error}"
    if len(pattern) > MAX_PATTERN or re.search(r"\)[*+{]", pattern) or sum(map(pattern.count, "*+{")) > MAX_REPEATS:
        return f"it has over {MAX_PATTERN} characters, over {MAX_REPEATS} repeats, or a repeated group"
    return ""


def _check_patterns(file: Path, settings: dict[str, Any]) -> None:
    """Raise ArtifactError (`adapter-unsupported`) for a pattern of an adapter_config.json that could match for ever."""
    found = [*(settings.get("rank_pattern") or ()), *(settings.get("alpha_pattern") or ())]
    for name in ("target_modules", "exclude_modules", "layers_pattern"):
        value = settings.get(name) or ()
        found += [value] if isinstance(value, str) else value
    for pattern in found:
        if isinstance(pattern, str) and (problem := pattern_problem(pattern)):
            hint = "write the names of the layers one by one"
            raise ArtifactError("adapter-unsupported", f"{file}: {pattern[:80]!r}: {problem}", hint=hint)


def _kind(folder: Path, settings: dict[str, Any]) -> str:
    if (folder / "patch.json").is_file():
        return "patch"
    if settings.get("peft_type") in SOFT_PROMPTS:
        return "soft-prompt"
    if (folder / "bottleneck.json").is_file():
        return "bottleneck"
    return "adaption-prompt" if settings.get("peft_type") == ADAPTION_PROMPT else "peft"


@lru_cache(maxsize=64)
def adapter_fingerprint(folder: str) -> str:
    """The hash of an adapter that no longer changes, so that a copy elsewhere is the same adapter."""
    return adapter_digest(Path(folder))


def adapter_digest(folder: Path) -> str:
    """The sha256 of an adapter's weights and settings, and of the files' names."""
    files = sorted(file for file in folder.iterdir() if file.suffix in (".json", ".safetensors"))
    return hashlib.sha256("\n".join(f"{file.name} {file_sha256(file)}" for file in files).encode()).hexdigest()
