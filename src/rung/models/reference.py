"""Model references: what a user writes for a model becomes a checked local folder and its facts.

| reference | is |
|---|---|
| `embedded`, `embedded-encoder`, or their names | the models that come from the package index |
| `./folder`, `/path/folder` | a local folder in Hugging Face format |
| `./file.gguf` | a GGUF file, converted once |
| `org/name`, `org/name@revision` | a model of the Hugging Face Hub, from its local cache where it is there |
| `http(s)://HOST/v1#MODEL` | an OpenAI-compatible endpoint: engines speak to it, nothing is resolved here |
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rung.errors import ConfigError, ModelError
from rung.models import catalogue, embedded, gguf, hub
from rung.models.fingerprint import fingerprint
from rung.models.safety import check_folder, read_json, weights
from rung.models.tokenizer import chat_template_of
from rung.progress import QUIET, Progress

UNBOUNDED = 1 << 20  # the context of models that state none, such as recurrent ones
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model on this disk.

    Attributes:
        reference: what the user wrote.
        folder: its files, in Hugging Face format, checked by `rung.models.safety`.
        fingerprint: sha256 that changes when weights, configuration or tokenizer change; the same on every machine.
        name: for people.
        parameters: number of weights, tied ones counted once.
        context: tokens that it can read and write together.
        architecture: class name, as its config.json says.
        licence: as its model card says, if it does.
        has_chat_template: whether it knows chat turns; without, it completes plain text.
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
    """Tell whether a reference means an OpenAI-compatible server."""
    return reference.startswith(("http://", "https://"))


def resolve(reference: str, *, progress: Progress = QUIET) -> ModelFiles:
    """Return the model's folder and facts, downloading or converting it where that was not done before.

    Raises:
        ConfigError: the reference is an endpoint.
        ModelError: there is no such model, it cannot be fetched, or its folder is not safe or not complete.
    """
    if is_endpoint(reference):
        raise ConfigError(
            "model-endpoint",
            f"{reference} is an endpoint: it has no local files",
            hint="techniques that need weights or a tokenizer need a local model, such as `embedded`",
        )
    if known := catalogue.find(reference):
        folder = embedded.ensure(known, progress=progress)
        return _describe(
            reference, folder, known.name, fingerprint=embedded.fingerprint_of(known), licence=known.licence
        )
    path = Path(reference).expanduser()
    if path.is_dir():
        check_folder(path)
        return _describe(reference, path.absolute(), path.resolve().name)
    if path.suffix.lower() == ".gguf" and path.is_file():
        folder, mark = gguf.ensure(path, progress=progress)
        return _describe(reference, folder, path.stem, fingerprint=mark)
    if hub.is_hub_id(reference) and path.suffix.lower() != ".gguf":
        folder = hub.ensure(reference, progress=progress)
        return _describe(reference, folder, reference)
    raise _unknown(reference, path)


def _describe(
    reference: str, folder: Path, name: str, *, fingerprint: str | None = None, licence: str | None = None
) -> ModelFiles:
    config = read_json(_config_file(folder))
    return ModelFiles(
        reference=reference,
        folder=folder,
        fingerprint=fingerprint or fingerprint_of(folder),
        name=name,
        parameters=sum(_parameters(file) for file in weights(folder)),
        context=_context(folder, config),
        architecture=(config.get("architectures") or [config.get("model_type", "unknown")])[0],
        licence=licence or _licence(folder),
        has_chat_template=chat_template_of(folder) is not None,
    )


def fingerprint_of(folder: Path) -> str:
    """Return one sha256 over everything in a model folder that can change its answers."""
    files = {file for pattern in ("*.json", "*.jinja", "*.model", "*/config.json") for file in folder.glob(pattern)}
    return fingerprint(folder, [*files, *weights(folder)])


def _config_file(folder: Path) -> Path:
    """Return config.json; sentence-transformers may keep it in the folder of their first module."""
    first = [folder]
    if (folder / "modules.json").exists():
        first += [folder / str(module.get("path", "")) for module in read_json(folder / "modules.json")[:1]]
    for place in first:
        if (place / "config.json").exists():
            return place / "config.json"
    raise ModelError(
        "not-a-model", f"{folder} holds no config.json", hint="name the folder that `save_pretrained` wrote"
    )


def _parameters(file: Path) -> int:
    """Count the floating-point numbers in a safetensors file from its header alone.

    The header is its length as a 64-bit little-endian number, then JSON (https://github.com/huggingface/safetensors).
    """
    with file.open("rb") as stream:
        try:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > file.stat().st_size:
                raise ValueError("its header is cut off")
            header = json.loads(stream.read(length))
        except (struct.error, ValueError) as broken:
            raise ModelError(
                "model-damaged", f"{file} is not a safetensors file: {broken}", hint="fetch the model again"
            ) from broken
    tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
    return sum(math.prod(tensor["shape"]) for tensor in tensors if tensor["dtype"].startswith(("F", "BF")))


def _context(folder: Path, config: Mapping[str, Any]) -> int:
    encoder = folder / "sentence_bert_config.json"
    if encoder.exists() and (limit := read_json(encoder).get("max_seq_length")):
        return int(limit)
    for part in (config, config.get("text_config") or {}):
        for key in CONTEXT_KEYS:
            if isinstance(part.get(key), int):
                return int(part[key])
    settings = folder / "tokenizer_config.json"
    stated = read_json(settings).get("model_max_length") if settings.exists() else None
    return int(stated) if stated and stated < UNBOUNDED else UNBOUNDED


def _licence(folder: Path) -> str | None:
    """Read the licence from the front matter of the model card."""
    card = folder / "README.md"
    front = re.match(r"---\s*\n(.*?)\n---", card.read_text("utf-8", errors="replace"), re.S) if card.exists() else None
    found = re.search(r"^license:\s*([\w.-]+)\s*$", front[1], re.M) if front else None
    return found[1] if found else None


def _unknown(reference: str, path: Path) -> ModelError:
    names = [name for model in catalogue.EMBEDDED for name in (model.alias, model.name)]
    if path.parent.is_dir():
        beside = (entry for entry in path.parent.iterdir() if entry.is_dir() or entry.suffix == ".gguf")
        names += [str(path.parent / entry.name) for entry in beside if not entry.name.startswith(".")]
    close = difflib.get_close_matches(reference, names, n=1, cutoff=0.6)
    return ModelError(
        "unknown-model",
        f"there is no model {reference!r}" + (f" (did you mean {close[0]!r}?)" if close else ""),
        hint="name `embedded`, a model folder, a .gguf file, a Hub id such as org/name, or http(s)://HOST/v1#MODEL",
    )
