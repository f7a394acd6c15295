"""Which adapter a folder holds, by content."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from rung.models.cache import file_sha256


@lru_cache(maxsize=64)
def adapter_fingerprint(folder: str) -> str:
    """Return the hash of an adapter that stays as it is, so that a copy elsewhere is the same adapter."""
    return adapter_digest(Path(folder))


def adapter_digest(folder: Path) -> str:
    """Return the sha256 of an adapter's weights and settings, and of the files' names."""
    files = sorted(file for file in folder.iterdir() if file.suffix in (".json", ".safetensors"))
    return hashlib.sha256("\n".join(f"{file.name} {file_sha256(file)}" for file in files).encode()).hexdigest()
