import numpy as np
import pytest

from rung.data.rows import Example
from rung.prompts.demonstrations import Demonstrations

POOL = tuple(Example(f"{i}", {"text": f"{i}"}, ("ab"[i % 2],), f"p:{i}") for i in range(12))


def chosen(shown, question="x", vector=None):
    asked = Example(question, {"text": question}, (), "q:1")
    return [example.id for example in shown.choose(asked, vector, lambda example: 1)]


def test_members_show_disjoint_rows_the_nearest_dealt_in_turn():
    angles = np.linspace(0, 1, 12)
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    shown = Demonstrations("knn", 2, POOL, vectors, "e", sets=3)
    question = np.array([1, 0], np.float32)
    assert [chosen(member, "x", question) for member in shown.members()] == [["3", "0"], ["4", "1"], ["5", "2"]]
    # The question itself is never shown: the others move up.
    assert [chosen(member, "0", question) for member in shown.members()] == [["4", "1"], ["5", "2"], ["6", "3"]]


TEXTS = ("my card is lost", "my card, my card", "cards get lost at sea", "the weather is fine", "my loan is late")
SAID = tuple(Example(f"{i}", {"text": text, "n": i}, ("a",), f"p:{i}") for i, text in enumerate(TEXTS))


def test_without_an_encoder_rows_are_compared_by_their_words():
    asked = Example("x", {"text": "Lost: a CARD", "n": 9}, (), "q:1")

    def ranked(selection, rows=SAID, **settings):
        shown = Demonstrations(selection, 3, rows, **settings)
        return [example.id for example in reversed(shown.choose(asked, None, lambda example: 1))]

    assert ranked("knn") == ranked("knn", tuple(reversed(SAID))) == ["0", "1", "2"]
    assert ranked("mmr", diversity=0.9)[1] != "1"
    words = Demonstrations("knn", 3, SAID).words
    alike = words.between(range(5), range(5))
    assert alike == pytest.approx(np.stack([words.similarity(row) for row in SAID]), abs=1e-6)
    assert np.diag(alike) == pytest.approx(np.ones(5), abs=1e-6)
    assert words.similarity(Example("y", {"text": "?!", "n": None}, (), "q:2")).tolist() == [0.0] * 5


@pytest.mark.parametrize("selection", ["balanced", "fixed", "random"])
def test_sets_are_disjoint(selection):
    shown = Demonstrations(selection, 3, POOL, sets=4)
    rows = [row for member in shown.members() for row in chosen(member)]
    assert sorted(rows, key=int) == [example.id for example in POOL]


def test_one_set_is_what_it_was():
    shown = Demonstrations("balanced", 4, POOL, seed=3)
    assert shown.members() == (shown,)
    assert len(chosen(shown)) == 4


def test_an_order_moves_rows_and_changes_none():
    plain = chosen(Demonstrations("fixed", 5, POOL))
    orders = {tuple(chosen(Demonstrations("fixed", 5, POOL, order=order))) for order in range(1, 6)}
    assert len(orders) > 1
    assert all(sorted(order) == sorted(plain) for order in orders)
    assert chosen(Demonstrations("fixed", 5, POOL, order=2)) == chosen(Demonstrations("fixed", 5, POOL, order=2), "y")
