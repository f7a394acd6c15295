"""Expected records under a JSON Schema: whether they are valid, and the one text that a constrained model can write.

Engines that constrain text to a schema write keys in its order, through `$ref`, `allOf`, and the fitting branch of
`anyOf`. Training and demonstrations must show the same text, or they teach what decoding forbids.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from rung.engines import constraints
from rung.engines.base import Constraint
from rung.errors import ConfigError, DataError
from rung.models.bounded import found

_BRANCHES = ("anyOf", "oneOf")


def expected_text(value: Any, schema: Mapping[str, Any], source: str) -> str:
    """Write an expected answer as the text that a model constrained to the schema writes.

    Raises:
        DataError: `bad-reference` if the value does not fit the schema, or the engines' grammar cannot write it.
        ConfigError: `bad-constraint` if the schema itself is not valid.
    """
    text = json.dumps(schema)
    hint = "correct the row or the schema: a model constrained to the schema cannot give this answer"
    if problem := constraints.schema_problem(value, text):
        problem = f"{source}: the expected answer does not fit `output.schema`: {problem}"
        raise DataError("bad-reference", problem, hint=hint)
    written = write(value, schema)
    if schema and (problem := constraints.unwritable(written, Constraint("json_schema", text))):
        problem = f"{source}: text constrained to `output.schema` cannot be this expected answer: {problem}"
        raise DataError("bad-reference", problem, hint=hint)
    return written


def check_schema(schema: Mapping[str, Any], *, guaranteed: bool = True) -> None:
    """Refuse a schema that cannot work: not valid, with references to nothing, or (`guaranteed`) that no grammar keeps.

    Raises:
        ConfigError: `bad-constraint`; the text names the part.
    """
    text = json.dumps(schema)
    constraints.schema_problem(None, text)  # the metaschema, and the references on the way of a null
    for reference in _references(schema):
        if resolved(reference, schema) is None:
            raise ConfigError(
                "bad-constraint", f"the JSON Schema refers to {reference!r}, which it does not contain",
                hint="add it under `$defs`, or correct the reference; references to other documents are not followed",
            )  # fmt: skip
    if guaranteed and (problem := constraints.unguaranteed(Constraint("json_schema", text))):
        raise ConfigError(
            "bad-constraint", f"text cannot be constrained to the JSON Schema: {problem}",
            hint="leave that keyword out and say it in the field's `description`: the model then reads it as a wish; "
            "an expected answer may still follow it",
        )  # fmt: skip


def write(value: Any, schema: Any) -> str:
    """Write a JSON value in the order and style of the schema; keys that it does not name follow by name."""
    return "".join(_Writer(schema).written(value, [schema]))


class _Writer:
    """Writes values of one schema, to which references lead."""

    def __init__(self, root: Any) -> None:
        self._root, self._text = root, json.dumps(root)

    def written(self, value: Any, schemas: Sequence[Any]) -> Iterator[str]:
        """Yield the text of a value to which all of these schemas apply."""
        parts = [part for schema in schemas for part in self._parts(schema, value, ())]
        fixed = next((part for part in parts if "const" in part or "enum" in part), None)
        if fixed is not None:
            options = [fixed["const"]] if "const" in fixed else fixed["enum"]
            yield _plain(next((option for option in options if _same(option, value)), value))
        elif isinstance(value, dict):
            yield "{"
            for i, key in enumerate(self._keys(value, parts)):
                yield f"{', ' if i else ''}{_quoted(key)}: "
                yield from self.written(value[key], [child for part in parts for child in _of_key(part, key)])
            yield "}"
        elif isinstance(value, list):
            yield "["
            for i, item in enumerate(value):
                yield ", " if i else ""
                yield from self.written(item, [child for part in parts for child in _of_item(part, i)])
            yield "]"
        else:
            kinds = [{part["type"]} if isinstance(part["type"], str) else {*part["type"]} for part in parts
                     if "type" in part]  # fmt: skip
            whole = any("integer" in kind and "number" not in kind for kind in kinds)
            yield _plain(value, whole=whole)

    def _keys(self, value: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]) -> list[str]:
        known = [key for part in parts for key in part.get("properties", ())]
        required = [key for part in parts for key in part.get("required", ())]
        return [key for key in dict.fromkeys([*known, *required, *sorted(value)]) if key in value]

    def _parts(self, schema: Any, value: Any, seen: tuple[str, ...]) -> Iterator[Mapping[str, Any]]:
        """Yield the schemas that apply to a value, in the order in which engines read them."""
        if not isinstance(schema, Mapping):
            return
        own: dict[str, Any] = {}
        for keyword, part in schema.items():
            inner: list[Any] = []
            if keyword == "$ref" and part not in seen:
                yield own  # what stands before a reference comes before it
                own = {}
                yield from self._parts(resolved(part, self._root), value, (*seen, part))
            elif keyword == "allOf":
                inner = list(part)
            elif keyword in _BRANCHES:
                inner = [branch for branch in part if constraints.fits(value, branch, self._text)][:1]
            else:
                own[keyword] = part
            if inner:
                yield own
                own = {}
            for branch in inner:
                yield from self._parts(branch, value, seen)
        yield own


def _of_key(part: Mapping[str, Any], key: str) -> list[Any]:
    if key in part.get("properties", {}):
        return [part["properties"][key]]
    patterns = part.get("patternProperties", {})
    matching = [schema for pattern, schema in patterns.items() if found(pattern, key)]
    return matching or [part.get("additionalProperties", True)]


def _of_item(part: Mapping[str, Any], position: int) -> list[Any]:
    first = part.get("prefixItems", ())
    return [first[position] if position < len(first) else part.get("items", True)]


def _same(option: Any, value: Any) -> bool:
    """Compare as JSON does: 1 is 1.0, but not true."""
    return isinstance(option, bool) == isinstance(value, bool) and bool(option == value)


def _plain(value: Any, *, whole: bool | None = None) -> str:
    """Write a value as it stands; with `whole` unsaid (a constant), numbers without a fraction have no point."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_quoted(key)}: {_plain(item, whole=whole)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_plain(item, whole=whole) for item in value) + "]"
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise ValueError("NaN and Infinity are not JSON")
        if value.is_integer() and whole is not False:
            return str(int(value))
        text = repr(value)
        return f"{Decimal(text):f}" if "e" in text else text  # grammars with bounds have no exponents
    return _quoted(value) if isinstance(value, str) else json.dumps(value)


def _quoted(text: str) -> str:
    # Grammars take the character DEL for a control character, which JSON escapes.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _references(schema: Any) -> Iterator[str]:
    """Yield all references of a schema; constants are values, not schemas."""
    if isinstance(schema, Mapping):
        for keyword, part in schema.items():
            if keyword == "$ref" and isinstance(part, str):
                yield part
            elif keyword not in ("const", "enum", "examples", "default"):
                yield from _references(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from _references(part)


def resolved(reference: str, root: Any) -> Any:
    """Follow a JSON pointer within the schema; None if it leads nowhere."""
    target = root if reference.startswith("#") else None
    for step in reference.lstrip("#").split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(target, list) and step.isdigit() and int(step) < len(target):
            target = target[int(step)]
        else:
            target = target.get(step) if isinstance(target, Mapping) else None
    return target
