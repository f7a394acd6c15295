"""Fields of records: precision and recall, and items of lists paired as scipy's assignment pairs them."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from rung.evaluation.metrics.records import (
    best_assignment,
    compare_fields,
    json_field_f1,
    json_field_precision,
    json_field_recall,
)


@pytest.mark.parametrize("seed", range(30))
def test_the_assignment_gains_as_much_as_scipy_s(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gains = rng.integers(0, 6, (rng.integers(1, 9), rng.integers(1, 9))).tolist()
    pairs = best_assignment(gains)
    rows, columns = linear_sum_assignment(np.array(gains), maximize=True)
    assert sum(gains[i][j] for i, j in pairs) == np.array(gains)[rows, columns].sum()
    assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs) == min(len(gains), len(gains[0]))


def test_no_items_no_pairs() -> None:
    assert best_assignment([]) == []
    assert best_assignment([[]]) == []


def test_precision_and_recall() -> None:
    found, wanted = '{"a": 1, "b": 2, "c": 3, "d": 4}', '{"a": 1, "b": 2, "c": 9}'
    assert json_field_precision(found, [wanted]) == 2 / 4
    assert json_field_recall(found, [wanted]) == 2 / 3
    assert json_field_f1(found, [wanted]) == pytest.approx(4 / 7)
    assert json_field_precision("{}", [wanted]) == 1.0
    assert json_field_recall("{}", [wanted]) == 0.0
    assert json_field_recall(found, ["{}"]) == 1.0
    assert json_field_precision("no JSON", [wanted]) == json_field_recall("no JSON", [wanted]) == 0.0


def test_nested_lists_are_paired_inside_pairs() -> None:
    wanted = {"orders": [{"id": 1, "lines": [{"n": "x", "p": 1}, {"n": "y", "p": 2}]}, {"id": 2, "lines": []}]}
    found = {"orders": [{"id": 2, "lines": []}, {"id": 1, "lines": [{"n": "y", "p": 2}, {"n": "x", "p": 7}]}]}
    assert compare_fields(found, wanted) == (6, 7, 7)


@pytest.mark.parametrize("seed", range(20))
def test_equal_items_paired_at_once_gain_as_much_as_the_full_assignment(seed: int) -> None:
    rng = random.Random(seed)
    lists = [[{"n": rng.randrange(3), "p": rng.randrange(3)} for _ in range(rng.randrange(1, 7))] for _ in range(2)]
    gains = np.array([[sum(a[k] == b[k] for k in a) for b in lists[1]] for a in lists[0]])
    rows, columns = linear_sum_assignment(gains, maximize=True)
    assert compare_fields(*lists).shared == gains[rows, columns].sum()


def test_a_long_list_is_compared_in_a_moment() -> None:
    items = [{"name": f"article {i}", "price": i} for i in range(150)]
    shifted = [{"name": f"article {i}", "price": i + 1} for i in range(150)]
    assert json_field_f1(json.dumps(items), [json.dumps(shifted)]) == 0.5
