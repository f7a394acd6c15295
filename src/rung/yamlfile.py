"""Files of YAML and JSON that others may have written: read within bounds, with the place of every error."""

from __future__ import annotations

import hashlib
import io
import json
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import yaml

from rung.errors import ConfigError, DataError, Location, RungError

MAX_BYTES = 256 * 2**20  # the largest files are tokenizers and reports
MAX_RATIO = 200  # of the bytes of a compressed file, above MAX_BYTES; tables have 5 to 30
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


def json_value(text: str | bytes, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value of a JSON text by others: `json.loads` with a bound of the depth, so that no reader runs out of stack.

    `pairs` makes an object of its keys and values.

    Raises:
        ValueError: it is not JSON, or nested too deeply.
    """
    too_deep = f"nested deeper than {MAX_DEPTH} levels"
    try:
        value = json.loads(text, object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError(too_deep) from None
    brackets = (b"[", b"{") if isinstance(text, bytes) else ("[", "{")
    levels, depth = [value] if sum(map(text.count, brackets)) > MAX_DEPTH else [], 0  # type: ignore[arg-type]
    while levels := [item for level in levels if isinstance(level, dict | list)
                     for item in (level.values() if isinstance(level, dict) else level)]:  # fmt: skip
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(too_deep)
    return value


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its keys and values; raise ValueError for a key that it has twice."""
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = next(key for key, _ in pairs if sum(key == other for other, _ in pairs) > 1)
        raise ValueError(f"an object has the key {twice!r} twice: remove or rename one")
    return value


def parse_json(text: str | bytes, damaged: Damaged) -> Any:
    """The value of a JSON text."""
    try:
        return json_value(text)
    except ValueError as broken:
        raise damaged(f"is not JSON: {broken}") from None


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


# ---- records that Rung writes and reads again: they end in the sha256 of the text before it


def sealed(values: Mapping[str, Any], indent: int | None = None, default: Callable[[Any], Any] | None = None) -> str:
    """Write an object of at least one key as JSON that ends in its own hash, by which `unsealed` finds damage."""
    text = json.dumps(values, ensure_ascii=False, indent=indent, default=default)
    body = text[:-1].rstrip()
    before, after = (" ", "") if indent is None else ("\n" + " " * indent, "\n")
    return f"{body},{before}{_seal(body.encode())}{after}}}"


def unsealed(data: bytes, damaged: Damaged) -> dict[str, Any]:
    """The object in a text by `sealed`."""
    body, _, seal = data.rpartition(b",")
    if seal.strip(b" \n") not in (f"{_seal(body)}{after}}}".encode() for after in ("", "\n")):
        parse_json(data, damaged)  # which says more, where it is not even JSON
        raise damaged("is not what was written there: its sha256 is another one")
    values: dict[str, Any] = parse_json(body + b"}", damaged)
    return values


def read_sealed(file: Path, damaged: Damaged | None = None) -> dict[str, Any]:
    """The object in a file by `sealed`."""
    damaged = damaged or unreadable(file)
    return unsealed(read_bytes(file, damaged), damaged)


def sealed_lines(data: bytes, file: Path) -> Iterator[dict[str, Any]]:
    """The objects in lines by `sealed`; an error names the line."""
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line:
            yield unsealed(
                line, unreadable(Path(f"{file}:{number}"), "remove this line: what it recorded is made again")
            )


def _seal(body: bytes) -> str:
    return f'"sha256": "{hashlib.sha256(body).hexdigest()}"'


class UnpackedFile(io.RawIOBase):
    """What a compressed file holds, within bounds: 3 MB of a hostile one unpack to 3 GB.

    Reading more raises DataError `unreadable-file`.
    """

    def __init__(self, stream: IO[bytes], path: Path) -> None:
        self._stream, self._path = stream, path
        self._left = max(MAX_BYTES, MAX_RATIO * path.stat().st_size)

    def readable(self) -> bool:
        """It can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read the next bytes."""
        data = self._stream.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            problem = f"{self._path} unpacks to more than {MAX_RATIO} times its size"
            raise DataError("unreadable-file", problem, hint="unpack it yourself, if that is right")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the compressed file."""
        self._stream.close()
        super().close()


Path_ = tuple[str | int, ...]
MAX_YAML_DEPTH = 32  # levels; a task file has about 6
MAX_YAML_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class YamlFile:
    """A parsed file.

    Attributes:
        name: the file's name as given.
        values: the mapping in the file.
        positions: 1-based line and column of every key and item, by path.
        lines: the lines of the text.
        outside: the origin of values that are not from the file (`--set data.train_rows=5`), by path.
    """

    name: str
    values: dict[str, Any]
    positions: Mapping[Path_, tuple[int, int]]
    lines: tuple[str, ...]
    outside: dict[Path_, str] = field(default_factory=dict)

    def where(self, path: Path_) -> Location:
        """The position of `path`, or of its closest parent."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.outside:
                return Location(self.outside[path[:length]])
        if path and path not in self.positions:
            for inner, origin in self.outside.items():
                if inner[: len(path)] == path:
                    return Location(origin)
        while path and path not in self.positions:
            path = path[:-1]
        if path not in self.positions:
            return Location(self.name)
        line, column = self.positions[path]
        return Location(self.name, line, column, self.lines[line - 1] if line <= len(self.lines) else None)


def read_yaml(file: Path) -> YamlFile:
    """Read a YAML mapping.

    Raises:
        ConfigError: the file is missing, not UTF-8, not YAML, not a mapping, too large or too deep, or has a duplicate
            key or an alias.
    """
    if not file.exists():
        hint = "make one from your data with `rung init data.csv`"
        raise ConfigError("no-such-file", f"{file} does not exist", hint=hint)
    data = read_bytes(file, unreadable(file, "name a task file, or make one with `rung init data.csv`"), MAX_YAML_BYTES)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError("unreadable-file", f"{file} cannot be read: {error}") from error
    return parse_yaml(text, str(file))


def parse_yaml(text: str, name: str) -> YamlFile:
    """Parse the text of a file called `name`; see `read_yaml`."""
    text = text.removeprefix("\ufeff")  # some editors write a byte-order mark, which would shift the first column
    lines = tuple(text.splitlines())
    positions: dict[Path_, tuple[int, int]] = {}
    try:
        node = yaml.compose(text, Loader=_Composer)
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError("bad-yaml", "a task file is a mapping of keys to values", where=Location(name, 1))
        values = _value(node, (), positions, yaml.SafeLoader(""), name, lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = Location(name) if mark is None else _location(name, lines, mark)
        raise ConfigError("bad-yaml", f"not valid YAML: {error.problem}", where=where) from error
    except yaml.reader.ReaderError as error:
        where = Location(name, text.count("\n", 0, error.position) + 1)
        problem = f"the character U+{error.character:04X} is not allowed in YAML"
        hint = "delete this control character; copying may have added it"
        raise ConfigError("bad-yaml", problem, where=where, hint=hint) from error
    return YamlFile(name, values, positions, lines)


class _Composer(yaml.SafeLoader):
    """A composer that refuses aliases, which can expand to gigabytes, and deep nesting, which exhausts the stack."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not allowed", problem_mark=mark)
        self.depth += 1
        if self.depth > MAX_YAML_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {MAX_YAML_DEPTH} levels", problem_mark=mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _location(name: str, lines: tuple[str, ...], mark: Any) -> Location:
    text = lines[mark.line] if mark.line < len(lines) else None
    return Location(name, mark.line + 1, mark.column + 1, text)


def _value(
    node: Any, path: Path_, positions: dict[Path_, tuple[int, int]], loader: Any, name: str, lines: tuple[str, ...]
) -> Any:
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            positions[*path, i] = (item.start_mark.line + 1, item.start_mark.column + 1)
        return [_value(item, (*path, i), positions, loader, name, lines) for i, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return _scalar(node, loader)
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = _key(key_node)
        where = _location(name, lines, key_node.start_mark)
        if key in result:
            raise ConfigError("bad-yaml", f"duplicate key {key!r}", where=where, hint="keep one of them")
        positions[*path, key] = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
        result[key] = _value(value_node, (*path, key), positions, loader, name, lines)
    return result


def _scalar(node: Any, loader: Any) -> Any:
    try:
        return loader.construct_object(node)
    except ValueError:  # `2024-13-45` looks like a date, and `!!int x` claims to be a number
        problem = f"{node.value!r} is not a valid {node.tag.rpartition(':')[2]}; write text in quotes"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None


def _key(node: Any) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise yaml.MarkedYAMLError(problem="a key must be a plain word", problem_mark=node.start_mark)
    # As written: YAML 1.1 would make False of the label `no` and 7 of the label `007`.
    return str(node.value)
