"""What chat clients really send: answers sent back, nulls, system turns, earlier turns, an answer that has begun."""

import openai
import pytest
from paced_engine import FakeEngine
from running_server import BASE, HELLO, running
from transformers import AutoTokenizer

from rung.artifact.artifact import Artifact
from rung.engines.base import GenerateRequest, Generation, Sampling
from rung.engines.opening import open_torch
from rung.serving.conversations import closed, condensed
from rung.serving.schemas import ChatMessage

NOW = {"type": "function", "function": {"name": "now"}}
TALK = [
    {"role": "system", "content": "Be brief.", "name": "house"},
    {"role": "user", "content": "Tell me about the transfer.", "name": "anna"},
    {"role": "assistant", "content": "It takes two days.", "annotations": [], "reasoning_content": "so"},
    {"role": "user", "content": [{"type": "text", "text": "Where is my card?", "cache_control": {"type": "x"}}]},
]


def refused(client, messages=HELLO, model=BASE, **options):
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model=model, messages=messages, max_tokens=2, **options)
    return error.value.body["message"]


def test_the_client_s_own_dump_of_an_answer_goes_back(client):
    answer = client.chat.completions.create(model=BASE, messages=HELLO, max_tokens=4).choices[0].message
    called = client.chat.completions.create(
        model=BASE, messages=HELLO, tools=[NOW], tool_choice="required", stream=True
    )
    pieces = [chunk.choices[0].delta.tool_calls for chunk in called if chunk.choices[0].delta.tool_calls]
    calls = [call.model_dump() for call in pieces[0]]  # with their `index`
    assert [call["function"]["arguments"] for call in calls] == ["{}"]
    result = {"role": "tool", "tool_call_id": calls[0]["id"], "content": "noon"}
    turns = [*HELLO, answer.model_dump(), *HELLO, {"role": "assistant", "content": None, "tool_calls": calls}, result]
    again = client.chat.completions.create(model=BASE, messages=turns, max_tokens=2)
    bare = [{"role": turn["role"], "content": turn["content"]} for turn in turns[:3]]
    fewer = client.chat.completions.create(model=BASE, messages=bare, max_tokens=2)
    assert again.usage.prompt_tokens > fewer.usage.prompt_tokens  # the call and its result are read


def test_null_is_absent_and_what_changes_no_answer_is_taken(server, client):
    nulls = ("n", "stream", "stop", "temperature", "max_tokens", "tools", "tool_choice", "metadata", "user", "seed")
    body = {"model": BASE, "messages": HELLO, "max_completion_tokens": 3}
    fields = {
        "reasoning_effort": "low", "service_tier": "auto", "store": True, "verbosity": "low", "modalities": ["text"],
        "prompt_cache_key": "k", "safety_identifier": "s", "metadata": {"a": "b"}, "max_tokens": 3,
        "stream_options": None,
    }  # fmt: skip
    wanted = client.chat.completions.create(**body).choices[0].message.content
    for more in (dict.fromkeys(nulls), fields):
        answer = server.post("/v1/chat/completions", {**body, **more})
        assert (answer.status_code, answer.json()["choices"][0]["message"]["content"]) == (200, wanted)
    text = {"model": BASE, "prompt": "Where", "max_tokens": 2}
    assert server.post("/v1/completions", {**text, "echo": None, "stream": None, "n": None}).status_code == 200
    stream = client.chat.completions.create(**body, stream=True, stream_options={"include_obfuscation": False})
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == wanted


@pytest.mark.parametrize(
    ("part", "named"),
    [({"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}, "images are not served"),
     ({"type": "input_audio", "input_audio": {}}, "'input_audio' are not served"),
     ({"type": "text"}, "no `text`")],
)  # fmt: skip
def test_parts_that_are_not_served_are_named(client, part, named):
    message = refused(client, [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, part]}])
    assert message.startswith("messages.0.content.1: ")
    assert named in message
    assert "audio" in refused(client, [*HELLO, {"role": "assistant", "audio": {"id": "x"}}, *HELLO])


