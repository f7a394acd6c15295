"""Rows for a tiny model whose tokenizer knows the letters a, b and c, and what it cannot read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TOO_LONG = "abc" * 400  # more tokens than the tiny model reads


def write_rows(file: Path, count: int, poisoned: tuple[int, ...] = ()) -> Path:
    """Rows that all differ; the model cannot read the poisoned ones."""
    with file.open("w") as out:
        out.write("id,text\n")
        for i in range(count):
            text = "".join("abc "[i >> 2 * bit & 3] for bit in range(8)) + "b"
            out.write(f"{i},{TOO_LONG if i in poisoned else text}\n")
    return file


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text("utf-8").splitlines()]
