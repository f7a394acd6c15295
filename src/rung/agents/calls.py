"""Tool calls as text: how tools are offered to a model, and how results go back.

There are three formats. The model's chat template shows tools, calls and results in the format that the model was
trained on, which `rung.agents.turns` reads, but nothing forces the model to keep it. JSON under constrained decoding
works with every model and endpoint, and can only be cut, never wrong; agents use it where a template shows no tools, or
no call that is read back. The server writes the `<tool_call>` tags of Hermes
(https://github.com/NousResearch/Hermes-Function-Calling) there, since its clients choose when a model may answer in
plain text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple, cast

from rung.agents.tools import Tool
from rung.agents.turns import Call, MalformedError, ModelTurn, begins_at, call_of, read_turn
from rung.engines.base import Constraint
from rung.errors import ModelError
from rung.models.messages import Message, Messages, call_id, tagged_call
from rung.models.thinking import answer_beginning
from rung.models.tokenizer import Tokenizer
from rung.yamlfile import json_value

CallFormat = Literal["template", "json"]


# ---- a turn in a conversation


def spoken(text: str, functions: Sequence[Mapping[str, Any]]) -> str:
    """The answer in what a model wrote in a conversation after its thought: calls in the tags of Hermes.

    Rows of data write expected calls in the same tags, whatever the format of the model's template.
    """
    tools = [Tool(one["name"], "", json.dumps(one.get("parameters", {}))) for one in (f["function"] for f in functions)]
    try:
        turn = read_turn(text, tools) if tools else text
    except MalformedError:
        return text
    if isinstance(turn, str):
        return text
    before = text[: begins_at(text, tools)].strip()
    return "\n".join(filter(None, (before, *(tagged_call(call.tool, call.arguments) for call in turn))))


# ---- the model's chat template


class TemplateSupport(NamedTuple):
    """What a chat template shows of calls in both directions."""

    tools: bool  # it shows the tools offered, and `read_turn` reads a call as the template writes it
    results: bool  # it shows past calls in such a format, and their results
    plain: bool  # it does not tell the model to write calls with doubled braces, as Qwen2.5-Coder's does by mistake


_TYPES = {"text": {"type": "string"}, "count": {"type": "integer"}, "flag": {"type": "boolean"}}
_PROBE = Tool("probe_tool", "probe-text", json.dumps({"type": "object", "properties": _TYPES}))
_PROBE_CALL = Call(_PROBE.name, {"text": "two words", "count": 3, "flag": True})
_NO_THOUGHT = re.compile(r"<(\w*think\w*)>\s*</\1>\s*")  # of which some templates show none in the past


@lru_cache(maxsize=16)
def template_support(tokenizer: Tokenizer) -> TemplateSupport:
    """Probe the model's chat template: a format of calls is the model's if one that it renders is read back equal.

    Some templates show only tools, some refuse the role `tool`, and some open a channel for answers alone.
    """
    question = {"role": "user", "content": "x"}
    called, result = template_turns("", [_PROBE_CALL], [(_PROBE.name, "probe-result")])

    def shown(*turns: Mapping[str, Any], prompt: bool = False) -> str:
        try:
            begin = answer_beginning(tokenizer)
            return tokenizer.render(cast("list[Message]", list(turns)), prompt, [_PROBE.as_template()], begin)
        except ModelError as error:
            if error.code == "chat-template-refused":
                return ""
            raise

    if tokenizer.chat_template is None:
        return TemplateSupport(tools=False, results=False, plain=True)
    prompt, talk = shown(question, prompt=True), shown(question, called, result)
    readable = "probe-text" in prompt and _is_read_back(tokenizer, prompt, shown(question, called))
    plain = re.search(r'\{\{\s*"name"', talk or prompt) is None
    return TemplateSupport(tools=readable, results=readable and "probe-result" in talk, plain=plain)


def _is_read_back(tokenizer: Tokenizer, prompt: str, talk: str) -> bool:
    """Whether the end of a talk, which follows the prompt, is read as the call that it shows, token by token."""
    prompt, talk = _NO_THOUGHT.sub("", prompt), _NO_THOUGHT.sub("", talk)
    tokens = tokenizer.encode(talk.removeprefix(prompt))
    end = next((i for i, token in enumerate(tokens) if token in tokenizer.eos_ids), len(tokens))
    try:
        turn = read_turn(tokenizer.decode(tokens[:end], call_marks=True), [_PROBE])
    except MalformedError:
        return False
    return talk.startswith(prompt) and turn == (_PROBE_CALL,)


def template_turns(
    written: str, calls: Sequence[Call], results: Sequence[tuple[str, str]]
) -> tuple[dict[str, Any], ...]:
    """Build the messages that follow a turn, as chat templates take them: the calls, then a result for each."""
    if not calls:
        return tuple(dict(message) for message in json_turns(written, results))
    named = [(call.tool, dict(call.arguments)) for call in calls]
    numbered = enumerate(results)
    turns = (
        {"role": "tool", "name": tool, "content": text, "tool_call_id": call_id(i)} for i, (tool, text) in numbered
    )
    return (call_turn(named), *turns)


def call_turn(calls: Sequence[tuple[str, Any]], content: str = "", *, first: int = 0) -> dict[str, Any]:
    """Build the model's turn with calls (names and arguments) for a chat template; ids count from `first`."""
    functions = [{"name": name, "arguments": arguments} for name, arguments in calls]
    numbered = [{"id": call_id(i), "type": "function", "function": f} for i, f in enumerate(functions, start=first)]
    return {"role": "assistant", "content": content, "tool_calls": numbered}


