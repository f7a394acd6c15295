"""The threshold below which a question is refused."""

from pathlib import Path

import numpy as np
import pytest

from grounded import Index as FakeIndex
from grounded import passage, rows_of
from rung.data.rows import NOT_IN_DOCUMENTS
from rung.retrieval import retriever as retriever_module
from rung.retrieval.fitting import FEWEST, calibrate, choose
from rung.retrieval.retriever import Retriever

CITIES = (
    "Paris",
    "Rome",
    "Madrid",
    "Vienna",
    "Prague",
    "Lisbon",
    "Athens",
    "Dublin",
    "Oslo",
    "Berlin",
    "Warsaw",
    "Bern",
)
NOISE = ("How do I bake bread?", "What is a prime number?", "Who painted this?", "How tall are giraffes?")


def test_the_threshold_lies_midway_where_the_two_are_apart():
    found = choose([0.8, 0.6, 0.7], [0.1, 0.4], 0.05, simulated=False)
    assert found.threshold == pytest.approx(0.5)
    assert (found.refused_answerable, found.refused_unanswerable) == (0.0, 1.0)


def test_it_maximizes_the_difference_within_the_share_allowed():
    rng = np.random.default_rng(0)
    yes, no = rng.normal(0.6, 0.1, 200), rng.normal(0.4, 0.1, 200)
    free, tight = (choose(yes, no, at_most, simulated=False) for at_most in (1.0, 0.02))
    gains = {t: (no < t).mean() - (yes < t).mean() for t in np.concatenate([yes, no])}
    assert free.refused_unanswerable - free.refused_answerable >= max(gains.values()) - 1e-9
    assert tight.refused_answerable <= 0.02 < free.refused_answerable
    assert tight.threshold < free.threshold


def test_where_nothing_tells_them_apart_nothing_is_refused():
    found = choose([0.5, 0.5], [0.5, 0.5], 0.5, simulated=True)
    assert found.threshold is None
    assert found.reason


@pytest.fixture
def capitals(monkeypatch):
    texts = [f"{city} is a capital city. It lies in its own country." for city in CITIES]
    index = FakeIndex([passage(f"{c}.md", t, title=c) for c, t in zip(CITIES, texts, strict=True)])
    monkeypatch.setattr(retriever_module, "open_index", lambda folder: index)
    return Retriever(Path("i"), "f", "", k=2, token_budget=1000)


def told(retriever, rows, **settings):
    return calibrate(retriever, rows, [r.inputs["question"] for r in rows], lambda p: 10, at_most=0.1, **settings)


def test_answers_taken_away_stand_for_questions_without_one(capitals):
    rows = rows_of(*((f"Is {city} a capital?", f"{city} is a capital city") for city in CITIES))
    found = told(capitals, rows)
    assert found.simulated
    assert (found.answerable, found.unanswerable) == (12, 12)
    assert found.refused_answerable <= 0.1
    assert found.refused_unanswerable > 0.8


def test_rows_marked_as_unanswerable_are_used_where_there_are_enough(capitals):
    rows = rows_of(*((f"Is {city} a capital?", f"{city} is a capital city") for city in CITIES))
    others = rows_of(*((f"{q} {i}", NOT_IN_DOCUMENTS) for i in range(3) for q in NOISE), spans=())
    found = told(capitals, [*rows, *others])
    assert not found.simulated
    assert (found.answerable, found.unanswerable) == (12, 12)
    assert (found.refused_answerable, found.refused_unanswerable) == (0.0, 1.0)


def test_too_few_questions_tell_nothing(capitals):
    found = told(capitals, rows_of(*((f"Is {c} a capital?", f"{c} is a capital city") for c in CITIES[: FEWEST - 1])))
    assert found.threshold is None
    assert "only 9" in found.reason
    assert told(capitals, rows_of(("Is Oslo a capital?", "a capital city")), otherwise=0.5).threshold == 0.5
