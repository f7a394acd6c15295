"""The official client against a running server: every endpoint, whole and in pieces."""

import base64
import json
import math

import numpy as np
import openai
import pytest
from pydantic import BaseModel
from running_server import BASE, HELLO

from rung.artifact.artifact import Artifact
from rung.artifact.files import fingerprint
from rung.engines.base import GenerateRequest, Sampling
from rung.engines.opening import open_torch


@pytest.fixture(scope="module")
def engine(tiny_folder):
    return open_torch(str(tiny_folder))


@pytest.fixture
def chat(client):
    def ask(**options):
        return client.chat.completions.create(**{"model": BASE, "messages": HELLO, **options})

    return ask


def offline(engine, text="Where is my card?", **sampling):
    messages = ({"role": "user", "content": text},)
    return engine.generate([GenerateRequest(messages, Sampling(**sampling), logprobs=True)])[0]


def joined(chunks):
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


# ---- chat


def test_a_chat_has_the_text_and_counts_of_the_engine(chat, engine):
    wanted = offline(engine, max_tokens=10)
    answer = chat(max_completion_tokens=10)
    choice = answer.choices[0]
    assert (choice.message.content, choice.finish_reason) == (wanted.text, wanted.finish_reason)
    assert answer.usage.prompt_tokens == wanted.prompt_tokens
    assert answer.usage.completion_tokens == wanted.completion_tokens
    assert answer.usage.total_tokens == wanted.prompt_tokens + wanted.completion_tokens
    assert (answer.model, answer.id[:9]) == (BASE, "chatcmpl-")


def test_a_stream_joins_to_the_whole_and_ends_with_its_usage(chat, engine):
    wanted = offline(engine, max_tokens=10)
    chunks = list(chat(max_completion_tokens=10, stream=True, stream_options={"include_usage": True}))
    assert joined(chunks) == wanted.text
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == wanted.finish_reason
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == wanted.completion_tokens


def test_the_stream_helper_accumulates_the_same(client, engine):
    whole = offline(engine, max_tokens=12).text
    stop = whole[6:9]
    with client.chat.completions.stream(model=BASE, messages=HELLO, max_completion_tokens=12, stop=stop) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == whole[: whole.find(stop)]


def test_several_choices_are_sampled_each_with_its_own_seed(chat, engine):
    wanted = [offline(engine, max_tokens=8, temperature=1.0, seed=5 + i).text for i in range(3)]
    several = chat(max_tokens=8, temperature=1.0, n=3, seed=5)
    assert [choice.message.content for choice in several.choices] == wanted
    assert chat(max_tokens=8, temperature=1.0, seed=6).choices[0].message.content == wanted[1]
    assert len(set(wanted)) == 3
    texts = ["", ""]
    for chunk in chat(max_tokens=8, temperature=1.0, seed=5, n=2, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == wanted[:2]


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_text_ends_an_answer(chat, engine, stream):
    whole = offline(engine, max_tokens=12).text
    stop = whole[6:9]
    answer = chat(max_tokens=12, stop=["never there", stop], stream=stream)
    if stream:
        chunks = list(answer)
        text, finish = joined(chunks), chunks[-1].choices[0].finish_reason
    else:
        text, finish = answer.choices[0].message.content, answer.choices[0].finish_reason
    assert (text, finish) == (whole[: whole.find(stop)], "stop")


def test_log_probabilities_are_the_engines(chat, engine):
    wanted = offline(engine, max_tokens=6)
    content = chat(max_tokens=6, logprobs=True).choices[0].logprobs.content
    np.testing.assert_allclose([one.logprob for one in content], wanted.logprobs, atol=1e-4)
    assert "".join(one.token for one in content if not one.token.startswith("<token")) == wanted.text
    assert all(bytes(one.bytes).decode() == one.token for one in content)
    streamed = []
    for chunk in chat(max_tokens=6, logprobs=True, stream=True):
        streamed += chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else []
    np.testing.assert_allclose([one.logprob for one in streamed], wanted.logprobs, atol=1e-4)


def test_the_likeliest_tokens_hold_the_greedy_one_first(chat):
    for one in chat(max_tokens=6, logprobs=True, top_logprobs=3).choices[0].logprobs.content:
        assert len(one.top_logprobs) == 3
        assert one.top_logprobs[0].token == one.token
        assert math.isclose(one.top_logprobs[0].logprob, one.logprob, abs_tol=1e-4)


# ---- structure


def test_a_json_object_parses(chat):
    choice = chat(max_tokens=200, response_format={"type": "json_object"}, temperature=1.0, seed=1).choices[0]
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)
    else:
        assert choice.message.content.startswith("{")


class Verdict(BaseModel):
    sure: bool
    side: bool


def test_the_parse_helper_gets_its_type(client):
    answer = client.chat.completions.parse(model=BASE, messages=HELLO, max_tokens=60, response_format=Verdict)
    assert isinstance(answer.choices[0].message.parsed, Verdict)


