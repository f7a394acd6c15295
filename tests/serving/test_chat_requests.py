"""A conversation that is sent to a chat artifact has the prompt that it has in a file of rows."""

from __future__ import annotations

from typing import Any

import pytest

from rung.artifact.artifact import Artifact
from rung.artifact.parts import Signature
from rung.artifact.text import Generate
from rung.data.examples import read_row
from rung.errors import ConfigError, DataError
from rung.prompts.prompt import Prompt
from rung.serving.requests import _message, _with_tools, checked_row, row_of
from rung.serving.schemas import ChatRequest

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
CALL = {"id": "call_abc", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
TALK: list[dict[str, Any]] = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "1+"}, {"type": "text", "text": "1?"}]},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_abc", "content": "2"},
]


def artifact(kind: str = "chat", column: str = "messages") -> Artifact:
    prompt = Prompt("Help.", "" if kind == "chat" else "{text}", chat_column=column if kind == "chat" else None)
    signature = Signature("t", (column,), kind, "exact_match")  # type: ignore[arg-type]
    return Artifact(signature, "none", prompt, Generate(8), path=("zero-shot",))


def body(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({"model": "t", "messages": TALK, "tools": TOOLS, **fields})


def served(request: ChatRequest, made: Artifact) -> dict[str, Any]:
    return _with_tools(made, row_of(made, [_message(turn) for turn in request.messages]), request)


def prompt_of(made: Artifact, row: dict[str, Any]) -> Any:
    return made.prompt.messages(read_row(row, made.signature.inputs, made.signature.kind, "row").inputs)


def test_a_request_has_the_prompt_of_the_row_in_a_file() -> None:
    made, row = artifact(), {"messages": [*TALK, {"role": "assistant", "content": "It is 2."}], "tools": TOOLS}
    messages = prompt_of(made, served(body(), made))
    assert messages == prompt_of(made, row) == prompt_of(made, checked_row(made, {"messages": TALK, "tools": TOOLS}))
    assert [turn["role"] for turn in messages] == ["system", "user", "assistant", "tool"]
    assert messages[0] == {"role": "system", "content": "Help.\n\nBe brief.", "tools": TOOLS}
    without = prompt_of(made, served(body(tool_choice="none"), made))
    assert "tools" not in without[0]
    assert made.decoder.request(made, messages).sampling.call_marks
    assert not made.decoder.request(made, without).sampling.call_marks


def test_what_a_chat_artifact_cannot_do_is_refused() -> None:
    with pytest.raises(DataError, match="ends with the assistant's turn"):
        row_of(artifact(), [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}])
    with pytest.raises(ConfigError, match="`tool_choice`"):
        served(body(tool_choice="required"), artifact())
    with pytest.raises(ConfigError, match="calls no functions"):
        _with_tools(artifact("text", "text"), {"text": "Hi"}, body())
    with pytest.raises(DataError, match="no column 'tool'"):
        checked_row(artifact(), {"messages": TALK, "tool": TOOLS})
    with pytest.raises(DataError, match="the message: empty input"):
        row_of(artifact("text", "text"), [{"role": "user", "content": " "}])
