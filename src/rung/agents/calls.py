"""How a model and its tools talk: by the model's own chat template, or by JSON that constrained decoding holds.

Both say the same things, so both have the same three parts: what the model reads, what its turn means, and what it is
told back. The template's format is what the model was trained on, but nothing holds it to it; JSON works with every
model and endpoint, and can only be cut, never wrong.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, cast

from rung.agents.tools import Tool
from rung.engines.base import Constraint
from rung.errors import ModelError
from rung.models.messages import Message, Messages
from rung.models.tokenizer import Tokenizer

Protocol = Literal["template", "json"]


@dataclass(frozen=True, slots=True)
class Call:
    """A tool that the model wants to call, with its arguments."""

    tool: str
    arguments: Mapping[str, Any]


Turn = str | tuple[Call, ...]  # an answer, or calls


class MalformedError(Exception):
    """A turn that is neither a call nor an answer; the text says why, for the model to read."""


# ---- JSON


def json_head(tools: Sequence[Tool]) -> str:
    """Return what the system message says of the tools and of how to call them."""
    lines = [f"- {tool.name}: {tool.description}\n  arguments: {_shown(tool.schema)}" for tool in tools]
    return (
        "You can call these tools:\n" + "\n".join(lines) + "\n\n"
        'Write JSON only. To call a tool, write {"step": {"tool": its name, "arguments": its arguments}}; you will be '
        'given the result. When you know the answer, write {"step": {"answer": the answer}}.'
    )


def _shown(schema: Mapping[str, Any]) -> str:
    return json.dumps(schema.get("properties", {}), ensure_ascii=False)


def json_constraint(tools: Sequence[Tool], *, last: bool) -> Constraint:
    """Return what a turn is held to: a call or the answer; at the `last` turn the answer.

    The choice stands inside an object, and every argument is written out, as some vendors' servers demand.
    """
    answer = _object({"answer": {"type": "string"}})
    calls = [
        _object({"tool": {"type": "string", "enum": [tool.name]}, "arguments": _held(tool.schema)}) for tool in tools
    ]
    step = answer if last else {"anyOf": [*calls, answer]}
    return Constraint("json_schema", json.dumps(_object({"step": step}), ensure_ascii=False))


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object", "properties": dict(properties), "required": list(properties), "additionalProperties": False,
    }  # fmt: skip


def _held(schema: Mapping[str, Any]) -> dict[str, Any]:
    properties = {
        name: {key: value for key, value in one.items() if key not in ("default", "description")}
        for name, one in schema.get("properties", {}).items()
    }
    return _object(properties)


def read_json(text: str) -> Turn:
    """Return what a turn means.

    Raises:
        MalformedError: it is not whole, or not of the form.
    """
    try:
        step = json.loads(text)["step"]
        if "answer" in step:
            return str(step["answer"])
        return (_call(step, "tool"),)
    except ValueError as error:
        raise MalformedError(f"that is not whole JSON: {error}") from None
    except (KeyError, TypeError):
        raise MalformedError('write {"step": {"tool": ..., "arguments": {...}}} or {"step": {"answer": ...}}') from None


def json_turns(written: str, results: Sequence[tuple[str, str]]) -> Messages:
    """Return the messages behind a turn: what was written, and the results by tool (no tool: what was wrong)."""
    told = "\n\n".join(f"Result of {tool}:\n{text}" if tool else text for tool, text in results)
    return ({"role": "assistant", "content": written}, {"role": "user", "content": told})


# ---- the model's chat template


@lru_cache(maxsize=16)
def knows_tools(tokenizer: Tokenizer) -> bool:
    """Say whether the model's template shows tools, calls of them, and their results."""
    tool = Tool("probe-tool", "probe-text", '{"type": "object", "properties": {}}')
    probe = [{"role": "user", "content": "x"}, *template_turns("", (Call("probe-call", {}),), [("a", "probe-result")])]
    try:
        shown = tokenizer.render(cast("list[Message]", probe), tools=[tool.as_template()])
    except ModelError as error:
        if error.code in ("chat-template-refused", "no-chat-template"):
            return False
        raise
    return all(text in shown for text in ("probe-tool", "probe-call", "probe-result"))


_TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)


def read_template(text: str) -> Turn:
    """Return what a turn means: calls in `<tool_call>` tags (Hermes, Qwen, SmolLM), or bare JSON (Llama, Mistral).

    Raises:
        MalformedError: it begins a call that cannot be read.
    """
    tagged = _TAGGED.findall(text)
    pieces = tagged or [re.sub(r"^\s*\[TOOL_CALLS\]", "", text)]
    try:
        values = [json.loads(piece) for piece in pieces]
    except ValueError as error:
        if tagged:
            raise MalformedError(f"that call is not valid JSON: {error}") from None
        return text.strip()
    found = [one for value in values for one in (value if isinstance(value, list) else [value])]
    if not tagged and not all(isinstance(one, dict) and "name" in one for one in found):
        return text.strip()  # an answer that happens to be JSON
    try:
        return tuple(_call(one, "name") for one in found)
    except (KeyError, TypeError):
        raise MalformedError('a call is written {"name": ..., "arguments": {...}}') from None


def template_turns(
    written: str, calls: Sequence[Call], results: Sequence[tuple[str, str]]
) -> tuple[dict[str, Any], ...]:
    """Return the messages behind a turn, as chat templates take them."""
    if not calls:
        return tuple(dict(message) for message in json_turns(written, results))
    made = [{"type": "function", "function": {"name": c.tool, "arguments": dict(c.arguments)}} for c in calls]
    told = [{"role": "tool", "name": tool, "content": text} for tool, text in results]
    return ({"role": "assistant", "content": "", "tool_calls": made}, *told)


def _call(values: Mapping[str, Any], name: str) -> Call:
    arguments = values["arguments"] if "arguments" in values else values["parameters"]
    if isinstance(arguments, str):  # some models write the object as text
        arguments = json.loads(arguments)
    if not isinstance(values[name], str) or not isinstance(arguments, dict):
        raise TypeError("not a call")
    return Call(values[name], arguments)
