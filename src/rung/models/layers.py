"""Where a language model's layers are, told from the names of its tensors: no weights are loaded for it."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from math import prod
from pathlib import Path

from rung.errors import ModelError

LAYER = re.compile(r"(.+?)\.(\d+)\.")  # `model.layers.3.mlp.down_proj.weight`: the first number counts the layers
NORM = re.compile(r"(\w*norm\w*|ln_f)\.(weight|bias)")


def tensor_sizes(folder: Path) -> dict[str, int]:
    """Return how many numbers each tensor of a model's safetensors files holds, from their headers."""
    from safetensors import safe_open

    sizes: dict[str, int] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="np") as tensors:
            sizes |= {name: prod(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    return sizes


def output_size(folder: Path) -> int:
    """Return how many weights the output layer has, its own or shared with the input embeddings."""
    values = json.loads((folder / "config.json").read_text("utf-8"))
    values = values.get("text_config") or values
    return int(values["vocab_size"] * values.get("hidden_size", values.get("n_embd", 0)))


def layer_list(sizes: Mapping[str, int]) -> tuple[str, int]:
    """Return the name of the list of decoder layers, such as `model.layers`, and its length.

    Where a model has several (one of a vision tower), it is the largest.

    Args:
        sizes: numbers in each of the model's tensors, by name.

    Raises:
        ModelError: nothing is named like a layer.
    """
    total: defaultdict[str, int] = defaultdict(int)
    depth: defaultdict[str, int] = defaultdict(int)
    for name, size in sizes.items():
        if found := LAYER.match(name):
            total[found[1]] += size
            depth[found[1]] = max(depth[found[1]], int(found[2]) + 1)
    if not total:
        raise ModelError(
            "no-layers", "none of the model's tensors is named like a layer", hint="train all of it: `--rungs full`"
        )
    name = max(total, key=total.__getitem__)
    return name, depth[name]


def last_layers(sizes: Mapping[str, int], count: int) -> frozenset[str]:
    """Return the names of the tensors of the last `count` layers and of the final norm."""
    layers, depth = layer_list(sizes)
    beside = layers.rpartition(".")[0]
    chosen = {
        name for name in sizes if (found := LAYER.match(name)) and found[1] == layers and int(found[2]) >= depth - count
    }
    norms = {name for name in sizes if name.startswith(beside) and NORM.fullmatch(name[len(beside) :].lstrip("."))}
    return frozenset(chosen | {name for name in norms if "embed" not in name})
