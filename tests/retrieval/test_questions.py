from types import SimpleNamespace

import pytest

from rung.data.spec import Corpus
from rung.retrieval.build import build
from rung.retrieval.questions import is_askable, is_good, phrases, write_questions


class Writer:
    """Asks for Anna's things in words of its own, every third time by a copy of the sentence, and reads `answer`."""

    def __init__(self, answer="old"):
        self.answer, self.asked = answer, []

    def generate(self, requests, *, progress=None):
        for request in requests:
            prompt = request.prompt[-1]["content"]
            if prompt.startswith("Text: "):
                yield SimpleNamespace(text=f"{self.answer}.\n")
                continue
            self.asked.append(prompt)
            sentence = prompt.partition("Sentence: ")[2].partition("\n")[0].rstrip(".")
            copy = len(self.asked) % 3 == 0
            question = f'"Can somebody say how the {sentence.split()[-1]} of Anna Berg looks?"\nIt is'
            yield SimpleNamespace(text=f"{sentence}?" if copy else question)


@pytest.fixture
def index(encoder, tmp_path):
    (tmp_path / "docs").mkdir()
    for name in ("boiler", "garden"):
        lines = [f"The {name} of Anna Berg in house {n}0 is old and\nhas the serial {name}{n}." for n in range(4)]
        (tmp_path / f"docs/{name}.md").write_text(f"# About the {name}\n\n" + "\n\n".join([*lines, "Too short."]))
    return build(tmp_path / "index", Corpus(files="docs"), tmp_path)


def test_answers_are_sentences_of_the_documents_and_bad_questions_are_left_out(index, tmp_path):
    writer = Writer()
    rows = write_questions(index, writer, 4)
    assert {asked.rpartition("Answer: ")[2] for asked in writer.asked} <= {"Anna Berg", "00", "10", "20", "30"}
    assert [row["synthetic"] for row in rows] == [True] * 4
    assert {row["spans"][0]["document"] for row in rows} == {"docs/boiler.md", "docs/garden.md"}
    for row in rows:
        (span,) = row["spans"]
        text = (tmp_path / span["document"]).read_text()[span["start"] : span["end"]]
        assert row["answer"] == " ".join(text.split())
        assert row["question"] == f"Can somebody say how the {text.rstrip('.').split()[-1]} of Anna Berg looks?"
    assert write_questions(index, Writer(), 4) == rows
    assert write_questions(index, Writer(), 4, seed=1) != rows


@pytest.mark.parametrize("answer", ["in Rome", "", "Anna Berg"])  # elsewhere, nothing, and what the question says
def test_a_question_whose_answer_the_model_cannot_read_is_left_out(index, answer):
    assert write_questions(index, Writer(answer), 4) == []


@pytest.mark.parametrize(
    ("question", "good"),
    [
        ("How hot may water in the boiler of Graz get?", True),
        ("How hot may water in the boiler of Graz get", False),  # no question
        ("Why is Graz?", False),  # about nothing
        ("Is it so that in Graz the water in the boiler may have ninety degrees at most or not?", False),
        ("In Graz, may the water in the boiler have ninety degrees at most?", False),  # a copy
        ("What temperature of the boiler in Graz is mentioned in the text?", False),  # about a text that nobody sees
        ("How hot may Maria's boiler in Graz get?", False),  # nobody has named her
        ("How hot may the boiler of Graz get at 7 bar?", False),
        ("How hot may the boiler of Graz get? What about the water?", False),
        ("What is the thing that the boiler of Graz does to them?", False),
        ("How hot may such a boiler in Graz get?", False),
        ("How hot may the boiler get?", False),  # which boiler?
    ],
)
def test_a_question_is_no_copy_and_says_what_it_is_about(question, good):
    assert is_good(question, "In Graz, the water in the boiler may have ninety degrees at most.") is good


def test_a_question_may_name_what_the_headings_name_and_keeps_the_language():
    answer = "The water may have ninety degrees at most."
    assert is_good("How hot may water in the boiler get?", answer, "House > Boiler")
    assert not is_good("How hot may water in the boiler get?", answer, "House > Garden")
    german = "In Graz darf das Wasser im Kessel höchstens neunzig Grad haben."
    assert is_good("Wie heiß darf Wasser in Graz werden?", german)
    assert not is_good("How hot is the water of Graz?", german)
    assert is_good("ボイラーの水は何度までですか？", "水は九十度までです。")


@pytest.mark.parametrize(
    ("sentence", "asked"),
    [
        (
            "Nobody who earns less than $400,000 a year, in 1907, pays 75% or 2.5 bar.",
            ["$400,000", "1907", "75%", "2.5"],
        ),
        ("The United States and New York lead Gaza.", ["United States", "New York", "Gaza"]),
        ('Use `rung init` to write "task.yaml".', ["`rung init`", '"task.yaml"']),
        ("Graz pays for Graz, and Anna's house pays for Part2.", ["Part2"]),
        ("ANNA BERG: Well, the garden is open.", []),
        ("The garden is open.", []),
        ("庭は五月から開いています。", ["庭は五月から開いています。"]),
        ("庭は5月から開いています。", ["庭は5月から開いています。"]),
    ],
)
def test_numbers_names_code_and_quotes_are_asked_for(sentence, asked):
    assert phrases(sentence) == asked


@pytest.mark.parametrize(
    ("sentence", "askable"),
    [
        ("The water in the boiler may have ninety degrees at most.", True),
        ("`rung explain CODE` says what happened and how to fix it.", True),
        ("水は九十度までです。ボイラーの安全弁は二・五バールで開きます。", True),
        ("It needs an artifact that has no adapter yet.", False),  # what does?
        ("Without it, all of the labels are taken.", False),
        ("My plan for the city is to build twenty schools.", False),  # whose?
        ("The deadliest day of the — for the — people of the city.", False),
        ("The museum is old.\\n\\n5. The garden is open from May.", False),
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
            prompt = request.prompt[-1]["content"]
            boiler = "boiler" in prompt.rpartition("Question: " if "Text: " in prompt else "Sentence: ")[2]
            if "Text: " in prompt:
                yield SimpleNamespace(text="in the cellar" if boiler else "behind the shed")
            else:
                yield SimpleNamespace(text=f"Where can I find the old {self.thing(boiler)} of Anna Berg?")

    def thing(self, boiler):
        return "apple tree" if boiler else "boiler"


class Right(Wrong):
    """Asks for what the sentence is about."""

    def thing(self, boiler):
        return "boiler" if boiler else "apple tree"


def test_a_question_that_another_sentence_answers_better_is_left_out(encoder, tmp_path):
    (tmp_path / "docs").mkdir()
    text = "The old boiler of Anna Berg stands in the cellar. The old apple tree of Anna Berg stands behind the shed."
    (tmp_path / "docs/house.md").write_text(text)
    index = build(tmp_path / "index", Corpus(files="docs"), tmp_path)
    assert write_questions(index, Wrong(), 2) == []
    assert {row["answer"] for row in write_questions(index, Right(), 2)} == {
        each + "." for each in text[:-1].split(". ")
    }
