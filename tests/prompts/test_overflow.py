"""Prompts longer than the model reads: refused, or shortened by an explicit and counted policy."""

import json
from dataclasses import replace

import pytest
from tests.rendered import messages_of

from grounded import passage
from rung.artifact.artifact import Artifact
from rung.engines import opening
from rung.errors import ArtifactError, ConfigError, EngineError
from rung.evaluation.scoring import evaluate
from rung.prompts.overflow import fitted
from rung.prompts.prompt import Grounding, Prompt
from rung.rungs import FewShot
from rung.task import Task
from rung.training.examples import tokenize


def words(messages):
    return sum(len(message["content"].split()) for message in messages)


TURNS = [({"x": "one two three"}, "a"), ({"x": "four five"}, "b"), ({"x": "six"}, "c")]  # 4 + 3 + 2 words


@pytest.mark.parametrize(
    ("limit", "kept", "dropped"), [(11, "abc", 0), (10, "bc", 1), (7, "bc", 1), (6, "c", 2), (3, "", 3), (0, "", 3)]
)
def test_the_first_shown_give_way_first_and_no_more_than_needed(limit, kept, dropped):
    prompt = Prompt(instruction="", template="{x}")
    made = fitted("drop_demonstrations", prompt, {"x": "the question"}, TURNS, words, limit)
    assert made.dropped_demonstrations == dropped
    assert [m["content"] for m in made.messages if m["role"] == "assistant"] == list(kept)
    assert made.messages == prompt.messages({"x": "the question"}, TURNS[dropped:])
    assert fitted("error", prompt, {"x": "the question"}, TURNS, words, limit).dropped_demonstrations == 0


@pytest.mark.parametrize(
    ("limit", "text", "cut"),
    [(6, "one two three four five six", 0), (5, "one two three four five", 4), (1, "one", 24), (0, "", 27)],
)
def test_the_longest_input_is_cut_at_a_word_after_all_demonstrations(limit, text, cut):
    prompt = Prompt(instruction="", template="{x}")
    made = fitted("truncate_input", prompt, {"x": "one two three four five six"}, TURNS, words, limit)
    assert (made.truncated_characters, made.messages[-1]["content"]) == (cut, text)
    assert made.dropped_demonstrations == len(TURNS) - len([m for m in made.messages if m["role"] == "assistant"])
    assert made.messages == prompt.messages({"x": text}, ())


def test_a_text_without_spaces_is_cut_at_a_character_and_passages_go_first():
    prompt = Prompt(instruction="", template="{x}")

    def characters(messages):
        return sum(len(message["content"]) for message in messages)

    made = fitted("truncate_input", prompt, {"x": "今天天气很好"}, (), characters, 4, grounding())
    assert (made.messages[-1]["content"], made.truncated_characters) == ("今天天气", 2)
    assert made.dropped_passages == 3
    assert made.passages == ()


def grounding(shown=()):
    texts = ("one two three four", "five six", "seven")
    passages = tuple(passage(f"{i}", text, start=10) for i, text in enumerate(texts))
    return Grounding("", passages, (-2.0, -1.0, 0.0), shown)  # the last is the most relevant


# Each passage costs its words and five of tags and title: 9, 7 and 6; the question 2.
@pytest.mark.parametrize(
    ("limit", "kept", "dropped", "cut"),
    [(24, "012", 0, 0), (23, "12", 1, 0), (15, "12", 1, 0), (14, "2", 2, 0), (8, "2", 2, 0), (7, "2", 2, 1)],
)
def test_the_least_relevant_passages_give_way_then_the_last_is_cut(limit, kept, dropped, cut):
    prompt = Prompt(instruction="", template="{x}")
    made = fitted("shorten_passages", prompt, {"x": "the question"}, (), words, limit, grounding())
    assert [p.document for p in made.passages] == list(kept)
    assert (made.dropped_passages, made.shortened_passages, made.dropped_demonstrations) == (dropped, cut, 0)
    assert made.messages == prompt.messages({"x": "the question"}, (), Grounding("", made.passages))


@pytest.mark.parametrize(("limit", "text"), [(10, "one two three"), (9, "one two"), (8, "one"), (1, "one")])
def test_a_passage_is_cut_at_a_word_and_its_span_with_it(limit, text):
    only = Grounding("", (passage("0", "one two three four", start=10),), (0.0,))
    prompt = Prompt(instruction="", template="{x}")
    (cut,) = fitted("shorten_passages", prompt, {"x": "the question"}, (), words, limit, only).passages
    assert (cut.text, cut.start, cut.end) == (text, 10, 10 + len(text))


def test_passages_of_demonstrations_give_way_before_the_rows_own():
    of_shown = ((passage("d", "eight nine"),), (passage("e", "ten"),), ())
    prompt = Prompt(instruction="", template="{x}")
    whole = words(prompt.messages({"x": "q"}, TURNS, grounding(of_shown)))
    for less, expected in ((0, 0), (1, 1), (7, 1), (8, 2)):
        made = fitted("shorten_passages", prompt, {"x": "q"}, TURNS, words, whole - less, grounding(of_shown))
        assert made.dropped_passages == expected
        assert len(made.passages) == 3


