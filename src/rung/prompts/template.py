"""`{column}` substitution and nothing else: no expressions, no attribute access, user text is never rendered."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from rung.errors import ConfigError

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


def placeholders(template: str) -> tuple[str, ...]:
    """Return the column names that `template` asks for, in order of first use.

    Raises:
        ConfigError: a brace is not closed (write `{{` and `}}` for literal braces).
    """
    names: dict[str, None] = {}
    for match in _PIECE.finditer(template):
        if match.group() in "{}":
            raise ConfigError(
                "template-brace",
                f"a single `{match.group()}` at character {match.start()} of the template {template!r}",
                hint="write a column as {column}, and a literal brace twice: {{ or }}",
            )
        if match.group(1) is not None:
            names[match.group(1)] = None
    return tuple(names)


def substitute(template: str, values: Mapping[str, Any]) -> str:
    """Replace every `{column}` by its value; `{{` and `}}` stand for braces. Values are inserted as they are."""

    def value(match: re.Match[str]) -> str:
        if match.group(1) is None:
            return match.group()[0]
        return as_text(values[match.group(1)])

    return _PIECE.sub(value, template)


def as_text(value: Any) -> str:
    """Return the text that stands for a value in a prompt: a string as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def default_template(columns: Iterable[str]) -> str:
    """Return the template for input columns: the bare text of one, `Name: value` lines for several."""
    names = list(columns)
    if len(names) == 1:
        return "{" + names[0] + "}"
    return "\n".join(f"{name.replace('_', ' ').capitalize()}: {{{name}}}" for name in names)
