"""Where an answer begins, for the chat templates of all makers: the template, run by transformers, is the oracle."""

from __future__ import annotations

import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import rung.artifact.thoughts
from rung.artifact.artifact import Artifact
from rung.artifact.labels import LabelScoring
from rung.engines.base import ScoreRequest
from rung.engines.opening import open_torch
from rung.errors import ConfigError, ModelError
from rung.models.bounded import DAY
from rung.models.messages import encode_messages, with_thinking, with_thought
from rung.models.thinking import AfterThought, answer_beginning, split_thought, thought_beginning
from rung.models.tokenizer import Tokenizer
from rung.prompts.prompt import Prompt
from rung.task import Task
from templates import edited

TEMPLATES = Path(str((trl := find_spec("trl")) and trl.origin)).parent / "chat_templates"
NAMES = sorted(path.stem for path in TEMPLATES.glob("*.jinja") if not path.stem.endswith("_training"))
FOR_IMAGES = ("idefics3", "llava_next", "smolvlm")  # they show lists of parts only
LEVELS = ("off", "on", "low", "medium", "high")
SYSTEM, USER = {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Where is it?"}
ANSWER = {"role": "assistant", "content": "Behind you."}
THOUGHT = "We look around."
# What opens and closes a thought, by the beginning of a template's name.
MARKS = {
    "deepseek": ("<think>\n", "\n</think>\n\n"),
    "diffusion_gemma": ("<|channel>thought\n", "\n<channel|>"),
    "gemma4": ("<|channel>thought\n", "\n<channel|>"),
    "glm4moe": ("<think>", "</think>\n"),
    "gptoss": ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    "lfm2_2_5": ("<think>", "</think>"),
    "muse_glimmer": (" to=self<|message|>", "<|eom|><|start|>assistant to=user<|message|>"),
    "nemotron_3_nano": ("<think>\n", "\n</think>\n"),
    "nemotron_3_super": ("<think>\n", "\n</think>\n"),
    "nemotron_3": ("<think>\n", "</think>"),
    "qwen3_instruct": None,
    "qwen3_vl": None,
    "qwen3": ("<think>\n", "\n</think>\n\n"),
    "gemma4_v2": None,  # it can ask for thoughts, but shows none
}


def tokenizer_with(folder: Path, template: str) -> Tokenizer:
    return Tokenizer.load(edited(folder, template))


@pytest.fixture(params=NAMES)
def made(request, tmp_path) -> Tokenizer:
    """A tokenizer with a maker's template; the folder has the template's name."""
    return tokenizer_with(tmp_path / request.param, (TEMPLATES / f"{request.param}.jinja").read_text())


def written(tokenizer: Tokenizer, turns, variables) -> str:
    """What transformers writes for a whole conversation."""
    from transformers.utils.chat_template_utils import render_jinja_template

    names = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token, "strftime_now": DAY.strftime}
    (text,), _ = render_jinja_template(
        [turns], chat_template=tokenizer.chat_template, add_generation_prompt=False, **names, **dict(variables)
    )
    return text


def test_an_answer_begins_where_the_template_writes_it(made):
    if made.folder.name in FOR_IMAGES:
        with pytest.raises(ModelError, match="the model's chat template") as caught:
            answer_beginning(made)
        assert "expects lists of parts" in caught.value.hint
        return
    for level in LEVELS:
        begin = answer_beginning(made, level)
        for before in ([USER], [USER, ANSWER, USER]):
            prompt = made.render(before, begin=begin)
            assert written(made, [*before, ANSWER], begin.variables).startswith(prompt + ANSWER["content"])


def test_a_thought_begins_and_ends_where_the_template_writes_it(made):
    name = made.folder.name
    marks = next((MARKS[key] for key in sorted(MARKS, key=len, reverse=True) if name.startswith(key)), None)
    if marks is None:
        with pytest.raises(ModelError) as caught:
            thought_beginning(made, "on")
        assert caught.value.code == ("chat-template-refused" if name in FOR_IMAGES else "no-thinking")
        return
    opened = thought_beginning(made, "on")
    prompt = made.render([USER], begin=opened)
    assert (prompt.endswith(marks[0]), opened.end) == (True, marks[1])
    assert opened.stop in marks[1]
    for key in ("reasoning_content", "thinking"):
        whole = written(made, [USER, {**ANSWER, key: THOUGHT}], opened.variables)
        if THOUGHT in whole:
            assert whole.startswith(prompt + THOUGHT + opened.end + ANSWER["content"])


def test_levels_reach_the_templates_that_know_them(tmp_path):
    def differ(name, *levels):
        tokenizer = tokenizer_with(tmp_path / name, (TEMPLATES / f"{name}.jinja").read_text())
        return len({tokenizer.render([USER], begin=thought_beginning(tokenizer, level)) for level in levels})

    assert differ("gptoss", "low", "medium", "high") == 3
    assert differ("qwen3_8", "low", "medium", "high") == 3
    assert differ("nemotron_3_super", "low", "on") == 2
    assert differ("qwen3_6", "low", "on", "high") == 1  # thoughts have other limits


