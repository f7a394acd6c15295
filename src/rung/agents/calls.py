"""Tool calls as text: how tools are offered to a model, what its turn means, and how results go back.

There are three formats. The model's chat template shows tools, calls and results in the format that the model was
trained on, but nothing forces the model to keep it. JSON under constrained decoding works with every model and
endpoint, and can only be cut, never wrong; agents use it where a template does not know tools. The server writes the
`<tool_call>` tags of Hermes (https://github.com/NousResearch/Hermes-Function-Calling) there, since its clients choose
when a model may answer in plain text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple, cast

from rung.agents.tools import Tool
from rung.engines.base import Constraint
from rung.errors import ModelError
from rung.models.messages import Message, Messages, call_id, tagged_call
from rung.models.tokenizer import Tokenizer
from rung.yamlfile import json_value

CallFormat = Literal["template", "json"]


@dataclass(frozen=True, slots=True)
class Call:
    """A tool that the model wants to call, with its arguments."""

    tool: str
    arguments: Mapping[str, Any]


ModelTurn = str | tuple[Call, ...]  # an answer, or calls


class MalformedError(Exception):
    """A turn that begins a call and does not finish it; the text tells the model what is wrong."""


# ---- reading a turn

_TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_MARK = re.compile(r"\[TOOL_CALLS\]|<\|python_tag\|>")
_GAP = re.compile(r"[\s;]*")
_OPENING = re.compile(r'\{\{?\s*+"')  # of an object with keys, perhaps with doubled braces
LONGEST_CALL = 20_000  # characters of a call with doubled braces


def read_turn(text: str, names: Collection[str] = ()) -> ModelTurn:
    """Read an answer, or calls in any format of the common chat templates.

    Calls are JSON objects `{"name", "arguments"}` or `{"name", "parameters"}`, one or several or a list of them: in
    `<tool_call>` tags (Hermes, Qwen, SmolLM), after `[TOOL_CALLS]` (Mistral) or `<|python_tag|>` (Llama), or as the
    whole turn (Llama, separated by `;`). Arguments may be a JSON string that holds the object. Calls of the tools with
    these `names` may also stand between other text, such as fences, and have doubled braces.

    Raises:
        MalformedError: a tag or mark begins a call that cannot be read, or the arguments are not an object.
    """
    marked = _TAGGED.findall(text) or _MARK.split(text)[1:]
    try:
        values = [value for piece in marked or [text] for value in _json_values(piece)]
    except (ValueError, RecursionError) as error:
        if calls := _named_calls(text, names):
            return calls
        if marked:
            raise MalformedError(f"that call is not valid JSON: {error}") from None
        return text.strip()
    if not marked and not (values and all(map(_looks_like_call, values))):
        return text.strip()  # an answer that happens to be JSON
    try:
        calls = tuple(_call(value, value["name"]) for value in values)
    except (KeyError, TypeError, ValueError, RecursionError):
        calls = ()
    if not calls:
        raise MalformedError('a call is written {"name": ..., "arguments": {...}}')
    return calls


def _named_calls(text: str, names: Collection[str]) -> tuple[Call, ...]:
    """Find the calls of known tools between other text."""
    calls: list[Call] = []
    decoder, position = json.JSONDecoder(), 0
    while names and (opening := _OPENING.search(text, position)):
        position, doubled = opening.start(), opening[0].startswith("{{")
        places = [(text, position)]
        if doubled:
            single = text[position : position + LONGEST_CALL].replace("{{", "{").replace("}}", "}")
            places += [(text, position + 1), (single, 0)]
        position = opening.end()
        for written, begin in places:
            try:
                value, end = decoder.raw_decode(written, begin)
                call = _call(value, value["name"])
            except (KeyError, TypeError, ValueError, RecursionError):
                continue
            if call.tool in names:
                calls.append(call)
                position = end if written is text else opening.start() + end
                break
    return tuple(calls)


def spoken(text: str, *, tools: bool) -> str:
    """The answer in what a model wrote in a conversation after its thought: calls in the tags of Hermes.

    Rows of data write expected calls in the same tags, whatever the format of the model's template.
    """
    try:
        turn = read_turn(text) if tools else text
    except MalformedError:
        return text
    if isinstance(turn, str):
        return text
    first = min((mark.start() for mark in (_TAGGED.search(text), _MARK.search(text)) if mark), default=0)
    return "\n".join(filter(None, (text[:first].strip(), *(tagged_call(call.tool, call.arguments) for call in turn))))


def _json_values(text: str) -> Iterable[Any]:
    """Yield the JSON values written one after another; the items of a list count as values."""
    decoder, position = json.JSONDecoder(), _end_of_gap(text, 0)
    while position < len(text):
        value, end = decoder.raw_decode(text, position)
        for item in value if isinstance(value, list) else [value]:
            yield item["function"] if isinstance(item, dict) and isinstance(item.get("function"), dict) else item
        position = _end_of_gap(text, end)


def _end_of_gap(text: str, position: int) -> int:
    gap = _GAP.match(text, position)
    return gap.end() if gap else position


def _looks_like_call(value: Any) -> bool:
    return isinstance(value, dict) and "name" in value and ("arguments" in value or "parameters" in value)


def _call(values: Mapping[str, Any], tool: Any) -> Call:
    arguments = values["arguments"] if "arguments" in values else values["parameters"]
    if isinstance(arguments, str):
        arguments = json_value(arguments)
    if not isinstance(tool, str) or not isinstance(arguments, dict):
        raise TypeError("not a call")
    return Call(tool, arguments)


# ---- the model's chat template


class TemplateSupport(NamedTuple):
    """What a chat template shows of calls in both directions."""

    tools: bool  # it shows the tools offered, and calls, where it shows them, in a format that `read_turn` reads
    results: bool  # it shows past calls in such a format, and their results
    plain: bool  # it does not tell the model to write calls with doubled braces, as Qwen2.5-Coder's does by mistake


@lru_cache(maxsize=16)
def template_support(tokenizer: Tokenizer) -> TemplateSupport:
    """Probe the model's chat template: some show only tools, some refuse the role `tool`, some write calls as XML."""
    question = {"role": "user", "content": "x"}
    calls = template_turns("", (Call("probe-call", {}),), [("probe-call", "probe-result")])
    tools = [Tool("probe-tool", "probe-text", '{"type": "object", "properties": {}}').as_template()]

    def shown(*turns: Mapping[str, Any]) -> str:
        try:
            return tokenizer.render(cast("list[Message]", list(turns)), tools=tools)
        except ModelError as error:
            if error.code == "chat-template-refused":
                return ""
            raise

    if tokenizer.chat_template is None:
        return TemplateSupport(tools=False, results=False, plain=True)
    talk = shown(question, *calls)
    readable = re.search(r'"name":\s*"probe-call"', talk) is not None
    return TemplateSupport(
        tools="probe-tool" in shown(question) and (readable or "probe-call" not in talk),
        results=readable and "probe-result" in talk,
        plain=re.search(r'\{\{\s*"name"', talk) is None,
    )


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
        return str(step["answer"]) if "answer" in step else (_call(step, step["tool"]),)
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