def test_demonstrations_take_their_passages_with_them():
    of_shown = tuple((passage(name, name),) for name in "def")
    prompt = Prompt(instruction="", template="{x}")
    made = fitted("drop_demonstrations", prompt, {"x": "q"}, TURNS, words, 39, grounding(of_shown))
    assert made.dropped_demonstrations == 2
    assert made.messages == prompt.messages({"x": "q"}, TURNS[2:], grounding(of_shown[2:]))


@pytest.fixture
def zero(zero):
    """A copy that opens its engine anew: after other files, the shared one may hold a model that was since reloaded."""
    return replace(zero)


@pytest.fixture
def narrow(zero, data, monkeypatch):
    """A few-shot artifact on the embedded model, which is made to read no more than half of a long prompt."""
    few = FewShot("fixed", k=4).fit(zero, data)
    cached = few.open()
    longest = max(cached.count(messages) for messages in messages_of(few, data.test[:4]))
    room = few.decoder.room(cached)

    def read(tokens):
        torch = opening.open_torch("embedded")
        small = replace(torch.files, context=tokens)
        monkeypatch.setattr(opening, "resolve", lambda *_, **__: small)
        monkeypatch.setattr(torch, "files", small)

    return few, room, longest, read


def test_rows_that_do_not_fit_lose_demonstrations_and_are_counted(narrow, data):
    few, room, longest, read = narrow
    read(longest + room - 1)  # one token too few for the longest row
    rows = data.test[:4]
    with pytest.raises(EngineError) as caught:
        few.answer(rows)
    assert caught.value.code == "context-overflow"
    dropping = replace(few, overflow="drop_demonstrations")
    made = dropping.render(rows)
    assert 1 <= sum(one.dropped_demonstrations for one in made) < 4 * 4
    for one, whole in zip(made, messages_of(few, rows), strict=True):
        assert dropping.open().count(one.messages) + room <= longest + room - 1
        if not one.dropped_demonstrations:
            assert one.messages == whole
    predictions = evaluate(dropping, rows, "test")
    assert [p.dropped_demonstrations for p in predictions] == [one.dropped_demonstrations for one in made]
    assert [m["content"] for m in dropping.messages(rows[0].inputs)] == [m["content"] for m in made[0].messages]


def test_a_row_that_never_fits_is_still_an_error(narrow, data):
    few, _, _, read = narrow
    read(12)
    with pytest.raises(EngineError) as caught:
        replace(few, overflow="drop_demonstrations").answer(data.test[:1])
    assert caught.value.code == "context-overflow"


def test_without_a_known_context_the_policy_cannot_be_kept(narrow, data):
    few, _, _, read = narrow
    read(0)
    with pytest.raises(EngineError) as caught:
        replace(few, overflow="drop_demonstrations").render(data.test[:1])
    assert caught.value.code == "context-unknown"


def test_the_policy_is_the_tasks_and_frozen_in_the_artifact(small_task_file, data, tmp_path):
    task = Task.load(small_task_file, {"overflow": "drop_demonstrations"})
    folder = Artifact.zero_shot(task, data.labels).save(tmp_path / "a")
    assert Artifact.load(folder).overflow == "drop_demonstrations"
    with pytest.raises(ConfigError) as caught:
        Task.load(small_task_file, {"overflow": "shorten_passages"})
    assert caught.value.code == "bad-value"


def test_an_unknown_policy_in_an_artifact_is_refused(zero, tmp_path):
    import hashlib

    folder = zero.save(tmp_path / "a")
    file = folder / "artifact.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "overflow": "cut"}))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"]["artifact.json"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="'cut'"):
        Artifact.load(folder)


def test_a_cut_input_is_the_same_everywhere_and_said(narrow, zero, data):
    _, _, _, read = narrow
    read(160)
    long = replace(data.test[0], inputs={"text": "word " * 300})
    with pytest.raises(EngineError, match="1 more row") as caught:
        zero.answer([data.test[1], long, long], full=False)
    assert caught.value.message.startswith(long.source)
    assert "truncate_input" in caught.value.hint
    cut = replace(zero, overflow="truncate_input")
    (row,) = evaluate(cut, [long], "test")
    assert row.note == "the input was cut to fit the context"
    (answer,) = cut.predict([dict(long.inputs)])
    assert answer.truncated_characters > 0
    assert cut.text(answer.messages) == row.prompt == cut.text(cut.messages(dict(long.inputs)))
    engine = opening.open_torch("embedded")
    (example,) = tokenize(cut, engine, [long])
    assert example.tokens[: engine.count(answer.messages)] == engine.tokens(answer.messages)
    assert len(example) <= 160
