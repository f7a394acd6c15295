"""Chat templates for other servers: the same text as Rung's own."""

import json
import shutil

import pytest

from rung.errors import ArtifactError, ModelError
from rung.export.servers import modelfile, ollama_template, server_template
from rung.models.messages import encode_messages
from rung.models.reference import resolve
from rung.models.tokenizer import Tokenizer
from templates import CHATML, GEMMA, GENERATION, LLAMA3, QWEN, published

SYSTEM, USER = {"role": "system", "content": "Be\nbrief."}, {"role": "user", "content": 'Where is "{{ .Content }}"?'}
TALK = (SYSTEM, USER, {"role": "assistant", "content": "{% raw %} é 🙂"}, {"role": "user", "content": "And now?"})
SHAPES = (TALK[:2], TALK, TALK[1:], (USER,))


@pytest.fixture
def tokenizer(tmp_path):
    """Return a function that gives the embedded model's tokenizer another template and other settings."""

    def build(template, **settings):
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(resolve("embedded").folder / name, tmp_path / name)
        file = tmp_path / "tokenizer_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": template, **settings}))
        return Tokenizer.load(tmp_path)

    return build


@pytest.mark.parametrize("template", [CHATML, LLAMA3, GEMMA, QWEN], ids=["chatml", "llama3", "gemma", "qwen"])
def test_ollama_reads_the_tokens_that_rung_reads(tokenizer, template):
    loaded = tokenizer(template)
    ollama = ollama_template(loaded)
    for messages in SHAPES:
        assert loaded.encode(ollama.render(messages)) == encode_messages(loaded, messages)
    assert ollama.strips == (template in (LLAMA3, GEMMA))


def test_llama_cpp_s_beginning_token_is_not_there_twice(tokenizer):
    loaded = tokenizer(LLAMA3, add_bos_token=True)
    text = ollama_template(loaded).render(TALK)
    assert not text.startswith(loaded.bos_token)
    assert (loaded.bos_id, *loaded.encode(text)) == encode_messages(loaded, TALK)
    with pytest.raises(ArtifactError, match="does not begin with the token"):
        ollama_template(tokenizer(GENERATION.replace("bos_token", "''"), add_bos_token=True))


def test_the_template_in_go_and_the_modelfile(tokenizer):
    ollama = ollama_template(tokenizer(CHATML))
    assert ollama.go() == (
        '{{ range $i, $_ := .Messages }}{{ if eq .Role "system" }}'
        '{{ "<|im_start|>system\\n" }}{{ .Content }}{{ "<|im_end|>\\n<|im_start|>user\\n" }}'
        '{{ else if eq .Role "user" }}{{ if eq $i 0 }}{{ "<|im_start|>system\\nYou are a helpful AI assistant named '
        'SmolLM, trained by Hugging Face<|im_end|>\\n<|im_start|>user\\n" }}{{ end }}{{ .Content }}'
        '{{ else }}{{ "<|im_end|>\\n<|im_start|>assistant\\n" }}{{ .Content }}{{ "<|im_end|>\\n<|im_start|>user\\n" }}'
        '{{ end }}{{ end }}{{ "<|im_end|>\\n<|im_start|>assistant\\n" }}'
    )
    (loaded := tokenizer(CHATML)).folder.joinpath("generation_config.json").write_text('{"eos_token_id": [0, 2]}')
    assert modelfile(loaded, 2048).splitlines() == [
        "FROM ./model.gguf", f'TEMPLATE """{ollama.go()}"""', "PARAMETER temperature 0", "PARAMETER repeat_penalty 1",
        "PARAMETER num_ctx 2048", 'PARAMETER stop "<|endoftext|>"',
    ]  # fmt: skip
    assert modelfile(tokenizer(LLAMA3), 9).startswith("# The model's own template strips white space")
    lines = modelfile(loaded, 2048, 'Be "kind".\n\nBe brief.').splitlines()
    assert lines[3:6] == ['SYSTEM """Be "kind".', "", 'Be brief."""']
    unwritten = modelfile(loaded, 2048, 'No """.')
    assert "SYSTEM" not in unwritten
    assert "clients have to send it" in unwritten.splitlines()[0]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[-1].content }}", "leaves messages out"),
        ("{% for m in messages %}{{ loop.index }}{{ m.content }}{% endfor %}", "more than put text around"),
        ("{% for m in messages %}{{ m.content | tojson }}{% endfor %}", "more than put text around"),
    ],
)
def test_what_go_templates_cannot_say_is_refused(tokenizer, template, message):
    with pytest.raises(ArtifactError, match=message) as caught:
        ollama_template(tokenizer(template))
    assert caught.value.code == "export-unsupported"


