"""Answer a whole file: in bounded memory, line by line, going on where an earlier run stopped."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any

from rung.artifact import Artifact
from rung.data.sources import read_rows
from rung.errors import DataError
from rung.progress import QUIET, Progress

BATCH = 64  # rows answered together and written before the next are read


def predict_file(artifact: Artifact, data: Path, out: Path | None, *, progress: Progress = QUIET) -> int:
    """Answer the rows of `data` as JSON lines {"row", "output", "confidence"}, to `out` or stdout.

    Lines that `out` already holds are kept and their rows skipped; a torn last line is made anew.

    Returns:
        The number of rows answered now.

    Raises:
        DataError: a row lacks an input column.
    """
    done = 0 if out is None else _whole_lines(out)
    rows = ((record.source, record.values) for record in read_rows(data))
    answered = 0
    progress.start("answering")
    target = sys.stdout if out is None else out.open("a", encoding="utf-8")
    try:
        remaining = islice(rows, done, None)
        for batch in _batched(remaining):
            _write(artifact, batch, target)
            answered += len(batch)
            progress.advance(len(batch))
    finally:
        if out is not None:
            target.close()
    progress.finish()
    return answered


def _batched(rows: Iterator[tuple[str, dict[str, Any]]]) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    while batch := list(islice(rows, BATCH)):
        yield batch


def _write(artifact: Artifact, batch: Sequence[tuple[str, dict[str, Any]]], target: IO[str]) -> None:
    for source, values in batch:
        for column in artifact.shape.inputs:
            if column not in values:
                raise DataError(
                    "missing-column",
                    f"{source} has no column {column!r}; it has {', '.join(map(repr, values))}",
                    hint=f"this artifact reads {', '.join(artifact.shape.inputs)}",
                )
    answers = artifact.predict([values for _, values in batch])
    for (source, _), answer in zip(batch, answers, strict=True):
        line = {"row": source, "output": answer.text, "confidence": answer.confidence}
        target.write(json.dumps(line, ensure_ascii=False) + "\n")
    target.flush()
    if target is not sys.stdout:
        os.fsync(target.fileno())


def _whole_lines(file: Path) -> int:
    """Count the complete lines of `file` and cut off a torn last one."""
    if not file.exists():
        return 0
    count = end = 0
    with file.open("r+b") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                break
            count, end = count + 1, end + len(line)
        lines.truncate(end)
    return count
