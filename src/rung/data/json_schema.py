"""Check expected answers of kind json against the task's JSON Schema, as far as rows of a table need it.

Checked are `type`, `enum`, `const`, `required`, `properties`, `additionalProperties: false` and `items`
(JSON Schema 2020-12). Other keywords bind the model where an engine enforces them; they are not checked here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}


def mismatch(value: Any, schema: Mapping[str, Any], path: str = "") -> str | None:
    """Return what is wrong with `value` in one sentence that names the place, or None if it fits."""
    at = f"`{path}`" if path else "the answer"
    wanted = schema.get("type")
    if wanted is not None:
        names = [wanted] if isinstance(wanted, str) else wanted
        if not any(_is(value, name) for name in names):
            return f"{at} is {_name(value)}, not {' or '.join(names)}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{at} is {value!r}, not one of {', '.join(map(repr, schema['enum']))}"
    if "const" in schema and value != schema["const"]:
        return f"{at} is {value!r}, not {schema['const']!r}"
    if isinstance(value, dict):
        return _object_mismatch(value, schema, path)
    if isinstance(value, list) and isinstance(schema.get("items"), Mapping):
        for number, item in enumerate(value):
            if problem := mismatch(item, schema["items"], f"{path}[{number}]"):
                return problem
    return None


def _object_mismatch(value: dict[str, Any], schema: Mapping[str, Any], path: str) -> str | None:
    at = f"`{path}`" if path else "the answer"
    known = schema.get("properties", {})
    for key in schema.get("required", ()):
        if key not in value:
            return f"{at} lacks the key {key!r}"
    for key, item in value.items():
        if isinstance(known.get(key), Mapping):
            if problem := mismatch(item, known[key], f"{path}.{key}" if path else key):
                return problem
        elif key not in known and schema.get("additionalProperties") is False:
            return f"{at} has the key {key!r}, which the schema does not allow"
    return None


def in_schema_order(value: Any, schema: Mapping[str, Any]) -> Any:
    """Return `value` with the keys of objects in the schema's order, then the others by name.

    Engines that constrain text to a schema write keys in its order; training on another order would fight them.
    """
    if isinstance(value, dict):
        known = schema.get("properties", {})
        keys = [key for key in known if key in value] + sorted(key for key in value if key not in known)
        return {key: in_schema_order(value[key], _part(known.get(key))) for key in keys}
    if isinstance(value, list):
        return [in_schema_order(item, _part(schema.get("items"))) for item in value]
    return value


def _part(schema: Any) -> Mapping[str, Any]:
    return schema if isinstance(schema, Mapping) else {}


def _is(value: Any, name: str) -> bool:
    if isinstance(value, bool):  # Python counts True among the integers
        return name == "boolean"
    if name == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _TYPES.get(name, ()))


def _name(value: Any) -> str:
    return next(
        (name for name in ("null", "boolean", "integer", "number", "string", "array") if _is(value, name)), "object"
    )
