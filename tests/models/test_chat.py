import pytest

from rung.cli.main import main
from rung.climbing.check import check_task
from rung.errors import ModelError
from rung.models.chat import render
from rung.task import Task
from templates import CHATML, CHATS, GEMMA, LLAMA3, QWEN, TEMPLATES, with_template

BOS, EOS = "<s>", "</s>"
TOOLS = [{"type": "function", "function": {"name": "é", "parameters": {"type": "object", "a": [1, None, True]}}}]
USER = {"role": "user", "content": " hi "}


@pytest.fixture(scope="module")
def apply_chat_template(embedded):
    """transformers' own renderer, on a tokenizer whose template and special tokens are replaced."""
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(embedded.folder, local_files_only=True)
    tokenizer.bos_token, tokenizer.eos_token = BOS, EOS

    def apply(chat, template, **settings):
        return tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False, **settings)

    return apply


@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_equal_to_transformers(name, chat, add, apply_chat_template):
    if (name, chat) == ("gemma", "system"):
        pytest.skip("Gemma's template refuses it, see below")
    expected = apply_chat_template(CHATS[chat], TEMPLATES[name], add_generation_prompt=add)
    assert render(CHATS[chat], TEMPLATES[name], bos=BOS, eos=EOS, add_generation_prompt=add) == expected


def test_tools_equal_transformers(apply_chat_template):
    expected = apply_chat_template(CHATS["question"], QWEN, tools=TOOLS, add_generation_prompt=True)
    assert '"é"' in expected
    assert render(CHATS["question"], QWEN, bos=BOS, eos=EOS, tools=TOOLS) == expected


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (
            CHATML,
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
            "<|im_start|>user\n hi <|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            LLAMA3,
            "<s><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (GEMMA, "<s><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n"),
        (
            QWEN,
            "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\n hi <|im_end|>\n<|im_start|>assistant\n",
        ),
    ],
    ids=["chatml", "llama3", "gemma", "qwen"],
)
def test_goldens(template, expected):
    assert render([USER], template, bos=BOS, eos=EOS) == expected


def test_a_template_may_refuse():
    with pytest.raises(ModelError, match="System role not supported") as caught:
        render(CHATS["system"], GEMMA, bos=BOS, eos=EOS)
    assert caught.value.code == "chat-template-refused"


def test_a_broken_template_names_its_line():
    with pytest.raises(ModelError, match="line 2") as caught:
        render([USER], "x\n{% if %}", bos=None, eos=None)
    assert caught.value.code == "model-damaged"


@pytest.mark.parametrize(
    "attack",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
    ],
)
def test_the_sandbox_holds(attack):
    with pytest.raises(ModelError) as caught:
        render([USER], attack, bos=None, eos=None)
    assert caught.value.code == "chat-template-refused"


def test_messages_are_values_not_templates():
    assert render([{"role": "user", "content": "{{ bos_token }}"}], "{{ messages[0].content }}", bos=BOS, eos=EOS) == (
        "{{ bos_token }}"
    )


def test_without_a_template_blank_lines_stand_between_contents_and_before_the_answer():
    chat = [{"role": "system", "content": "Translate."}, {"role": "user", "content": "chat: cat\nchien:"}]
    assert render(chat, None, bos=BOS, eos=EOS) == "Translate.\n\nchat: cat\nchien:\n\n"
    assert render(chat, None, bos=BOS, eos=EOS, add_generation_prompt=False) == "Translate.\n\nchat: cat\nchien:"
    assert render([], None, bos=BOS, eos=EOS) == ""
    with pytest.raises(ModelError) as caught:
        render(chat, None, bos=BOS, eos=EOS, tools=TOOLS)
    assert caught.value.code == "no-chat-template"


def test_without_a_template_a_cue_that_ends_in_white_space_stands_right_before_answers():
    """Of the row and of demonstrations alike; before the next question there is a blank line all the same."""
    chat = [
        {"role": "system", "content": "Translate.\n"},
        {"role": "user", "content": "chat = "}, {"role": "assistant", "content": "cat "},
        {"role": "user", "content": "chien = "},
    ]  # fmt: skip
    assert render(chat, None, bos=BOS, eos=EOS) == "Translate.\n\n\nchat = cat \n\nchien = "


@pytest.mark.parametrize(
    ("template", "code", "message"),
    [
        ("x\n{% if %}", "model-damaged", "line 2"),
        ("{{ raise_exception('never') }}", "chat-template-refused", "never"),
        ("Hello", "chat-template-refused", "does not show the text"),
    ],
)
def test_a_broken_template_is_found_before_a_climb(
    template, code, message, tiny_folder, small_task_file, tmp_path, monkeypatch, capsys
):
    folder = str(with_template(tiny_folder, tmp_path / "broken", template))
    with pytest.raises(ModelError, match=message) as caught:
        check_task(Task.load(small_task_file, {"model": folder}))
    assert (caught.value.code, "lists of parts" in caught.value.hint) == (code, False)
    assert "--set model=" in str(caught.value.where)
    monkeypatch.setattr("sys.argv", ["rung", "models", "show", folder])
    with pytest.raises(SystemExit):
        main()
    assert message in " ".join(capsys.readouterr().err.split())
