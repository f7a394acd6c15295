"""The official client's newer form of a chat: the text, calls and events of a chat completion in items."""

import openai
import pytest
from pydantic import BaseModel
from running_server import BASE, HELLO

NOW = {"type": "function", "name": "now", "parameters": {"type": "object", "properties": {}}}


@pytest.fixture
def respond(client):
    def ask(**options):
        return client.responses.create(**{"model": BASE, "input": "Where is my card?", **options})

    return ask


def test_a_response_has_the_text_and_counts_of_the_chat(client, respond):
    wanted = client.chat.completions.create(model=BASE, messages=HELLO, max_tokens=6)
    answer = respond(max_output_tokens=6)
    assert answer.output_text == wanted.choices[0].message.content
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (
        wanted.usage.prompt_tokens, wanted.usage.completion_tokens,
    )  # fmt: skip
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    system = {"role": "system", "content": "Be brief."}
    told = client.chat.completions.create(model=BASE, messages=[system, *HELLO], max_tokens=6)
    items = [{"role": "user", "content": [{"type": "input_text", "text": "Where is my card?"}]}]
    again = respond(input=items, instructions="Be brief.", max_output_tokens=6, store=True, reasoning={"effort": "low"})
    assert (again.output_text, again.usage.input_tokens) == (
        told.choices[0].message.content, told.usage.prompt_tokens,
    )  # fmt: skip


def test_its_stream_has_the_events_that_the_client_s_helper_joins(client, respond):
    wanted = respond(max_output_tokens=8)
    with client.responses.stream(model=BASE, input="Where is my card?", max_output_tokens=8) as stream:
        events = list(stream)
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == events[-1].response.output[0].content[0].text == wanted.output_text
    assert [event.type for event in events][:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert events[-1].type == "response.incomplete"
    numbers = [event.sequence_number for event in respond(max_output_tokens=8, stream=True)]
    assert numbers == list(range(len(numbers)))
    assert events[-1].response.usage.output_tokens == wanted.usage.output_tokens


def test_calls_go_out_and_come_back_with_their_results(client, respond):
    answer = respond(tools=[NOW], tool_choice={"type": "function", "name": "now"})
    (call,) = answer.output
    assert (call.type, call.name, call.arguments) == ("function_call", "now", "{}")
    with client.responses.stream(model=BASE, input="x", tools=[NOW], tool_choice="required") as stream:
        assert stream.get_final_response().output[0].name == "now"
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "noon"}
    turns = [*HELLO, call.model_dump(), result]
    calls = [{"id": call.call_id, "type": "function", "function": {"name": "now", "arguments": "{}"}}]
    chat = [
        *HELLO,
        {"role": "assistant", "tool_calls": calls},
        {"role": "tool", "tool_call_id": call.call_id, "content": "noon"},
    ]
    wanted = client.chat.completions.create(model=BASE, messages=chat, max_tokens=4)
    assert respond(input=turns, max_output_tokens=4).usage.input_tokens == wanted.usage.prompt_tokens


class Card(BaseModel):
    lost: bool


def test_a_schema_holds_and_an_artifact_answers(client, respond):
    parsed = client.responses.parse(model=BASE, input="Where is my card?", text_format=Card)
    assert isinstance(parsed.output_parsed, Card)
    wanted = client.chat.completions.create(model="intents", messages=HELLO)
    answer = respond(model="intents", input=[*HELLO, {"role": "assistant", "content": "Lost."}, *HELLO])
    assert answer.output_text == wanted.choices[0].message.content
    assert answer.rung["left_out"] == {"user": 1, "assistant": 1}
    assert answer.status == "completed"


@pytest.mark.parametrize(
    ("options", "told"),
    [({"previous_response_id": "resp-1"}, "not stored"), ({"truncation": "auto"}, "never cut"),
     ({"input": [{"type": "web_search_call", "id": "x"}]}, "'web_search_call' are not served"),
     ({"tools": [{"type": "web_search"}]}, "tools.0"), ({"background": True}, "background"),
     ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "images are not served")],
)  # fmt: skip
def test_what_it_does_not_cover_is_refused_by_name(respond, options, told):
    with pytest.raises(openai.BadRequestError, match=told):
        respond(**options)