def tool(name, **properties):
    required = list(properties)
    parameters = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": "x", "parameters": parameters}}


TOOLS = [tool("block_card", now={"type": "boolean"}), tool("count_cards", none={"type": "boolean"})]


def test_a_chosen_function_is_called_with_arguments_of_its_schema(chat):
    chosen = {"type": "function", "function": {"name": "count_cards"}}
    choice = chat(max_tokens=40, tools=TOOLS, tool_choice=chosen).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert [call.function.name for call in choice.message.tool_calls] == ["count_cards"]
    assert set(json.loads(choice.message.tool_calls[0].function.arguments)) == {"none"}


@pytest.mark.parametrize("stream", [False, True])
def test_when_a_call_is_required_one_of_the_functions_is_called(client, stream):
    options = {"model": BASE, "messages": HELLO, "max_tokens": 60, "tools": TOOLS, "tool_choice": "required"}
    if stream:
        with client.chat.completions.stream(**options) as events:
            message = events.get_final_completion().choices[0].message
    else:
        message = client.chat.completions.create(**options).choices[0].message
    call = message.tool_calls[0].function
    assert set(json.loads(call.arguments)) == {"block_card": {"now"}, "count_cards": {"none"}}[call.name]


def test_without_need_a_model_answers_in_text(chat):
    choice = chat(max_tokens=6, tools=TOOLS, tool_choice="auto").choices[0]
    assert choice.message.tool_calls is None
    assert choice.finish_reason == "length"


def test_a_conversation_with_calls_is_rendered(chat):
    call = {"id": "call_1", "type": "function", "function": {"name": "block_card", "arguments": '{"now": true}'}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "done"}]},
    ]
    assert chat(messages=messages, tools=TOOLS, max_tokens=4).usage.completion_tokens == 4


# ---- text


def test_text_goes_on(client, engine):
    wanted = engine.generate([GenerateRequest(engine.encode("The card"), Sampling(max_tokens=5))])[0]
    answer = client.completions.create(model=BASE, prompt=["The card", "The card"], max_tokens=5, temperature=0)
    assert [(choice.index, choice.text) for choice in answer.choices] == [(0, wanted.text), (1, wanted.text)]
    assert answer.usage.completion_tokens == 2 * wanted.completion_tokens
    streamed = client.completions.create(model=BASE, prompt="The card", max_tokens=5, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == wanted.text


@pytest.mark.parametrize("as_tokens", [False, True])
def test_echo_gives_the_log_likelihood_of_the_prompt(client, engine, as_tokens):
    text = "The card has not arrived."
    tokens = engine.encode(text)
    answer = client.completions.create(
        model=BASE, prompt=[list(tokens)] if as_tokens else text, max_tokens=0, echo=True, logprobs=2
    )
    choice, scored = answer.choices[0], engine.read([tokens], top=2)[0]
    assert choice.text == "".join(choice.logprobs.tokens) == text
    assert choice.logprobs.token_logprobs[0] is None
    assert choice.logprobs.top_logprobs[0] is None
    np.testing.assert_allclose(choice.logprobs.token_logprobs[1:], scored.logprobs[1:], atol=1e-5)
    assert [len(top) for top in choice.logprobs.top_logprobs[1:]] == [2] * (len(tokens) - 1)
    for start, token in zip(choice.logprobs.text_offset, choice.logprobs.tokens, strict=True):
        assert text[start:].startswith(token)
    assert answer.usage.completion_tokens == 0


def test_echo_with_an_answer_scores_both(client, engine):
    tokens = engine.encode("The card")
    wanted = engine.generate([GenerateRequest(tokens, Sampling(max_tokens=3), logprobs=True)])[0]
    answer = client.completions.create(model=BASE, prompt="The card", max_tokens=3, echo=True, logprobs=1)
    choice = answer.choices[0]
    assert choice.text == "The card" + wanted.text
    np.testing.assert_allclose(choice.logprobs.token_logprobs[-3:], wanted.logprobs, atol=1e-4)
    for token, top in zip(choice.logprobs.tokens[-3:], choice.logprobs.top_logprobs[-3:], strict=True):
        assert list(top) == [token]


# ---- embeddings and models


def test_embeddings_are_the_engines(client, engine):
    texts = ["Where is my card?", "No"]
    wanted = engine.embed(texts)
    answer = client.embeddings.create(model=BASE, input=texts, encoding_format="float")
    np.testing.assert_allclose([one.embedding for one in answer.data], wanted, atol=1e-5)
    assert answer.usage.prompt_tokens == sum(len(engine.encode(text)) for text in texts)
    raw = client.embeddings.create(model=BASE, input=texts, encoding_format="base64")
    vectors = [np.frombuffer(base64.b64decode(one.embedding), np.float32) for one in raw.data]
    np.testing.assert_allclose(vectors, wanted, atol=1e-5)
    own = client.embeddings.create(model=BASE, input="No")
    np.testing.assert_allclose(own.data[0].embedding, wanted[1], atol=1e-5)


def test_models_are_listed_and_found(client, artifacts):
    assert [one.id for one in client.models.list()] == [BASE, *artifacts]
    assert client.models.retrieve("few-shot").rung["rungs"][1].startswith("few-shot")


# ---- errors


def test_errors_have_their_class_code_and_parameter(chat, client):
    with pytest.raises(openai.NotFoundError) as unknown:
        chat(model="nothing")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as long:
        chat(messages=[{"role": "user", "content": "word " * 600}], stream=True)
    assert long.value.code == "context_length_exceeded"
    for ask in (
        lambda text: chat(messages=[{"role": "user", "content": text}]),
        lambda text: client.completions.create(model=BASE, prompt=text),
        lambda text: chat(model="few-shot", messages=[{"role": "user", "content": text}]),
    ):
        with pytest.raises(openai.BadRequestError, match="a text of 500,000 characters") as longest:
            ask("word " * 100_000)  # refused before it is encoded
        assert longest.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="a text of 100,000 tokens"):
        client.completions.create(model=BASE, prompt=[1] * 100_000)  # before it is decoded
    with pytest.raises(openai.BadRequestError) as bad:
        chat(temperature=3)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as strange:
        chat(extra_body={"top_k": 3})
    assert strange.value.param == "top_k"
    schema = {"name": "x", "schema": {"type": "nothing"}}
    with pytest.raises(openai.BadRequestError) as constraint:
        chat(response_format={"type": "json_schema", "json_schema": schema})
    assert constraint.value.code == "bad-constraint"


