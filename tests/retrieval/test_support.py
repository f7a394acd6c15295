"""Citations that are attached to what a model wrote without any."""

from pathlib import Path

import pytest

from grounded import Index as FakeIndex
from grounded import looking_in, passage, rows_of
from rung.data.rows import NOT_IN_DOCUMENTS
from rung.retrieval.passage import shown_sources
from rung.retrieval.support import attached
from rung.rungs.retrieval import asking
from rung.task import Task

KETTLE = (
    "The kettle holds two litres of water. It may be returned within 14 days. "
    "The guarantee does not cover the lamp. Anna Berg repairs kettles in Graz."
)
GARDEN = "The garden is open from May to September. Dogs may not enter the garden. Children under 12 pay nothing."
SOURCES = [passage("kettle.md", KETTLE, 100), passage("garden.md", GARDEN, page=2)]


def places(text):
    found = attached(text, SOURCES)
    assert all(one.attached for one in found)
    full = {source.document: (source.text, source.start) for source in SOURCES}
    for one in found:
        text, start = full[one.passage.document]
        assert text[one.passage.start - start : one.passage.end - start] == one.passage.text
        assert SOURCES[one.number - 1].document == one.passage.document
    return [one.passage.text for one in found]


@pytest.mark.parametrize(
    ("written", "cited"),
    [
        ("The kettle holds two litres of water.", ["The kettle holds two litres of water."]),
        ("Water: the kettle holds two litres.", ["The kettle holds two litres of water."]),
        ("Within 14 days, it may be returned.", ["It may be returned within 14 days."]),
        ("It may be returned within 30 days.", []),  # another number
        ("The guarantee does cover the lamp.", []),  # the opposite
        ("Dogs may enter the garden.", []),
        ("Yes, Maria Berg repairs kettles in Graz.", []),  # another name
        ("Kettles are made of steel and glass by robots.", []),  # no such thing
        ("14 days", []),  # too short to say where it stands
        (NOT_IN_DOCUMENTS, []),
        ("", []),
        (
            "The garden is open from May to September. I like the sea in summer. The kettle holds two litres of water.",
            ["The garden is open from May to September.", "The kettle holds two litres of water."],
        ),
        (
            "Anna Berg repairs kettles in Graz. In Graz, Anna Berg repairs kettles.",
            ["Anna Berg repairs kettles in Graz."],
        ),
    ],
)
def test_a_sentence_cites_where_its_words_stand(written, cited):
    assert places(written) == cited


def test_two_neighbours_may_support_a_sentence_together():
    written = "The kettle holds two litres of water and may be returned within 14 days."
    assert places(written) == ["The kettle holds two litres of water. It may be returned within 14 days."]


def test_other_scripts():
    source = [passage("a.md", "ボイラーの水は九十度までです。庭は五月から開いています。")]
    assert [one.passage.text for one in attached("庭は五月から開いています。", source)] == [
        "庭は五月から開いています。"
    ]
    assert attached("犬は庭に入れません。", source) == ()


def test_an_answer_without_marks_gets_citations_and_says_that_they_were_attached(monkeypatch):
    (row,) = rows_of(("how much water holds the kettle", "two litres"))

    def answered(text):
        artifact = looking_in(FakeIndex(SOURCES), monkeypatch, answer=lambda prompt: text, k=2, order="best_first")
        return artifact.answer([row])[0]

    plain = answered("The kettle holds two litres of water. It weighs three pounds when it is empty.")
    assert [one.passage.text for one in plain.citations] == ["The kettle holds two litres of water."]
    assert plain.written == plain.text
    assert plain.citations[0].as_dict()["attached"] is True
    assert shown_sources(plain.citations, plain.passages, refused=False)[0] == "Sources, found by their words"
    own = answered("The kettle holds two litres of water [2].")  # what the model names stays as it is
    assert [(one.number, one.attached) for one in own.citations] == [(2, False)]
    assert shown_sources(own.citations, own.passages, refused=False)[0] == "Sources"
    assert answered("Three pounds of steel and glass.").citations == ()


@pytest.mark.slow
def test_what_a_small_model_writes_cites_the_sentences_that_say_it(tmp_path):
    """The model writes no marks; its citations hold the numbers and names that it writes."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/kettle.md").write_text(f"# Kettle\n\n{KETTLE}")
    (tmp_path / "docs/garden.md").write_text(f"# Garden\n\n{GARDEN}")
    (tmp_path / "task.yaml").write_text(
        "name: shop\ninstruction: Answer the question in one sentence.\ninputs: [question]\n"
        "output: {column: answer, kind: text, max_tokens: 40}\ncorpus: {files: docs/}\n"
        "model: builtin:qwen2.5-coder-0.5b\n"
    )
    artifact = asking(Task.load(tmp_path / "task.yaml"))
    asked = {
        "How much water does the kettle hold?": "two litres",
        "Within how many days may the kettle be returned?": "14 days",
        "When is the garden open?": "May to September",
        "Who repairs kettles in Graz?": "Anna Berg",
    }
    answers = artifact.predict([{"question": question} for question in asked])
    texts = {name: (tmp_path / f"docs/{name}").read_text() for name in ("kettle.md", "garden.md")}
    right = 0
    for answer, told in zip(answers, asked.values(), strict=True):
        for one in answer.citations:
            place = one.passage
            assert texts[Path(place.document).name][place.start : place.end] == place.text
        right += told in answer.text and any(told in one.passage.text for one in answer.citations)
    assert right >= 3, [(answer.written, [str(one) for one in answer.citations]) for answer in answers]
    beside = artifact.predict([{"question": "Who won the world cup in 1990?"}])[0]
    assert (beside.refused, beside.citations) == (True, ())
