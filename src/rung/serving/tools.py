"""Tools in chat requests: from OpenAI's fields to Rung's tools and calls, and back."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import Any

from rung.agents.calls import (
    MalformedError,
    TemplateSupport,
    call_id,
    call_turn,
    read_turn,
    tag_head,
    tagged_call,
    tagged_result,
)
from rung.agents.tools import Tool
from rung.errors import ConfigError
from rung.serving.schemas import ChatMessage, ChatRequest, ToolCall, ToolChoice

NO_SUPPORT = TemplateSupport(tools=False, results=False)  # endpoints get everything as text


def offered(body: ChatRequest) -> tuple[list[Tool], list[Tool]]:
    """Return the tools that the model may call, and those of which it has to call one.

    A chosen function that is not among the tools is a ConfigError.
    """
    if body.tool_choice == "none":
        return [], []
    functions = [tool.function for tool in body.tools or ()]
    tools = [
        Tool(one.name, one.description or "", json.dumps(one.parameters or {"type": "object", "properties": {}}))
        for one in functions
    ]
    if not isinstance(body.tool_choice, ToolChoice):
        return tools, tools if body.tool_choice == "required" else []
    name = body.tool_choice.function.name
    if not (chosen := [tool for tool in tools if tool.name == name]):
        raise ConfigError(
            "unknown-name", f"`tool_choice` names {name!r}, which is not among `tools`",
            hint="name one of " + ", ".join(tool.name for tool in tools),
        )  # fmt: skip
    return tools, chosen[:1]


def turns(messages: Sequence[ChatMessage], tools: Sequence[Tool], support: TemplateSupport) -> list[dict[str, Any]]:
    """Build the messages that a template renders; what it does not show itself (see `support`) is written as text."""
    result: list[dict[str, Any]] = []
    made: dict[str, tuple[str, str]] = {}  # the client's id of a call: the id in the prompt, and the function's name
    count = 0
    for message in messages:
        role = message.prompt_role
        calls = [(call.function.name, _arguments(call)) for call in message.tool_calls or ()]
        if role == "tool" and not support.results:
            result.append({"role": "user", "content": tagged_result(message.text)})
        elif role == "tool":
            given = message.tool_call_id or ""
            identity, name = made.get(given, (given, ""))
            result.append({"role": role, "name": name, "content": message.text, "tool_call_id": identity})
        elif calls and support.results:
            result.append(call_turn(calls, message.text, first=count))
            for call in message.tool_calls or ():
                made[call.id] = call_id(count), call.function.name
                count += 1
        else:
            result.append({"role": role, "content": message.text + "".join(tagged_call(*call) for call in calls)})
    if tools and not support.tools:
        if result[0]["role"] == "system":
            result[0] = {"role": "system", "content": f"{result[0]['content']}\n\n{tag_head(tools)}"}
        else:
            result.insert(0, {"role": "system", "content": tag_head(tools)})
    return result


def _arguments(call: ToolCall) -> Any:
    try:
        return json.loads(call.function.arguments)
    except ValueError:
        return call.function.arguments  # the client's own text


def calls_in(text: str, tools: Sequence[Tool], must: Sequence[Tool]) -> list[dict[str, Any]]:
    """Return the calls that an answer holds, as OpenAI writes them; none where it is ordinary text.

    A name that is not among the `tools` makes no call. Where the model had to call one single tool, the text is its
    arguments.
    """
    if len(must) == 1:
        return [_call(must[0].name, text)] if _is_object(text) else []
    try:
        turn = read_turn(text)
    except MalformedError:
        return []  # the client sees the text that the model wrote
    names = {tool.name for tool in tools}
    calls = () if isinstance(turn, str) else turn
    return [_call(one.tool, json.dumps(one.arguments, ensure_ascii=False)) for one in calls if one.tool in names]


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _call(name: str, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}
