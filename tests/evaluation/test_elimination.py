"""Races simulated many times: how often the best arm goes, and how many rows are saved."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats

from rung.evaluation.racing import Elimination, betting_capital, eliminate, looks, sign_capital

Matrix = np.ndarray
ROWS = 160


def race(matrix: Matrix, **options: float | bool | None) -> tuple[set[int], int]:
    """Run a whole race over a [arms, rows] matrix; return the dropped arms and the number of evaluations."""
    seen: dict[str, list[float]] = {}
    dropped: set[str] = set()
    for n in looks(matrix.shape[1], first=20, growth=2.0):
        seen |= {str(arm): row[:n].tolist() for arm, row in enumerate(matrix) if str(arm) not in dropped}
        dropped |= set(eliminate(seen, **options))  # type: ignore[arg-type]
    return {int(arm) for arm in dropped}, sum(map(len, seen.values()))


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
    """The bound is nearly used up."""
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
    (name, found), *others = eliminate({"zero-shot": bad, "lora": good}).items()
    p = float(np.exp(-sign_capital(np.array([1.0] * 15))[-1]))
    assert (name, others) == ("zero-shot", [])
    assert found == Elimination("lora", 20, 15, 0, pytest.approx(p, rel=1e-12))
    assert p < 2e-3
    assert str(found) == "beaten by lora after 20 rows: 15 fixed / 0 broken, p = 0.00025"
    assert eliminate({"zero-shot": bad, "lora": good}, alpha=1e-4) == {}


def test_further_arms_do_not_weaken_the_evidence() -> None:
    """Seven wins in a row are enough, however many arms there are."""
    best, bad = [1.0] * 20, [0.0] * 7 + [1.0] * 13
    assert set(eliminate({"best": best, "bad": bad})) == {"bad"}
    many = {f"as good {i}": best for i in range(50)}
    assert set(eliminate({"best": best, "bad": bad, **many})) == {"bad"}


@pytest.mark.parametrize("binary", [True, False])
def test_bets_are_on_the_arm_that_led_on_the_rows_before(binary: bool) -> None:
    """Row by row: the bet is on the other arm with the most points so far, of those that answered the row."""
    generator = np.random.default_rng(6)
    matrix = np.round(generator.random((4, 40)) * [[0.9], [1.1], [1.2], [0.2]], 0 if binary else 2).clip(0, 1)
    lengths = [40, 16, 40, 40]  # the second was dropped after 16 rows
    scores = {str(arm): row[:n].tolist() for arm, (row, n) in enumerate(zip(matrix, lengths, strict=True))}
    found = eliminate(scores, alpha=0.999, binary=binary)
    assert "3" in found
    for name, one in found.items():
        bets = []
        for row in range(40):
            others = [arm for arm in range(4) if str(arm) != name and lengths[arm] > row]
            leader = max(others, key=lambda arm, row=row: (matrix[arm, :row].sum(), -arm))  # type: ignore[misc]
            bets.append(matrix[leader, row] - matrix[int(name), row])
        path = (sign_capital if binary else betting_capital)(np.array(bets))
        assert one.p == pytest.approx(min(1.0, float(np.exp(-path.max()))), rel=1e-9)


def test_the_leader_stays() -> None:
    n = 100
    scores = {"low": [0.0] * n, "middle": [1.0] * 50 + [0.0] * 50, "high": [1.0] * n}
    assert {loser: e.by for loser, e in eliminate(scores).items()} == {"low": "high", "middle": "high"}


def test_identical_arms_and_a_single_arm_stay() -> None:
    assert eliminate({"a": [0.5, 1.0], "b": [0.5, 1.0]}) == {}
    assert eliminate({"a": [0.0, 1.0]}) == {}


# ---- futility


def test_what_has_no_chance_to_be_better_by_the_margin_is_dropped_unless_it_is_cheaper() -> None:
    generator = np.random.default_rng(0)
    leader = (generator.random(400) < 0.8).astype(float)
    nearly = leader.copy()
    nearly[np.flatnonzero(leader)[:3]] = 0
    scores = {"leader": leader.tolist(), "nearly": nearly.tolist()}
    assert eliminate(scores) == {}
    found = eliminate(scores, margin=0.01)["nearly"]
    assert found.chance is not None
    assert found.chance < 0.01 < found.p
    assert str(found).startswith("stopped after 400 rows: 0.0 % likely to be better than leader by 1 point, expected")
    assert str(found).endswith("gain 0.01 points, 3 fixed / 0 broken")
    assert eliminate(scores, margin=0.01, costs={"leader": 1.0, "nearly": 0.5}) == {}
    assert set(eliminate(scores, margin=0.01, costs={"leader": 1.0, "nearly": 0.95})) == {"nearly"}


def test_futility_saves_rows_of_a_close_race_at_no_regret() -> None:
    generator = np.random.default_rng(4)
    rates, spent, regret = np.array([0.76, 0.74, 0.72, 0.70, 0.70, 0.68]), [], []
    for _ in range(40):
        difficulty = generator.normal(0, 0.3, 300)
        matrix = (generator.random((6, 300)) < rates[:, None] + difficulty).astype(float)
        for margin in (None, 0.01):
            dropped, evaluations = race(matrix, margin=margin)
            left = [arm for arm in range(6) if arm not in dropped]
            leader = max(left, key=lambda arm: matrix[arm].sum())
            spent.append(evaluations / matrix.size)
            regret.append(rates[0] - rates[leader])
    assert np.mean(spent[1::2]) < 0.75 < 0.92 < np.mean(spent[::2])
    assert np.mean(regret[1::2]) < np.mean(regret[::2]) + 0.005


# ---- stages


def staged(generator: np.random.Generator, rungs: int, rows: int = 120) -> bool:
    """Race a climb whose later stages copy the leader, the worst that may happen to its rival; was that dropped?

    The rival is as good as the best of the first stage, and both beat what they start from; every rung on top of the
    leader answers nearly as it does, so that its luck on these rows counts over and over.
    """
    rates = {"zero": 0.3, "rival": 0.7, "best": 0.7} | {f"other {i}": 0.5 for i in range(rungs - 2)}
    difficulty = generator.normal(0, 0.15, rows)
    answers = {name: (generator.random(rows) < rate + difficulty).astype(float) for name, rate in rates.items()}
    dropped: dict[str, int] = {}
    for stage in range(3):
        for n in looks(rows):
            dropped |= dict.fromkeys(eliminate({k: v[: dropped.get(k, n)] for k, v in answers.items()}, binary=True), n)
        leader = max(set(answers) - set(dropped), key=lambda name: answers[name].sum())
        for i in range(rungs - 1 - stage):
            other = generator.random(rows) < 0.03
            made = np.where(other, generator.random(rows) < 0.7, answers[leader]).astype(float)
            answers[f"{leader} {stage} {i}"] = made
    return "rival" in dropped


def test_stages_that_copy_the_leader_keep_the_bound() -> None:
    runs = 100
    generator = np.random.default_rng(11)
    dropped = sum(staged(generator, rungs=5) for _ in range(runs))
    assert dropped <= scipy.stats.binom.ppf(0.999, runs, 0.05)


# ---- looks and refusals


def test_a_resumed_race_decides_the_same() -> None:
    generator = np.random.default_rng(3)
    scores = {str(i): generator.random(80).tolist() for i in range(4)} | {"worst": [0.0] * 80}
    assert eliminate(scores) == eliminate(dict(scores)) != {}


@pytest.mark.parametrize(
    ("rows", "options", "expected"),
    [
        (300, {}, (16, 24, 40, 64, 96, 144, 216, 300)),
        (300, {"first": 20, "growth": 2.0, "batch": 1}, (20, 40, 80, 160, 300)),
        (160, {"first": 20, "growth": 2.0, "batch": 20}, (20, 40, 80, 160)),
        (22, {}, (16, 22)),
        (19, {}, (19,)),  # three rows are less than half a batch
        (24, {}, (16, 24)),
        (7, {}, (7,)),
        (100, {"batch": 32}, (32, 64, 100)),
        (4, {"first": 1, "growth": 1.01, "batch": 1}, (1, 2, 3, 4)),
    ],
)
def test_looks(rows: int, options: dict[str, float], expected: tuple[int, ...]) -> None:
    assert looks(rows, **options) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bad", [{"rows": 0}, {"rows": 5, "first": 0}, {"rows": 5, "growth": 1.0}, {"rows": 5, "batch": 0}]
)
def test_looks_refuses(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="need rows"):
        looks(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("scores", "options", "match"),
    [
        ({"a": [], "b": [1.0]}, {}, "needs a score"),
        ({}, {}, "needs a score"),
        ({"a": [1.5], "b": [0.0]}, {}, r"\[0, 1\]"),
        ({"a": [float("nan")], "b": [0.0]}, {}, r"\[0, 1\]"),
        ({"a": [0.5], "b": [0.0]}, {"binary": True}, "0 or 1"),
        ({"a": [1.0], "b": [0.0]}, {"alpha": 1.0}, "alpha"),
    ],
)
def test_eliminate_refuses(scores: dict[str, list[float]], options: dict[str, float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        eliminate(scores, **options)  # type: ignore[arg-type]
