import random

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from rung.data.rows import Span
from rung.evaluation.rag_metrics import ndcg_at_k, recall_at_k, reciprocal_rank, span_recall
from rung.retrieval.passage import Passage

RANKED = ["a", "b", "c", "d"]


def test_recall():
    assert [recall_at_k(RANKED, {"b", "x"}, k) for k in (1, 2, 4)] == [0.0, 0.5, 0.5]
    assert recall_at_k(RANKED, {"a", "d"}, 4) == 1.0


def test_reciprocal_rank():
    assert [reciprocal_rank(RANKED, {one}) for one in "abcx"] == [1.0, 0.5, pytest.approx(1 / 3), 0.0]
    assert reciprocal_rank(RANKED, {"d", "b"}) == 0.5


@pytest.mark.parametrize("k", [1, 3, 10, 30])
def test_ndcg_is_that_of_scikit_learn(k):
    chance = random.Random(k)
    for _ in range(20):
        names = [str(number) for number in range(20)]
        gains = {name: float(chance.choice([0, 0, 1, 2, 3])) for name in names} | {"0": 1.0}
        ranked = chance.sample(names, 20)
        truth = [[gains[name] for name in names]]
        scores = [[-ranked.index(name) for name in names]]
        assert ndcg_at_k(ranked, gains, k) == pytest.approx(ndcg_score(np.array(truth), np.array(scores), k=k))


def test_ndcg_by_hand():
    assert ndcg_at_k(["x", "a"], {"a": 1.0}, 2) == pytest.approx(1 / np.log2(3))
    assert ndcg_at_k(["x"], {"a": 1.0}, 5) == 0.0


def passage(document, start, end):
    return Passage(f"{document}:{start}-{end}", document, "", "", None, start, end)


def test_span_recall_counts_each_gold_character_once():
    gold = [Span("d", 10, 20), Span("d", 15, 25), Span("e", 0, 5)]  # 15 and 5 characters
    passages = [passage("d", 0, 12), passage("d", 5, 14), passage("e", 4, 9), passage("f", 0, 99)]
    assert [span_recall(passages, gold, k) for k in (1, 2, 3, 4)] == [0.1, 0.2, 0.25, 0.25]
    assert span_recall([], gold, 5) == 0.0


def test_nothing_relevant_is_an_error():
    for call in (
        lambda: recall_at_k(RANKED, (), 1),
        lambda: reciprocal_rank(RANKED, ()),
        lambda: ndcg_at_k(RANKED, {"a": 0.0}, 1),
        lambda: span_recall([], [Span("d", 3, 3)], 1),
    ):
        with pytest.raises(ValueError, match="nothing is relevant"):
            call()
