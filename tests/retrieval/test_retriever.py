"""What is shown before a question: how much of it, in which order, never the row itself."""

from dataclasses import replace

import pytest

from grounded import Index as FakeIndex
from grounded import Reader, looking_in, passage, rows_of
from rung.artifact.decoder import cites, completion
from rung.artifact.labels import LabelScoring
from rung.artifact.rendering import passage_cost
from rung.data.rows import NOT_IN_DOCUMENTS, Span
from rung.prompts.demonstrations import Demonstrations
from rung.retrieval.retriever import Retrieved, is_itself

A, B, C = (passage(f"{n}.md", t) for n, t in (("a", "the red fox ran"), ("b", "a red hen"), ("c", "no match")))
ROW = rows_of(("where did the red fox go", "home"))[0]


def shown(rendered):
    return [p.document for p in rendered.passages]


@pytest.mark.parametrize(("order", "expected"), [("best_first", ["a.md", "b.md"]), ("best_last", ["b.md", "a.md"])])
def test_the_k_best_are_shown_in_the_order_set(order, expected, monkeypatch):
    artifact = looking_in(FakeIndex([C, B, A]), monkeypatch, k=2, order=order)
    (one,) = artifact.render([ROW])
    assert shown(one) == expected
    text = one.messages[-1]["content"]
    assert (text.index("fox ran") < text.index("red hen")) == (order == "best_first")


@pytest.mark.parametrize(("budget", "expected"), [(1, "a"), (18, "a"), (19, "ab"), (26, "ab"), (27, "abc")])
def test_the_least_relevant_give_way_to_the_budget_and_the_best_never_does(budget, expected, monkeypatch):
    artifact = looking_in(FakeIndex([A, B, C]), monkeypatch, order="best_first", token_budget=budget)
    cost = passage_cost(artifact)
    assert [cost(p) for p in (A, B, C)] == [10, 9, 8]  # words: the role, four of tags, the title, the text
    (one,) = artifact.render([ROW])
    assert shown(one) == [f"{name}.md" for name in expected]


def test_only_the_input_is_looked_for(monkeypatch):
    index = FakeIndex([A])
    looking_in(index, monkeypatch).answer(rows_of(("where", "SECRET")))
    assert index.asked == ["where"]


def test_a_row_never_finds_itself_where_the_corpus_holds_the_rows(monkeypatch):
    rows = rows_of(("red fox", "home"), ("red fox", "den"), ("blue", "sea"))
    table = [passage(f"data/rows.csv:{i + 2}", f"question: {r.inputs['question']}\nanswer: {r.outputs[0]}")
             for i, r in enumerate(rows)]  # fmt: skip
    artifact = looking_in(FakeIndex([*table, passage("faq.csv:2", "red fox: den")]), monkeypatch, k=5)
    found = artifact.render(rows)
    assert shown(found[0]) == ["data/rows.csv:4", "faq.csv:2"]  # nor the row that repeats its question
    assert "data/rows.csv:4" not in shown(found[2])
    assert not is_itself(passage("rows.csv:9", "other"), rows[0])
    (served,) = artifact.predict([{"question": "red fox"}])  # a user's question is no row
    assert {p.document for p in served.passages} >= {"data/rows.csv:2", "data/rows.csv:3"}


def test_demonstrations_come_with_passages_of_their_own_and_cite_them(monkeypatch):
    pool = tuple(rows_of(("no match here", "no match"), ("a hen", "red hen")))
    artifact = looking_in(FakeIndex([A, B, C]), monkeypatch, k=1)
    artifact = artifact.step("few", {}, demonstrations=Demonstrations("fixed", 2, pool)).with_engine(artifact.open())
    (one,) = artifact.render([ROW])
    turns = {m["content"].rsplit("\n\n")[-1]: m["content"] for m in one.messages if m["role"] == "user"}
    assert "no match" in turns["no match here"]
    assert "red hen" in turns["a hen"]
    assert sorted(m["content"] for m in one.messages if m["role"] == "assistant") == ["no match [1]", "red hen [1]"]
    assert shown(one) == ["a.md"]


