from types import SimpleNamespace

import pytest

from rung.data.spec import Corpus
from rung.retrieval.build import build
from rung.retrieval.questions import is_askable, is_good, write_questions


class Writer:
    """Asks for the last word of the sentence in words of its own; every third question is a copy of the sentence."""

    def __init__(self):
        self.prompts = []

    def generate(self, requests, *, progress=None):
        for request in requests:
            self.prompts.append(request.prompt[-1]["content"])
            sentence = self.prompts[-1].rpartition("Sentence: ")[2].rstrip(".")
            copy = len(self.prompts) % 3 == 0
            text = f"{sentence}?" if copy else f'"Can somebody say which {sentence.split()[-1]} we mean?"\nIt is'
            yield SimpleNamespace(text=text)


@pytest.fixture
def index(encoder, tmp_path):
    (tmp_path / "docs").mkdir()
    for name in ("boiler", "garden"):
        lines = [f"The {name} of house number {n} is old and it\nhas the serial {name}{n}." for n in range(4)]
        (tmp_path / f"docs/{name}.md").write_text(f"# About the {name}\n\n" + "\n\n".join([*lines, "Too short."]))
    return build(tmp_path / "index", Corpus(files="docs"), tmp_path)


def test_answers_are_sentences_of_the_documents_and_bad_questions_are_left_out(index, tmp_path):
    rows = write_questions(index, Writer(), 4)
    assert [row["synthetic"] for row in rows] == [True] * 4
    assert {row["spans"][0]["document"] for row in rows} == {"docs/boiler.md", "docs/garden.md"}
    for row in rows:
        (span,) = row["spans"]
        text = (tmp_path / span["document"]).read_text()[span["start"] : span["end"]]
        assert row["answer"] == " ".join(text.split())
        assert row["question"] == f"Can somebody say which {text.rstrip('.').split()[-1]} we mean?"
    assert write_questions(index, Writer(), 4) == rows
    assert write_questions(index, Writer(), 4, seed=1) != rows


@pytest.mark.parametrize(
    ("question", "good"),
    [
        ("How hot may water in a boiler get?", True),
        ("How hot may water in a boiler get", False),  # no question
        ("Why is it?", False),  # about nothing
        ("Is it so that the water in the boiler may have ninety degrees at most or not?", False),  # holds a copy
        ("Water boiler ninety degrees?", False),  # the same words
        ("What temperature of the boiler is mentioned in the text?", False),  # about a text that nobody sees
        ("How hot may Maria's boiler get?", False),  # nobody has named her
        ("How hot may the boiler get at 7 bar?", False),
        ("How hot may the boiler get? What about the water?", False),
        ("What is it that the boiler does to it?", False),
    ],
)
def test_a_question_is_no_copy_and_says_what_it_is_about(question, good):
    assert is_good(question, "The water in the boiler may have ninety degrees at most.") is good


@pytest.mark.parametrize(
    ("sentence", "askable"),
    [
        ("The water in the boiler may have ninety degrees at most.", True),
        ("`rung explain CODE` says what happened and how to fix it.", True),
        ("水は九十度までです。ボイラーの安全弁は二・五バールで開きます。", True),
        ("It needs an artifact that has no adapter yet.", False),  # what does?
        ("Without it, all of the labels are taken.", False),
        ("rights: the process protects from endless loops.", False),  # begins in the middle
        ("The embedded model, 20 of its labels, 150 test rows;", False),  # does not end
        ("| name | costs of it | other things |", False),
        ("Too short a one.", False),
    ],
)
def test_a_sentence_to_ask_for_stands_alone(sentence, askable):
    assert is_askable(sentence) is askable


class Wrong:
    """Asks for the tree where the sentence is about the boiler, and the other way round."""

    def generate(self, requests, *, progress=None):
        for request in requests:
            boiler = "boiler" in request.prompt[-1]["content"].rpartition("Sentence: ")[2]
            yield SimpleNamespace(text=f"Where can I find the old {'apple tree' if boiler else 'boiler'}?")


class Right(Wrong):
    """Asks for what the sentence is about."""

    def generate(self, requests, *, progress=None):
        for request in requests:
            boiler = "boiler" in request.prompt[-1]["content"].rpartition("Sentence: ")[2]
            yield SimpleNamespace(text=f"Where can I find the old {'boiler' if boiler else 'apple tree'}?")


def test_a_question_that_another_sentence_answers_better_is_left_out(encoder, tmp_path):
    (tmp_path / "docs").mkdir()
    text = "The old boiler of the house stands in the cellar. The old apple tree of the house stands behind the shed."
    (tmp_path / "docs/house.md").write_text(text)
    index = build(tmp_path / "index", Corpus(files="docs"), tmp_path)
    assert write_questions(index, Wrong(), 2) == []
    assert {row["answer"] for row in write_questions(index, Right(), 2)} == {
        each + "." for each in text[:-1].split(". ")
    }