# ---- artifacts: what is served is what predict says

ROW = {"text": "Where is my card?", "subject": "Card", "body": "It has not arrived.", "messages": HELLO}
NAMES = ("intents", "few-shot", "head", "notes", "letters", "records", "talk")


@pytest.mark.parametrize("name", NAMES)
def test_served_text_is_predicted_text_whole_streamed_and_typed(server, chat, client, artifacts, name):
    artifact = Artifact.load(artifacts[name])
    row = {column: ROW[column] for column in artifact.signature.inputs}
    content = row["text"] if "text" in row else json.dumps(row)
    messages = HELLO if name == "talk" else [{"role": "user", "content": content}]
    wanted = artifact.predict([row])[0]
    answer = chat(model=name, messages=messages)
    assert answer.choices[0].message.content == wanted.text
    assert answer.usage.prompt_tokens == wanted.prompt_tokens
    assert (answer.rung["confidence"] is None) == (wanted.confidence is None)
    if wanted.confidence is not None:
        assert math.isclose(answer.rung["confidence"], wanted.confidence, rel_tol=1e-4)
    assert joined(list(chat(model=name, messages=messages, stream=True))) == wanted.text
    typed = server.post(f"/v1/tasks/{name}/predict", {"rows": [row] * 3, "top": 2}).json()
    assert [one["output"] for one in typed["predictions"]] == [wanted.text] * 3
    if artifact.signature.labels:
        assert len(typed["predictions"][0]["top"]) == 2
    if "text" in row:
        text = client.completions.create(model=name, prompt=content, max_tokens=100)
        assert text.choices[0].text == wanted.text


def test_an_artifact_refuses_what_it_would_not_read(chat):
    def refused(**options):
        with pytest.raises(openai.BadRequestError) as error:
            chat(**options)
        return error.value.code

    turns = [*HELLO, {"role": "assistant", "content": "Lost."}]
    assert refused(model="intents", messages=turns) == "bad-request"
    assert refused(model="letters") == "bad-row"
    assert refused(model="letters", messages=[{"role": "user", "content": '{"subject": "x"}'}]) == "missing-column"
    assert refused(model="intents", n=2) == "bad-request"
    assert refused(model="notes", tools=TOOLS) == "bad-request"
    assert refused(model="records", response_format={"type": "json_object"}) == "bad-request"


def test_what_was_answered_is_recorded_under_the_id_that_the_client_has(server, chat, artifacts):
    server.kept.interactions.clear()
    answer = chat(model="intents")
    stream = list(chat(model="notes", stream=True))
    plain = chat(max_tokens=3)
    first, second, third = server.kept.interactions
    assert (first.id, second.id, third.id) == (answer.id, stream[0].id, plain.id)
    assert first.artifact == fingerprint(artifacts["intents"])
    assert first.inputs == {"text": "Where is my card?"}
    assert first.actual == answer.choices[0].message.content
    assert first.task == "intents"
    assert second.finish == stream[-1].choices[0].finish_reason
    assert (third.task, third.completion_tokens) == ("", 3)
    assert first.model == second.model == third.model
