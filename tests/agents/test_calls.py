"""Every format of a tool call, for both readers: an agent, and the server's chat completions."""

import json
import shutil

import pytest

from rung.agents.calls import (
    Call,
    MalformedError,
    call_constraint,
    read_json,
    read_turn,
    spoken,
    template_support,
    template_turns,
)
from rung.agents.tools import Tool
from rung.errors import ConfigError
from rung.models.tokenizer import Tokenizer
from rung.serving.requests import calls_in, offered, turns
from rung.serving.schemas import ChatRequest

HERMES = """
{%- if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>{% endif %}
{%- for message in messages %}[{{ message.role }}]{{ message.content }}
{%- for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}
{%- endfor %}"""
MISTRAL = """
{%- if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}
{%- for message in messages %}
{%- if message.tool_calls is defined %}[TOOL_CALLS][{% for call in message.tool_calls %}
{%- if call.id | length != 9 %}{{ raise_exception('ids have nine letters') }}{% endif %}{{ call.function | tojson }}
{%- endfor %}]
{%- elif message.role == 'tool' %}
{%- if message.tool_call_id | length != 9 %}{{ raise_exception('ids have nine letters') }}{% endif -%}
[TOOL_RESULTS]{{ message.content }} {{ message.tool_call_id }}
{%- else %}[INST]{{ message.content }}{% endif %}
{%- endfor %}"""
LLAMA = """
{%- if tools %}{{ tools | tojson }}{% endif %}
{%- for message in messages %}<{{ message.role }}>
{%- if message.tool_calls is defined %}{% set call = message.tool_calls[0].function %}{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}
{%- else %}{{ message.content }}{% endif %}
{%- endfor %}"""  # noqa: E501
ONLY_TOOLS = HERMES.replace("message.content", "''")  # results would not be seen
REFUSES_RESULTS = (
    "{% for message in messages %}{% if message.role == 'tool' %}{{ raise_exception('no role tool') }}{% endif %}"
    "{{ message.content }}{% endfor %}{{ tools | tojson if tools else '' }}"
)
XML = HERMES.replace("{{ call.function | tojson }}", "<function={{ call.function.name }}>")  # not read

TOOLS = [Tool("f", "", '{"type": "object"}'), Tool("g", "", '{"type": "object"}')]


@pytest.fixture
def tokenizer(tiny_tokenizer, tmp_path):
    """Return a function that makes a tokenizer with a chat template."""

    def build(template):
        shutil.copytree(tiny_tokenizer.folder, tmp_path / "model")
        (tmp_path / "model" / "chat_template.jinja").write_text(template)
        return Tokenizer.load(tmp_path / "model")

    return build


# ---- what a model writes

