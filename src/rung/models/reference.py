"""Model references: what a user may write for a model, and the checked folder that it names."""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from rung.errors import ConfigError, ModelError
from rung.models import embedded, gguf, hub
from rung.models.cache import fingerprint
from rung.models.hub import check_folder, head_weights, is_static, loaded_weights, read_settings, text_settings
from rung.progress import QUIET, Progress

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
FORMS = (
    "write `embedded`, `builtin:NAME`, a folder, a .gguf file, a Hub id (org/name or org/name@revision), or "
    "http://HOST/v1#MODEL"
)
SETTINGS = ("*.json", "*.jinja", "[!.]*/config.json")  # configuration, tokenizer, template, pooling
MAX_CARD = 100_000  # characters of a model card that are read
ANY_LENGTH = 1 << 20  # tokens of a text, where a model attends to none
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model on disk, checked.

    The `fingerprint` changes with the model: a sha256 over its weights and all settings beside them; for models that
    Rung converts, over their source files, so that it is the same on every machine.
    """

    reference: str  # what the user wrote
    folder: Path  # holds config.json, safetensors weights and tokenizer.json
    fingerprint: str
    name: str  # a short one for display
    parameters: int  # number of weights, tied ones once
    context: int  # number of tokens that the model can attend to
    architecture: str  # as config.json names it, such as `LlamaForCausalLM`
    licence: str | None  # as the model card names it, such as `apache-2.0`

    @property
    def place(self) -> str:
        """What the user has of it: a GGUF file, and not the folder that Rung converts it to, else its folder."""
        return self.reference if self.reference.lower().endswith(".gguf") else str(self.folder)


def is_endpoint(reference: str) -> bool:
    """Whether a reference means a model at an API: `http(s)://HOST/v1#MODEL`."""
    return reference.startswith(("http://", "https://"))


def resolve(reference: str, *, progress: Progress = QUIET) -> ModelFiles:
    """The checked files of a model, downloaded and converted at the first call.

    Raises:
        ConfigError: the reference is an endpoint (`engine-mismatch`), which has no files.
        ModelError: no such model, it is unsafe or damaged, or it is not in the cache and the network is off.
    """
    if is_endpoint(reference):
        problem = f"{reference} is an endpoint: its model has no files on this machine"
        hint = "engines run endpoints; rungs that train need a model on this machine, such as `embedded`"
        raise ConfigError("engine-mismatch", problem, hint=hint)
    path = Path(reference).expanduser()
    if (model := embedded.find(reference)) is not None:
        folder = embedded.ensure(model, progress=progress)
        return _describe(reference, folder, model.name, embedded.fingerprint_of(model), model.licence)
    if path.is_dir():
        return _describe(reference, path.absolute(), path.absolute().name)
    if path.suffix.lower() == ".gguf" and path.is_file():
        folder, identity = gguf.ensure(path.absolute(), progress=progress)
        return _describe(reference, folder, path.stem, identity)
    if path.is_file():
        raise _other_file(path)
    if _is_hub_id(reference):
        name, _, revision = reference.partition("@")
        return _describe(reference, hub.ensure(name, revision or None, progress=progress), name.split("/")[1])
    raise _unknown(reference, path)


def is_cached(reference: str) -> bool:
    """Whether `resolve(reference)` needs no download."""
    if (model := embedded.find(reference)) is not None:
        return embedded.folder_of(model).exists()
    if Path(reference).expanduser().exists() or not _is_hub_id(reference):
        return True
    name, _, revision = reference.partition("@")
    return hub.cached(name, revision or None) is not None


def hub_name(reference: str) -> str | None:
    """The Hub id that a reference means, without its revision, or None where it means something else."""
    if is_endpoint(reference) or embedded.find(reference) is not None or Path(reference).expanduser().exists():
        return None
    return reference.partition("@")[0] if _is_hub_id(reference) else None


def _is_hub_id(reference: str) -> bool:
    path_like = reference.startswith((".", "/", "~")) or reference.lower().endswith(".gguf")
    return not path_like and HUB_ID.fullmatch(reference) is not None


def _other_file(path: Path) -> ModelError:
    with path.open("rb") as stream:
        is_gguf = stream.read(4) == b"GGUF"
    what, hint = "a file and no model", f"name the folder of a model, not one of its files; {FORMS}"
    if is_gguf:
        what = "a GGUF file, and its name does not end in .gguf"
        hint = "rename it; if it is a piece of a file, join all pieces first: cat NAME.gguf.part* > NAME.gguf"
    return ModelError("unknown-model", f"{path} is {what}", hint=hint)


def _unknown(reference: str, path: Path) -> ModelError:
    names = [name for model in embedded.EMBEDDED for name in (model.reference, model.name)]
    if path.parent.is_dir():
        names += [str(path.parent / entry.name) for entry in path.parent.iterdir()]
    close = difflib.get_close_matches(reference, names, 1, 0.6)
    guess = f"did you mean {close[0]!r}? Otherwise " if close else ""
    return ModelError("unknown-model", f"no model is named {reference!r}", hint=guess + FORMS)


def _describe(
    reference: str, folder: Path, name: str, identity: str | None = None, licence: str | None = None
) -> ModelFiles:
    check_folder(folder)
    static = is_static(folder)
    if not static and not (folder / "config.json").exists():
        hint = "name the folder that holds config.json; an adapter's folder is not a model"
        raise ModelError("model-damaged", f"{folder} has no config.json", hint=hint)
    config = {} if static else read_settings(folder / "config.json")
    if not (weights := loaded_weights(folder)):
        found = [str(file.relative_to(folder)) for file in hub.weights(folder)]
        problem = f"{folder} holds no model.safetensors and no model.safetensors.index.json, but {', '.join(found[:3])}"
        hint = (
            "fetch the index too, which says in which part each tensor is; a file that holds all is model.safetensors"
        )
        raise ModelError("model-damaged", problem, hint=hint)
    if identity is None:
        settings = (file for pattern in SETTINGS for file in folder.glob(pattern))
        identity = fingerprint([*settings, *weights, *head_weights(folder)])
    named = config.get("architectures")
    architecture = (
        "StaticEmbedding"
        if static
        else str(named[0] if isinstance(named, list) and named else config.get("model_type", "unknown"))
    )
    parameters, context = sum(map(_parameters, weights)), ANY_LENGTH if static else _context(folder, config)
    licence = licence or _licence(folder)
    return ModelFiles(reference, folder, identity, name, parameters, context, architecture, licence)


def _parameters(file: Path) -> int:
    """Count the weights of a safetensors file from its header."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as tensors:
            slices = [tensors.get_slice(name) for name in tensors.keys()]  # noqa: SIM118
            return sum(prod(s.get_shape()) for s in slices if not s.get_dtype().startswith(("I", "U", "BOOL")))
    except SafetensorError as broken:
        raise ModelError("model-damaged", f"{file}: {broken}", hint="download the model again") from broken


