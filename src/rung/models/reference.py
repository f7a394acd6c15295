"""Model references: what a user may write for a model, and the checked folder that it stands for."""

from __future__ import annotations

import difflib
import json
import math
import re
import struct
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from rung.errors import ConfigError, ModelError
from rung.models import embedded, gguf, hub
from rung.models.cache import fingerprint
from rung.models.hub import check_folder
from rung.models.tokenizer import chat_template_of
from rung.progress import QUIET, Progress

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
FORMS = "write `embedded`, a folder, a .gguf file, a Hub id (org/name or org/name@revision), or http://HOST/v1#MODEL"
SETTINGS = ("*.json", "*.jinja", "[!.]*/config.json")  # configuration, tokenizer, template, pooling
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model on disk, checked.

    Attributes:
        reference: what the user wrote.
        folder: holds config.json, safetensors weights and tokenizer.json.
        fingerprint: changes when the model does: a sha256 over its weights and all settings beside them; for models
            converted by Rung over their source files, so that it is the same on every machine.
        name: short, for people.
        parameters: number of weights, tied ones once.
        context: number of tokens that the model can attend to.
        architecture: as config.json names it, such as `LlamaForCausalLM`.
        licence: as the model card names it, such as `apache-2.0`.
        has_chat_template: whether messages are rendered by a template of the model's own.
    """

    reference: str
    folder: Path
    fingerprint: str
    name: str
    parameters: int
    context: int
    architecture: str
    licence: str | None
    has_chat_template: bool


def is_endpoint(reference: str) -> bool:
    """Tell whether a reference means a model behind an API: `http(s)://HOST/v1#MODEL`."""
    return reference.startswith(("http://", "https://"))


def resolve(reference: str, *, progress: Progress = QUIET) -> ModelFiles:
    """Return the checked files of a model, fetching and converting them first where that was not done yet.

    Raises:
        ConfigError: the reference is an endpoint (`engine-mismatch`), which has no files.
        ModelError: no such model, it is unsafe or damaged, or it is not in the cache and the network is off.
    """
    if is_endpoint(reference):
        raise ConfigError(
            "engine-mismatch",
            f"{reference} is an endpoint: its model has no files here",
            hint="engines run endpoints; rungs that train need a model on this machine, such as `embedded`",
        )
    path = Path(reference).expanduser()
    if (model := embedded.find(reference)) is not None:
        folder = embedded.ensure(model, progress=progress)
        return _describe(reference, folder, model.name, embedded.fingerprint_of(model), model.licence)
    if path.is_dir():
        return _describe(reference, path.absolute(), path.absolute().name)
    if path.suffix.lower() == ".gguf" and path.is_file():
        folder, identity = gguf.ensure(path.absolute(), progress=progress)
        return _describe(reference, folder, path.stem, identity)
    if _is_hub_id(reference):
        name, _, revision = reference.partition("@")
        return _describe(reference, hub.ensure(name, revision or None, progress=progress), name.split("/")[1])
    raise _unknown(reference, path)


def is_cached(reference: str) -> bool:
    """Tell whether `resolve(reference)` needs no download."""
    if (model := embedded.find(reference)) is not None:
        return embedded.folder_of(model).exists()
    if Path(reference).expanduser().exists() or not _is_hub_id(reference):
        return True
    name, _, revision = reference.partition("@")
    return hub.cached(name, revision or None) is not None


def hub_name(reference: str) -> str | None:
    """Return the Hub id that a reference means, without its revision, or None where it means something else."""
    if is_endpoint(reference) or embedded.find(reference) is not None or Path(reference).expanduser().exists():
        return None
    return reference.partition("@")[0] if _is_hub_id(reference) else None


def _is_hub_id(reference: str) -> bool:
    path_like = reference.startswith((".", "/", "~")) or reference.lower().endswith(".gguf")
    return not path_like and HUB_ID.fullmatch(reference) is not None


def _unknown(reference: str, path: Path) -> ModelError:
    names = [name for model in embedded.EMBEDDED for name in (model.alias, model.name)]
    if path.parent.is_dir():
        names += [str(path.parent / entry.name) for entry in path.parent.iterdir()]
    close = difflib.get_close_matches(reference, names, 1, 0.6)
    guess = f"did you mean {close[0]!r}? Otherwise " if close else ""
    return ModelError("unknown-model", f"no model is known or found as {reference!r}", hint=guess + FORMS)


def _describe(
    reference: str, folder: Path, name: str, identity: str | None = None, licence: str | None = None
) -> ModelFiles:
    check_folder(folder)
    config = _config(folder)
    weights = sorted(folder.glob("*.safetensors"))
    if identity is None:
        settings = (file for pattern in SETTINGS for file in folder.glob(pattern))
        identity = fingerprint([*settings, *weights])
    return ModelFiles(
        reference=reference,
        folder=folder,
        fingerprint=identity,
        name=name,
        parameters=sum(map(_parameters, weights)),
        context=_context(folder, config),
        architecture=str((config.get("architectures") or [config.get("model_type", "unknown")])[0]),
        licence=licence or _licence(folder),
        has_chat_template=chat_template_of(folder) is not None,
    )


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.exists():
        hint = "name the folder that holds config.json; an adapter's folder is not a model"
        raise ModelError("model-damaged", f"{folder} has no config.json", hint=hint)
    config: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return config


def _parameters(file: Path) -> int:
    """Count the weights of a safetensors file from its header: a length of 8 bytes, then JSON."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > file.stat().st_size:
                raise ValueError("the header is longer than the file")
            header = json.loads(stream.read(length))
        tensors = [value for name, value in header.items() if name != "__metadata__"]
        end = max((tensor["data_offsets"][1] for tensor in tensors), default=0)
        if 8 + length + end != file.stat().st_size:
            raise ValueError("it is cut short or too long")
        return sum(
            math.prod(tensor["shape"]) for tensor in tensors if not tensor["dtype"].startswith(("I", "U", "BOOL"))
        )
    except (struct.error, ValueError, KeyError, TypeError) as broken:
        raise ModelError("model-damaged", f"{file}: {broken}", hint="fetch the model again") from broken


def _context(folder: Path, config: dict[str, Any]) -> int:
    if (file := folder / "sentence_bert_config.json").exists():
        length = json.loads(file.read_text("utf-8")).get("max_seq_length")
        if isinstance(length, int):
            return length
    for values in (config, config.get("text_config") or {}):
        for key in CONTEXT_KEYS:
            if isinstance(values.get(key), int):
                return int(values[key])
    raise ModelError(
        "context-unknown",
        f"{folder / 'config.json'} does not say how many tokens the model can read",
        hint='add "max_position_embeddings" to it',
    )


def _licence(folder: Path) -> str | None:
    """Read `license:` from the front matter of the model card."""
    card = folder / "README.md"
    if not card.exists():
        return None
    parts = card.read_text("utf-8", errors="replace").split("---", 2)
    found = (
        re.search(r"^license:\s*(\S+)", parts[1], re.MULTILINE) if len(parts) == 3 and not parts[0].strip() else None
    )
    return found[1].strip("'\"") if found else None


# --------------------
# Where a language model's layers are, told from the names of its tensors: no weights are loaded for it.


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
            "tuning-unsupported",
            "none of the model's tensors is named like a layer",
            hint="train all of it: `--rungs full`",
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
