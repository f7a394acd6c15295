from types import SimpleNamespace

import pytest

from rung.data.spec import Corpus
from rung.retrieval.build import build
from rung.retrieval.questions import is_askable, is_good, phrases, write_questions


class Writer:
    """Asks for things in words of its own, every third time by a copy of the sentence, and reads `answer`."""

    def __init__(self, answer="Anna Berg"):
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
            question = f'"Can somebody say to whom {sentence.split()[-1]} belongs in the house?"\nIt is'
            yield SimpleNamespace(text=f"{sentence}?" if copy else question)


@pytest.fixture
def index(encoder, tmp_path):
    (tmp_path / "docs").mkdir()
    for name in ("boiler", "garden"):
        lines = [
            f"The {name} of Anna Berg is old and stands\nin the house with the serial {name}{n}." for n in range(4)
        ]
        (tmp_path / f"docs/{name}.md").write_text(f"# About the {name}\n\n" + "\n\n".join([*lines, "Too short."]))
    return build(tmp_path / "index", Corpus(files="docs"), tmp_path)


def test_answers_are_sentences_of_the_documents_and_bad_questions_are_left_out(index, tmp_path):
    writer = Writer()
    rows = write_questions(index, writer, 4)
    assert {asked.rpartition("Answer: ")[2] for asked in writer.asked} == {"Anna Berg"}
    assert [row["synthetic"] for row in rows] == [True] * 4
    assert {row["spans"][0]["document"] for row in rows} == {"docs/boiler.md", "docs/garden.md"}
    for row in rows:
        (span,) = row["spans"]
        text = (tmp_path / span["document"]).read_text()[span["start"] : span["end"]]
        assert row["answer"] == " ".join(text.split())
        assert row["question"] == f"Can somebody say to whom {text.rstrip('.').split()[-1]} belongs in the house?"
    assert write_questions(index, Writer(), 4) == rows
    assert write_questions(index, Writer(), 4, seed=1) != rows


@pytest.mark.parametrize("answer", ["in Rome", "", "old", "An"])  # elsewhere, nothing, what was not asked for
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
        ("The deadliest day of the — for the people of the city.", False),
        ("The museum is old.\\n\\n5. The garden is open from May.", False),
        ("rights: the process protects from endless loops.", False),  # begins in the middle
        ("The embedded model, 20 of its labels, 150 test rows;", False),  # does not end
        ("| name | costs of it | other things |", False),
        ("Too short a one.", False),
    ],
)
def test_a_sentence_to_ask_for_stands_alone(sentence, askable):
    assert is_askable(sentence) is askable


@pytest.mark.parametrize(("answer", "kept"), [("its key", 1), ("`rung advise`", 0), ("a tree", 0), ("no branch", 1)])
def test_a_question_may_ask_what_code_means(encoder, tmp_path, answer, kept):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/a.md").write_text("An unknown answer takes no branch, and `rung advise` prints its key.")
    index = build(tmp_path / "index", Corpus(files="docs"), tmp_path)
    texts = {True: answer, False: "What does `rung advise` print?"}
    reads = lambda request: request.prompt[-1]["content"].startswith("Text: ")  # noqa: E731
    writer = SimpleNamespace(
        generate=lambda asked, progress: [SimpleNamespace(text=texts[reads(one)]) for one in asked]
    )
    assert len(write_questions(index, writer, 1)) == kept


class Wrong:
    """Asks for the tree where the sentence is about the boiler, and the other way round."""

    def generate(self, requests, *, progress=None):
        for request in requests:
            prompt = request.prompt[-1]["content"]
            boiler = "boiler" in prompt.rpartition("Question: " if "Text: " in prompt else "Sentence: ")[2]
            if "Text: " in prompt:
                yield SimpleNamespace(text="Graz" if boiler else "Lyon")
            else:
                yield SimpleNamespace(text=f"Where can I find the old {self.thing(boiler)} of the house?")

    def thing(self, boiler):
        return "apple tree" if boiler else "boiler"


class Right(Wrong):
    """Asks for what the sentence is about."""

    def thing(self, boiler):
        return "boiler" if boiler else "apple tree"


def test_a_question_that_another_sentence_answers_better_is_left_out(encoder, tmp_path):
    (tmp_path / "docs").mkdir()
    text = "# House\n\nThe old boiler of the house stands in Graz. The old apple tree of the house stands in Lyon."
    (tmp_path / "docs/house.md").write_text(text)
    index = build(tmp_path / "index", Corpus(files="docs"), tmp_path)
    assert write_questions(index, Wrong(), 2) == []
    assert {row["answer"] for row in write_questions(index, Right(), 2)} == {
        each + "." for each in text[9:-1].split(". ")
    }