def test_a_switch_with_any_name_is_found(tmp_path):
    template = (
        "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}<r></r>{% endif %}{{ m.content }}"
        "{% endfor %}{% if add_generation_prompt %}[assistant]{% if no_reasoning %}<r></r>{% else %}<r>{% endif %}"
        "{% endif %}"
    )
    begin = answer_beginning(tokenizer_with(tmp_path / "own", template))
    assert (begin.variables, begin.drop, begin.add) == ((("no_reasoning", True),), "", "")


def test_two_system_texts_make_one_turn(made):
    """The task's instruction and the row's own system turn, also for templates that refuse system turns."""
    if made.folder.name in FOR_IMAGES:
        return
    prompt = Prompt("Answer shortly.", "", chat_column="messages")
    text = made.decode(encode_messages(made, prompt.messages({"messages": [SYSTEM, USER]})), skip_special=False)
    assert text.count("Answer shortly.") == text.count("Be kind.") == text.count(USER["content"]) == 1


def test_thoughts_in_tags_are_taken_off():
    assert split_thought("<think>\na\n</think>\n\nb </think>") == ("a", "b </think>")
    assert split_thought("a</think>b") == ("a", "b")  # the prompt ended with the opening tag
    assert split_thought("no thought") == ("", "no thought")
    assert split_thought(" <think>cut") == ("cut", "")  # an answer that never began


WRITTEN = (
    "<think>\na < b\n</think>\n\nb <i>", "<think>a</think>", "<think>a", "<thi", "<thin line", " no <think>", "",
)  # fmt: skip


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("text", WRITTEN)
def test_a_thought_is_taken_off_a_text_that_comes_in_pieces(text, size):
    shown = AfterThought()
    pieces = [shown.more(text[start : start + size]) for start in range(0, len(text), size)]
    assert "".join([*pieces, shown.end()]) == split_thought(text)[1]


# ---- a model that thinks


@pytest.fixture
def thinker(tiny_folder, tmp_path, monkeypatch) -> Path:
    """A small random model with the template of GLM 4.5, which thinks for at most six tokens."""
    monkeypatch.setattr(rung.artifact.thoughts, "THOUGHT_TOKENS", dict.fromkeys(LEVELS, 6))
    folder = tmp_path / "thinker"
    shutil.copytree(tiny_folder, folder)
    shutil.copyfile(TEMPLATES / "glm4moe.jinja", folder / "chat_template.jinja")
    return folder


def test_labels_are_scored_after_the_thought_and_never_inside(thinker, task, data, tmp_path):
    task = task.model_copy(update={"model": str(thinker), "thinking": "low"})
    thinking = Artifact.zero_shot(task, data.labels, engine="torch")
    assert isinstance(thinking.decoder, LabelScoring)
    engine, rows = open_torch(str(thinker)), [dict(row.inputs) for row in data.test[:2]]
    for row, answer in zip(rows, thinking.predict(rows), strict=True):
        assert answer.reasoning
        asked = engine.text(thinking.messages(row))
        assert asked.endswith("<think></think>\n")
        text = asked.removesuffix("</think>\n") + answer.reasoning + "</think>\n"
        scored = engine.score([ScoreRequest(engine.tokenizer.encode(text), thinking.decoder.continuations(engine))])[0]
        assert answer.text == thinking.decoder.labels[int(np.argmax(scored.logprobs))]
        plain = replace(thinking, prompt=replace(thinking.prompt, thinking="off")).predict([row])[0]
        assert (plain.reasoning, answer.completion_tokens) == ("", plain.completion_tokens + 6)
        read = [with_thought(thinking.messages(row), thought) for thought in (None, answer.reasoning)]
        assert answer.prompt_tokens == sum(map(engine.count, read))
    again = Artifact.load(thinking.save(tmp_path / "saved"))
    assert again.prompt.thinking == "low"
    assert again.fingerprint() != replace(again, prompt=replace(again.prompt, thinking="off")).fingerprint()
    assert again.predict(rows)[0].text == thinking.predict(rows)[0].text


def test_an_open_thought_is_rendered_only_on_request(thinker):
    tokenizer = Tokenizer.load(thinker)
    asked = with_thinking((USER,), "on")

    def end(messages):
        return tokenizer.decode(encode_messages(tokenizer, messages), skip_special=False).partition(USER["content"])[2]

    turn = "<|assistant|>\n<think>"
    assert end((USER,)) == f"/nothink{turn}</think>\n"
    assert end(asked) == f"{turn}</think>\n"
    assert end(with_thought(asked, None)) == turn
    assert end(with_thought(asked, "Look </think>")) == f"{turn}Look </think></think>\n"


def test_a_model_without_thoughts_refuses_them(small_task_file):
    task = Task.load(small_task_file, {"thinking": "on"})
    with pytest.raises(ModelError) as caught:
        Artifact.zero_shot(task, ("a", "b"))
    assert caught.value.code == "no-thinking"
    with pytest.raises(ConfigError, match="thinking"):
        Task.load(small_task_file, {"thinking": "maybe"})
