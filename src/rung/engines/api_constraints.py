"""Constraints as servers understand them, and the proof afterwards that they were kept.

Some servers ignore what they do not know. Every finished answer is therefore checked, and one that does not fit is an
error, never an answer. With `response_format`, choices and regexes travel inside an object, `{"answer": ...}`: that is
the only root that all servers accept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from rung.engines.api_options import ConstraintStyle
from rung.engines.base import Constraint, FinishReason
from rung.errors import ConfigError, EngineError

WRAPPER_TOKENS = 16  # what `{"answer": "` and `"}` take at most
FIELD = "answer"


def wraps(constraint: Constraint | None, style: ConstraintStyle) -> bool:
    """Tell whether the answer comes inside an object."""
    return constraint is not None and style == "json_schema" and constraint.kind != "json_schema"


def constraint_fields(constraint: Constraint | None, style: ConstraintStyle) -> dict[str, Any]:
    """Return the fields of a request's body that ask for a constraint.

    Raises:
        EngineError: `constraint-unsupported`: there is no way to ask this server for it.
        ConfigError: the schema is not JSON, or the regex is not one.
    """
    if constraint is None:
        return {}
    if style != "none" and constraint.kind == "json_schema":
        return _response_format("answer", schema_of(constraint))
    if constraint.kind == "regex":
        _pattern(constraint)
    if style == "json_schema":
        return _response_format(FIELD, _wrapped(constraint))
    if style == "structured_outputs":
        return {"structured_outputs": {_vllm_name(constraint): _plain(constraint)}}
    if style == "guided":
        return {f"guided_{_vllm_name(constraint)}": _plain(constraint)}
    if style == "grammar" and constraint.kind == "choices":
        return {"grammar": "root ::= " + " | ".join(_quoted(choice) for choice in constraint.value)}
    hint = "choose another with RUNG_API_CONSTRAINTS: json_schema, structured_outputs or guided"
    raise EngineError(
        "constraint-unsupported", f"a {constraint.kind} constraint cannot be asked for as `{style}`", hint=hint
    )


def schema_of(constraint: Constraint) -> Mapping[str, Any]:
    """Return a JSON Schema from its text."""
    try:
        schema = json.loads(str(constraint.value))
    except ValueError as broken:
        raise ConfigError("bad-constraint", f"the JSON Schema is not JSON: {broken}", hint="correct it") from broken
    if not isinstance(schema, dict):
        raise ConfigError("bad-constraint", "the JSON Schema is not an object", hint="begin with `type: object`")
    return schema


def _response_format(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    described = {"name": name, "strict": True, "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": described}}


def _wrapped(constraint: Constraint) -> dict[str, Any]:
    inner: dict[str, Any] = {"type": "string", "enum": list(constraint.value)}
    if constraint.kind == "regex":
        inner = {"type": "string", "pattern": f"^({constraint.value})$"}
    return {"type": "object", "properties": {FIELD: inner}, "required": [FIELD], "additionalProperties": False}


def _vllm_name(constraint: Constraint) -> str:
    return "choice" if constraint.kind == "choices" else "regex"


def _plain(constraint: Constraint) -> object:
    return list(constraint.value) if constraint.kind == "choices" else constraint.value


def _quoted(text: str) -> str:
    """Return a GBNF literal; JSON's escapes of quotes, backslashes and line ends are also GBNF's."""
    return json.dumps(text, ensure_ascii=False)


def _pattern(constraint: Constraint) -> re.Pattern[str]:
    try:
        return re.compile(str(constraint.value))
    except re.error as wrong:
        raise ConfigError("bad-constraint", f"the regex is not valid: {wrong}", hint="correct it") from wrong


def constrained_answer(
    text: str, constraint: Constraint | None, style: ConstraintStyle, finish: FinishReason, where: str
) -> str:
    """Return the answer itself, out of its object where it came in one.

    An answer that was cut at `max_tokens` cannot be checked and comes as it is; its finish reason says so.

    Raises:
        EngineError: `constraint-unsupported`: the server did not keep to the constraint.
    """
    if constraint is None or finish != "stop":
        return text
    try:
        values = json.loads(text) if wraps(constraint, style) or constraint.kind == "json_schema" else None
        answer = text if values is None or constraint.kind == "json_schema" else values[FIELD]
        kept = _fits(answer, constraint)
    except (ValueError, KeyError, TypeError, IndexError):
        kept = False
    if not kept:
        raise EngineError(
            "constraint-unsupported",
            f"{where} was asked for a {constraint.kind} constraint as `{style}` and answered {text[:80]!r}",
            hint="set RUNG_API_CONSTRAINTS to what the server knows: json_schema, grammar, structured_outputs, guided",
        )
    return str(answer)


def _fits(answer: object, constraint: Constraint) -> bool:
    if constraint.kind == "json_schema":
        return True  # it parsed
    if constraint.kind == "choices":
        return answer in constraint.value
    return isinstance(answer, str) and _pattern(constraint).fullmatch(answer) is not None