# ---- JSON under constrained decoding


def json_head(tools: Sequence[Tool]) -> str:
    """Describe the tools, and how to call them, for the system message."""
    arguments = (json.dumps(tool.schema.get("properties", {}), ensure_ascii=False) for tool in tools)
    shown = zip(tools, arguments, strict=True)
    lines = [f"- {tool.name}: {tool.description}\n  arguments: {schema}" for tool, schema in shown]
    return (
        "You can call these tools:\n" + "\n".join(lines) + "\n\n"
        "Never guess what a tool can tell: call it first, and use its results in the next call. "
        'Write JSON only. To call a tool, write {"step": {"tool": its name, "arguments": its arguments}}; you will be '
        'given the result. When you know the answer, write {"step": {"answer": the answer}}.'
    )


def json_constraint(tools: Sequence[Tool], *, last: bool) -> Constraint:
    """Constrain a turn to a call or the answer; the `last` turn to the answer.

    The choice is inside an object, and every argument is required, as some vendors' servers demand. An answer may be a
    number: models that mean to write one are thrown off by a quotation mark.
    """
    answer = _object({"answer": {"anyOf": [{"type": "string"}, {"type": "number"}]}})
    calls = [
        _object({"tool": {"type": "string", "enum": [tool.name]}, "arguments": _all_required(tool.schema)})
        for tool in tools
    ]
    step = answer if last else {"anyOf": [*calls, answer]}
    return Constraint("json_schema", json.dumps(_object({"step": step}), ensure_ascii=False))


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    names = list(properties)
    return {"type": "object", "properties": dict(properties), "required": names, "additionalProperties": False}


def _all_required(schema: Mapping[str, Any]) -> dict[str, Any]:
    return _object({
        name: {key: value for key, value in argument.items() if key not in ("default", "description")}
        for name, argument in schema.get("properties", {}).items()
    })  # fmt: skip


def read_json(text: str) -> ModelTurn:
    """Read a turn that `json_constraint` held.

    Raises:
        MalformedError: it was cut, or has another form.
    """
    try:
        step = json_value(text)["step"]
        return str(step["answer"]) if "answer" in step else (call_of(step, step["tool"]),)
    except ValueError as error:
        raise MalformedError(f"that is not whole JSON: {error}") from None
    except (KeyError, TypeError):
        raise MalformedError('write {"step": {"tool": ..., "arguments": {...}}} or {"step": {"answer": ...}}') from None


def json_turns(written: str, results: Sequence[tuple[str, str]]) -> Messages:
    """Build the messages that follow a turn: what the model wrote, and results by tool (no tool: what was wrong)."""
    text = "\n\n".join(f"Result of {tool}:\n{result}" if tool else result for tool, result in results)
    return ({"role": "assistant", "content": written}, {"role": "user", "content": text})


# ---- a call that must be made


def call_constraint(tools: Sequence[Tool]) -> Constraint:
    """Constrain a turn to a call of one of the tools: the arguments of a single one, else name and arguments."""
    if len(tools) == 1:
        return Constraint("json_schema", tools[0].parameters)
    definitions = {f"tool{i}": _moved(tool.schema, f"#/$defs/tool{i}") for i, tool in enumerate(tools)}
    named = zip(tools, definitions, strict=True)
    calls = [_object({"name": {"const": tool.name}, "arguments": {"$ref": f"#/$defs/{key}"}}) for tool, key in named]
    return Constraint("json_schema", json.dumps({"anyOf": calls, "$defs": definitions}))


def _moved(schema: Any, root: str) -> Any:
    """Let a schema's references to its own parts begin at `root`."""
    if isinstance(schema, Mapping):
        return {
            key: root + value[1:]
            if key == "$ref" and isinstance(value, str) and value.startswith("#")
            else _moved(value, root)
            for key, value in schema.items()
        }
    return [_moved(item, root) for item in schema] if isinstance(schema, list) else schema
