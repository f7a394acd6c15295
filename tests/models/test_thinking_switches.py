"""What switches thoughts off and on, and what opens and ends one: the logic of makers' templates, in short."""

import pytest

from rung.errors import ModelError
from rung.export.servers import server_template
from rung.models.messages import encode_messages, with_thinking, with_thought
from rung.models.thinking import answer_beginning, thought_beginning
from rung.models.tokenizer import Tokenizer
from templates import edited

SYSTEM, USER = {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Where is it?"}
ANSWER = {"role": "assistant", "content": "Behind you."}


def chat(prompt, answer="{{ m.content }}", head="") -> str:
    """A template with what it writes before the turns, in an assistant's turn, and where that is to be written."""
    return (
        f"{head}{{% for m in messages %}}[{{{{ m.role }}}}]{{% if m.role == 'assistant' %}}{answer}{{% else %}}"
        "{{ m.content.replace('/no_think', '').replace('/think', '').strip() }}{% endif %}{% endfor %}"
        f"{{% if add_generation_prompt %}}[assistant]{prompt}{{% endif %}}"
    )


def either(condition, first, second="") -> str:
    return f"{{% if {condition} %}}{{{{ {first!r} }}}}{{% else %}}{{{{ {second!r} }}}}{{% endif %}}"


ON = "enable_thinking is defined and enable_thinking"
CLOSED = "<think>\n\n</think>\n\n"
NANO = chat(
    either("asked.on", "<think>\n", "<think></think>"),
    either("asked.on", "<think>\n", "<think></think>") + "{{ m.content }}",
    "{% set asked = namespace(on=true) %}{% for m in messages if m.role == 'user' %}{% if '/think' in m.content %}"
    "{% set asked.on = true %}{% elif '/no_think' in m.content %}{% set asked.on = false %}{% endif %}{% endfor %}",
)
PARTS = (
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}{% if part.type == 'thinking' %}"
    "[THINK]{{ part.thinking }}[/THINK]{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
)
NAMED = "{% if thinking %}Write thoughts between <think></think>.{% endif %}"
BUDGET = either("thinking_budget == 0", "<seed:think>\nNone.\n</seed:think>")
SPENT = "{% if thinking_budget is defined and thinking_budget != 0 %}At most {{ thinking_budget }}.{% endif %}"
KEY = "{% if m.reasoning %}<|START_THINKING|>{{ m.reasoning }}<|END_THINKING|>{% endif %}<|START_TEXT|>{{ m.content }}"
MODES = (
    "{% if reasoning_effort | default('low') not in ('no_think', 'low', 'high') %}{{ raise_exception('') }}{% endif %}"
)
# By maker: a template, how its prompt ends without thoughts and with, and what ends a thought.
MADE = {
    "MiniCPM5": (
        chat("{% if enable_thinking is defined %}" + either(ON, "<think>\n", CLOSED) + "{% endif %}"),
        CLOSED, "<think>\n", "\n</think>\n\n",
    ),
    "QwQ": (chat("<think>" + either(ON, "", "</think>")), "<think></think>", "<think>", "\n</think>\n\n"),
    "Gemma 4": (
        chat(either(ON, "", "<|channel>thought\n<channel|>"), head=either(ON, "<|think|>\n")),
        "<|channel>thought\n<channel|>", "<|channel>thought\n", "<channel|>",
    ),
    "Seed-OSS": (chat(BUDGET, head=SPENT), "None.\n</seed:think>", "<seed:think>\n", "\n</seed:think>"),
    "Cohere": (
        chat("<|START_THINKING|>" + either("reasoning", "", "<|END_THINKING|>"), KEY),
        "<|START_THINKING|><|END_THINKING|><|START_TEXT|>", "<|START_THINKING|>", "<|END_THINKING|><|START_TEXT|>",
    ),
    "Nemotron Nano": (NANO, "[assistant]<think></think>", "<think>\n", "\n</think>\n\n"),
    "MiniMax-M3": (
        chat(either("thinking_mode == 'disabled'", "</think>", "<think>"), "</think>{{ m.content }}"),
        "[assistant]</think>", "<think>", "\n</think>\n\n",
    ),
    "SmolLM3": (chat(either(ON, "", "<think>\n\n</think>\n")), "<think>\n\n</think>\n", "<think>\n", "\n</think>\n"),
    "Granite": (chat("", head=NAMED), "[assistant]", "<think>\n", "\n</think>\n\n"),
    "Kimi": (chat("", "<think></think>{{ m.content }}"), "<think></think>", "<think>", "</think>"),
    "Ministral": (chat("", PARTS), "[assistant]", "[THINK]", "[/THINK]"),
    "Hy3": (
        chat(either("reasoning_effort in ('low', 'high')", "<think>", "<think></think>"), head=MODES),
        "<think></think>", "<think>", "\n</think>\n\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("maker", MADE)
def test_thoughts_are_off_and_on(maker, tmp_path):
    template, off, on, end = MADE[maker]
    made = Tokenizer.load(edited(tmp_path, template))
    opened = thought_beginning(made, "on")
    prompt, thinking = made.render([SYSTEM, USER], begin=answer_beginning(made)), made.render([USER], begin=opened)
    assert (prompt.endswith(off), thinking.endswith(on), opened.end) == (True, True, end)
    assert "<|think|>" not in prompt
    assert "At most" not in prompt
    assert "Write thoughts" not in prompt
    whole = encode_messages(made, (USER, ANSWER), answered=True)
    begun = encode_messages(made, (USER,), written=True)
    assert made.decode(whole[: len(begun)], skip_special=False) == made.decode(begun, skip_special=False)


def test_a_budget_is_a_number(tmp_path):
    made = Tokenizer.load(edited(tmp_path, MADE["Seed-OSS"][0]))
    assert answer_beginning(made).variables == (("thinking_budget", 0),)
    assert "At most 512." in made.render([USER], begin=thought_beginning(made, "low"))


def test_no_text_of_a_row_leaves_a_thought_open_before_an_answer(tmp_path):
    made = Tokenizer.load(edited(tmp_path, NANO))
    asks = ({"role": "user", "content": "May I /think?"},)
    assert made.decode(encode_messages(made, asks), skip_special=False).endswith(f"[assistant]{CLOSED}")
    thinking = with_thought(with_thinking(asks, "on"), None)
    assert made.decode(encode_messages(made, thinking), skip_special=False).endswith("[assistant]<think>\n")


def test_a_server_writes_the_switch_into_the_last_question(tmp_path):
    from transformers import AutoTokenizer

    made = Tokenizer.load(edited(tmp_path, NANO))
    theirs = AutoTokenizer.from_pretrained(made.folder)
    for messages in ((USER,), (SYSTEM, USER, ANSWER, USER)):
        text = theirs.apply_chat_template(
            list(messages), chat_template=server_template(made), tokenize=False, add_generation_prompt=True
        )
        assert made.encode(text) == encode_messages(made, messages)


def test_a_space_that_only_the_template_writes_stays(tmp_path):
    template = chat("", " {{ m.content }}")
    assert answer_beginning(Tokenizer.load(edited(tmp_path, template))).add == " "


def test_a_switch_without_marks_says_so(tmp_path):
    made = Tokenizer.load(edited(tmp_path, chat("", head="{% if enable_thinking %}Think first.{% endif %}")))
    with pytest.raises(ModelError, match="can ask for thoughts, but does not show") as caught:
        thought_beginning(made, "on")
    assert caught.value.code == "no-thinking"
