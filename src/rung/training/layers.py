"""Where a decoder's layers are and what is in them, by the names that architectures use."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from rung.errors import EngineError
from rung.models.checkpoint import text_class
from rung.models.reference import ModelFiles

SUBLAYERS = {
    "attention": ("self_attn", "attn", "attention", "self_attention"),
    "feed-forward network": ("mlp", "feed_forward", "ffn"),
}


def decoder_layers(model: Any) -> list[torch.nn.Module]:
    """The model's layers, from the input to the output.

    Raises:
        EngineError: they are not in a list of the length that the configuration names.
    """
    depth = model.config.get_text_config().num_hidden_layers
    for module in model.get_decoder().children():
        if isinstance(module, torch.nn.ModuleList) and len(module) == depth:
            return list(module)
    raise _unknown(model, f"no list of {depth} layers was found in it")


def sublayer(model: Any, layer: torch.nn.Module, kind: str) -> torch.nn.Module:
    """A layer's `attention` or `feed-forward network`.

    Raises:
        EngineError: the layer has none of the names that these have.
    """
    names = SUBLAYERS[kind]
    for name in names:
        if isinstance(module := getattr(layer, name, None), torch.nn.Module):
            return module
    raise _unknown(model, f"its {type(layer).__name__} has no {kind} named {', '.join(names[:-1])} or {names[-1]}")


def _unknown(model: Any, why: str) -> EngineError:
    return unknown_layers(f"{model.config.model_type} models are not known to this method: {why}")


def unknown_layers(why: str) -> EngineError:
    """The error that a method does not know where to go in a model."""
    return EngineError(
        "tuning-unsupported", why, hint="use `lora`, which adapts every linear layer regardless of its name"
    )


@lru_cache(maxsize=4)
def skeleton(files: ModelFiles) -> Any:
    """The model without its weights: the modules by their names, on torch's `meta` device."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(files.folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        return text_class(config.model_type).from_config(config)


def reason_unknown(files: ModelFiles, find: Callable[[Any], object]) -> str:
    """Why `find` does not know where to go in the model, empty if it does; reads only the configuration."""
    try:
        find(skeleton(files))
    except EngineError as unknown:
        return unknown.message
    return ""


def ia3_targets(model: Any) -> tuple[list[str], list[str]]:
    """The modules that IA3 scales (keys, values, the last of the feed-forward network), and the last of them alone.

    Raises:
        EngineError: neither their names nor PEFT's table say which they are.
    """
    from peft.utils import constants

    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    if {"k_proj", "v_proj", "down_proj"} <= names:
        return ["k_proj", "v_proj", "down_proj"], ["down_proj"]
    kind = model.config.get_text_config().model_type
    targets = constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING.get(kind)
    inner = constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING.get(kind)
    if not targets or not inner:
        raise _unknown(model, "it has no k_proj, v_proj and down_proj, and PEFT does not list what they are called")
    return list(targets), list(inner)
