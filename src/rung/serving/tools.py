"""Functions that a model may call: how it is told of them, how it is held to a call, and how a call is read.

A model whose chat template knows tools is told by it. Others are told in the system message, in the words of Hermes
(https://github.com/NousResearch/Hermes-Function-Calling), which many models were trained on: a call is a JSON object
{"name", "arguments"} between <tool_call> and </tool_call>.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from rung.engines.base import Constraint
from rung.errors import ConfigError, ModelError
from rung.models.tokenizer import Tokenizer
from rung.serving.schemas import ChatMessage, Tool, ToolChoice

TOLD = """You may call one of these functions to answer. Each is given as a JSON object:
<tools>
{tools}
</tools>
To call one, answer with a JSON object with its name and arguments between these marks, and nothing else:
<tool_call>
{{"name": NAME, "arguments": ARGUMENTS}}
</tool_call>"""
_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*(?:</tool_call>|\Z)", re.DOTALL)


@lru_cache(maxsize=16)
def template_knows_tools(tokenizer: Tokenizer) -> bool:
    """Tell whether a model's chat template shows the tools that it is given."""
    probe = {"type": "function", "function": {"name": "probe_function", "description": "", "parameters": {}}}
    if tokenizer.chat_template is None:
        return False
    try:
        return "probe_function" in tokenizer.render([{"role": "user", "content": "x"}], tools=[probe])
    except ModelError:
        return False


def turns(messages: Sequence[ChatMessage], tools: Sequence[Tool], *, native: bool) -> list[dict[str, Any]]:
    """Return the messages that a template renders.

    Args:
        messages: the conversation.
        tools: what may be called; empty for nothing.
        native: the template knows tools and calls; otherwise both are written as text.
    """
    result: list[dict[str, Any]] = []
    for message in messages:
        role = "system" if message.role == "developer" else message.role
        if native:
            result.append(_native(role, message))
        elif role == "tool":
            result.append({"role": "user", "content": f"<tool_response>\n{message.text}\n</tool_response>"})
        else:
            calls = "".join(f"<tool_call>\n{_written(call)}\n</tool_call>" for call in message.tool_calls or ())
            result.append({"role": role, "content": message.text + calls})
    if tools and not native:
        told = TOLD.format(tools="\n".join(json.dumps(described(tool), ensure_ascii=False) for tool in tools))
        if result[0]["role"] == "system":
            result[0] = {"role": "system", "content": f"{result[0]['content']}\n\n{told}"}
        else:
            result.insert(0, {"role": "system", "content": told})
    return result


def _native(role: str, message: ChatMessage) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": role, "content": message.text}
    if message.tool_calls:
        turn["tool_calls"] = [
            {"type": "function", "function": {"name": call.function.name, "arguments": _arguments(call)}}
            for call in message.tool_calls
        ]
    return turn


def _written(call: Any) -> str:
    return json.dumps({"name": call.function.name, "arguments": _arguments(call)}, ensure_ascii=False)


def _arguments(call: Any) -> Any:
    try:
        return json.loads(call.function.arguments)
    except ValueError:
        return call.function.arguments


def described(tool: Tool) -> dict[str, Any]:
    """Return a tool as plain values, as templates expect it."""
    function = tool.function
    return {
        "type": "function",
        "function": {
            "name": function.name,
            "description": function.description or "",
            "parameters": function.parameters or {"type": "object", "properties": {}},
        },
    }


def forced(tools: Sequence[Tool], choice: str | ToolChoice | None) -> list[Tool]:
    """Return the tools of which one has to be called; none where the model may answer in text.

    Raises:
        ConfigError: the chosen function is not among the tools.
    """
    if isinstance(choice, ToolChoice):
        chosen = [tool for tool in tools if tool.function.name == choice.function.name]
        if not chosen:
            raise ConfigError(
                "unknown-name", f"`tool_choice` names {choice.function.name!r}, which is not among `tools`",
                hint="name one of " + ", ".join(tool.function.name for tool in tools),
            )  # fmt: skip
        return chosen[:1]
    return list(tools) if choice == "required" else []


def constraint(tools: Sequence[Tool]) -> Constraint:
    """Return what a call of one of `tools` keeps to: the arguments of the one, or name and arguments of any."""
    if len(tools) == 1:
        return Constraint("json_schema", json.dumps(_parameters(tools[0])))
    definitions = {f"tool{i}": _moved(_parameters(tool), f"#/$defs/tool{i}") for i, tool in enumerate(tools)}
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": tool.function.name}, "arguments": {"$ref": f"#/$defs/tool{i}"}},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for i, tool in enumerate(tools)
    ]
    return Constraint("json_schema", json.dumps({"anyOf": calls, "$defs": definitions}))


def _parameters(tool: Tool) -> dict[str, Any]:
    return tool.function.parameters or {"type": "object"}


def _moved(schema: Any, root: str) -> Any:
    """Return a schema whose references to its own parts begin at `root`."""
    if isinstance(schema, Mapping):
        return {
            key: root + value[1:]
            if key == "$ref" and isinstance(value, str) and value.startswith("#")
            else _moved(value, root)
            for key, value in schema.items()
        }
    return [_moved(item, root) for item in schema] if isinstance(schema, list) else schema


def calls_in(text: str, tools: Sequence[Tool], must: Sequence[Tool]) -> list[dict[str, Any]]:
    """Return the calls that an answer holds, as OpenAI writes them; none where it is ordinary text.

    Args:
        text: what the model wrote.
        tools: what it may call; a name that is not among them makes no call.
        must: what it was held to call one of.
    """
    if len(must) == 1:
        return [_call(must[0].function.name, text)] if _read(text) is not None else []
    names = {tool.function.name for tool in tools}
    found = []
    for part in _CALL.findall(text) or [text]:
        value = _read(part)
        if value is not None and value.get("name") in names and isinstance(value.get("arguments"), dict):
            found.append(_call(value["name"], json.dumps(value["arguments"], ensure_ascii=False)))
    return found


def _read(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _call(name: str, arguments: str) -> dict[str, Any]:
    identity = f"call_{secrets.token_hex(12)}"
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}