def test_a_body_that_is_not_declared_as_json_is_told_so(server):
    answer = server.post("/v1/chat/completions", None, content=b'{"model": "x"}')
    assert (answer.status_code, "Content-Type: application/json" in answer.text) == (400, True)


def test_an_answer_that_has_begun_is_continued(client, tiny_folder):
    turns = [{"role": "user", "content": "List three fruits."}, {"role": "assistant", "content": "1. Apple\n2. Ban"}]
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    prompt = tuple(tokenizer.apply_chat_template(turns, continue_final_message=True, return_dict=False))
    wanted = open_torch(str(tiny_folder)).generate([GenerateRequest(prompt, Sampling(max_tokens=6))])[0]
    answer = client.chat.completions.create(model=BASE, messages=turns, max_tokens=6)
    assert answer.choices[0].message.content == wanted.text
    assert answer.usage.prompt_tokens == len(prompt)
    assert "cannot be held to a schema" in refused(client, turns, response_format={"type": "json_object"})
    assert "cannot be held to a schema" in refused(client, turns, tools=[NOW], tool_choice="required")


def test_an_artifact_reads_the_last_message_and_says_what_it_left_out(client, artifacts):
    wanted = Artifact.load(artifacts["intents"]).predict([{"text": "Where is my card?"}])[0].text
    answer = client.chat.completions.create(model="intents", messages=TALK, temperature=0.7, stop=["\n"])
    assert answer.choices[0].message.content == wanted
    assert answer.rung["left_out"] == {"system": 1, "user": 1, "assistant": 1}
    assert answer.rung["without_effect"] == ["temperature", "stop"]
    *_, last = client.chat.completions.create(model="intents", messages=TALK, stream=True)
    assert last.rung["left_out"] == answer.rung["left_out"]
    assert "left_out" not in client.chat.completions.create(model="intents", messages=HELLO).rung
    assert "the last turn is another" in refused(client, TALK[:3], "intents")


def test_a_server_may_refuse_or_condense_conversations(served, artifacts):
    with running(served, conversation="refuse") as server:
        assert "answers one user message" in refused(server.client(), TALK, "intents")
    with running(served, conversation="condense") as server:
        answer = server.client().chat.completions.create(model="notes", messages=TALK)
        kept = server.kept.interactions[-1]
        assert kept.inputs == {"text": answer.rung["read"]}
        assert answer.rung["condensing_tokens"] > 0
        assert answer.choices[0].message.content == Artifact.load(artifacts["notes"]).predict([kept.inputs])[0].text
        alone = server.client().chat.completions.create(model="notes", messages=[TALK[0], TALK[3]])
        assert "read" not in alone.rung  # there is nothing to condense


def test_condensing_shows_the_model_what_was_said():
    class Writes(FakeEngine):
        def generate(self, requests):
            (self.asked,) = requests
            return [Generation("When does the transfer arrive?", 40, 6, "stop", 0.0)]

    engine = Writes()
    written = condensed(engine, [ChatMessage.model_validate(turn) for turn in TALK])
    assert written.text == "When does the transfer arrive?"
    (turn,) = engine.asked.prompt
    assert "User: Tell me about the transfer.\nAssistant: It takes two days." in turn["content"]
    assert "Last message of the user: Where is my card?" in turn["content"]
    assert "Be brief" not in turn["content"]


def test_a_forced_call_has_no_arguments_that_the_schema_does_not_name():
    inner = {"type": "object", "properties": {"b": {"type": "object"}}}
    schema = {"type": "object", "properties": {"a": inner, "c": {"type": "array", "items": inner}}}
    shut = {**inner, "additionalProperties": False}
    assert closed(schema) == {
        "type": "object", "properties": {"a": shut, "c": {"type": "array", "items": shut}},
        "additionalProperties": False,
    }  # fmt: skip
    for own in (
        {**inner, "additionalProperties": True},
        {"allOf": [inner, {"properties": {"d": {}}}]},
        {**inner, "anyOf": [{"properties": {"d": {}}}]},
        {"$defs": {"x": inner}, "allOf": [{"$ref": "#/$defs/x"}, inner]},
    ):
        assert closed(own) == own
    assert closed({"$defs": {"x": inner}, **inner}) == {"$defs": {"x": shut}, **shut}
