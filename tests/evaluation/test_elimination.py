"""Races simulated many times: how often the best arm goes, and how many rows are saved."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats

from rung.evaluation.racing import Elimination, betting_capital, eliminate, looks, sign_capital

Matrix = np.ndarray
ROWS = 160


def race(matrix: Matrix, *, alpha: float = 0.05, binary: bool | None = None) -> tuple[set[int], int]:
    """Run a whole race over a [arms, rows] matrix; return the dropped arms and the number of evaluations."""
    plan = looks(matrix.shape[1], growth=2.0)
    alive, evaluations, before = list(range(len(matrix))), 0, 0
    for n in plan:
        evaluations += (n - before) * len(alive)
        before = n
        seen = {str(arm): matrix[arm, :n].tolist() for arm in alive}
        dropped = eliminate(seen, arms=len(matrix), alpha=alpha, binary=binary)
        alive = [arm for arm in alive if str(arm) not in dropped]
    return set(range(len(matrix))) - set(alive), evaluations


def error_rate(draw: Callable[[np.random.Generator], Matrix], runs: int, **options: float | bool) -> float:
    """Share of races in which arm 0, the best, is dropped."""
    generator = np.random.default_rng(7)
    return float(np.mean([0 in race(draw(generator), **options)[0] for _ in range(runs)]))


def above(alpha: float, runs: int) -> float:
    """The share that a true rate of alpha exceeds with probability 0.001."""
    return float(scipy.stats.binom.ppf(0.999, runs, alpha)) / runs


def binary_ties(generator: np.random.Generator) -> Matrix:
    """Five equally good arms, independent given the row's difficulty: correlated across arms."""
    difficulty = generator.beta(1, 1, ROWS)
    return (generator.random((5, ROWS)) < difficulty).astype(float)


def binary_independent(generator: np.random.Generator) -> Matrix:
    return (generator.random((5, ROWS)) < 0.6).astype(float)


def binary_twins(generator: np.random.Generator) -> Matrix:
    """The best arm and near copies of it that rarely differ."""
    base = generator.random(ROWS) < 0.7
    flips = generator.random((4, ROWS)) < 0.08
    return np.vstack([base, np.where(flips, generator.random((4, ROWS)) < 0.7, base)]).astype(float)


def continuous_ties(generator: np.random.Generator) -> Matrix:
    """Equal means, correlated rows, many exact zeros and ones."""
    base = generator.beta(0.4, 0.4, ROWS)
    return np.round(np.clip(base + generator.normal(0, 0.2, (5, ROWS)), 0, 1), 1)


def rare_wins(generator: np.random.Generator) -> Matrix:
    """Arm 0 loses 0.02 on most rows and wins 0.6 on one in 25: best in the mean by 0.0048."""
    win = generator.random(ROWS) < 0.04
    noise = generator.uniform(0, 0.01, (2, ROWS))
    return np.vstack([np.where(win, 0.9, 0.28), np.full(ROWS, 0.3)]) + noise


@pytest.mark.parametrize("draw", [binary_ties, binary_independent, binary_twins, continuous_ties, rare_wins])
def test_best_arm_is_dropped_in_at_most_alpha_of_races(draw: Callable[[np.random.Generator], Matrix]) -> None:
    runs = 200
    assert error_rate(draw, runs) <= above(0.05, runs)


def test_error_rate_follows_alpha() -> None:
    """Two arms are the case in which the union bound over arms costs nothing: the bound is nearly used up."""
    runs, alpha = 600, 0.3

    def two(generator: np.random.Generator) -> Matrix:
        return (generator.random((2, ROWS)) < 0.5).astype(float)

    rate = error_rate(two, runs, alpha=alpha)
    assert 0.03 < rate <= above(alpha, runs)


def test_betting_on_scores_0_and_1_keeps_alpha_too() -> None:
    runs = 300
    assert error_rate(binary_ties, runs, binary=False) <= above(0.05, runs)


