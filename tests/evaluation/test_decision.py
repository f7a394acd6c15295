"""What a climb decides from scores: the error rate of the gate, the loss of the choice, and the rows still needed."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats

from rung.evaluation.decision import chance_better, decide, futile, level_of, rows_needed, settled, shrunken
from rung.evaluation.metrics.registry import get_metric
from rung.evaluation.racing import expected_gain
from rung.evaluation.result import Comparison
from rung.evaluation.statistics import delta_interval, mcnemar_exact, mcnemar_midp, subset_means

COSTS = [1, 1.1, 2.5, 0.1, 1.2, 3]


def draw(generator, accuracies, n, rho=0.6):
    """Scores of 0 and 1 [arms, rows] with these means, correlated through the rows' difficulty."""
    z = math.sqrt(rho) * generator.standard_normal(n) + math.sqrt(1 - rho) * generator.standard_normal(
        (len(accuracies), n)
    )
    return (z < scipy.stats.norm.ppf(np.array(accuracies))[:, None]).astype(float)


def named(matrix, costs=COSTS):
    return {str(i): list(row) for i, row in enumerate(matrix)}, {
        str(i): float(c) for i, c in enumerate(costs[: len(matrix)])
    }


def above(rate, runs):
    """The share that a true rate exceeds with probability 0.001."""
    return scipy.stats.binom.ppf(0.999, runs, rate) / runs


def test_the_levels_of_all_decisions_on_the_same_rows_keep_their_sum():
    assert level_of(1) == 0.05
    assert sum(map(level_of, range(1, 100_000))) <= 0.05 * math.pi**2 / 6


def test_a_lower_level_asks_for_more_evidence_and_widens_the_interval():
    scores = {"zero-shot": [0.0] * 100, "arm": [1.0] * 6 + [0.0] * 94}  # p = 1 / 128
    costs = dict.fromkeys(scores, 1.0)
    first, second, third = (decide(scores, costs, "zero-shot", level=level_of(k), seed=0) for k in (1, 2, 3))
    assert [each.recommended for each in (first, second, third)] == ["arm", "arm", "zero-shot"]
    assert [each.verdicts["arm"].outcome for each in (first, third)] == ["better", "unclear"]
    assert {each.verdicts["arm"].p for each in (first, second, third)} == {1 / 128}
    assert first.verdicts["arm"].low > second.verdicts["arm"].low > 0 >= third.verdicts["arm"].low


# ---- the tests behind p and interval


@pytest.mark.parametrize(("fixed", "broken"), [(0, 0), (1, 0), (0, 3), (5, 5), (12, 2), (40, 21), (3, 17)])
def test_mid_p_is_the_exact_tail_less_half_of_the_point(fixed, broken):
    n = fixed + broken
    tail = scipy.stats.binom.sf(fixed - 1, n, 0.5) - 0.5 * scipy.stats.binom.pmf(fixed, n, 0.5)
    assert mcnemar_midp(fixed, broken) == pytest.approx(tail, abs=1e-12)
    assert mcnemar_midp(fixed, broken) + mcnemar_midp(broken, fixed) == pytest.approx(1)
    if fixed > broken:
        assert mcnemar_midp(fixed, broken) < mcnemar_exact(fixed, broken)


def test_subset_means_are_the_sign_flips_of_every_shift():
    difference = np.array([0.5, -0.25, 0.125, 0.75, 0.0, 0.25, -0.5, 1.0])
    means = subset_means(difference, seed=0)
    assert len(means) == 2**8 - 1
    for shift in (-0.3, 0.0, 0.2):
        moved = difference - shift
        flipped = [np.dot(signs, moved) for signs in itertools.product((1, -1), repeat=8)]
        assert (1 + (means <= shift).sum()) / 2**8 == np.mean(np.array(flipped) >= moved.sum() - 1e-12)


def test_random_subsets_agree_with_scipys_permutation_test():
    difference = np.random.default_rng(1).normal(0.08, 0.3, 60)
    means = subset_means(difference, seed=0)
    peer = scipy.stats.permutation_test(
        (difference,), np.mean, permutation_type="samples", alternative="greater", n_resamples=20_000, rng=2
    )
    assert (1 + (means <= 0).sum()) / (1 + len(means)) == pytest.approx(peer.pvalue, abs=0.006)
    low = means[int(0.05 * len(means)) - 1]
    t = scipy.stats.ttest_1samp(difference, 0, alternative="greater").confidence_interval(0.95)
    assert low == pytest.approx(t.low, abs=0.008)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("looked", [False, True])
