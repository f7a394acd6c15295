"""Conversations with system turns, tools and thoughts: rendered as transformers does, learnt as they are predicted."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from test_examples import QWEN3, chat_artifact, model

from rung.climbing.check import _check_conversations
from rung.data.examples import examples, read_row
from rung.data.rows import Record, SplitReport
from rung.errors import DataError, TrainingError
from rung.models.messages import encode_messages, for_template
from rung.prompts.demonstrations import Demonstrations
from rung.task import Task
from rung.training.examples import TrainingReport, marked, tokenize
from templates import published

USER = {"role": "user", "content": "2+3?"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 3}}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "5"}
ANSWER = {"role": "assistant", "content": "It is 5."}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Add.", "parameters": {"type": "object"}}}]
TASK = Task.model_validate(
    {"name": "c", "inputs": ["messages"], "output": {"kind": "chat"}, "data": {"train": "c.jsonl"}}
)


def row(*turns, **columns):
    """A raw row as an example of training, and as one of prediction."""
    values = {"messages": list(turns), **columns}
    (example,), _ = examples([Record(values, "c.jsonl:1")], TASK, SplitReport())
    asked = read_row(values, ["messages"], "chat", "c.jsonl:1")
    assert (asked.id, dict(asked.inputs)) == (example.id, dict(example.inputs))
    return example


def transformers_text(engine, turns, tools, *, prompt):
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(engine.files.folder / "tokenizer.json"))
    tokenizer.chat_template = engine.tokenizer.chat_template
    return tokenizer.apply_chat_template(
        turns, tools=tools, tokenize=False, add_generation_prompt=prompt, enable_thinking=False
    )


def written(whole, asked):
    """What a template writes after a prompt, up to the token that ends it."""
    return whole[len(asked) :].rpartition("<|im_end|>")[0] + "<|im_end|>"


def learnt(example, engine):
    return [part.split("<<<")[0] for part in marked(example, engine.tokenizer).split(">>>")[1:]]


# ---- system turns


def test_the_row_s_system_turns_follow_the_instruction_in_one_message(tmp_path):
    engine = model(tmp_path / "m", template="{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}")
    system = [{"role": "system", "content": "You are Ann."}, {"role": "developer", "content": "Be brief."}]
    example = row(*system, USER, ANSWER)
    (trained,) = tokenize(chat_artifact("Help."), engine, [example])
    assert marked(trained, engine.tokenizer) == (
        "[system]Help.\n\nYou are Ann.\n\nBe brief.[user]2+3?[assistant]>>>It is 5.<|im_end|><<<"
    )
    (alone,) = tokenize(chat_artifact(""), engine, [example])
    assert marked(alone, engine.tokenizer).startswith("[system]You are Ann.\n\nBe brief.[user]")
    (bare,) = tokenize(chat_artifact(""), engine, [row(USER, ANSWER)])
    assert marked(bare, engine.tokenizer).startswith("[user]2+3?")


def test_without_an_instruction_messages_are_those_of_the_row(tmp_path):
    engine = model(tmp_path / "m", template=published("qwen3"))
    turns = [{"role": "system", "content": " You are Ann. "}, USER, ANSWER, {"role": "user", "content": "Thanks"}]
    example = row(*turns, {"role": "assistant", "content": "Bye"})
    messages = chat_artifact("").messages(example.inputs)
    assert list(messages) == turns
    assert engine.text(messages) == transformers_text(engine, turns, None, prompt=True)


def test_system_turns_reach_a_template_without_them(tmp_path):
    engine = model(tmp_path / "m", "gemma")
    (trained,) = tokenize(chat_artifact("Help."), engine, [row({"role": "system", "content": "Be Ann."}, USER, ANSWER)])
    assert marked(trained, engine.tokenizer).startswith("<bos><start_of_turn>user\nHelp.\n\nBe Ann.\n\n2+3?<end")


def test_a_demonstration_s_own_system_turn_comes_before_its_question(tmp_path):
    engine = model(tmp_path / "m")
    other = row({"role": "system", "content": "Be Bob."}, {"role": "user", "content": "Hi"}, ANSWER)
    same = row({"role": "system", "content": "Be Ann."}, {"role": "user", "content": "Ho"}, ANSWER)
    asked = row({"role": "system", "content": "Be Ann."}, USER, ANSWER)
    pool = Demonstrations("fixed", 2, (other, same))
    artifact = replace(chat_artifact("Help."), demonstrations=pool).with_engine(engine)
    messages = artifact.messages(asked.inputs)
    assert [turn["role"] for turn in messages] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert messages[0]["content"] == "Help.\n\nBe Ann."
    assert {messages[1]["content"], messages[3]["content"]} == {"Be Bob.\n\nHi", "Ho"}


# ---- what is not learnt


def test_turns_of_weight_0_are_read_and_not_learnt(tmp_path):
    engine = model(tmp_path / "m")
    bad = {"role": "assistant", "content": "Go away.", "weight": 0}
    system = {"role": "system", "content": "Be kind."}
    for instruction, first in (("Help.", [system]), ("", [system]), ("Help.", []), ("", [])):
        example = row(*first, USER, bad, USER, {**ANSWER, "weight": 1}, USER, ANSWER)
        (trained,) = tokenize(chat_artifact(instruction), engine, [example])
        assert learnt(trained, engine) == ["It is 5.<|im_end|>", "It is 5.<|im_end|>"]
        assert "Go away." in marked(trained, engine.tokenizer)


# ---- tools and thoughts


@pytest.mark.parametrize("name", ["qwen3", "qwen2_5", "qwen3_instruct_2507", "lfm2_v2", "qwen3_5_nothink", "qwen3_6"])
def test_tool_calls_are_rendered_by_the_model_s_template(tmp_path, name):
    engine = model(tmp_path / "m", template=published(name), context=4000)
    turns = [{"role": "system", "content": "Be kind."}, USER, CALLING, RESULT]
    example = row(*turns, ANSWER, tools=TOOLS)
    given = list(example.inputs["messages"])  # with the ids and names that calls and results get
    artifact = chat_artifact("")
    assert engine.text(artifact.messages(example.inputs)) == transformers_text(engine, given, TOOLS, prompt=True)
    trained = tokenize(artifact, engine, [example])
    assert learnt(trained[-1], engine)[-1] == "It is 5.<|im_end|>"
    whole = transformers_text(engine, [*given[:2], given[2]], TOOLS, prompt=False)
    asked = transformers_text(engine, given[:2], TOOLS, prompt=True)
    assert whole.startswith(asked)
    calls = [text for one in trained for text in learnt(one, engine) if "add" in text]
    assert calls == [written(whole, asked)]


@pytest.mark.parametrize("name", ["qwen3", "qwen2_5"])
def test_a_call_that_is_the_answer_is_learnt_as_the_template_writes_it(tmp_path, name):
    engine = model(tmp_path / "m", template=published(name), context=4000)
    example = row(USER, CALLING, tools=json.dumps(TOOLS))
    assert example.outputs == ('<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call>',)
    (trained,) = tokenize(chat_artifact(""), engine, [example])
    assert learnt(trained, engine) == [f"{example.outputs[0]}<|im_end|>"]
    assert trained.prompt == engine.tokens(chat_artifact("").messages(example.inputs))
    prompt = transformers_text(engine, [USER], TOOLS, prompt=True)
    assert engine.tokenizer.decode(trained.prompt, skip_special=False) == prompt


def test_a_model_that_knows_no_tools_reads_and_learns_them_as_text(tmp_path):
    for name in ("chatml", "gemma"):  # Gemma's template refuses results and system turns, and turns must alternate
        engine = model(tmp_path / name, name, context=4000)
        twice = {**CALLING, "tool_calls": [CALL, CALL]}
        examples = tokenize(chat_artifact(""), engine, [row(USER, twice, RESULT, RESULT, ANSWER, tools=TOOLS)])
        text = marked(examples[-1], engine.tokenizer)
        assert '<tools>\n{"type": "function", "function": {"name": "add"' in text
        assert text.count("<tool_response>\n5\n</tool_response>") == 2
        call = '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call>'
        end = "<|im_end|>" if name == "chatml" else "<end_of_turn>"
        assert [part for one in examples for part in learnt(one, engine)] == [f"{call}\n{call}{end}", f"It is 5.{end}"]


@pytest.mark.parametrize("name", ["qwen3", "qwen3_6"])
@pytest.mark.parametrize("thinks", [True, False])
def test_thoughts_are_learnt_where_the_model_is_to_think(tmp_path, name, thinks):
    engine = model(tmp_path / "m", template=published(name))
    thinking = {**ANSWER, "reasoning_content": "2 and 3"}
    example = row(USER, thinking, {"role": "user", "content": "Sure?"}, thinking)
    assert example.outputs == ("It is 5.",)
    artifact, report = chat_artifact(""), TrainingReport()
    artifact = replace(artifact, prompt=replace(artifact.prompt, thinking="on" if thinks else "off"))
    trained = tokenize(artifact, engine, [example], report=report)
    assert len(trained) == 2  # templates show the thoughts of the last answer only, so the first is learnt apart
    whole, place = transformers_text(engine, [*example.inputs["messages"], thinking], None, prompt=False), "2 and 3"
    supervised = f"{place}\n</think>\n\nIt is 5.<|im_end|>" if thinks else "It is 5.<|im_end|>"
    asked = whole[: whole.rindex(place)] + ("" if thinks else "\n</think>\n\n")
    assert marked(trained[-1], engine.tokenizer) == f"{asked}>>>{supervised}<<<"
    assert all(("2 and 3" in text) is thinks for one in trained for text in learnt(one, engine))
    assert report.thoughts_left_out == (0 if thinks else 2)


def test_a_row_without_thoughts_is_learnt_after_an_empty_one(tmp_path):
    engine = model(tmp_path / "m", template=published("qwen3_6"))
    artifact = chat_artifact("")
    for thinking in ("off", "on"):
        artifact = replace(artifact, prompt=replace(artifact.prompt, thinking=thinking))
        (trained,) = tokenize(artifact, engine, [row(USER, ANSWER)])
        assert learnt(trained, engine) == ["It is 5.<|im_end|>"]
        assert marked(trained, engine.tokenizer).partition(">>>")[0].endswith("<think>\n\n</think>\n\n")


def test_a_template_that_writes_an_answer_otherwise_than_it_asks_for_it_is_an_error(tmp_path):
    engine = model(tmp_path / "m", template="{{ messages | length }}" + QWEN3)
    with pytest.raises(TrainingError, match=r"c\.jsonl:1: the model's template writes the assistant's turn 2"):
        tokenize(chat_artifact(""), engine, [row(USER, CALLING, tools=TOOLS)])


# ---- templates that refuse


def test_a_refused_conversation_names_row_and_turn(tmp_path):
    engine = model(tmp_path / "m", "gemma")
    example = row({"role": "system", "content": "Be kind."}, USER, ANSWER, USER, USER, ANSWER)
    with pytest.raises(DataError) as caught:
        tokenize(chat_artifact("Help."), engine, [row(USER, ANSWER), example])
    assert caught.value.code == "chat-template-refused"
    assert caught.value.message.startswith("c.jsonl:1, turn 5 (user): ")
    assert "roles must alternate" in caught.value.message
    with pytest.raises(DataError, match=r"c\.jsonl:1, turn 5 \(user\)"):
        _check_conversations(chat_artifact("Help."), [example], engine.tokenizer)
    _check_conversations(chat_artifact("Help."), [row(USER, CALLING, RESULT, ANSWER, tools=TOOLS)], engine.tokenizer)
    artifact = chat_artifact("Help.").with_engine(Refusing(engine))
    with pytest.raises(DataError, match=r"c\.jsonl:1, turn 5 \(user\)"):
        artifact.answer([example])


class Refusing:
    """An engine that only renders."""

    def __init__(self, engine):
        self.text = engine.text
        self.generate = lambda requests, progress=None: [engine.tokens(request.prompt) for request in requests]


def test_messages_without_tools_are_encoded_as_before(tmp_path):
    engine = model(tmp_path / "m", "llama3")
    turns = ({"role": "system", "content": "Be kind."}, USER)
    assert for_template(engine.tokenizer, turns) == (turns, None)
    assert encode_messages(engine.tokenizer, turns) == engine.tokenizer.encode_chat(turns)
