import pytest

from grounded import passage, rows_of
from rung.data.rows import Span
from rung.retrieval.passage import cited, resolve

THREE = [passage("a.md", "Alpha [2] was first.", 10), passage("b.pdf", "Beta.", 0, page=3), passage("c.md", "Gamma.")]


@pytest.mark.parametrize(
    ("written", "text", "numbers"),
    [
        ("Yes [2].", "Yes.", [2]),
        ("Yes [1][3], no [3].", "Yes, no.", [1, 3]),
        ("Both [3, 1]", "Both", [3, 1]),
        ("In [2019] and [4]", "In [2019] and [4]", []),
        ("Mixed [1, 9] [1]", "Mixed [1, 9]", [1]),
        ("[0] none", "[0] none", []),
        ("plain", "plain", []),
        ("The second is arr[1], then f(x)[2].", "The second is arr[1], then f(x)[2].", []),
        ("[1, 3]", "[1, 3]", []),
        ("It gives x = [1, 3] [2].", "It gives x = [1, 3].", [2]),
        ("Use `a [1]`. [2]", "Use `a [1]`.", [2]),
        ("Alpha [2] is older [1].", "Alpha [2] is older.", [1]),  # a reference of the document's own
        ("東京です[1]。", "東京です。", [1]),
    ],
)
def test_marks_that_name_passages_are_taken_out_and_resolved(written, text, numbers):
    plain, found = resolve(written, THREE)
    assert (plain, [c.number for c in found]) == (text, numbers)
    assert [c.passage for c in found] == [THREE[n - 1] for n in numbers]


def test_a_citation_says_where_it_stands():
    _, (first, second) = resolve("Yes [1] [2]", THREE)
    assert str(first) == "[1] a.md, characters 10 to 30"
    assert str(second) == "[2] b.pdf, page 3, characters 0 to 5"
    assert second.as_dict() == {
        "number": 2, "document": "b.pdf", "title": "T", "page": 3, "start": 0, "end": 5, "text": "Beta.",
        "attached": False,
    }  # fmt: skip


def test_what_is_learnt_names_the_passages_that_hold_the_answer():
    (by_words,) = rows_of(("?", "beta"))
    (by_spans,) = rows_of(("?", "beta"), spans=(Span("a.md", 0, 11), Span("c.md", 6, 9)))
    assert cited("beta", by_words, THREE) == "beta [2]"
    assert cited("beta", by_spans, THREE) == "beta [1]"  # c.md ends before its span begins
    assert cited("beta", by_spans, THREE[1:]) == "beta"