def test_p_and_interval_agree(binary, looked):
    generator = np.random.default_rng(4)
    borderline = outside = 0
    for _ in range(40):
        n = int(generator.integers(12, 90))
        matrix = draw(generator, [0.6, 0.68, 0.72, 0.78], n)
        if not binary:
            matrix = np.round(0.7 * matrix + 0.3 * generator.random(matrix.shape), 2)
        scores, costs = named(matrix)
        found = decide(scores, costs, "0", looked=looked, complete=("1", "2"), binary=binary, seed=1)
        for v in found.verdicts.values():
            assert (v.low > 0) == (v.p < 0.05) == (v.outcome == "better")
            assert v.low <= v.delta <= v.high
            borderline += 0.01 < v.p < 0.2
            outside += v.low > 0
    assert borderline > 10
    assert outside > 10


def test_the_interval_is_tangos_at_the_level_of_the_test():
    rows = [[0.0] * 30 + [1.0] * 70, [1.0] * 20 + [0.0] * 15 + [1.0] * 65]
    v = decide(*named(rows), "0", seed=0).verdicts["1"]
    assert (v.fixed, v.broken, v.n, v.method) == (20, 5, 100, "mcnemar-midp")
    assert v.p == pytest.approx(mcnemar_midp(20, 5))
    assert (v.low, v.high) == delta_interval(20, 5, 100, 0.9)


# ---- the gate


@pytest.mark.parametrize(("n", "looked"), [(40, False), (200, False), (60, True)])
def test_something_is_called_better_than_its_equal_in_at_most_5_percent(n, looked):
    runs, generator, wrong = 200, np.random.default_rng(8), 0
    for _ in range(runs):
        scores, costs = named(draw(generator, [0.7] * 6, n), [1] * 6)
        found = decide(scores, costs, "0", looked=looked, complete=scores, seed=0)
        wrong += any(v.outcome == "better" for v in found.verdicts.values())
    assert wrong / runs <= above(0.05, runs)
    assert wrong > 0  # the level is used


@pytest.mark.parametrize(("n", "prior"), [(60, 0.1), (150, 0.2)])
def test_macro_f1_is_called_better_than_an_equal_one_in_at_most_5_percent(n, prior):
    """The arms confuse other labels, and the true macro F1 of both is the same."""

    def macro(miss: float, hit: float) -> float:
        others, rare = (1 - prior) * (1 - miss), prior * hit
        return others / (1 - prior + others + prior - rare) + rare / (prior + rare + (1 - prior) * miss)

    hit = float(scipy.optimize.brentq(lambda each: macro(0.12, each) - macro(0.03, 0.4), 0.1, 1))
    whole = get_metric("macro_f1").whole
    assert whole is not None
    runs, generator, wrong = 100, np.random.default_rng(12), 0
    for _ in range(runs):
        rare = generator.random(n) < prior
        truth = np.where(rare, "rare", "ok")
        answers = [
            np.where(generator.random(n) < np.where(rare, right, miss), "rare", "ok")
            for miss, right in ((0.03, 0.4), (0.12, hit))
        ]
        scores = {name: whole(list(each), list(truth)) for name, each in zip("ab", answers, strict=True)}
        wrong += (
            decide(scores, {"a": 1, "b": 1}, "a", binary=False, bounded=False, seed=0).verdicts["b"].outcome == "better"
        )
    assert 0 < wrong / runs <= above(0.05, runs)


def test_the_level_holds_if_confirmation_stops_at_the_first_success():
    runs, generator, wrong = 100, np.random.default_rng(9), 0
    for _ in range(runs):
        matrix = draw(generator, [0.7] * 3, 120)
        for until in (20, 50, 120):
            scores, costs = named(matrix[:, :until], [1] * 3)
            complete = scores if until == 120 else ()
            found = decide(scores, costs, "0", looked=True, complete=complete, seed=0)
            if any(v.passed for v in found.verdicts.values()):
                wrong += 1
                break
    assert wrong / runs <= above(0.05, runs)