def _context(folder: Path, config: dict[str, Any]) -> int:
    if (file := folder / "sentence_bert_config.json").exists():
        length = read_settings(file).get("max_seq_length")
        if isinstance(length, int):
            return length
    text = config.get("text_config")
    for values in (config, text if isinstance(text, dict) else {}):
        for key in CONTEXT_KEYS:
            if isinstance(values.get(key), int) and values[key] > 0:
                return int(values[key])
    problem = f"{folder / 'config.json'} does not say how many tokens the model can read"
    raise ModelError("context-unknown", problem, hint='add "max_position_embeddings" to it')


def _licence(folder: Path) -> str | None:
    """Read `license:` from the front matter of the model card."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    with card.open(encoding="utf-8", errors="replace") as file:
        parts = file.read(MAX_CARD).split("---", 2)
    if len(parts) < 3 or parts[0].strip():
        return None
    line = re.search(r"^license:\s*(\S+)", parts[1], re.MULTILINE)
    return line[1].strip("'\"") if line else None


# ---- a language model's layers, from the names of its tensors, without loading weights

LAYER = re.compile(r"(.+?)\.(\d+)\.")  # `model.layers.3.mlp.down_proj.weight`: the first number counts the layers
NORM = re.compile(r"(\w{0,80}norm\w{0,80}|ln_f)\.(weight|bias)")


def tensor_sizes(folder: Path) -> dict[str, int]:
    """How many numbers each tensor of a model holds, from the headers of its files."""
    from safetensors import safe_open

    sizes: dict[str, int] = {}
    for file in loaded_weights(folder):
        with safe_open(file, framework="np") as tensors:
            sizes |= {name: prod(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    return sizes


def output_size(folder: Path) -> int:
    """How many weights the output layer has, also where it shares them with the input embeddings."""
    values = text_settings(folder)
    return int(values["vocab_size"] * values.get("hidden_size", values.get("n_embd", 0)))


def layer_list(sizes: Mapping[str, int]) -> tuple[str, int]:
    """The name of the list of decoder layers, such as `model.layers`, and its length, from the sizes of all tensors.

    It is the largest list where a model has several (one of a vision tower).

    Raises:
        ModelError: no tensor is named like a layer.
    """
    total: defaultdict[str, int] = defaultdict(int)
    depth: defaultdict[str, int] = defaultdict(int)
    for name, size in sizes.items():
        if layer := LAYER.match(name):
            total[layer[1]] += size
            depth[layer[1]] = max(depth[layer[1]], int(layer[2]) + 1)
    if not total:
        problem, hint = "none of the model's tensors is named like a layer", "train all of it: `--rungs full`"
        raise ModelError("tuning-unsupported", problem, hint=hint)
    name = max(total, key=total.__getitem__)
    return name, depth[name]


def last_layers(sizes: Mapping[str, int], count: int) -> frozenset[str]:
    """The names of the tensors of the last `count` layers and of the final norm."""
    layers, depth = layer_list(sizes)
    parent = layers.rpartition(".")[0]
    matches = {name: LAYER.match(name) for name in sizes}
    last = {name for name, m in matches.items() if m and m[1] == layers and int(m[2]) >= depth - count}
    norms = {name for name in sizes if name.startswith(parent) and NORM.fullmatch(name[len(parent) :].lstrip("."))}
    return frozenset(last | {name for name in norms if "embed" not in name})
