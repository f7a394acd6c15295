"""GGUF files become ordinary model folders: fp32 safetensors, config.json and a tokenizer.json of our own making.

Reading a GGUF file costs tens of seconds at every start; the folder costs one. The weights are read back by
transformers, whose tensor maps cover its supported architectures; the tokenizer is not left to it (see
`rung.models.gguf_tokenizer`).
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rung.errors import ModelError, needed_by
from rung.models import gguf_tokenizer
from rung.models.cache import cache_dir, publish
from rung.models.fingerprint import known_sha256
from rung.progress import QUIET, Progress

CONVERSION = 1  # raise it when converted folders change: it is part of their name and fingerprint


def ensure(file: Path, *, progress: Progress = QUIET) -> tuple[Path, str]:
    """Return the converted folder of a GGUF file and its fingerprint, converting at the first call.

    Raises:
        ModelError: the file is not GGUF, or its architecture or tokenizer is not supported.
    """
    source = f"{known_sha256(file)}-{CONVERSION}"
    folder = cache_dir() / "models" / f"gguf-{source}"
    if not folder.exists():
        publish(folder, lambda target: convert(file, target, progress=progress))
    return folder, f"gguf-{source}"


def convert(file: Path, folder: Path, *, licence: str | None = None, progress: Progress = QUIET) -> None:
    """Write the model of a GGUF file to an existing `folder`.

    Raises:
        ModelError: as `ensure`.
    """
    progress.start(f"converting {file.name} to safetensors (once)")
    metadata = read_metadata(file)
    tokenizer = gguf_tokenizer.build(metadata, file.name)
    tokenizer.save(folder)
    _convert_weights(file, folder)
    special = {f"{role}_token_id": i for role, i in tokenizer.special.items() if role != "unk"}
    _write_json(folder / "generation_config.json", special)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    _write_json(folder / "config.json", {**config, **special})
    _write_card(folder, file.name, licence or metadata.get("general.license"))
    progress.finish()


def read_metadata(file: Path) -> dict[str, Any]:
    """Return the key-value part of a GGUF file as plain Python values.

    Raises:
        ModelError: the gguf package is missing, or the file is damaged or not GGUF.
    """
    with needed_by("reading a GGUF file", error=ModelError):
        from gguf import GGUFReader
    try:
        reader = GGUFReader(file)
        return {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    except (ValueError, IndexError, OSError, KeyError) as broken:
        raise ModelError(
            "gguf-unreadable", f"{file} cannot be read as GGUF: {broken}", hint="download the file again"
        ) from broken


def _convert_weights(file: Path, folder: Path) -> None:
    with needed_by("reading a GGUF file", error=ModelError):
        import torch
        from transformers import AutoModelForCausalLM
    try:
        # transformers draws a progress bar per tensor that cannot be switched off; errors come as exceptions.
        with contextlib.redirect_stderr(io.StringIO()):
            model = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=torch.float32, local_files_only=True, trust_remote_code=False
            )
    except (ValueError, NotImplementedError, KeyError) as unsupported:
        raise ModelError(
            "gguf-unsupported",
            f"{file}: {unsupported}",
            hint="use the model's original safetensors folder or Hub id instead of the GGUF file",
        ) from unsupported
    with contextlib.redirect_stderr(io.StringIO()):
        model.save_pretrained(folder, safe_serialization=True)


def _write_card(folder: Path, name: str, licence: str | None) -> None:
    front = f"---\nlicense: {licence}\n---\n\n" if licence else ""
    (folder / "README.md").write_text(f"{front}Converted by Rung from {name}.\n", encoding="utf-8")


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
