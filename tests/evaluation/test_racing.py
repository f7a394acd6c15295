import itertools
import runpy
from pathlib import Path

import numpy as np
import pytest

from rung.evaluation.racing import Round, halve, halving_plan

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
elimination_race = runpy.run_path(str(BENCHMARKS / "_races.py"))["race"]


def spent(rounds):
    before = [0, *(one.until for one in rounds)]
    return sum(one.arms * (one.until - start) for one, start in zip(rounds, before, strict=False))


@pytest.mark.parametrize("arms", [1, 2, 3, 7, 16, 33])
@pytest.mark.parametrize("rows", [5, 40, 200])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.8, 1.0])
def test_a_plan_keeps_its_price_and_uses_most_of_it(arms, rows, share):
    evaluations = max(arms, int(share * arms * rows))
    plan = halving_plan(arms, rows, evaluations)
    assert spent(plan) <= evaluations
    assert all(a.until <= b.until for a, b in itertools.pairwise(plan))
    assert plan[-1].until <= rows
    if plan[-1].until < rows:  # what is not spent is less than a row for the arms of each round
        assert evaluations - spent(plan) < sum(one.arms for one in plan) + arms


def test_plans_by_hand():
    assert halving_plan(4, 100, 120) == (Round(4, 15), Round(2, 45))
    assert halving_plan(4, 100, 120, min_rows=20) == (Round(4, 20), Round(2, 40))
    assert halving_plan(4, 20, 80) == (Round(4, 20), Round(2, 20))
    assert halving_plan(1, 10, 5) == (Round(1, 5),)
    assert halving_plan(4, 10, 1) == (Round(4, 1), Round(2, 1))  # every arm answers a row, whatever the price


def race(matrix, evaluations, **options):
    names = [str(i) for i in range(len(matrix))]
    asked = dict.fromkeys(names, 0)

    def ask(name, until):
        asked[name] = max(asked[name], until)
        return matrix[int(name), :until].tolist()

    found = halve(names, ask, matrix.shape[1], evaluations, **options)
    assert {name: len(scores) for name, scores in found.scores.items()} == asked
    assert found.evaluations == sum(asked.values())
    return found


def test_the_race_by_hand():
    matrix = np.array([[0, 0, 0, 0, 1, 1.0], [1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 0, 1, 1, 1]])
    found = race(matrix, 16)
    assert found.order == ("3", "2", "1", "0")
    assert found.scores["1"] == (1, 0)
    assert found.scores["3"] == (1, 1, 0, 1, 1, 1)


def test_of_equals_the_first_stays():
    assert race(np.ones((5, 30)), 60).order == ("0", "1", "2", "3", "4")


def test_with_all_rows_the_best_mean_wins():
    generator = np.random.default_rng(0)
    for _ in range(20):
        matrix = generator.random((9, 40))
        assert race(matrix, matrix.size).winner == str(matrix.mean(1).argmax())


def test_a_clear_winner_is_found_for_a_third_of_the_price():
    generator = np.random.default_rng(1)
    found = 0
    for _ in range(100):
        rates = np.array([0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.8])
        matrix = (generator.random((8, 200)) < rates[:, None] + generator.normal(0, 0.1, 200)).astype(float)
        result = race(matrix, int(0.3 * matrix.size))
        assert result.evaluations <= 0.3 * matrix.size
        found += result.winner == "7"
    assert found >= 95


@pytest.mark.parametrize(("arms", "rows", "min_rows"), [(0, 5, 1), (5, 0, 1), (5, 5, 0)])
def test_refused(arms, rows, min_rows):
    with pytest.raises(ValueError, match="need arms"):
        halving_plan(arms, rows, 10, min_rows)


def test_names_differ():
    with pytest.raises(ValueError, match="same name"):
        halve(["a", "a"], lambda name, until: [0.0], 1, 1)


def eliminated(matrix):
    asked = dict.fromkeys("abc"[: len(matrix)], 0)

    def ask(name, until):
        asked[name] = until
        return matrix["abc".index(name), :until].tolist()

    return elimination_race(tuple(asked), ask, matrix.shape[1], binary=True), asked


def test_a_beaten_arm_answers_no_more_rows_and_the_race_ends_with_one_left():
    matrix = np.ones((3, 400))
    matrix[1] = 0
    matrix[2, ::4] = 0
    found, asked = eliminated(matrix)
    assert found.survivors == ("a",)
    assert found.beaten["b"].by == "a"
    assert found.beaten["b"].n == asked["b"] == 16
    assert asked["b"] < asked["c"] == asked["a"] == found.beaten["c"].n < 400


def test_equals_race_to_the_end_and_a_lone_arm_answers_nothing():
    found, asked = eliminated(np.ones((2, 100)))
    assert (found.survivors, found.beaten, asked) == (("a", "b"), {}, {"a": 100, "b": 100})
    found, asked = eliminated(np.ones((1, 100)))
    assert (found.survivors, found.beaten, asked) == (("a",), {}, {"a": 0})
