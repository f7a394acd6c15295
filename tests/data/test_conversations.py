"""Conversations in the formats of the field become one form."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rung.data.chat import answer_text, is_chat, read_conversation
from rung.errors import DataError

USER, ANSWER = {"role": "user", "content": "2+3?"}, {"role": "assistant", "content": "5"}
CALL = {"name": "add", "arguments": {"a": 2, "b": 3}}
FUNCTION = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}


def read(value: Any, **row: Any) -> Any:
    return read_conversation(value, "messages", "c.jsonl:3", row)


@pytest.mark.parametrize(
    "value",
    [
        [USER, ANSWER],
        json.dumps([USER, ANSWER]),  # a cell of a CSV file
        {"messages": [USER, ANSWER]},
        [{"from": "human", "value": "2+3?"}, {"from": "gpt", "value": "5"}],
        json.dumps({"conversations": [{"from": "user", "value": "2+3?"}, {"from": "assistant", "value": "5"}]}),
        [{"role": "user", "content": [{"type": "text", "text": "2+"}, {"type": "text", "text": "3?"}]}, ANSWER],
        [{**USER, "name": None, "tool_calls": None}, {**ANSWER, "refusal": None, "id": "m-1"}],
    ],
)
def test_formats_give_the_same_messages(value: Any) -> None:
    assert is_chat(value)
    conversation = read(value)
    assert conversation.turns == [USER, ANSWER]
    assert conversation.answer == 1
    assert conversation.inputs("messages") == {"messages": [USER]}
    assert (conversation.tools, conversation.masked) == ([], ())


@pytest.mark.parametrize("value", [[1, 2], ["a"], "[1, 2]", "[drama, action]", "{}", "", [], None, [{"from": "Kiel"}]])
def test_other_values_are_no_conversations(value: Any) -> None:
    assert not is_chat(value)


def test_developer_and_a_system_column_are_system_turns() -> None:
    assert read([{"role": "developer", "content": "Be brief."}, USER]).turns[0] == {
        "role": "system", "content": "Be brief.",
    }  # fmt: skip
    row = read([USER, {**ANSWER, "weight": 0}, USER, ANSWER], system="Be brief.")
    assert [turn["role"] for turn in row.turns] == ["system", "user", "assistant", "user", "assistant"]
    assert row.masked == (2,)


@pytest.mark.parametrize(
    ("call", "result"),
    [
        (
            {"role": "assistant", "content": None, "tool_calls": [
                {"id": "call_abcdef", "type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 3}'}}
            ]},
            {"role": "tool", "tool_call_id": "call_abcdef", "content": "5"},
        ),
        ({"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "5"}),
        ({"role": "assistant", "function_call": CALL}, {"role": "function", "name": "add", "content": "5"}),
        ({"from": "function_call", "value": json.dumps(CALL)}, {"from": "observation", "value": "5"}),
    ],
)  # fmt: skip
def test_tool_calls_have_objects_of_arguments_and_results_their_ids(call: Any, result: Any) -> None:
    conversation = read([USER, call, result, ANSWER], tools=json.dumps([FUNCTION]))
    made = {"id": "call00000", "type": "function", "function": CALL}
    assert conversation.turns[1] == {"role": "assistant", "content": "", "tool_calls": [made]}
    assert conversation.turns[2] == {"role": "tool", "content": "5", "name": "add", "tool_call_id": "call00000"}
    assert conversation.tools == [{"type": "function", "function": FUNCTION}]
    assert conversation.inputs("messages")["tools"] == conversation.tools
    assert answer_text(conversation.turns[1]) == (
        '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call>'
    )


def test_parallel_results_find_their_calls_and_good_ids_stay() -> None:
    calls = [{"id": f"abcdef00{i}", "function": {"name": f"f{i}", "arguments": {}}} for i in range(2)]
    results = [{"role": "tool", "tool_call_id": f"abcdef00{i}", "content": str(i)} for i in (1, 0)]
    turns = read([USER, {"role": "assistant", "tool_calls": calls}, *results]).turns
    assert [turn["name"] for turn in turns[2:]] == ["f1", "f0"]
    assert [call["id"] for call in turns[1]["tool_calls"]] == ["abcdef000", "abcdef001"]


def test_what_must_not_be_learnt_is_masked_and_is_no_answer() -> None:
    for key, off, on in (("weight", 0, 1), ("train", False, True), ("loss", False, None)):
        conversation = read([USER, {**ANSWER, key: off}, USER, {**ANSWER, key: on}])
        assert (conversation.masked, conversation.answer) == ((1,), 3)
        conversation = read([USER, {**ANSWER, key: on}, USER, {**ANSWER, key: off}])
        assert (conversation.answer, conversation.inputs("m")) == (1, {"m": [USER]})
    conversation = read([USER, {**ANSWER, "weight": 0}])
    assert (conversation.answer, conversation.inputs("m")) == (None, {"m": [USER]})


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_thoughts_are_kept_apart_from_the_answer(key: str) -> None:
    turn = read([USER, {**ANSWER, key: "2 and 3"}]).turns[1]
    assert turn == {**ANSWER, "reasoning_content": "2 and 3"}
    parts = [{"type": "thinking", "thinking": "2 and 3"}, {"type": "text", "text": "5"}]
    assert read([USER, {"role": "assistant", "content": parts}]).turns[1] == turn
    assert answer_text(turn) == "5"


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (5, "'messages' is not a list of messages: '5'"),
        ("hello", "'messages' is neither a list of messages nor its JSON"),
        ([USER, "5"], "'messages', turn 2 is a str, not a message"),
        ([USER, {"role": "assistant", "text": "5"}], "turn 2 (assistant) has no 'content'; it has 'role', 'text'"),
        ([{"content": "5"}], "turn 1 has no 'role'; it has 'content'"),
        ([{"role": "user", "contents": "5"}], "turn 1 has the unknown key 'contents'"),
        ([USER, {"role": "asistant", "content": "5"}], "turn 2 has the unknown role 'asistant'"),
        ([USER, {"role": "assistant", "content": None}], "turn 2 (assistant) has neither content nor tool calls"),
        ([{"role": "user", "content": None}], "turn 1 (user) has no text"),
        ([{"role": "user", "content": 5}], "turn 1 (user): the content is a int, not text"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]}],
            "turn 1 (user) has content of type 'image_url'",
        ),
        ([USER, {**ANSWER, "weight": 0.5}], "turn 2: 'weight' is 0.5"),
        ([USER, {"role": "assistant", "tool_calls": [{"function": {"name": 3}}]}], "turn 2: not a tool call"),
        ([{**USER, "tool_calls": [CALL]}], "turn 1 (user) has tool calls"),
        ([USER, {**ANSWER, "reasoning": {"a": 1}}], "turn 2 (assistant): the reasoning is not text"),
    ],
)
def test_a_wrong_turn_is_named(value: Any, problem: str) -> None:
    with pytest.raises(DataError) as caught:
        read(value)
    assert caught.value.code == "bad-row"
    assert problem in caught.value.message
    assert caught.value.message.startswith("c.jsonl:3")


def test_tools_that_are_no_functions_are_an_error() -> None:
    with pytest.raises(DataError, match="'tools' is not a list of functions: hammer"):
        read([USER, ANSWER], tools=["hammer"])
