"""Every format of a tool call, for both readers: an agent, and the server's chat completions."""

import json
import shutil

import pytest

from rung.agents.calls import call_constraint, read_json, spoken, template_support, template_turns
from rung.agents.tools import Tool
from rung.agents.turns import Call, MalformedError, read_turn
from rung.errors import ConfigError
from rung.models.reference import resolve
from rung.models.tokenizer import Tokenizer
from rung.serving.requests import calls_in, offered, turns
from rung.serving.schemas import ChatRequest
from templates import published

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
{%- elif message.role == 'assistant' %}{{ message.content }}
{%- else %}[INST]{{ message.content }}[/INST]{% endif %}
{%- endfor %}"""
LLAMA = """
{%- if tools %}{{ tools | tojson }}{% endif %}
{%- for message in messages %}<{{ message.role }}>
{%- if message.tool_calls is defined %}{% set call = message.tool_calls[0].function %}{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}
{%- else %}{{ message.content }}{% endif %}
{%- endfor %}"""  # noqa: E501
ONLY_TOOLS = HERMES.replace("message.content", "message.content if message.role != 'tool'")
REFUSES_RESULTS = (
    "{% for message in messages %}{% if message.role == 'tool' %}{{ raise_exception('no role tool') }}{% endif %}"
    "{{ message.content }}{% endfor %}{{ tools | tojson if tools else '' }}"
)
UNKNOWN = HERMES.replace("{{ call.function | tojson }}", "<fun {{ call.function.name }}>")  # not read
ALTERED = HERMES.replace("call.function |", "{'name': call.function.name, 'arguments': {'count': '3'}} |")

TOOLS = [Tool("f", "", '{"type": "object"}'), Tool("g", "", '{"type": "object"}')]


@pytest.fixture
def tokenizer(tmp_path):
    """Return a function that makes a tokenizer with a chat template."""

    def build(template, special=()):
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(resolve("embedded").folder / name, tmp_path / name)
        (tmp_path / "chat_template.jinja").write_text(template)
        file = tmp_path / "tokenizer.json"
        values = json.loads(file.read_text())
        first = 1 + max([*values["model"]["vocab"].values(), *(token["id"] for token in values["added_tokens"])])
        alike = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        values["added_tokens"] += [{"id": first + i, "content": text, **alike} for i, text in enumerate(special)]
        file.write_text(json.dumps(values))
        return Tokenizer.load(tmp_path)

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
        ('{"name": "Ann", "age":', None),
    ],
)
def test_calls_of_known_tools_are_read_between_other_text(text, items):
    turn = read_turn(text, [Tool(name, "", "{}") for name in ("look_up", "calculate")])
    assert turn == (text.strip() if items is None else tuple(Call("look_up", {"item": item}) for item in items))
    if "tool_call" not in text:
        assert read_turn(text) == text.strip()  # without names, it is an answer


# ---- the formats of families, as their makers' templates write them

SCHEMA = {"properties": {"q": {"type": "string"}, "n": {"type": "integer"}, "b": {"type": ["boolean", "null"]},
                         "o": {"$ref": "#/$defs/o"}},
          "$defs": {"o": {"anyOf": [{"type": "object"}, {"type": "string"}]}}}  # fmt: skip
KNOWN = [Tool("get-it", "", json.dumps(SCHEMA)), Tool("g", "", "{}")]
WANTED = (Call("get-it", {"q": "7", "n": 3, "b": True, "o": {"k": None}}),)
JSON = '{"q": "7", "n": 3, "b": true, "o": {"k": null}}'
ELEMENTS = (
    "<parameter=q>\n7\n</parameter>\n<parameter=n>\n3\n</parameter>\n<parameter=b>\nTrue\n</parameter>\n"
    '<parameter=o>\n{"k": null}\n</parameter>\n'
)
PAIRS = "".join(
    f"\n<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>"
    for key, value in {"q": "7", "n": "3", "b": "true", "o": '{"k": null}'}.items()
)
INVOKED = '<invoke name="get-it">\n' + "\n".join(
    f'<parameter name="{key}">{value}</parameter>'
    for key, value in {"q": "7", "n": "3", "b": "true", "o": '{"k": null}'}.items()
)
DSML = INVOKED.replace("<", "<｜DSML｜").replace("<｜DSML｜/", "</｜DSML｜").replace('"q"', '"q" string="true"')
PYTHON = 'get-it(q="7", n=3, b=True, o={"k": null})'
FAMILY_CALLS = {
    "qwen3-coder": f"<tool_call>\n<function=get-it>\n{ELEMENTS}</function>\n</tool_call>",
    "qwen3-coder without tags": f"I look.\n<function=get-it>\n{ELEMENTS}</function>",
    "seed-oss": f"<seed:tool_call>\n<function=get-it>\n{ELEMENTS}</function>\n</seed:tool_call>".replace(
        '{"k": null}', "{'k': None}"
    ),
    "minimax-m2": f"<minimax:tool_call>\n{INVOKED}\n</invoke>\n</minimax:tool_call>",
    "deepseek-v3.2": f"<｜DSML｜function_calls>\n{DSML}\n</｜DSML｜invoke>\n</｜DSML｜function_calls>",
    "minicpm5": INVOKED.replace("invoke", "function").replace("parameter", "param").replace(">7<", "><![CDATA[7]]><")
    + "</function>",
    "glm": f"<tool_call>get-it{PAIRS}\n</tool_call>",
    "functionary": f"<function=get-it>{JSON}</function>",
    "mistral v11": f"[TOOL_CALLS]get-it[ARGS]{JSON}",
    "mistral v13": f"[TOOL_CALLS]get-it[CALL_ID]call00000[ARGS]{JSON}",
    "deepseek-v3.1": f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get-it<｜tool▁sep｜>{JSON}"
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "deepseek-r1": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get-it"
    f"\n```json\n{JSON}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "kimi-k2": "<|tool_calls_section_begin|><|tool_call_begin|>functions.get-it:0<|tool_call_argument_begin|>"
    f"{JSON}<|tool_call_end|><|tool_calls_section_end|>",
    "gpt-oss": f"<|channel|>commentary to=functions.get-it <|constrain|>json<|message|>{JSON}<|call|>",
    "gpt-oss, channel last": f" to=functions.get-it<|channel|>commentary json<|message|>{JSON}<|call|>",
    "gpt-oss without marks": f"commentary to=functions.get-it json{JSON}",
    "gemma4": '<|tool_call>call:get-it{b:true,n:3,o:{k:None},q:<|"|>7<|"|>}<tool_call|>',
    "gemma3": f"I look.\n```tool_code\nprint({PYTHON})\n```",
    "lfm2": f"<|tool_call_start|>[{PYTHON}]<|tool_call_end|>I look.",
    "llama4": f" [{PYTHON}]\n",
    "command-r7b": f'<|START_ACTION|>[\n{{"tool_call_id": "0", "tool_name": "get-it", "parameters": {JSON}}}\n]'
    "<|END_ACTION|>",
    "granite3": f'<|tool_call|>[{{"name": "get-it", "arguments": {JSON}}}]',
    "nemotron2": f'<TOOLCALL>[{{"name": "get-it", "arguments": {JSON}}}]</TOOLCALL>',
}


@pytest.mark.parametrize("text", FAMILY_CALLS.values(), ids=FAMILY_CALLS)
def test_calls_of_every_family_are_read_with_the_types_of_the_schema(text):
    assert read_turn(text, KNOWN) == WANTED
    (call,) = calls_in(text, KNOWN, [])
    assert json.loads(call["function"]["arguments"]) == WANTED[0].arguments


@pytest.mark.parametrize("text", FAMILY_CALLS.values(), ids=FAMILY_CALLS)
def test_a_call_that_is_cut_anywhere_in_its_arguments_is_malformed(text):
    for cut in range(text.index("get-it") + 7, text.rindex("null" if "null" in text else "None")):
        with pytest.raises(MalformedError):
            read_turn(text[:cut], KNOWN)


@pytest.mark.parametrize("text", FAMILY_CALLS.values(), ids=FAMILY_CALLS)
def test_a_call_in_code_is_an_example(text):
    if '"name": ' in text or "```" in text or "llama4" in text:
        return  # JSON calls of known tools count in fences, where small models write them
    for example in (f"Write this:\n```\n{text}\n```\nThat is all.", f"Write `{text.replace(chr(10), ' ')}` for that."):
        assert read_turn(example, KNOWN) == example


def test_several_calls_follow_each_other():
    calls = (*WANTED, Call("g", {}))
    two = (
        f"[{PYTHON}, g()]", f"<|tool_call_start|>[{PYTHON}, g()]<|tool_call_end|>",
        f"[TOOL_CALLS]get-it[ARGS]{JSON}[TOOL_CALLS]g[ARGS]{{}}",
        FAMILY_CALLS["glm"] + "\n<tool_call>g\n</tool_call>",
        FAMILY_CALLS["gemma4"] + "<|tool_call>call:g{}<tool_call|>",
        FAMILY_CALLS["qwen3-coder"] + "\n<tool_call>\n<function=g>\n</function>\n</tool_call>",
        FAMILY_CALLS["deepseek-v3.1"].replace("<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>g<｜tool▁sep｜>{}"),
    )  # fmt: skip
    for text in two:
        assert read_turn(text, KNOWN) == calls


@pytest.mark.parametrize("text", [
    "[other(a=1)]", "[g(a)] is how g is called.", "g()", "Then [g()] follows.", "[g()] and [g()]", "[g, g]", "[g(**x)]",
    "<function=other>{}</function>", "```tool_code\nother()\n```", "```python\ng()\n```",
    "It goes to=functions.other json{}", "The parameter to=functions.g is a recipient.", "call:g{}", "g[ARGS]{}",
])  # fmt: skip
def test_text_that_looks_like_a_call_is_an_answer(text):
    assert read_turn(text, KNOWN) == text
    assert calls_in(text, KNOWN, []) == []


@pytest.mark.parametrize("text", [
    "<|tool_call_start|>[g(1)]<|tool_call_end|>", "<|tool_call_start|>[g(a=__import__('os'))]<|tool_call_end|>",
    "<|tool_call_start|>" + "[" * 100_000, "<|tool_call>call:g{a:<|\"|>x}<tool_call|>", "<|tool_call>g{}<tool_call|>",
    "<tool_call>g <arg_key>a</arg_key></tool_call>", "<tool_call><function=g><parameter=a>x</function></tool_call>",
    "<tool_call><function=" + "g" * 100_000, "<tool_call><function=g><parameter=" + "g" * 100_000,
    "<tool_call>g" + "<arg_key>a</arg_key><arg_value>" * 5_000, "<|tool_call>call:g" + "{a" * 50_000,
    "<｜tool▁calls▁begin｜><｜tool▁calls▁end｜>", "[TOOL_CALLS]g[ARGS][1]", "<function=g>{}",
    '{"name": "g", "arguments": {"a',
])  # fmt: skip
def test_a_marked_call_that_cannot_be_read_is_malformed(text):
    with pytest.raises(MalformedError):
        read_turn(text, KNOWN)
    assert calls_in(text, KNOWN, []) == []


def test_a_value_may_hold_what_looks_like_the_end_of_it():
    code = "a = '</parameter>'\n```\nb\n```\n"
    text = f"<tool_call><function=get-it><parameter=q>\n{code}\n</parameter></function></tool_call>"
    assert read_turn(text, KNOWN) == (Call("get-it", {"q": code}),)
    assert read_turn('[get-it(q="then get-it(n=-3)", n=-3)]', KNOWN) == (
        Call("get-it", {"q": "then get-it(n=-3)", "n": -3}),
    )


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
        (REFUSES_RESULTS, (False, False)),  # it shows no call
        (UNKNOWN, (False, False)),
        (ALTERED, (False, False)),
    ],
    ids=["hermes", "mistral", "llama", "only-tools", "refuses-results", "unknown", "altered"],
)
def test_a_template_shows_tools_and_results_or_one_of_them(tokenizer, template, support):
    assert template_support(tokenizer(template)) == (*support, True)


@pytest.mark.parametrize(("name", "native"), {
    "gemma4": True, "gemma4_v5": True, "glm4moe": True, "lfm2_v2": True, "lfm2_2_5": True, "llama3_1": True,
    "nemotron_3_nano": True, "qwen2_5": True, "qwen3": True, "qwen3_5_think": True, "qwen3_vl": True,
    "gptoss": False,  # the answer's channel is open
    "lfm2": False, "gemma3": False, "phi3": False, "deepseekv3": False,  # they show no calls, or no tools
}.items())  # fmt: skip
def test_a_format_is_the_model_s_own_if_a_call_of_its_template_is_read_back(tokenizer, name, native):
    assert template_support(tokenizer(published(name))) == (native, native, True)


@pytest.mark.parametrize(("name", "special"), {
    "lfm2_v2": ["<|tool_call_start|>", "<|tool_call_end|>"],
    "gemma4": ["<|tool_call>", "<tool_call|>", '<|"|>'],
    "llama3_1": ["<|python_tag|>"],
}.items())  # fmt: skip
def test_special_tokens_that_mark_calls_stay_in_the_text_where_tools_are_offered(tokenizer, name, special):
    loaded = tokenizer(published(name), [*special, "<|other|>"])
    tokens = loaded.encode("".join(f"{mark}x" for mark in special) + "<|other|>.")
    assert loaded.decode(tokens, call_marks=True) == "".join(f"{mark}x" for mark in special) + "."
    assert loaded.decode(tokens) == "x" * len(special) + "."
    assert template_support(loaded) == (True, True, True)


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
        ('Hm. <|tool_call_start|>[f(a=1)]<|tool_call_end|>',
         'Hm.\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'),
        ("<tool_call>{broken", "<tool_call>{broken"),
    ],
)  # fmt: skip
def test_what_a_model_says_in_a_conversation(text, answer):
    functions = [{"type": "function", "function": {"name": "f"}}]
    assert spoken(text, functions) == answer
    assert spoken('{"name": "f", "arguments": {}}', ()) == '{"name": "f", "arguments": {}}'


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
    assert "<tools>" in text  # the template shows them too, and no call that is read


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
