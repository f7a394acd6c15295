"""Conversations as the field writes them, read into one form: chat messages as chat templates take them.

OpenAI's messages (content parts, tool calls, the role `developer`, `weight`), ShareGPT's `from` and `value`, either of
them as JSON text in a cell, and texts with `Human:` and `Assistant:` before the turns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from rung.errors import DataError
from rung.models.messages import call_id, tagged_call
from rung.yamlfile import json_value, unique_keys

# The names of roles in the formats of OpenAI, ShareGPT, LLaMA-Factory and Llama.
ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant",
    "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant", "ai": "assistant",
    "function_call": "assistant", "tool": "tool", "function": "tool", "observation": "tool", "ipython": "tool",
}  # fmt: skip
REASONING = ("reasoning_content", "reasoning", "thinking")
UNLEARNT = ("weight", "train", "loss")  # keys that exclude an assistant turn from training, if they are 0 or false
_KEYS = (
    "role", "from", "content", "value", "tool_calls", "function_call", "tool_call_id", "name", *REASONING, *UNLEARNT,
)  # fmt: skip
_TEXT_PARTS = ("text", "input_text", "output_text")
_FUNCTION_KEYS = ("name", "description", "parameters", "strict")  # in the order in which the server gets them
_HH = re.compile(
    r"(?:\A\s*+|(?<!\s)[^\S\n]*+\n\s*+)(Human|Assistant):[ \t]*"
)  # turns in one text, as Anthropic's hh-rlhf writes them
_CALL_ID = re.compile(r"[A-Za-z0-9]{9}")
HINT = 'write [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation.

    Attributes:
        turns: the messages: `role`, `content`, and where they have them `tool_calls`, `tool_call_id` and `name`, and
            `reasoning_content`.
        tools: the functions that may be called, as chat templates take them.
        masked: the positions of the assistant's turns that training must not learn.
    """

    turns: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    masked: tuple[int, ...] = ()

    @property
    def answer(self) -> int | None:
        """The position of the expected answer: the last turn, if it is an assistant's turn that may be learnt.

        If it must not be learnt, the last assistant turn before it that may is the answer, and what follows is not
        read. None if the conversation waits for its answer.
        """
        last = len(self.turns) - 1
        if last < 1 or self.turns[last]["role"] != "assistant":
            return None
        learnt = (i for i in range(last, 0, -1) if self.turns[i]["role"] == "assistant" and i not in self.masked)
        return next(learnt, None)

    def inputs(self, name: str) -> dict[str, Any]:
        """The inputs of the row: the messages before the answer, and the tools if there are any."""
        answer = self.answer
        end = len(self.turns) if answer is None else answer
        if answer is None and self.turns[-1]["role"] == "assistant":  # an answer that must not be learnt
            end -= 1
        return {name: self.turns[:end], **({"tools": self.tools} if self.tools else {})}

    def answered(self, turns: Sequence[dict[str, Any]]) -> Conversation:
        """The conversation with the turns of an answer from another column, which may repeat the conversation."""
        again = [(turn["role"], turn["content"]) for turn in self.turns]
        same = len(turns) > len(again) and [(turn["role"], turn["content"]) for turn in turns[: len(again)]] == again
        return Conversation([*self.turns, *(turns[len(again) :] if same else turns)], self.tools, self.masked)