def test_answers_are_scored_without_marks_and_keep_what_was_written(monkeypatch):
    artifact = looking_in(FakeIndex([A, B]), monkeypatch, answer=lambda text: " home [2] ", k=2, order="best_first")
    (answer,) = artifact.answer([ROW])
    assert (answer.text, answer.written) == ("home", "home [2]")
    assert [c.passage.document for c in answer.citations] == ["b.md"]
    assert [p.document for p in answer.passages] == ["a.md", "b.md"]


def test_labels_are_never_cited_or_told_to(monkeypatch):
    artifact = looking_in(FakeIndex([A]), monkeypatch)
    labels = artifact.step("x", {}, decoder=LabelScoring(("a [1]", "b"), ("a [1]", "b"))).with_engine(artifact.open())
    assert not cites(labels)
    assert completion(labels, ROW, "a [1]", [A]) == "a [1]"


def test_a_question_that_nothing_answers_is_refused_without_asking_the_model(monkeypatch):
    index = FakeIndex([passage("fox.md", "The red fox lives in a den in the forest.", title="Foxes")])
    artifact = looking_in(index, monkeypatch, threshold=0.3)
    rows = rows_of(("Where does the red fox live?", "den"), ("What is the capital of France?", NOT_IN_DOCUMENTS))
    answers = artifact.answer(rows)
    assert [a.refused for a in answers] == [False, True]
    assert [a.text for a in answers] == ["yes", NOT_IN_DOCUMENTS]
    assert len(artifact.open().seen) == 1
    assert answers[1].prompt_tokens == 0


def test_relevance_is_that_of_the_nearest_passage_that_is_not_the_row(monkeypatch):
    rows = rows_of(("red fox", "x"), ("blue sea", "y"))
    index = FakeIndex([A, B, passage("rows.csv:3", "blue sea y")])
    retriever = looking_in(index, monkeypatch).retriever
    queries = [row.inputs["question"] for row in rows]
    assert retriever.relevance(rows, queries) == [1.0, 0.0]
    assert retriever.relevance(rows, queries, lambda p, row: False) == [1.0, 1.0]
    assert retriever.relevance(rows, queries, lambda p, row: True) == [-1.0, -1.0]
    assert retriever.refuses(Retrieved((), -1.0)) is False  # without a threshold nothing is refused


def test_what_is_learnt_is_what_is_asked(monkeypatch):
    """Rows to train on get passages, never themselves, and learn to cite what holds their answer."""
    span = (Span("b.md", 2, 9),)
    (row,) = rows_of(("red hen", "hen"), spans=span)
    artifact = looking_in(FakeIndex([A, B]), monkeypatch, k=2, order="best_last")
    (one,) = artifact.render([row])
    assert completion(artifact, row, "hen", one.passages) == "hen [2]"
    assert one.messages == artifact.rendered({"question": "red hen"}).messages


def test_an_updated_document_changes_the_next_answer(monkeypatch):
    index = FakeIndex([passage("price.md", "It costs 5 EUR.")])
    artifact = looking_in(index, monkeypatch, answer=lambda text: next(w for w in text.split() if w.isdigit()))
    row = {"question": "What does it cost?"}
    assert artifact.predict([row])[0].text == "5"
    index.passages = [passage("price.md", "It costs 7 EUR.")]
    assert artifact.predict([row])[0].text == "7"


def test_artifacts_without_documents_are_as_they_were(monkeypatch):
    artifact = replace(looking_in(FakeIndex([A]), monkeypatch), retriever=None).with_engine(
        Reader(lambda text: "see [1]")
    )
    (answer,) = artifact.predict([{"question": "?"}])
    assert (answer.text, answer.citations, answer.passages) == ("see [1]", (), ())