ONE = (Call("f", {"a": 1}),)
FORMATS = [
    ('<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', ONE),
    ('Sure. <tool_call>{"name": "f", "arguments": {"a": 1}}', ONE),
    ('<tool_call>{"name": "f", "arguments": {}}</tool_call><tool_call>{"name": "g", "arguments": {}}',
     (Call("f", {}), Call("g", {}))),
    ('{"name": "f", "arguments": {"a": 1}}', ONE),
    ('{"name": "f", "parameters": {"a": 1}}', ONE),
    ('{"type": "function", "function": {"name": "f", "parameters": {"a": 1}}}', ONE),
    ('[{"name": "f", "arguments": {"a": 1}}]', ONE),
    ('[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]', (Call("f", {}), Call("g", {}))),
    ('[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}, "id": "123456789"}]', ONE),
    ('[TOOL_CALLS] [{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]', (Call("f", {}), Call("g", {}))),
    ('<|python_tag|>{"name": "f", "parameters": {"a": 1}}', ONE),
    ('{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}', (Call("f", {}), Call("g", {}))),
    ('{"name": "f", "arguments": "{\\"a\\": 1}"}', ONE),
]  # fmt: skip
TEXTS = [" plain text ", '{"answer": 3}', "[1, 2]", "[]", "", '{"name": "Ann", "age": 3}', "{" * 100_000]
MALFORMED = [
    "<tool_call>{", '<tool_call>{"name": "f"}</tool_call>', "<tool_call>3", "<tool_call></tool_call>",
    '{"name": "f", "arguments": 3}', '{"name": "f", "arguments": "{"}', "[TOOL_CALLS]f", "<|python_tag|>print(1)",
    "<tool_call>" + "[" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize(("text", "calls"), FORMATS)
def test_an_agent_reads_every_format(text, calls):
    assert read_turn(text) == calls


@pytest.mark.parametrize(("text", "calls"), FORMATS)
def test_the_server_reads_every_format(text, calls):
    functions = [call["function"] for call in calls_in(text, TOOLS, [])]
    assert [Call(one["name"], json.loads(one["arguments"])) for one in functions] == list(calls)


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ('```json\n{"name": "look_up", "arguments": {"item": "x"}}\n```', ["x"]),
        ('I look it up.\n```\n{"name": "look_up", "arguments": {"item": "x"}}\n```\nThen I answer.', ["x"]),
        ('{{"name": "look_up", "arguments": {"item": "x"}}}', ["x"]),
        ('{{"name": "look_up", "arguments": {{"item": "x"}}}}', ["x"]),
        ('<tool_call>\n{{"name": "look_up", "arguments": {"item": "x"}}}\n</tool_call>', ["x"]),
        (
            '{"name": "look_up", "arguments": {"item": "x"}} and {"name": "look_up", "arguments": {"item": "y"}}',
            ["x", "y"],
        ),
        ('```json\n{"name": "delete", "arguments": {"item": "x"}}\n```', None),  # no tool of this name
        ('The row is {"item": "x", "price": 3}.', None),
        ('{{"name": "look_up", "arguments": {', None),
    ],
)
def test_calls_of_known_tools_are_read_between_other_text(text, items):
    turn = read_turn(text, ["look_up", "calculate"])
    assert turn == (text.strip() if items is None else tuple(Call("look_up", {"item": item}) for item in items))
    if "tool_call" not in text:
        assert read_turn(text) == text.strip()  # without names, it is an answer


@pytest.mark.parametrize("text", TEXTS)
def test_an_answer_is_no_call(text):
    assert read_turn(text) == text.strip()
    assert calls_in(text, TOOLS, []) == []


@pytest.mark.parametrize("text", MALFORMED)
def test_a_call_that_cannot_be_read_is_malformed(text):
    with pytest.raises(MalformedError):
        read_turn(text)
    assert calls_in(text, TOOLS, []) == []


def test_the_server_drops_calls_of_unknown_functions():
    text = '[{"name": "f", "arguments": {}}, {"name": "other", "arguments": {}}]'
    assert [call["function"]["name"] for call in calls_in(text, TOOLS, [])] == ["f"]


def test_a_forced_call_is_its_arguments():
    (call,) = calls_in('{"a": 1}', TOOLS, TOOLS[:1])
    assert call["function"] == {"name": "f", "arguments": '{"a": 1}'}
    assert calls_in('{"a":', TOOLS, TOOLS[:1]) == calls_in("[1]", TOOLS, TOOLS[:1]) == []


def test_an_answer_in_json_may_be_a_number():
    assert [read_json(f'{{"step": {{"answer": {n}}}}}') for n in ("647.13", "65", '"65 "')] == ["647.13", "65", "65 "]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"step": {"tool": 3, "arguments": {}}}', '{"step": {"tool": "f"}}'])
def test_json_that_is_no_turn_is_malformed(text):
    with pytest.raises(MalformedError):
        read_json(text)


def test_forced_calls_keep_references_within_their_own_schema():
    node = {"type": "object", "properties": {"next": {"$ref": "#"}, "at": {"$ref": "#/$defs/at"}}, "$defs": {"at": {}}}
    tools = [TOOLS[0], Tool("h", "", json.dumps(node))]
    value = json.loads(call_constraint(tools).value)
    assert value["$defs"]["tool1"]["properties"] == {
        "next": {"$ref": "#/$defs/tool1"},
        "at": {"$ref": "#/$defs/tool1/$defs/at"},
    }
    assert value["anyOf"][1]["properties"] == {"name": {"const": "h"}, "arguments": {"$ref": "#/$defs/tool1"}}


