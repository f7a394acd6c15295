"""What a model folder may hold: data only. Code and pickles are refused before any library reads the folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rung.errors import ModelError

PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".msgpack", ".h5"}
CODE = {".py", ".pyc", ".so"}
SAFE = "publish or convert the model as safetensors, or copy only its .json and .safetensors files to a new folder"


def check_folder(folder: Path) -> None:
    """Refuse a model folder that could run code, read other files, or has no safetensors weights.

    Refused: `.py` files, `auto_map` in any JSON file, weights in pickle formats, links and `weight_map` entries that
    leave the folder (the links of a Hugging Face cache to its own `blobs` may).

    Raises:
        ModelError: `unsafe-model`, naming the file; `no-weights` where there is no safetensors file.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    for file in files:
        _check_place(file, folder)
        suffix = file.suffix.lower()
        if suffix in CODE:
            raise _unsafe(file, "is code", "Rung never runs code from a model folder: remove it if it is not needed")
        if suffix in PICKLES and not _is_openvino(file):
            raise _unsafe(file, "may be a pickle, which can run code when it is loaded", SAFE)
        if suffix == ".json":
            _check_json(file, folder)
    if not any(file.suffix == ".safetensors" and file.parent == folder for file in files):
        raise ModelError("no-weights", f"{folder} holds no .safetensors file", hint=SAFE)


def _check_place(file: Path, folder: Path) -> None:
    if not file.exists():
        raise _unsafe(file, "is a broken link", "fetch the model again")
    allowed = [folder.resolve()]
    if folder.parent.name == "snapshots":  # models--org--name/snapshots/REVISION/file -> ../../blobs/HASH
        allowed.append((folder.parent.parent / "blobs").resolve())
    if not any(file.resolve().is_relative_to(place) for place in allowed):
        raise _unsafe(file, f"leads out of the folder, to {file.resolve()}", "copy the file itself into the folder")


def _is_openvino(file: Path) -> bool:
    """OpenVINO keeps plain arrays in `name.bin` beside `name.xml`."""
    return file.suffix == ".bin" and file.with_suffix(".xml").exists()


def _check_json(file: Path, folder: Path) -> None:
    try:
        values = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as broken:
        raise ModelError("model-damaged", f"{file} is not JSON: {broken}", hint="fetch the model again") from broken
    if not isinstance(values, dict):
        return
    if _has_auto_map(values):
        hint = "use a model whose architecture is part of transformers: Rung never runs code from a model folder"
        raise _unsafe(file, "asks for code from the model's author (auto_map)", hint)
    for part in set((values.get("weight_map") or {}).values()) if file.name.endswith(".index.json") else ():
        place = file.parent / str(part)
        if Path(str(part)).is_absolute() or ".." in Path(str(part)).parts or not str(part).endswith(".safetensors"):
            raise _unsafe(file, f"points to weights outside of the folder or not in safetensors: {part}", SAFE)
        if not place.exists():
            raise ModelError("model-damaged", f"{folder} lacks {part}, which {file.name} names", hint="fetch it again")


def _has_auto_map(values: Any, depth: int = 0) -> bool:
    """Look into nested configurations too; a vocabulary may contain the word, so only an object or text counts."""
    if not isinstance(values, dict) or depth > 4:
        return False
    if isinstance(values.get("auto_map"), dict | str | list):
        return True
    return any(_has_auto_map(value, depth + 1) for value in values.values())


def _unsafe(file: Path, why: str, hint: str) -> ModelError:
    return ModelError("unsafe-model", f"{file} {why}", hint=hint)