def test_a_template_that_changes_texts_is_refused(tokenizer):
    with pytest.raises(ModelError, match="does not show the text of an assistant's turn"):
        ollama_template(tokenizer("{% for m in messages %}{{ m.content | upper }}{% endfor %}"))


@pytest.mark.parametrize("settings", [{}, {"add_bos_token": True, "bos_token": "<|im_start|>"}])
@pytest.mark.parametrize("template", [None, GEMMA, CHATML], ids=["none", "gemma", "chatml"])
def test_transformers_renders_the_server_s_template_as_rung_does(tokenizer, template, settings):
    from transformers import AutoTokenizer

    loaded = tokenizer(template, **settings)
    for_server = server_template(loaded)
    assert (for_server is None) == (template == CHATML)
    theirs = AutoTokenizer.from_pretrained(loaded.folder)
    cued = ({"role": "user", "content": "Question: a\nAnswer: "},)
    for messages in (*SHAPES, cued):
        text = theirs.apply_chat_template(
            list(messages), chat_template=for_server, tokenize=False, add_generation_prompt=True
        )
        assert tuple(theirs(text, add_special_tokens=False).input_ids) == encode_messages(loaded, messages)


@pytest.mark.parametrize("name", ["qwen3", "qwen3_6"])
def test_a_server_s_template_thinks_as_the_artifact_does_unless_asked(tokenizer, name):
    from transformers import AutoTokenizer

    own = published(name)
    loaded = tokenizer(own)
    theirs = AutoTokenizer.from_pretrained(loaded.folder)

    def text(template, **asked):
        return theirs.apply_chat_template(
            [USER], chat_template=template, tokenize=False, add_generation_prompt=True, **asked
        )

    off, on = server_template(loaded), server_template(loaded, "on")
    assert loaded.encode(text(off)) == encode_messages(loaded, (USER,))
    assert text(off) == text(own, enable_thinking=False) != text(own, enable_thinking=True)
    assert text(on) == text(off, enable_thinking=True) == text(own, enable_thinking=True)


@pytest.mark.parametrize("name", ["qwen3", "qwen3_6"])
def test_ollama_s_template_thinks_as_the_artifact_does(tokenizer, name):
    from transformers import AutoTokenizer

    loaded = tokenizer(published(name))
    theirs = AutoTokenizer.from_pretrained(loaded.folder)
    for messages in SHAPES:
        for thinking in ("off", "on"):
            wanted = theirs.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True, enable_thinking=thinking == "on"
            )
            assert ollama_template(loaded, thinking).render(messages) == wanted
    assert "</think>" in modelfile(loaded, 9)
    assert "</think>" not in modelfile(loaded, 9, thinking="on")


def test_thoughts_that_ollama_cannot_set_apart_are_refused(tokenizer):
    with pytest.raises(ModelError) as unknown:
        ollama_template(tokenizer(CHATML), "on")
    assert unknown.value.code == "no-thinking"
    with pytest.raises(ArtifactError, match="ends a thought with '</thought>' and not with '</think>'") as other:
        ollama_template(tokenizer(published("qwen3").replace("think>", "thought>")), "on")
    assert other.value.code == "export-unsupported"


def test_today_is_the_same_day_for_ever_on_every_server(tokenizer):
    from transformers import AutoTokenizer

    own = CHATML.replace("'<|im_start|>system\n", "'<|im_start|>system\nToday is ' + strftime_now('%d %b %Y') + '.\n")
    loaded = tokenizer(own)
    theirs = AutoTokenizer.from_pretrained(loaded.folder)

    def text(template):
        return theirs.apply_chat_template([USER], chat_template=template, tokenize=False, add_generation_prompt=True)

    assert "Today is 26 Jul 2024." in text(server_template(loaded)) == loaded.render([USER]) != text(own)
    assert ollama_template(loaded).render((USER,)) == loaded.render([USER])
    assert "always writes that of 2024-07-26" in modelfile(loaded, 9)
    with pytest.raises(ArtifactError, match="computes the form of today's date"):
        server_template(tokenizer(own.replace("'%d %b %Y'", "'%d ' + '%b'")))