def answer_turns(value: Any, name: str, source: str) -> list[dict[str, Any]]:
    """Read an answer that has a column of its own: a text, or the assistant's messages; empty for an empty cell."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    if isinstance(value, str) and not is_chat(value):
        return [{"role": "assistant", "content": value}]
    return read_conversation(
        [value] if isinstance(value, Mapping) and "role" in value else value, name, source, {}
    ).turns


def is_chat(value: Any) -> bool:
    """Say whether a value is a conversation: a list of turns with roles, or its JSON text."""
    if isinstance(value, str) and _HH.match(value) and "Assistant:" in value:
        return True
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            value = json_value(value)
        except ValueError:
            return False
    if isinstance(value, Mapping):
        value = value.get("messages") or value.get("conversations")
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, Mapping) and ("role" in first or {"from", "value"} <= first.keys())


def read_conversation(value: Any, name: str, source: str, row: Mapping[str, Any]) -> Conversation:
    """Read a conversation of a row in any of the formats.

    A text `system` and a list of `tools` beside it in the row belong to the conversation.

    Args:
        value: the cell.
        name: its column, for errors.
        source: the file and line, for errors.
        row: all columns.

    Raises:
        DataError: `bad-row` names the turn (counted from 1) and what is wrong with it.
    """
    where = f"{source}: {name!r}"
    if isinstance(value, str):
        value = _parsed(value, where)
    if isinstance(value, Mapping) and (inner := value.get("messages", value.get("conversations"))) is not None:
        row, value = value, inner
    if not isinstance(value, list):
        raise DataError("bad-row", f"{where} is not a list of messages: {str(value)[:80]!r}", hint=HINT)
    turns, masked = [], []
    for number, item in enumerate(value):
        turns.append(_turn(item, f"{where}, turn {number + 1}"))
        if not _learnt(item, f"{where}, turn {number + 1}") and turns[-1]["role"] == "assistant":
            masked.append(number)
    system = row.get("system")
    if isinstance(system, str) and system.strip() and not (turns and turns[0]["role"] == "system"):
        turns.insert(0, {"role": "system", "content": system})
        masked = [number + 1 for number in masked]
    _number_calls(turns)
    return Conversation(turns, _tools(row.get("tools") or row.get("functions"), source), tuple(masked))


def answer_text(turn: Mapping[str, Any]) -> str:
    """The answer of a turn as text: its content, then its tool calls in the tags of Hermes."""
    calls = [
        tagged_call(call["function"]["name"], call["function"]["arguments"]) for call in turn.get("tool_calls", ())
    ]
    return "\n".join(filter(None, (turn["content"].strip(), *calls)))


def _parsed(text: str, where: str) -> Any:
    if _HH.match(text):
        parts = _HH.split(text)[1:]
        return [{"role": role.lower(), "content": part} for role, part in zip(parts[::2], parts[1::2], strict=True)]
    try:
        return json_value(text, unique_keys)
    except ValueError as error:
        raise DataError("bad-row", f"{where} is neither a list of messages nor its JSON: {error}", hint=HINT) from None


def _turn(item: Any, where: str) -> dict[str, Any]:
    """Read one turn; keys that no format has are not read."""
    if not isinstance(item, Mapping):
        raise DataError("bad-row", f"{where} is a {type(item).__name__}, not a message", hint=HINT)
    for key in item:
        if key not in _KEYS and (near := get_close_matches(str(key), _KEYS, 1, 0.8)):
            raise DataError("bad-row", f"{where} has the unknown key {key!r}", hint=f"did you mean {near[0]!r}?")
    given = item.get("role", item.get("from"))
    if given is None:
        keys = ", ".join(map(repr, item)) or "nothing"
        raise DataError("bad-row", f"{where} has no 'role'; it has {keys}", hint=HINT)
    role = ROLES.get(given.lower()) if isinstance(given, str) else None
    if role is None:
        hint = "roles are system, developer, user, assistant and tool; in ShareGPT system, human, gpt and observation"
        raise DataError("bad-row", f"{where} has the unknown role {given!r}", hint=hint)
    text, thought = _content(item, role, f"{where} ({given})")
    calls: Any = item.get("tool_calls") or ([item["function_call"]] if item.get("function_call") else [])
    if given == "function_call":
        calls, text = _parsed(text, where), ""
        calls = calls if isinstance(calls, list) else [calls]
    turn: dict[str, Any] = {"role": role, "content": text}
    if thought:
        turn["reasoning_content"] = thought
    if calls:
        if role != "assistant":
            raise DataError("bad-row", f"{where} ({given}) has tool calls", hint="only an assistant's turn calls tools")
        turn["tool_calls"] = [_call(call, where) for call in calls]
    if role == "tool":
        turn |= {key: item[key] for key in ("name", "tool_call_id") if isinstance(item.get(key), str)}
    if role in ("system", "user") and not isinstance(item.get("content", item.get("value")), (str, list)):
        raise DataError("bad-row", f"{where} ({given}) has no text", hint=HINT)
    if role == "assistant" and not calls and item.get("content", item.get("value")) is None:
        raise DataError("bad-row", f"{where} ({given}) has neither content nor tool calls", hint=HINT)
    return turn


def _content(item: Mapping[str, Any], role: str, where: str) -> tuple[str, str]:
    """The text of a turn, and what the assistant thought before it."""
    if "content" not in item and "value" not in item and not (item.get("tool_calls") or item.get("function_call")):
        keys = ", ".join(map(repr, item))
        raise DataError("bad-row", f"{where} has no 'content'; it has {keys}", hint=HINT)
    value, thoughts = item.get("content", item.get("value")), [item[key] for key in REASONING if item.get(key)]
    if isinstance(value, list):
        parts: list[str] = []
        for part in value:
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            if isinstance(part, str) or (kind in _TEXT_PARTS and isinstance(part.get("text"), str)):
                parts.append(part if isinstance(part, str) else part["text"])
            elif kind in ("thinking", "reasoning") and isinstance(part.get(kind, part.get("text")), str):
                thoughts.append(part.get(kind, part.get("text")))
            else:
                hint = "Rung reads text only: leave such rows out, or write what the part says as text"
                raise DataError("bad-row", f"{where} has content of type {kind!r}", hint=hint)
        value = "".join(parts)
    if role == "tool" and not isinstance(value, str) and value is not None:
        value = json.dumps(value, ensure_ascii=False)
    if value is not None and not isinstance(value, str):
        raise DataError("bad-row", f"{where}: the content is a {type(value).__name__}, not text", hint=HINT)
    if not all(isinstance(thought, str) for thought in thoughts):
        raise DataError("bad-row", f"{where}: the reasoning is not text", hint="write reasoning_content as text")
    return value or "", "\n".join(thoughts)


def _learnt(item: Mapping[str, Any], where: str) -> bool:
    """Whether training may learn a turn: it has no `weight: 0`, `train: false` or `loss: false`."""
    for key in UNLEARNT:
        value = item.get(key)
        if value is not None and value not in (0, 1):
            hint = "write 0 or false for a turn that must not be learnt, 1 or true for one that may"
            raise DataError("bad-row", f"{where}: {key!r} is {value!r}", hint=hint)
        if value is not None and not value:
            return False
    return True


def _call(value: Any, where: str) -> dict[str, Any]:
    """A tool call as chat templates take it: with an object of arguments, not its JSON text."""
    given = value.get("function", value) if isinstance(value, Mapping) else None
    given = given if isinstance(given, Mapping) else {}
    name, arguments = given.get("name"), given.get("arguments", given.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = json_value(arguments or "{}")
        except ValueError:
            arguments = arguments or {}
    if not isinstance(name, str) or not isinstance(arguments if arguments is not None else {}, Mapping):
        hint = 'write {"type": "function", "function": {"name": "...", "arguments": {...}}}'
        raise DataError("bad-row", f"{where}: not a tool call: {str(value)[:80]}", hint=hint)
    call = {"type": "function", "function": {"name": name, "arguments": dict(arguments or {})}}
    return {"id": value["id"], **call} if isinstance(value.get("id"), str) else call


def _number_calls(turns: Sequence[dict[str, Any]]) -> None:
    """Give calls ids, and results the id and name of their call.

    Ids of nine letters and digits stay, since Mistral's templates take no others; if there are others, all are counted.
    """
    calls = [call for turn in turns for call in turn.get("tool_calls", ())]
    keep = all(_CALL_ID.fullmatch(call.get("id", "")) for call in calls)
    waiting: list[tuple[str | None, str, str]] = []  # the given id, the id in the prompt, and the function's name
    count = 0
    for turn in turns:
        for call in turn.get("tool_calls", ()):
            given = call.pop("id", None)
            new = given if keep else call_id(count)
            ordered = {"id": new, **call}
            call.clear()
            call.update(ordered)
            waiting.append((given, new, call["function"]["name"]))
            count += 1
        if turn["role"] == "tool" and waiting:
            wanted = turn.get("tool_call_id")
            place = next((i for i, (given, _, _) in enumerate(waiting) if wanted is not None and given == wanted), 0)
            _, turn["tool_call_id"], name = waiting.pop(place)
            turn.setdefault("name", name)


def _tools(value: Any, source: str) -> list[dict[str, Any]]:
    """The functions that a row offers, as a list or its JSON text."""
    if isinstance(value, str) and value.strip():
        value = _parsed(value, f"{source}: 'tools'")
    tools = []
    for tool in value or ():
        given = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
            hint = 'write [{"type": "function", "function": {"name": "...", "parameters": {...}}}]'
            raise DataError("bad-row", f"{source}: 'tools' is not a list of functions: {str(tool)[:80]}", hint=hint)
        ordered = {key: given[key] for key in _FUNCTION_KEYS if given.get(key) is not None}
        tools.append({"type": "function", "function": {**ordered, **{k: v for k, v in given.items() if v is not None}}})
    return tools
