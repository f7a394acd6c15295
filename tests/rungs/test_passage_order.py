"""The position effect: models that read only the beginning, only the end, or all."""

import re

import pytest

from grounded import Index as FakeIndex
from grounded import looking_in, passage, rows_of
from rung.rungs.retrieval import DEFAULT_ORDER, best_order, position_effect

CODES = {"alpha": "111", "beta": "222", "gamma": "333"}
INDEX = [passage(f"{n}.md", f"{n} code is {c}") for n, c in CODES.items()] + [
    passage(f"x{i}.md", f"code of nothing {i}") for i in range(6)
]
ROWS = rows_of(*((f"which code is {n}", f"{n} code is {c}") for n, c in CODES.items()))


def reading(which):
    """Return an engine's answer from the documents at these positions alone."""

    def answer(text):
        documents = re.findall(r"<document \d+>\nT\n(.*?)\n</document", text)
        asked = text.split()[-1]
        return next((d for d in (documents[i] for i in which(len(documents))) if d.startswith(asked)), "?")

    return answer


@pytest.mark.parametrize(
    ("which", "effect", "order"),
    [
        (lambda n: [0], {0: 1.0, 1: 0.0, 2: 0.0, 3: 0.0}, "best_first"),
        (lambda n: [n - 1], {0: 0.0, 1: 0.0, 2: 0.0, 3: 1.0}, "best_last"),
        (lambda n: [0, n - 1], {0: 1.0, 1: 0.0, 2: 0.0, 3: 1.0}, DEFAULT_ORDER),  # lost in the middle
    ],
)
def test_each_position_is_scored_with_the_same_passages(which, effect, order, monkeypatch):
    artifact = looking_in(FakeIndex(INDEX), monkeypatch, answer=reading(which), k=4)
    assert position_effect(artifact, ROWS) == effect
    assert position_effect(artifact, ROWS, positions=(0, -1)) == {0: effect[0], 3: effect[3]}
    assert best_order(effect) == order


def test_rows_whose_answer_is_not_found_cannot_tell(monkeypatch):
    artifact = looking_in(FakeIndex(INDEX), monkeypatch, k=4)
    assert position_effect(artifact, rows_of(("which code", "elsewhere"))) == {}
    assert best_order({}) == DEFAULT_ORDER