def test_why_not_a_t_test() -> None:
    """The paired t-test at the same level drops the best arm with rare wins in far more than alpha of the races."""
    generator = np.random.default_rng(7)
    plan = looks(ROWS, growth=2.0)
    errors = 0
    for _ in range(200):
        best, other = rare_wins(generator)
        ps = [scipy.stats.ttest_rel(other[:n], best[:n], alternative="greater").pvalue for n in plan]
        errors += min(ps) <= 0.05 / len(plan)
    assert errors / 200 > 0.3


def test_clearly_worse_binary_arms_save_most_evaluations() -> None:
    generator = np.random.default_rng(1)
    rows, rates = 320, [0.85, 0.8, 0.5, 0.45, 0.4, 0.3, 0.2, 0.1]
    spent, weak = [], []
    for _ in range(60):
        difficulty = generator.normal(0, 0.1, rows)
        matrix = (generator.random((8, rows)) < np.array(rates)[:, None] + difficulty).astype(float)
        dropped, evaluations = race(matrix)
        spent.append(evaluations / matrix.size)
        weak.append(len(dropped & {2, 3, 4, 5, 6, 7}) / 6)
        assert 0 not in dropped
    assert np.mean(spent) < 0.45  # more than 55 % of the evaluations are saved
    assert np.mean(weak) > 0.99


def test_clearly_worse_continuous_arms_save_half_of_the_evaluations() -> None:
    generator = np.random.default_rng(2)
    rows = 320
    spent = []
    for _ in range(60):
        base = generator.beta(4, 4, rows)
        shift = np.array([0.15, 0.12, -0.1, -0.1, -0.15, -0.2])[:, None]
        matrix = np.clip(base + shift + generator.normal(0, 0.12, (6, rows)), 0, 1)
        dropped, evaluations = race(matrix)
        spent.append(evaluations / matrix.size)
        assert {2, 3, 4, 5} <= dropped
        assert 0 not in dropped
    assert np.mean(spent) < 0.5


@pytest.mark.parametrize(
    ("capital", "values", "probs"),
    [(betting_capital, [-0.5, 0.0, 0.25], [0.2, 0.4, 0.4]), (sign_capital, [-1.0, 0.0, 1.0], [0.3, 0.4, 0.3])],
)
def test_capital_is_anytime_valid(capital: Callable[[Matrix], Matrix], values: list[float], probs: list[float]) -> None:
    """The capital ever reaches 1/a, over all 200 rows, in at most a of the runs of mean zero."""
    generator = np.random.default_rng(5)
    most = np.array([capital(generator.choice(values, p=probs, size=200)).max() for _ in range(2000)])
    for a in (0.2, 0.05, 0.01):
        assert np.mean(most >= np.log(1 / a)) <= above(a, 2000)


def test_betting_capital_by_hand() -> None:
    d = np.array([0.5, 0.5])
    # Before row 2: mean 0.25, variance 0.125, bet 0.25 / (0.125 + 0.0625) = 4/3, cut to 0.95.
    np.testing.assert_allclose(np.exp(betting_capital(d)), [1, 1.475], rtol=1e-15)
    np.testing.assert_array_equal(betting_capital(-d), [0, 0])
    np.testing.assert_array_equal(betting_capital(np.zeros(5)), np.zeros(5))


def test_sign_capital_by_hand() -> None:
    rates = np.array([0.525, 0.575, 0.625, 0.675, 0.725, 0.775, 0.825, 0.875, 0.925, 0.975])
    wins, losses = (2 * rates).mean(), (2 * rates * 2 * (1 - rates)).mean()
    np.testing.assert_allclose(np.exp(sign_capital(np.array([1.0, 0.0, -0.3]))), [wins, wins, losses], rtol=1e-12)