def test_the_level_holds_if_the_budget_ends_the_rows_twice():
    """Each time at rows that no score chose; the bets looked at the rows before."""
    runs, generator, wrong = 400, np.random.default_rng(12), 0
    for _ in range(runs):
        matrix = draw(generator, [0.7] * 3, 120)
        first, second = sorted(generator.choice(np.arange(12, 120), 2, replace=False))
        for until, endings in ((first, 0), (second, 1), (120, 2)):
            scores, costs = named(matrix[:, :until], [1] * 3)
            found = decide(
                scores, costs, "0", looked=True, complete=scores if until == 120 else (), ended=until < 120,
                endings=endings, seed=0,
            )  # fmt: skip
            if any(v.passed for v in found.verdicts.values()):
                wrong += 1
                break
    assert 0 < wrong / runs <= above(0.05, runs)


def test_the_budgets_end_proves_what_bets_would_not():
    scores = {"a": [0.0] * 11 + [1.0] * 13, "b": [1.0] * 23 + [0.0]}
    looked = [
        decide(scores, {"a": 1, "b": 2}, "a", looked=True, seed=0, **more).verdicts["b"]
        for more in ({}, {"ended": True}, {"ended": True, "endings": 1})
    ]
    midp = (1 + 0.5 * 12) / 2**12  # of 11 rows fixed and one broken
    assert [v.p for v in looked[1:]] == pytest.approx([midp / 0.4, midp / 0.2])
    assert looked[1].p < looked[2].p < looked[0].p


def test_a_cheaper_arm_that_is_worse_by_the_margin_passes_in_at_most_5_percent():
    runs, generator, passed = 250, np.random.default_rng(10), 0
    for _ in range(runs):
        scores, costs = named(draw(generator, [0.72, 0.70, 0.70], 150, rho=0.95), [10, 1, 1])
        found = decide(scores, costs, "0", seed=0)
        passed += any(v.passed for v in found.verdicts.values())
    assert 0 < passed / runs <= above(0.05, runs)


@pytest.mark.parametrize("n", [16, 40, 100])
@pytest.mark.parametrize("looked", [False, True])
def test_a_rare_and_large_loss_passes_in_at_most_5_percent(n, looked):
    """Few rows do not show it, and all the others are equal, or a little better."""
    runs, generator = 300, np.random.default_rng(n)
    options = {"looked": True, "complete": ("0", "1")} if looked else {}

    def decided(gain, mean, cost):
        """Rows gain as much as there is room for; some lose all instead, so that the arms differ by `mean`."""
        zero = generator.beta(0.6, 0.6, n)
        room = np.minimum(gain, 1 - zero)
        losing = (np.minimum(gain, 1 - generator.beta(0.6, 0.6, 100_000)).mean() - mean) / (0.5 + gain)
        arm = np.where(generator.random(n) < losing, 0.0, zero + room)
        scores = {"0": list(zero), "1": list(np.minimum(arm, 1.0))}
        return decide(scores, {"0": 1, "1": cost}, "0", binary=False, seed=0, **options).verdicts["1"]

    passed = sum(decided(0.0, -0.02, 0.5).passed for _ in range(runs))
    better = sum(decided(0.05, 0.0, 2).outcome == "better" for _ in range(runs))
    assert max(passed, better) / runs <= above(0.05, runs)


@pytest.mark.parametrize("score", [0.0, 0.4])
def test_rows_that_do_not_differ_prove_little_while_they_are_few(score):
    """Both arms once had 0.0 % of 16 rows, and the cheaper one was recommended as equal within 2 points."""
    for n, passed in ((5, False), (16, False), (100, False), (150, True)):
        found = decide({"0": [score] * n, "1": [score] * n}, {"0": 10, "1": 1}, "0", binary=False, seed=0)
        assert found.verdicts["1"].passed == passed
        assert found.verdicts["1"].low == pytest.approx(delta_interval(0, 0, n, 0.9).low, abs=1e-9)


