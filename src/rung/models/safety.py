"""What a model folder may hold: data only. Nothing that runs code when it is loaded, nothing outside the folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rung.errors import ModelError

PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".npy", ".npz"}
CODE = {".py", ".pyc", ".pyd", ".so", ".dll", ".dylib"}
# Vocabularies map arbitrary text to numbers, so the words looked for below mean nothing in them.
VOCABULARIES = {"tokenizer.json", "vocab.json", "added_tokens.json"}


def check_folder(folder: Path) -> None:
    """Refuse a model folder that holds more than data, or lacks readable weights.

    Hidden folders (`.git`, `.cache`) are left out: no loader looks there.

    Raises:
        ModelError: code, `auto_map`, a foreign module class, pickled weights, a path out of the folder, no
            safetensors, or a missing shard. The message names the file.
    """
    allowed = _roots(folder)
    for entry in _entries(folder):
        if entry.is_symlink() and not any(entry.resolve().is_relative_to(root) for root in allowed):
            raise _refused("model-outside", entry, f"is a link to {entry.resolve()}, outside the model's folder")
        suffix = entry.suffix.lower()
        if suffix in CODE:
            raise _refused("model-code", entry, "is code; a model folder may hold data only")
        if suffix in PICKLES and not _is_openvino(entry):
            raise _refused("model-pickle", entry, "can hold pickled objects, which run code when they are loaded")
        if suffix == ".json" and entry.name not in VOCABULARIES:
            _check_json(folder, entry)
    if not weights(folder):
        raise ModelError(
            "no-safetensors",
            f"{folder} holds no weights in safetensors format",
            hint="convert them with `save_pretrained(folder, safe_serialization=True)`, or choose another repository",
        )


def weights(folder: Path) -> list[Path]:
    """Return the safetensors files of a model folder, sorted by path."""
    return sorted(entry for entry in _entries(folder) if entry.suffix == ".safetensors")


def read_json(file: Path) -> Any:
    """Return what a JSON file of a model says.

    Raises:
        ModelError: it is not JSON.
    """
    try:
        return json.loads(file.read_text("utf-8"))
    except ValueError as broken:
        raise ModelError("model-damaged", f"{file} is not JSON: {broken}", hint="download the model again") from broken


def _entries(folder: Path) -> Iterator[Path]:
    """Yield files, and links to folders, below `folder`."""
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (
            Path(parent) / name for name in (*files, *folders) if (Path(parent) / name).is_symlink() or name in files
        )


def _roots(folder: Path) -> list[Path]:
    """Where links may lead: the folder, and for a snapshot of the Hub's cache the blobs beside it."""
    roots = [folder.resolve()]
    if folder.parent.name == "snapshots":
        roots.append((folder.parent.parent / "blobs").resolve())
    return roots


def _is_openvino(file: Path) -> bool:
    """OpenVINO's weights end in .bin and are raw numbers beside their .xml graph."""
    return file.suffix == ".bin" and file.name.startswith("openvino_") and file.with_suffix(".xml").exists()


def _check_json(folder: Path, file: Path) -> None:
    content = read_json(file)
    if _mentions(content, "auto_map"):
        raise _refused("model-code", file, "asks for code of its own (`auto_map`), which Rung never runs")
    if file.name == "modules.json":
        _check_modules(file, content)
    if file.name.endswith(".index.json") and isinstance(content, dict):
        for name in sorted({str(value) for value in content.get("weight_map", {}).values()}):
            _check_shard(folder, file, name)


def _check_modules(file: Path, modules: Any) -> None:
    """sentence-transformers imports the classes that this file names."""
    for module in modules if isinstance(modules, list) else [modules]:
        kind = str(module.get("type", "")) if isinstance(module, dict) else repr(module)
        if not kind.startswith("sentence_transformers."):
            raise _refused("model-code", file, f"names the class {kind!r}, which is not of sentence-transformers")


def _check_shard(folder: Path, index: Path, name: str) -> None:
    if name != Path(name).name:
        raise _refused("model-outside", index, f"names {name!r}, which is not a file beside it")
    if not name.endswith(".safetensors"):
        raise _refused("model-pickle", index, f"names {name!r}, which is not in safetensors format")
    if not (index.parent / name).exists():
        raise ModelError(
            "model-damaged",
            f"{index} names {name}, which is not in {folder}",
            hint="the download or copy was interrupted: fetch the model again",
        )


def _mentions(content: Any, key: str) -> bool:
    if isinstance(content, dict):
        return key in content or any(_mentions(value, key) for value in content.values())
    return isinstance(content, list) and any(_mentions(value, key) for value in content)


def _refused(code: str, file: Path, why: str) -> ModelError:
    return ModelError(code, f"{file} {why}", hint="use a repository with plain safetensors weights, or remove the file")