def test_evidence_of_an_elimination() -> None:
    good, bad = [1.0] * 20, [0.0] * 15 + [1.0] * 5
    (name, found), *others = eliminate({"zero-shot": bad, "lora": good}, arms=2).items()
    p = float(np.exp(-sign_capital(np.array([1.0] * 15))[-1]))
    assert (name, others) == ("zero-shot", [])
    assert found == Elimination("lora", 20, 15, 0, pytest.approx(p, rel=1e-12))
    assert p < 2e-3
    assert eliminate({"zero-shot": bad, "lora": good}, arms=2, alpha=1e-4) == {}


def test_capital_is_shared_among_all_arms_that_started() -> None:
    """Nine wins without a loss win 101 times the stake: at 1/20 enough for five other arms, not for six."""
    scores = {"a": [1.0] * 20, "b": [0.0] * 9 + [1.0] * 11}
    capital = float(np.exp(sign_capital(np.array([1.0] * 9))[-1]))
    assert 100 < capital < 120
    assert set(eliminate(scores, arms=6)) == {"b"}
    assert eliminate(scores, arms=7) == {}


def test_arms_that_are_better_count_together() -> None:
    """Each of three arms wins seven rows of its own, which alone would not do."""
    bad = np.zeros(40)
    better = {f"good {i}": np.roll([1.0] * 7 + [0.0] * 33, 7 * i).tolist() for i in range(3)}
    assert eliminate({"bad": bad.tolist(), "good 0": better["good 0"]}, arms=4) == {}
    assert set(eliminate({"bad": bad.tolist(), **better}, arms=4)) == {"bad"}


def test_names_a_survivor_and_keeps_the_best_mean() -> None:
    n = 100
    scores = {"low": [0.0] * n, "middle": [1.0] * 50 + [0.0] * 50, "high": [1.0] * n}
    assert {loser: e.by for loser, e in eliminate(scores, arms=3).items()} == {"low": "high", "middle": "high"}


def test_identical_arms_and_a_single_arm_stay() -> None:
    assert eliminate({"a": [0.5, 1.0], "b": [0.5, 1.0]}, arms=2) == {}
    assert eliminate({"a": [0.0, 1.0]}, arms=1) == {}


def test_a_resumed_race_decides_the_same() -> None:
    generator = np.random.default_rng(3)
    scores = {str(i): generator.random(80).tolist() for i in range(4)} | {"worst": [0.0] * 80}
    assert eliminate(scores, arms=5) == eliminate(dict(scores), arms=5) != {}


@pytest.mark.parametrize(
    ("rows", "first", "growth", "expected"),
    [
        (300, 20, 2.0, (20, 40, 80, 160, 300)),
        (160, 20, 2.0, (20, 40, 80, 160)),
        (20, 20, 2.0, (20,)),
        (7, 20, 2.0, (7,)),
        (30, 10, 1.5, (10, 15, 23, 30)),
        (4, 1, 1.01, (1, 2, 3, 4)),
    ],
)
def test_looks(rows: int, first: int, growth: float, expected: tuple[int, ...]) -> None:
    assert looks(rows, first, growth) == expected


@pytest.mark.parametrize("bad", [{"rows": 0}, {"rows": 5, "first": 0}, {"rows": 5, "growth": 1.0}])
def test_looks_refuses(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="need rows"):
        looks(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("scores", "options", "match"),
    [
        ({"a": [1.0], "b": [1.0, 0.0]}, {}, "same rows"),
        ({"a": [], "b": []}, {}, "same rows"),
        ({}, {}, "same rows"),
        ({"a": [1.5], "b": [0.0]}, {}, r"\[0, 1\]"),
        ({"a": [float("nan")], "b": [0.0]}, {}, r"\[0, 1\]"),
        ({"a": [0.5], "b": [0.0]}, {"binary": True}, "0 or 1"),
        ({"a": [1.0], "b": [0.0]}, {"arms": 1}, "arms >= 2"),
    ],
)
def test_eliminate_refuses(scores: dict[str, list[float]], options: dict[str, int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        eliminate(scores, **({"arms": 2} | options))  # type: ignore[arg-type]
