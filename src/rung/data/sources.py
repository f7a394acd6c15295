"""Read rows from CSV, TSV, JSON, JSONL, Parquet or a Hub data set, each with its file and line."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rung.data.rows import Record
from rung.errors import DataError, Location, needed_by

HUB = "hf:"
_GAP = re.compile(r"[\s,]*")  # between the items of a JSON list
HOW = {
    **dict.fromkeys((".csv", ".tsv"), "write a header with the names of the columns, and at least one row"),
    **dict.fromkeys((".jsonl", ".ndjson"), 'write one JSON object per line, such as {"text": "...", "label": "..."}'),
    ".json": 'write a list of objects, such as [{"text": "...", "label": "..."}]',
}
UTF16 = (b"\xff\xfe", b"\xfe\xff")  # the first bytes of files that Windows programs call "Unicode"
MAX_CELL = 10_000_000  # characters in one CSV field; the library's default of 131,072 is too small for long documents


def read_rows(source: str | Path, *, encoding: str = "utf-8") -> Iterator[Record]:
    """Yield the rows of a file, or of a Hub data set written `hf:org/name[:config][#split]`.

    Raises:
        DataError: the file is missing, empty, of an unknown kind, not in the encoding, or has a broken row.
        MachineError: reading this kind needs a library that is not installed.
    """
    if isinstance(source, str) and source.startswith(HUB):
        return _hub(source)
    path = Path(source)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        problem = f"{path}: files of kind {path.suffix or '(none)'} are not read"
        raise DataError("unreadable-file", problem, hint=f"use one of {', '.join(READERS)}")
    if not path.is_file():
        raise DataError("no-such-file", f"{path} does not exist", hint="paths are relative to the task file")
    return reader(path, encoding)


def _lines(path: Path, encoding: str, newline: str) -> Iterator[str]:
    """Yield the lines of a file with their line ends, without a byte-order mark, one in memory at a time."""
    blank = True
    try:
        with path.open(encoding=encoding, newline=newline) as file:
            for number, line in enumerate(file):
                text = line.removeprefix("\ufeff") if number == 0 else line
                blank = blank and not text.strip()
                yield text
    except (OSError, UnicodeDecodeError):
        read_text(path, encoding)  # raises the same error with its line
        raise
    if blank:
        raise _empty(path)


def _empty(path: Path) -> DataError:
    hint = HOW.get(path.suffix.lower(), "write something into it, or name another file")
    return DataError("too-few-rows", f"{path} is empty", hint=hint)


def read_text(path: Path, encoding: str) -> str:
    """Read the whole text of a file.

    Raises:
        DataError: the file cannot be read, is empty, or not in the encoding.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError("unreadable-file", f"{path} cannot be read: {error.strerror}") from error
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        name = "utf-16" if data.startswith(UTF16) else "latin-1"
        problem = f"byte {error.start} (0x{data[error.start]:02x}) is not {encoding}"
        hint = f"save the file as UTF-8, or name its encoding: `data.encoding: {name}`"
        raise DataError("bad-encoding", problem, where=Location(str(path), line), hint=hint) from None
    text = text.removeprefix("\ufeff")
    if not text.strip():
        raise _empty(path)
    return text


def _separated(separator: str) -> Callable[[Path, str], Iterator[Record]]:
    def read(path: Path, encoding: str) -> Iterator[Record]:
        csv.field_size_limit(MAX_CELL)
        rows = csv.reader(_lines(path, encoding, newline=""), delimiter=separator, strict=True)
        line = 1  # where the record begins; `rows.line_num` is where it ends
        try:
            header = next((row for row in rows if any(cell.strip() for cell in row)), None)
            if header is None:
                raise _empty(path)
            twice = next((name for name in header if header.count(name) > 1), None)
            if twice is not None:
                problem = f"the column {twice!r} is in the header twice"
                raise DataError("duplicate-name", problem, where=Location(str(path), 1))
            line = rows.line_num + 1
            for row in rows:
                if row and len(row) != len(header):
                    problem = f"{len(row)} fields where the header has {len(header)}"
                    hint = 'put a field that contains the separator or a line break in quotes: "a, b"'
                    raise DataError("bad-csv", problem, where=Location(str(path), line), hint=hint)
                if row:
                    yield Record(dict(zip(header, row, strict=True)), f"{path.name}:{line}")
                line = rows.line_num + 1
        except csv.Error as error:
            problem = f"the record that begins here cannot be read: {error}"
            hint = 'close every quote; a quote inside a quoted field is written twice: "say ""hi"""'
            raise DataError("bad-csv", problem, where=Location(str(path), line), hint=hint) from error

    return read