# ---- what a template shows


@pytest.mark.parametrize(
    ("template", "support"),
    [
        (HERMES, (True, True)),
        (MISTRAL, (True, True)),
        (LLAMA, (True, True)),
        (ONLY_TOOLS, (True, False)),
        (REFUSES_RESULTS, (True, False)),
        (XML, (False, False)),
    ],
    ids=["hermes", "mistral", "llama", "only-tools", "refuses-results", "xml"],
)
def test_a_template_shows_tools_and_results_or_one_of_them(tokenizer, template, support):
    assert template_support(tokenizer(template)) == (*support, True)


def test_a_template_that_shows_doubled_braces_is_told_apart(tokenizer):
    shown = '{{ \'{{"name": <function-name>, "arguments": <args-json-object>}}\' }}'
    assert template_support(tokenizer(shown + HERMES)) == (True, True, False)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("It is 5.", "It is 5."),
        ('[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}]',
         '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'),
        ('Let me. <tool_call>{"name": "f", "parameters": {}}</tool_call>',
         'Let me.\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'),
        ("<tool_call>{broken", "<tool_call>{broken"),
    ],
)  # fmt: skip
def test_what_a_model_says_in_a_conversation(text, answer):
    assert spoken(text, tools=True) == answer
    assert spoken('{"name": "f", "arguments": {}}', tools=False) == '{"name": "f", "arguments": {}}'


def test_a_template_without_tools_and_no_template_show_neither(tiny_tokenizer, tmp_path):
    assert template_support(tiny_tokenizer) == (False, False, True)


BODY = {
    "model": "m",
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "messages": [
        {"role": "user", "content": "q"},
        {"role": "assistant", "tool_calls": [
            {"id": f"call_of_a_client_{i}", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
            for i in range(2)
        ]},
        {"role": "tool", "tool_call_id": "call_of_a_client_1", "content": "result"},
    ],
}  # fmt: skip


def rendered(tokenizer, body=BODY):
    request = ChatRequest.model_validate(body)
    support, (tools, _) = template_support(tokenizer), offered(request)
    shown = [tool.as_template() for tool in tools] if support.tools else None
    return tokenizer.render(turns(request.messages, tools, support), tools=shown)


def test_the_server_s_conversation_is_rendered_by_the_template(tokenizer):
    text = rendered(tokenizer(HERMES))
    assert text.startswith('<tools>{"type": "function", "function": {"name": "f"')
    assert '[assistant]<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>' in text
    assert text.endswith("[tool]result")


def test_mistral_s_template_gets_ids_that_it_takes(tokenizer):
    assert rendered(tokenizer(MISTRAL)).endswith("[TOOL_RESULTS]result call00001")


def test_what_a_template_does_not_show_is_written_as_text(tokenizer):
    text = rendered(tokenizer(REFUSES_RESULTS))
    assert '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>' in text
    assert "<tool_response>\nresult\n</tool_response>" in text
    assert text.count("<tools>") == 0  # the template shows the tools itself
    assert '"name": "f", "description"' in text


def test_without_support_tools_are_in_the_system_message(tiny_tokenizer):
    request = ChatRequest.model_validate(BODY)
    first, *rest = turns(request.messages, offered(request)[0], template_support(tiny_tokenizer))
    assert first["role"] == "system"
    assert "<tools>" in first["content"]
    assert [turn["role"] for turn in rest] == ["user", "assistant", "user"]


def test_an_agent_s_results_have_the_ids_of_their_calls(tokenizer):
    turns = template_turns("", (Call("f", {}), Call("g", {})), [("f", "1"), ("g", "2")])
    assert [call["id"] for call in turns[0]["tool_calls"]] == [turn["tool_call_id"] for turn in turns[1:]]
    assert tokenizer(MISTRAL).render(turns).count("[TOOL_RESULTS]") == 2


def test_a_chosen_function_has_to_be_among_the_tools():
    body = {**BODY, "tool_choice": {"type": "function", "function": {"name": "other"}}}
    with pytest.raises(ConfigError) as caught:
        offered(ChatRequest.model_validate(body))
    assert caught.value.code == "unknown-name"
