"""JSON that others may have written: bounded in bytes and depth, and every fault is one clear error.

Manifests, settings of models, journals, caches and registries are read here. Rows are not: `rung.data` reads them.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rung.errors import ConfigError, RungError

MAX_BYTES = 256 * 2**20  # the largest files are tokenizers and reports
MAX_DEPTH = 100  # levels; a report has about 10

Damaged = Callable[[str], RungError]  # makes the error from what is wrong: `is not JSON: ...`


def unreadable(file: Path, hint: str = "restore the file from a copy, or remove it") -> Damaged:
    """Makes the errors of a file that Rung wrote itself, and somebody may have changed or damaged."""
    return lambda what: ConfigError("unreadable-file", f"{file} {what}", hint=hint)


def read_bytes(file: Path, damaged: Damaged, most: int = MAX_BYTES) -> bytes:
    """The bytes of a regular file; a pipe or a device, which may never end, is refused before it is opened."""
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise damaged("is not a regular file")
        if status.st_size > most:
            raise damaged(f"has {status.st_size:,} bytes, more than {most:,}")
        with file.open("rb") as stream:
            return stream.read(most + 1)
    except OSError as error:
        raise damaged(f"cannot be read: {error.strerror}") from error


def parse_json(text: str | bytes, damaged: Damaged) -> Any:
    """The value of a JSON text."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise damaged(f"is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as broken:
        raise damaged(f"is not JSON: {broken}") from None
    brackets = (b"[", b"{") if isinstance(text, bytes) else ("[", "{")
    levels, depth = [value] if sum(map(text.count, brackets)) > MAX_DEPTH else [], 0  # type: ignore[arg-type]
    while levels := [item for level in levels if isinstance(level, dict | list)
                     for item in (level.values() if isinstance(level, dict) else level)]:  # fmt: skip
        depth += 1
        if depth > MAX_DEPTH:
            raise damaged(f"is nested deeper than {MAX_DEPTH} levels")
    return value


def read_json(file: Path, damaged: Damaged, most: int = MAX_BYTES) -> Any:
    """The value in a JSON file."""
    return parse_json(read_bytes(file, damaged, most), damaged)


def read_object(file: Path, damaged: Damaged | None = None, most: int = MAX_BYTES) -> dict[str, Any]:
    """The object in a JSON file."""
    damaged = damaged or unreadable(file)
    value = read_json(file, damaged, most)
    if not isinstance(value, dict):
        raise damaged("is not a JSON object")
    return value


def objects_of_lines(data: bytes, file: Path) -> Iterator[dict[str, Any]]:
    """The objects in the lines of a file that Rung writes; an error names the line."""
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line:
            damaged = unreadable(Path(f"{file}:{number}"), "remove this line: what it recorded is made again")
            value = parse_json(line, damaged)
            if not isinstance(value, dict):
                raise damaged("is not a JSON object")
            yield value
