"""What was found, cited and supported: against values worked out by hand."""

import pytest

from grounded import passage, rows_of
from rung.artifact.decoder import Answer
from rung.data.rows import Span
from rung.evaluation.rag_metrics import citation_precision, citation_recall, failure, lexical_support, measure, summary
from rung.retrieval.passage import Citation, holds_answer

A, B, C = passage("a", "x" * 10), passage("a", "y" * 10, start=10), passage("b", "z" * 10)
SPANS = (Span("a", 8, 12), Span("b", 20, 26))


def test_citations_are_held_against_the_gold_spans():
    cite = [Citation(1, A), Citation(3, C)]
    assert citation_precision(cite, SPANS) == 1 / 2
    assert citation_recall(cite, SPANS) == 1 / 2
    assert citation_precision([], SPANS) == citation_recall([], SPANS) == 0


def test_support_is_the_share_of_words_that_the_passages_hold():
    assert lexical_support("The fox ran home.", ["A fox ran away"]) == 2 / 3  # articles are no words
    assert lexical_support("", []) == 1.0


def test_a_wrong_answer_fails_at_retrieval_or_at_reading():
    (row,) = rows_of(("?", "x"), spans=(Span("a", 0, 10),))
    assert failure(0.2, row, [C]) == "retrieval"
    assert failure(0.2, row, [A]) == "reading"
    assert failure(0.9, row, [C]) == ""
    assert failure(0.0, rows_of(("?", "x"))[0], [C]) == ""  # nothing is known without gold spans


def test_an_answer_without_spans_is_held_against_its_words():
    (row,) = rows_of(("?", "The   Red fox"))
    assert holds_answer(passage("a", "see: the red\nfox!"), row)
    assert not holds_answer(passage("a", "a red fox"), row)
    assert not holds_answer(passage("a", "no"), rows_of(("?", "no"))[0])


def test_the_summary_takes_means_over_the_rows_that_have_a_value():
    (row,), (bare,) = rows_of(("?", "x"), spans=SPANS), rows_of(("?", "x"))
    told = Answer("xxxxxxxxxx", None, None, 1, 1, 0.0, written="xxxxxxxxxx [1]", citations=(Citation(1, A),),
                  passages=(A, C), dropped_passages=2)  # fmt: skip
    refused = Answer("no", None, None, 0, 0, 0.0, passages=(C,), refused=True)
    rows = [measure(told, row, 0.0, 0.25), measure(told, bare, 1.0), measure(refused, row, 0.0)]
    assert rows[0]["cited"] == [1]
    assert rows[0]["passages"][1] == {"document": "b", "page": None, "start": 0, "end": 10}
    assert summary(rows) == pytest.approx({
        "rows": 3, "span_recall": 0.1, "citation_precision": 1.0, "citation_recall": 0.5, "lexical_support": 1.0,
        "faithfulness": 0.25, "refused": 1, "dropped_passages": 4, "shortened_passages": 0, "overflow_rows": 2,
        "retrieval_failures": 2, "reading_failures": 0,
    })  # fmt: skip
