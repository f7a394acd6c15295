"""Which adapter a folder holds, by content."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=64)
def adapter_fingerprint(folder: str) -> str:
    """Hash the adapter's weights and settings, so that a copy elsewhere is the same adapter."""
    digest = hashlib.sha256()
    for file in sorted(file for file in Path(folder).iterdir() if file.suffix in (".json", ".safetensors")):
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()
