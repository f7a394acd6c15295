import random

import pytest

from rung.data.rows import Span
from rung.retrieval.passage import Passage, span_recall


def passage(document, start, end):
    return Passage(f"{document}:{start}-{end}", document, "", "", None, start, end)


def test_span_recall_counts_each_gold_character_once():
    gold = [Span("d", 10, 20), Span("d", 15, 25), Span("e", 0, 5)]  # 15 and 5 characters
    passages = [passage("d", 0, 12), passage("d", 5, 14), passage("e", 4, 9), passage("f", 0, 99)]
    assert [span_recall(passages, gold, k) for k in (1, 2, 3, 4)] == [0.1, 0.2, 0.25, 0.25]
    assert span_recall([], gold, 5) == 0.0


def test_nothing_relevant_is_an_error():
    with pytest.raises(ValueError, match="nothing is relevant"):
        span_recall([], [Span("d", 3, 3)], 1)


def test_span_recall_is_that_of_sets_of_characters():
    rng = random.Random(0)

    def pieces(make, count):
        starts = [(rng.choice("de"), rng.randrange(50)) for _ in range(count)]
        return [make(document, start, start + rng.randrange(20)) for document, start in starts]

    def characters(spans):
        return {(span.document, place) for span in spans for place in range(span.start, span.end)}

    for _ in range(200):
        gold, found = [*pieces(Span, 3), Span("d", 1, 4)], pieces(passage, 4)
        wanted = characters(gold)
        assert span_recall(found, gold, 3) == len(wanted & characters(found[:3])) / len(wanted)
