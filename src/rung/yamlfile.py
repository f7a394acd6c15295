"""YAML with positions: plain values, and where each of them stands, so that errors can point at it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rung.errors import ConfigError, Location

Path_ = tuple[str | int, ...]
MAX_DEPTH = 32
MAX_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class YamlFile:
    """A parsed file: its values, and the position (1-based line, column) of every key or item, by path."""

    name: str
    values: dict[str, Any]
    positions: Mapping[Path_, tuple[int, int]]
    lines: tuple[str, ...]

    def where(self, path: Path_) -> Location:
        """Return the position of `path`, or of its closest parent."""
        while path and path not in self.positions:
            path = path[:-1]
        if path not in self.positions:
            return Location(self.name)
        line, column = self.positions[path]
        return Location(self.name, line, column, self.lines[line - 1] if line <= len(self.lines) else None)


def read_yaml(file: Path) -> YamlFile:
    """Read a YAML mapping.

    Raises:
        ConfigError: the file is missing, no UTF-8, no YAML, no mapping, too large or too deep, or has a key twice or
            an alias.
    """
    try:
        text = file.read_bytes()[: MAX_BYTES + 1].decode()
    except FileNotFoundError:
        raise ConfigError(
            "no-such-file", f"{file} does not exist", hint="make one from your data with `rung init data.csv`"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("unreadable-file", f"{file} cannot be read: {error}") from error
    if len(text) > MAX_BYTES:
        raise ConfigError("file-too-large", f"{file} is larger than {MAX_BYTES:,} bytes: not a task file")
    return parse_yaml(text, str(file))


def parse_yaml(text: str, name: str) -> YamlFile:
    """Parse the text of a file called `name`; see `read_yaml`."""
    lines = tuple(text.splitlines())
    try:
        node = yaml.compose(text, Loader=_NoAliases)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = Location(name) if mark is None else _location(name, lines, mark)
        raise ConfigError("bad-yaml", f"not valid YAML: {error.problem}", where=where) from error
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError("bad-yaml", "a task file is a mapping of keys to values", where=Location(name, 1))
    positions: dict[Path_, tuple[int, int]] = {}
    loader = yaml.SafeLoader("")
    values = _value(node, (), positions, loader, name, lines)
    return YamlFile(name, values, positions, lines)


class _NoAliases(yaml.SafeLoader):
    """A composer that refuses aliases: a few of them nested expand to gigabytes, and no task file needs one."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not allowed", problem_mark=event.start_mark)
        return super().compose_node(parent, index)


def _location(name: str, lines: tuple[str, ...], mark: Any) -> Location:
    text = lines[mark.line] if mark.line < len(lines) else None
    return Location(name, mark.line + 1, mark.column + 1, text)


def _value(
    node: Any, path: Path_, positions: dict[Path_, tuple[int, int]], loader: Any, name: str, lines: tuple[str, ...]
) -> Any:
    if len(path) > MAX_DEPTH:
        raise ConfigError("bad-yaml", "nested too deep", where=_location(name, lines, node.start_mark))
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            positions[*path, i] = (item.start_mark.line + 1, item.start_mark.column + 1)
        return [_value(item, (*path, i), positions, loader, name, lines) for i, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node)
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = _key(key_node)
        where = _location(name, lines, key_node.start_mark)
        if key in result:
            raise ConfigError("duplicate-key", f"the key {key!r} stands twice", where=where, hint="keep one of them")
        positions[*path, key] = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
        result[key] = _value(value_node, (*path, key), positions, loader, name, lines)
    return result


def _key(node: Any) -> str:
    # As written: YAML 1.1 would make False of the label `no` and 7 of the label `007`.
    return str(node.value)
