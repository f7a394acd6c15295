"""Constraints as grammars for OpenVINO's structured output, in the style that Rung writes JSON everywhere.

openvino-genai passes a JSON Schema to xgrammar, which allows any amount of white space between the parts; small models
fill their answer with it and never finish. xgrammar also silently drops unknown keywords. So this module translates
schemas: separators are ", " and ": ", keys come in the schema's order, and unknown keywords are refused. Every text
that a grammar allows is valid under its schema; not every valid text is allowed (no keys beyond `properties`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rung.engines.base import Constraint
from rung.errors import EngineError

NOTES = {"$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default", "examples",
         "additionalProperties", "deprecated", "readOnly", "writeOnly"}  # fmt: skip
KEYWORDS = {
    "object": {"properties", "required"},
    "array": {"items", "minItems", "maxItems"},
    "string": {"minLength", "maxLength"},
}
TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")
BASE = r"""
char ::= [^"\\\x00-\x1F] | "\\" ["\\/bfnrt] | "\\u" [0-9a-fA-F] [0-9a-fA-F] [0-9a-fA-F] [0-9a-fA-F]
string ::= "\"" char* "\""
integer ::= "-"? ("0" | [1-9] [0-9]*)
number ::= integer ("." [0-9]+)? ([eE] [+-]? [0-9]+)?
boolean ::= "true" | "false"
null ::= "null"
value ::= object | array | string | number | boolean | null
object ::= "{" (string ": " value (", " string ": " value)*)? "}"
array ::= "[" (value (", " value)*)? "]"
"""


def structured_output(constraint: Constraint) -> Any:
    """The constraint as openvino-genai's StructuredOutputConfig.

    Raises:
        EngineError: the JSON Schema uses a keyword that is not translated (`constraint-unsupported`).
    """
    import openvino_genai

    if constraint.kind == "regex":
        return openvino_genai.StructuredOutputConfig(regex=constraint.value)
    return openvino_genai.StructuredOutputConfig(grammar=grammar(constraint))


def unsupported(constraint: Constraint) -> str | None:
    """Why OpenVINO cannot follow a constraint, or None where it can."""
    try:
        if constraint.kind != "regex":
            grammar(constraint)
    except EngineError as refused:
        return refused.message
    return None


def grammar(constraint: Constraint) -> str:
    """The EBNF grammar, with the rule `root`, of choices or of a JSON Schema."""
    value = constraint.value
    if constraint.kind == "choices":
        choices = [value] if isinstance(value, str) else value
        return f"root ::= {_either([_literal(choice) for choice in choices])}\n"
    return _Translation(json.loads(str(value))).text()


class _Translation:
    """Translates a JSON Schema; `_rules` are those of its objects and references."""

    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self._rules: dict[str, str] = {}
        self._references: dict[str, str] = {}
        self._objects = 0

    def text(self) -> str:
        root = self._any(self._schema)
        rules = "".join(f"{name} ::= {body}\n" for name, body in self._rules.items())
        return f"root ::= {root}\n{rules}{BASE}"

    def _any(self, schema: Any) -> str:
        """An expression for a schema of any kind."""
        if schema is True:
            return "value"
        if not isinstance(schema, Mapping):
            raise _refused(f"the schema {json.dumps(schema)}")
        if "$ref" in schema:
            _check(schema, {"$ref"})
            return self._reference(schema["$ref"])
        if "const" in schema or "enum" in schema:
            _check(schema, {"const", "enum", "type"})
            values = [schema["const"]] if "const" in schema else schema["enum"]
            return _either([_literal(_json(value)) for value in values])
        if "anyOf" in schema:
            _check(schema, {"anyOf"})
            return _either([self._any(part) for part in schema["anyOf"]])
        kinds = schema.get("type", [])
        kinds = [kinds] if isinstance(kinds, str) else kinds
        _check(schema, {"type"}.union(*(KEYWORDS.get(kind, set()) for kind in kinds)))
        return _either([self._typed(kind, schema) for kind in kinds]) if kinds else "value"

    def _typed(self, kind: str, schema: Mapping[str, Any]) -> str:
        if kind not in TYPES:
            raise _refused(f"the type {kind!r}")
        if kind == "object" and schema.get("properties"):
            return self._object(schema["properties"], schema.get("required", ()))
        if kind == "object" and schema.get("required"):
            raise _refused("`required` without `properties`")
        if kind == "array":
            item = self._any(schema.get("items", True))
            low, high = schema.get("minItems", 0), schema.get("maxItems")
            return f'"[" {_repeated(item, low, high)} "]"'
        if kind == "string" and ("minLength" in schema or "maxLength" in schema):
            return rf'"\"" char{{{schema.get("minLength", 0)},{schema.get("maxLength", "")}}} "\""'
        return kind

    def _object(self, properties: Mapping[str, Any], required: Sequence[str]) -> str:
        """An expression for an object: its keys in order, optional ones present or not.

        Two chains of rules, from each key on: `first` before anything is written, `more` after something.
        """
        if unknown := set(required) - set(properties):
            raise _refused(f"`required` names {sorted(unknown)[0]!r}, which is not in `properties`")
        self._objects += 1
        number = self._objects
        pairs = [f"{_literal(_json(key) + ': ')} {self._any(part)}" for key, part in properties.items()]
        first, more = '""', '""'
        for position, (key, pair) in reversed(list(enumerate(zip(properties, pairs, strict=True)))):
            follow = f'", " {pair} {more}'
            begin = f"{pair} {more}"
            if key not in required:
                follow, begin = _either([follow, more]), _either([begin, first])
            more = self._rule(f"more{number}x{position}", follow)
            first = self._rule(f"first{number}x{position}", begin)
        return f'"{{" {first} "}}"'

    def _rule(self, name: str, body: str) -> str:
        self._rules[name] = body
        return name

    def _reference(self, reference: str) -> str:
        """The rule of a reference within the schema, made at its first use; it may be recursive."""
        if reference not in self._references:
            if not reference.startswith("#"):
                raise _refused(f"the reference {reference!r}")
            target = self._schema
            for part in reference.lstrip("#").split("/")[1:]:
                target = target.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(target, Mapping) else None
            self._references[reference] = name = f"part{len(self._references)}"
            self._rules[name] = self._any(target)
        return self._references[reference]


def _check(schema: Mapping[str, Any], known: set[str]) -> None:
    for keyword in schema:
        if keyword not in known | NOTES:
            raise _refused(f"the keyword `{keyword}`")


def _repeated(item: str, low: int, high: int | None) -> str:
    """An expression for `low` to `high` items with commas between them."""
    if high == 0:
        return '""'
    rest = f'(", " {item}){{{max(low - 1, 0)},{"" if high is None else high - 1}}}'
    return f"{item} {rest}" if low else f"({item} {rest})?"


def _either(alternatives: Sequence[str]) -> str:
    return alternatives[0] if len(alternatives) == 1 else f"({' | '.join(alternatives)})"


def _literal(text: str) -> str:
    """Text as a terminal; grammars escape quotes, backslashes and control characters as JSON does."""
    return json.dumps(text, ensure_ascii=False)


def _json(value: Any) -> str:
    value = int(value) if isinstance(value, float) and value.is_integer() else value  # as llguidance writes constants
    return json.dumps(value, ensure_ascii=False)


def _refused(what: str) -> EngineError:
    hint = "leave it out of the schema, or use `--engine torch`"
    return EngineError("constraint-unsupported", f"the openvino engine cannot constrain text to {what}", hint=hint)