def _jsonl(path: Path, encoding: str) -> Iterator[Record]:
    for number, line in enumerate(_lines(path, encoding, newline="\n"), start=1):
        if line.strip():
            yield _record(_parsed(line.rstrip(), path, number), path, number)


def _parsed(text: str, path: Path, line: int) -> Any:
    """Parse JSON text that begins in `line`."""
    try:
        value = json.loads(text)
        if "\\ud" in text.lower():  # half of a surrogate pair parses, but cannot be encoded
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        where, hint = Location(str(path), line + error.lineno - 1, error.colno), HOW.get(path.suffix.lower(), "")
        raise DataError("bad-json", f"not valid JSON: {error.msg}", where=where, hint=hint) from None
    except (UnicodeEncodeError, RecursionError) as error:
        problem = "nested too deeply" if isinstance(error, RecursionError) else "half of a surrogate pair (\\ud800...)"
        raise DataError("bad-json", f"not usable JSON: {problem}", where=Location(str(path), line)) from None
    return value


def _record(value: Any, path: Path, number: int) -> Record:
    if not isinstance(value, dict):
        raise DataError(
            "bad-json", f"expected an object, found {type(value).__name__}", where=Location(str(path), number),
            hint='every row is an object: {"column": value, ...}',
        )  # fmt: skip
    return Record(value, f"{path.name}:{number}")


def _json(path: Path, encoding: str) -> Iterator[Record]:
    text = read_text(path, encoding)
    if not isinstance(_parsed(text, path, 1), list):
        raise DataError("bad-json", f"{path}: a JSON file of rows is a list of objects", hint="or use JSON lines")
    # The text is a valid list: decode it again item by item to find the line of each.
    decoder = json.JSONDecoder()
    position, line = text.index("[") + 1, text.count("\n", 0, text.index("[")) + 1
    while (begin := _GAP.match(text, position).end()) and text[begin] != "]":  # type: ignore[union-attr]
        line += text.count("\n", position, begin)
        value, position = decoder.raw_decode(text, begin)
        yield _record(value, path, line)
        line += text.count("\n", begin, position)


def _parquet(path: Path, encoding: str) -> Iterator[Record]:
    del encoding  # Parquet text is always UTF-8
    with needed_by("a Parquet file"):
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    try:
        batches = ParquetFile(path).iter_batches()
        for number, values in enumerate((row for batch in batches for row in batch.to_pylist()), start=1):
            yield Record(values, f"{path.name}:{number}")
    except ArrowException as error:
        raise DataError("unreadable-file", f"{path}: {error}") from error


def _hub(source: str) -> Iterator[Record]:
    with needed_by("a Hub data set"):
        from datasets import load_dataset
    name, _, split = source.removeprefix(HUB).partition("#")
    name, _, config = name.partition(":")
    try:
        rows = load_dataset(name, config or None, split=split or "train")
    except (OSError, ValueError) as error:  # not found, no network, no such configuration or split
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        hint = "the form is hf:org/name:config#split; private data needs a token in HF_TOKEN"
        raise DataError("download-failed", f"{source} cannot be loaded: {reason}", hint=hint) from error
    for number, values in enumerate(rows, start=1):
        yield Record(dict(values), f"{source}:{number}")


READERS: dict[str, Callable[[Path, str], Iterator[Record]]] = {
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".parquet": _parquet,
}
