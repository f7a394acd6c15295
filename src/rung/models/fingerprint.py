"""Fingerprints of model files, remembered so that a file that did not change is hashed once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from rung.models.cache import cache_dir, write_atomically


def file_sha256(file: Path) -> str:
    """Return the sha256 of one file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def known_sha256(file: Path) -> str:
    """Return the sha256 of one file; a remembered one as long as its path, size and modification time stay."""
    file = file.resolve()
    status = file.stat()
    state = [str(file), status.st_size, status.st_mtime_ns]
    memory = cache_dir() / "sha256" / f"{hashlib.sha256(str(file).encode()).hexdigest()[:32]}.json"
    if memory.exists():
        known = json.loads(memory.read_text("utf-8"))
        if known["file"] == state:
            return str(known["sha256"])
    digest = file_sha256(file)
    write_atomically(memory, json.dumps({"file": state, "sha256": digest}))
    return digest


def fingerprint(files: Sequence[Path]) -> str:
    """Return one sha256 over the names and contents of `files`, whatever their order."""
    lines = sorted(f"{file.name} {known_sha256(file)}" for file in files)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
