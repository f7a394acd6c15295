"""Fingerprints of model files, remembered so that a file that did not change is hashed once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from rung.models.cache import cache_dir, write_atomically


def file_sha256(file: Path) -> str:
    """Return the sha256 of one file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fingerprint(folder: Path, files: Iterable[Path]) -> str:
    """Return one sha256 over the names (below `folder`) and contents of `files`.

    The answer is remembered in the cache and trusted as long as path, size and modification time of every file stay.
    """
    ordered = sorted(files, key=lambda file: file.relative_to(folder).as_posix())
    state = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in ordered]
    key = hashlib.sha256(json.dumps([str(file.absolute()) for file in ordered]).encode()).hexdigest()
    memory = cache_dir() / "fingerprints" / f"{key}.json"
    if memory.exists():
        known = json.loads(memory.read_text("utf-8"))
        if known["files"] == state:
            return str(known["sha256"])
    digest = hashlib.sha256()
    for file in ordered:
        digest.update(f"{file.relative_to(folder).as_posix()} {file_sha256(file)}\n".encode())
    write_atomically(memory, json.dumps({"files": state, "sha256": digest.hexdigest()}))
    return digest.hexdigest()


def remembered_sha256(file: Path) -> str:
    """Return the sha256 of one file's content, whatever its name, remembered likewise."""
    stat = file.stat()
    state = [str(file.resolve()), stat.st_size, stat.st_mtime_ns]
    memory = cache_dir() / "fingerprints" / f"{hashlib.sha256(json.dumps(state).encode()).hexdigest()}.json"
    if memory.exists():
        return str(json.loads(memory.read_text("utf-8"))["sha256"])
    found = file_sha256(file)
    write_atomically(memory, json.dumps({"files": state, "sha256": found}))
    return found
