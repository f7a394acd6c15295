"""The user's Python functions as tools: what the model reads of them comes from type hints and docstring."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from rung import user_code
from rung.agents.tools import Tool, plain_schema
from rung.errors import ConfigError
from rung.models.fingerprint import file_sha256

_EXAMPLE = 'def look_up(name: str) -> str: """Return what the table says of a name."""'
_TOOL = user_code.Kind("tool", _EXAMPLE, not_found="tool-not-found", import_failed="tool-import-failed")
_ARGUMENT = re.compile(r"^\s+\**(\w+)(?: \([^)]*\))?:\s*(.+)$")


def load_function(spec: str, folders: Sequence[Path]) -> Callable[..., Any]:
    """Return the function that `module:function` names.

    Raises:
        ConfigError: `tool-not-found` or `tool-import-failed`.
    """
    function = user_code.load(spec, folders, _TOOL)
    if not callable(function):
        raise ConfigError("tool-not-found", f"{spec} is no function", hint=f"define there: {_EXAMPLE}")
    return cast("Callable[..., Any]", function)


def function_tool(spec: str, folder: Path) -> Tool:
    """Return the tool that a function is; the file is looked for in `folder`, then in the current folder.

    Raises:
        ConfigError: it is not there, cannot be imported, or `tool-untyped`: it has no docstring, or
            an argument without a type.
    """
    folders = [folder, Path.cwd()]
    function = load_function(spec, folders)
    description, arguments = _documented(function)
    if not description:
        raise ConfigError(
            "tool-untyped", f"the tool {spec} has no docstring: the model could not know when to call it", hint=_EXAMPLE
        )
    schema = _schema(spec, function)
    for name, text in arguments.items():
        if name in schema.get("properties", {}):
            schema["properties"][name].setdefault("description", text)
    found = user_code.file_of(user_code.split(spec)[0], folders)
    return Tool(
        spec.partition(":")[2], description, json.dumps(schema, ensure_ascii=False), spec,
        sha256=file_sha256(found[0]) if found else "",
    )  # fmt: skip


def _schema(spec: str, function: Callable[..., Any]) -> dict[str, Any]:
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticUserError

    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.annotation is parameter.empty:
            raise ConfigError("tool-untyped", f"the argument {name!r} of the tool {spec} has no type", hint=_EXAMPLE)
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ConfigError(
                "tool-untyped", f"the argument {name!r} of the tool {spec} cannot be given by name", hint=_EXAMPLE
            )
    try:
        return plain_schema(TypeAdapter(cast("Any", function)).json_schema())
    except (PydanticUserError, NameError, ValueError) as error:
        raise ConfigError(
            "tool-untyped", f"the types of the tool {spec} cannot be told to a model: {str(error).splitlines()[0]}",
            hint="use str, int, float, bool, Literal, list, dict, dataclasses or pydantic models",
        ) from error  # fmt: skip


def _documented(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """Return the docstring's text before its sections, and what `Args:` says of each argument."""
    text = inspect.getdoc(function) or ""
    described, _, rest = text.partition("\nArgs:\n")
    arguments = {}
    for line in rest.splitlines():
        if line and not line.startswith(" "):
            break
        if found := _ARGUMENT.match(line):
            arguments[found[1]] = found[2].strip()
    return re.split(r"\n(?:Returns|Raises|Yields|Examples?):\n", described)[0].strip(), arguments