def test_a_metric_of_a_narrow_range_loses_at_most_that():
    """A score such as chrF never falls from 1 to 0, and 40 rows with the same gain are enough."""
    wide, narrow = [0.0, 1.0] * 20, [0.5] * 40
    for zero, better in ((wide, False), (narrow, True)):
        found = decide(
            {"0": zero, "1": [min(1.0, s + 0.04) for s in zero]}, {"0": 1, "1": 2}, "0", binary=False, seed=0
        )
        assert (found.verdicts["1"].outcome == "better") == better


def test_an_equal_at_a_fiftieth_of_the_cost_is_recommended_once_a_loss_is_ruled_out():
    for n, equal in ((100, False), (200, True)):
        scores, costs = named([[0.0, 1.0] * (n // 2)] * 2, [50, 1])
        found = decide(scores, costs, "0", seed=0)
        v = found.verdicts["1"]
        assert (v.passed, v.outcome == "equivalent", found.recommended == "1") == (equal,) * 3
        assert (v.rows_needed is None) == equal
    assert decide(scores, {"0": 1, "1": 50}, "0", seed=0).recommended == "0"  # an equal that is dearer
    assert decide(scores, {"0": 1, "1": 0.95}, "0", seed=0).recommended == "0"  # costs about the same


def test_p_is_corrected_over_the_comparisons_with_the_incumbent_alone():
    scores, costs = named(draw(np.random.default_rng(2), [0.6, 0.75, 0.74, 0.6], 120), [1] * 4)
    found = decide(scores, costs, "0", seed=0)
    raw = {name: decide({"0": scores["0"], name: scores[name]}, costs, "0", seed=0).verdicts[name].p for name in "123"}
    rank = {name: i for i, name in enumerate(sorted(raw, key=raw.__getitem__))}
    running = 0.0
    for name in sorted(raw, key=raw.__getitem__):
        running = max(running, min(1, (3 - rank[name]) * raw[name]))
        assert found.verdicts[name].p == pytest.approx(running)


def test_an_arm_that_stopped_early_has_only_the_bets():
    matrix = draw(np.random.default_rng(5), [0.5, 0.8], 200)
    scores, costs = named(matrix)
    whole = decide(scores, costs, "0", looked=True, complete=("1",), seed=0).verdicts["1"]
    short = decide(scores | {"1": scores["1"][:60]}, costs, "0", looked=True, seed=0).verdicts["1"]
    assert (whole.n, short.n, short.method) == (200, 60, "betting")
    assert whole.p < short.p
    assert short.low < whole.low


def test_worse_and_equivalent_are_said():
    scores, costs = named(draw(np.random.default_rng(6), [0.8, 0.6], 300))
    assert decide(scores, costs, "0", seed=0).verdicts["1"].outcome == "worse"
    same, nearly = [0.0, 1.0] * 300, [0.0, 1.0] * 299 + [1.0, 0.0]
    found = decide({"a": same, "b": nearly}, {"a": 1, "b": 1}, "a", seed=0)
    assert (found.verdicts["b"].outcome, found.recommended) == ("equivalent", "a")


# ---- rows needed


@pytest.mark.parametrize(("effect", "discordance"), [(0.1, 0.2), (0.05, 0.15), (0.25, 0.35)])
def test_with_the_rows_needed_the_gate_finds_the_difference_in_about_4_of_5(effect, discordance):
    n = rows_needed(effect, discordance)
    probabilities = [(discordance + effect) / 2, (discordance - effect) / 2, 1 - discordance]
    counts = np.random.default_rng(0).multinomial(n, probabilities, 4000)
    power = np.mean([mcnemar_midp(fixed, broken) < 0.05 for fixed, broken, _ in counts.tolist()])
    assert power == pytest.approx(0.8, abs=0.04)


def test_what_is_unclear_needs_more_rows_and_a_larger_gain_fewer():
    needed = []
    for gain in (3, 5):
        base = [1.0] * 30 + [0.0] * 30
        arm = [0.0] * 5 + [1.0] * (25 + 5 + gain) + [0.0] * (25 - gain)
        v = decide({"a": base, "b": arm}, {"a": 1, "b": 2}, "a", seed=0).verdicts["b"]
        needed.append(v.rows_needed or 0)
        assert (v.outcome, v.delta) == ("unclear", pytest.approx(gain / 60))
        assert v.n + needed[-1] == rows_needed(gain / 60, (10 + gain + 1) / 62)
    assert needed[0] > needed[1] > 0


# ---- the choice


def test_the_cheapest_of_small_regret_is_taken_else_the_best():
    generator = np.random.default_rng(3)
    base = draw(generator, [0.4], 400)[0]
    best = np.where(generator.random(400) < 0.6, 1.0, base)
    near, far = best.copy(), best.copy()
    near[np.flatnonzero(best)[:1]] = 0
    far[np.flatnonzero(best)[:16]] = 0
    costs = {"zero": 0.1, "cheapest": 1, "cheap": 2, "best": 30}
    scores = {"zero": base, "cheapest": far, "cheap": near, "best": best}
    found = decide(scores, costs, "zero", seed=0)
    assert found.recommended == "cheap"
    assert found.best == "best"
    assert found.best_probability > 0.99
    assert found.regret["cheapest"] == pytest.approx(0.04, abs=0.005)
    assert found.chance_worse["cheapest"] > 0.9 > 0.05 > found.chance_worse["cheap"]
    assert decide(scores, costs, "zero", within=0.05, seed=0).recommended == "cheapest"
    assert decide(scores, costs, "zero", within=0.0, seed=0).recommended == "best"


def test_useless_arms_do_not_change_the_recommendation():
    generator, stays = np.random.default_rng(15), {0: 0, 15: 0}
    for _ in range(60):
        matrix = draw(generator, [0.65, 0.75, 0.82] + [0.65] * 15, 150)
        for k in stays:
            scores, costs = named(matrix[: 3 + k], [1, 0.5, 2] + [3] * k)
            stays[k] += decide(scores, costs, "0", seed=0).recommended == "0"
    assert stays[15] - stays[0] < 12


def test_earlier_rows_count_for_the_regret_alone():
    generator = np.random.default_rng(0)
    test = draw(generator, [0.5, 0.8, 0.8], 100)
    before = draw(generator, [0.5, 0.6, 0.9], 100)
    scores, costs = named(test, [1, 1, 1])
    plain = decide(scores, costs, "0", seed=0)
    both = decide(scores, costs, "0", earlier=named(before)[0], seed=0)
    assert both.verdicts == plain.verdicts
    assert both.regret["1"] > plain.regret["1"] + 0.05
    assert both.recommended == "2"


def test_regret_is_that_of_the_bayesian_bootstrap_of_scipy():
    matrix = draw(np.random.default_rng(1), [0.6, 0.7, 0.72], 80)
    found = decide(*named(matrix), "0", seed=0)
    weights = scipy.stats.dirichlet.rvs(np.ones(80), 20_000, random_state=3)
    means = weights @ matrix.T
    expected = (means.max(1, keepdims=True) - means).mean(0)
    for arm in range(3):
        assert found.regret[str(arm)] == pytest.approx(expected[arm], abs=0.004)


def test_a_short_arm_is_placed_by_its_difference_on_common_rows():
    """The first rows are easy: alone, the mean of the arm that stopped there would be far too high."""
    long = np.array([1.0] * 60 + [0.0] * 140)
    short = long[:60].copy()
    short[::4] = 0
    scores = {"zero": long * 0, "long": long, "short": short}
    found = decide(scores, dict.fromkeys(scores, 1), "zero", seed=0)
    assert found.best == "long"
    assert found.regret["short"] == pytest.approx(0.25, abs=0.01)


# ---- what needs no further rows


def test_chance_better_is_the_dirichlet_posteriors():
    difference = np.array([1.0] * 14 + [-1.0] * 9 + [0.0] * 40)
    shares = scipy.stats.dirichlet.rvs([14 + 1 / 3, 9 + 1 / 3, 40 + 1 / 3], 200_000, random_state=1)
    for margin in (-0.05, 0.0, 0.05):
        expected = np.mean(shares[:, 0] - shares[:, 1] > margin)
        assert chance_better(difference, margin) == pytest.approx(expected, abs=0.01)


def test_expected_gain_is_the_mean_of_the_positive_part():
    difference = np.array([1.0] * 14 + [-1.0] * 9 + [0.0] * 40)
    shares = scipy.stats.dirichlet.rvs([14 + 1 / 3, 9 + 1 / 3, 40 + 1 / 3], 200_000, random_state=1)
    for margin in (-0.05, 0.0, 0.1):
        expected = np.maximum(0, shares[:, 0] - shares[:, 1] - margin).mean()
        assert expected_gain(difference, margin) == pytest.approx(expected, abs=0.002)


def test_what_is_dearer_and_cannot_be_better_by_the_margin_is_futile():
    leader, arm = draw(np.random.default_rng(3), [0.85, 0.7], 150)
    assert futile(leader, arm)
    assert not futile(leader[:15], arm[:15])
    nearly = np.where(np.arange(150) % 50 == 0, 0.0, leader)
    assert futile(leader, nearly, margin=0.03)
    assert not futile(leader, nearly, margin=0.03, cheaper=True)


def test_a_large_gain_is_settled_after_few_rows_and_a_small_one_is_not():
    large, small = draw(np.random.default_rng(0), [0.2, 0.86], 48), draw(np.random.default_rng(0), [0.7, 0.75], 48)
    assert settled(*named(large), "0", seed=0) == {"0", "1"}
    assert settled(*named(small), "0", seed=0) == set()


def test_arms_that_passed_go_on_without_the_incumbent_until_the_choice_is_clear():
    matrix = draw(np.random.default_rng(2), [0.15, 0.9, 0.88, 0.3], 80)
    found = settled(*named(matrix, [1, 1, 1, 1]), "0", within=0.001, seed=0)
    assert found == {"0", "3"}  # the incumbent is beaten; the last is futile
    assert settled(*named(matrix, [1, 1, 1, 1]), "0", within=0.2, seed=0) == {"0", "1", "2", "3"}


# ---- thin evidence


@pytest.mark.parametrize("z", [0.5, 1.7, 2.5, 4.0, 12.0])
def test_shrunken_is_the_posterior_mean(z):
    def weight(truth):
        prior = sum(
            p * scipy.stats.norm.pdf(truth, 0, sd) for p, sd in ((0.32, 0.61), (0.31, 1.42), (0.30, 2.16), (0.07, 5.64))
        )
        return prior * scipy.stats.norm.pdf(z, truth, 1)

    total = scipy.integrate.quad(weight, -40, 40, points=[0, z])[0]
    mean = scipy.integrate.quad(lambda t: t * weight(t), -40, 40, points=[0, z])[0] / total
    assert shrunken(0.02 * z, 0.02) == pytest.approx(0.02 * mean, rel=1e-5)


def test_shrunken_without_noise_or_far_beyond_it_changes_nothing():
    assert shrunken(0.3, 0.0) == 0.3
    assert shrunken(0.9, 1e-4) == pytest.approx(0.9, rel=0.05)


def test_a_report_gets_the_shrunken_gain_where_evidence_is_thin():
    for n, thin in ((40, True), (400, False)):
        base = [0.0] * n
        base[: n // 2] = [1.0] * (n // 2)
        arm = list(base)
        arm[-n // 5 :] = [1.0] * (n // 5)
        arm[: n // 20] = [0.0] * (n // 20)
        v = decide({"a": base, "b": arm}, {"a": 1, "b": 1}, "a", seed=0).verdicts["b"]
        c = Comparison.judged("a", "b", "accuracy", v)
        assert (c.outcome, c.n, c.delta, c.p) == ("better", n, pytest.approx(0.15), v.p)
        assert v.shrunken == pytest.approx(shrunken(0.15, math.sqrt((0.25 - 0.15**2) / n)))
        assert c.shrunken == (v.shrunken if thin else None)
        assert v.shrunken < v.delta


@pytest.mark.parametrize(
    ("scores", "costs"),
    [
        ({"a": [1.0, 2.0], "b": [0.0, 1.0]}, {"a": 1, "b": 1}),
        ({"a": [1.0, float("nan")], "b": [0.0, 1.0]}, {"a": 1, "b": 1}),
        ({"a": [], "b": [0.0, 1.0]}, {"a": 1, "b": 1}),
        ({"a": [1.0], "b": [1.0]}, {"a": 1}),
    ],
)
def test_refused(scores, costs):
    with pytest.raises(ValueError, match=r"must|need"):
        decide(scores, costs, "a", seed=0)
