"""Every closed form against scipy or statsmodels to 1e-12; every interval's coverage by counting."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from rung.evaluation import statistics
from rung.evaluation.statistics import (
    compare,
    delta_interval,
    holm,
    is_binary,
    mcnemar_exact,
    mean_interval,
    paired_bootstrap,
    score_low,
    score_p,
    sign_test,
    wilson,
)


def close(value: float) -> object:
    return pytest.approx(value, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 10, 77, 600])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.999])
def test_wilson_equals_statsmodels(n: int, level: float) -> None:
    for successes in {0, 1, n // 3, n // 2, n - 1, n}:
        low, high = proportion_confint(successes, n, alpha=1 - level, method="wilson")
        assert wilson(successes, n, level) == (close(max(0.0, low)), close(min(1.0, high)))


def test_wilson_reaches_0_and_1_exactly() -> None:
    assert wilson(0, 30).low == 0.0
    assert wilson(30, 30).high == 1.0


def test_mcnemar_equals_statsmodels_and_scipy() -> None:
    for fixed in [0, 1, 2, 5, 9, 23, 60, 200]:
        for broken in [0, 1, 3, 9, 24, 61, 187]:
            p = mcnemar_exact(fixed, broken)
            assert p == close(mcnemar([[3, fixed], [broken, 4]], exact=True).pvalue)
            if fixed + broken:
                assert p == close(scipy.stats.binomtest(fixed, fixed + broken).pvalue)
    assert mcnemar_exact(0, 0) == 1.0
    assert f"{mcnemar_exact(23, 9):.3f}" == "0.020"


def test_sign_test_equals_scipy() -> None:
    for wins, losses in [(0, 0), (0, 5), (5, 0), (12, 3), (3, 12), (700, 640), (5000, 4800)]:
        expected = scipy.stats.binom.sf(wins - 1, wins + losses, 0.5)
        assert sign_test(wins, losses) == pytest.approx(expected, rel=1e-11)
    with pytest.raises(ValueError, match="negative"):
        sign_test(-1, 2)


def score_statistic(fixed: int, broken: int, n: int, delta: float) -> float:
    """Tango's statistic with the constrained maximum likelihood found by a general optimizer."""

    def minus_log_likelihood(p_broken: float) -> float:
        p_fixed = p_broken + delta
        rest = 1 - p_fixed - p_broken
        counts = ((fixed, p_fixed), (broken, p_broken), (n - fixed - broken, rest))
        return -sum(count * math.log(max(p, 1e-300)) for count, p in counts if count)

    bounds = (max(0.0, -delta), (1 - delta) / 2)
    p_broken = scipy.optimize.minimize_scalar(
        minus_log_likelihood, bounds=bounds, method="bounded", options={"xatol": 1e-12}
    ).x
    return (fixed - broken - n * delta) / math.sqrt(n * (2 * p_broken + delta - delta**2))


@pytest.mark.parametrize(
    ("fixed", "broken", "n"), [(23, 9, 350), (9, 23, 350), (40, 20, 160), (5, 1, 30), (3, 3, 10), (12, 2, 50)]
)
def test_tango_inverts_the_score_test(fixed: int, broken: int, n: int) -> None:
    z = scipy.stats.norm.ppf(0.975)
    interval = delta_interval(fixed, broken, n)
    assert score_statistic(fixed, broken, n, interval.low) == pytest.approx(z, abs=1e-5)
    assert score_statistic(fixed, broken, n, interval.high) == pytest.approx(-z, abs=1e-5)


def test_tango_published_example() -> None:
    """Airway hyper-responsiveness, Bentur et al. 2009, in Fagerland, Lydersen & Laake: -0.517 to -0.026."""
    low, high = delta_interval(1, 7, 21)
    assert (round(low, 3), round(high, 3)) == (-0.517, -0.026)


@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_bounded_scores_have_tangos_interval_where_they_are_0_and_1(alpha: float) -> None:
    for fixed, broken, n in itertools.product((0, 1, 5), (0, 2, 7), (7, 12, 40)):
        difference = np.array([1.0] * fixed + [-1.0] * broken + [0.0] * (n - fixed - broken))[:n]
        fixed, broken = int((difference > 0).sum()), int((difference < 0).sum())
        tango = delta_interval(fixed, broken, n, 1 - 2 * alpha).low
        assert score_low(difference, alpha) == pytest.approx(tango, abs=1e-9)
        assert (score_p(difference) < alpha) == (tango > 0)


@pytest.mark.parametrize("seed", range(6))
def test_the_score_has_the_variance_of_the_likeliest_distribution(seed: int) -> None:
    """Scipy maximizes the likelihood over the differences and -1, which was not seen."""
    generator = np.random.default_rng(seed)
    seen = generator.choice([0.0, 0.05, 0.3, -0.4, 0.9], 12, p=[0.3, 0.4, 0.2, 0.05, 0.05])
    mean = float(seen.mean()) - 0.1
    support = np.append(seen, -1.0)
    found = scipy.optimize.minimize(
        lambda w: -np.log(np.maximum(w[:-1], 1e-12)).sum(), np.full(13, 1 / 13), method="SLSQP", bounds=[(0, 1)] * 13,
        constraints=[{"type": "eq", "fun": lambda w: w.sum() - 1}, {"type": "eq", "fun": lambda w: w @ support - mean}],
        options={"ftol": 1e-13, "maxiter": 1000},
    )  # fmt: skip
    assert found.success
    variance = found.x @ support**2 - mean**2
    expected = (seen.mean() - mean) / math.sqrt(variance / 12)
    assert statistics._score(seen, mean) == pytest.approx(expected, rel=1e-3)


def test_the_bounded_interval_at_its_edges() -> None:
    assert score_low(np.full(4, -1.0), 0.05) == -1.0
    assert score_p(np.full(4, -1.0)) == score_p(np.zeros(4)) == 1.0
    assert score_low(np.ones(100), 0.05) == pytest.approx(delta_interval(100, 0, 100, 0.9).low, abs=1e-9)


def test_tango_edges() -> None:
    z2 = scipy.stats.norm.ppf(0.975) ** 2
    assert delta_interval(0, 0, 50) == (close(-z2 / (50 + z2)), close(z2 / (50 + z2)))
    assert delta_interval(5, 0, 5).high == 1.0
    assert delta_interval(0, 21, 21).low == -1.0
    for fixed in range(8):
        for broken in range(8 - fixed):
            low, high = delta_interval(fixed, broken, 7)
            assert -1 <= low <= (fixed - broken) / 7 <= high <= 1
            mirrored = delta_interval(broken, fixed, 7)
            assert (-mirrored.high, -mirrored.low) == (low, high)


@pytest.mark.parametrize(
    ("n", "p_fixed", "p_broken"), [(40, 0.1, 0.1), (40, 0.3, 0.1), (60, 0.15, 0.05), (60, 0.05, 0.05), (60, 0.4, 0.2)]
)
def test_tango_coverage_summed_over_all_outcomes(n: int, p_fixed: float, p_broken: float) -> None:
    coverage = 0.0
    for fixed in range(n + 1):
        for broken in range(n + 1 - fixed):
            counts = [fixed, broken, n - fixed - broken]
            probability = scipy.stats.multinomial.pmf(counts, n, [p_fixed, p_broken, 1 - p_fixed - p_broken])
            if probability > 1e-7:
                low, high = delta_interval(fixed, broken, n)
                coverage += probability * (low <= p_fixed - p_broken <= high)
    assert 0.935 < coverage < 0.975


@pytest.mark.parametrize(("fixed", "broken", "n"), [(-1, 0, 5), (3, 3, 5), (0, 0, 0)])
def test_delta_interval_refuses(fixed: int, broken: int, n: int) -> None:
    with pytest.raises(ValueError, match="fixed"):
        delta_interval(fixed, broken, n)


def skewed(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    a = generator.beta(0.5, 2, n)
    return a, np.clip(a + generator.exponential(0.1, n) - 0.05, 0, 1)


@pytest.mark.parametrize(("n", "level"), [(20, 0.95), (150, 0.9)])
def test_bootstrap_interval_equals_scipy(n: int, level: float) -> None:
    """The same generator draws the same resamples, so BCa agrees to rounding."""
    a, b = skewed(n, n)
    found = paired_bootstrap(a, b, level=level, resamples=4000, seed=11)
    expected = scipy.stats.bootstrap(
        (b - a,), np.mean, n_resamples=4000, confidence_level=level, rng=np.random.default_rng(11), method="BCa"
    ).confidence_interval
    assert (found.low, found.high) == (close(expected.low), close(expected.high))
    assert found.delta == close((b - a).mean())


@pytest.mark.parametrize("n", [2, 5, 11])
def test_exact_sign_flip_equals_scipy(n: int) -> None:
    a, b = skewed(n, n)
    expected = scipy.stats.permutation_test(
        (b, a), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", vectorized=True
    )
    assert paired_bootstrap(a, b, seed=0).p == close(expected.pvalue)


def test_sampled_sign_flip_is_near_the_normal_test() -> None:
    a, b = skewed(4, 400)
    b = b - (b - a).mean() + 0.004
    difference = b - a
    z = difference.sum() / math.sqrt((difference**2).sum())
    assert paired_bootstrap(a, b, seed=0).p == pytest.approx(2 * scipy.stats.norm.sf(abs(z)), abs=0.02)


def test_sign_flip_ignores_rows_without_a_difference() -> None:
    a, b = skewed(1, 9)
    same = np.full(200, 0.3)
    assert paired_bootstrap(np.append(a, same), np.append(b, same), seed=0).p == paired_bootstrap(a, b, seed=0).p


def test_bootstrap_is_determined_by_its_seed_and_not_by_its_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = skewed(2, 120)
    first = paired_bootstrap(a, b, seed=5, resamples=2000)
    assert paired_bootstrap(list(a), list(b), seed=5, resamples=2000) == first
    assert paired_bootstrap(a, b, seed=6, resamples=2000) != first
    monkeypatch.setattr(statistics, "_CHUNK", 1200)
    assert paired_bootstrap(a, b, seed=5, resamples=2000) == first


def test_bootstrap_of_constant_differences() -> None:
    found = paired_bootstrap([0.25, 0.5, 0.25], [0.5, 0.75, 0.5], seed=0)
    assert (found.delta, found.low, found.high, found.p) == (0.25, 0.25, 0.25, 0.25)
    assert paired_bootstrap([0.5] * 30, [0.5] * 30, seed=0).p == 1.0


def test_bootstrap_coverage_and_level() -> None:
    generator = np.random.default_rng(9)
    runs, n, covered, rejected = 400, 80, 0, 0
    for run in range(runs):
        a = generator.beta(0.5, 2, n)
        b = generator.beta(0.5, 2, n)
        found = paired_bootstrap(a, b, resamples=600, seed=run)
        covered += found.low <= 0 <= found.high
        rejected += found.p <= 0.05
    assert covered / runs > 0.92
    assert rejected / runs <= scipy.stats.binom.ppf(0.999, runs, 0.05) / runs


def test_mean_interval() -> None:
    assert mean_interval([1.0, 0.0, 1.0, 1.0], seed=0) == wilson(3, 4)
    assert mean_interval([1.0] * 20, seed=0) == wilson(20, 20)
    scores, _ = skewed(3, 90)
    expected = scipy.stats.bootstrap((scores,), np.mean, n_resamples=10_000, rng=np.random.default_rng(1), method="BCa")
    found = mean_interval(scores, seed=1)
    assert found == (close(expected.confidence_interval.low), close(expected.confidence_interval.high))


def test_holm_equals_statsmodels() -> None:
    generator = np.random.default_rng(0)
    for m in (1, 2, 7, 30):
        ps = (generator.random(m) ** 3).round(2).tolist()  # with ties
        assert holm(ps) == [close(p) for p in multipletests(ps, method="holm")[1]]
    assert holm([]) == []
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        holm([0.2, 1.2])


def test_compare_counts_binary_scores_exactly() -> None:
    a = [0.0] * 23 + [1.0] * 9 + [1.0] * 300 + [0.0] * 18
    b = [1.0] * 23 + [0.0] * 9 + [1.0] * 300 + [0.0] * 18
    found = compare(a, b, seed=0)
    assert (found.fixed, found.broken, found.n, found.method) == (23, 9, 350, "mcnemar-exact")
    assert found.delta == close(0.04)
    assert (found.low, found.high) == delta_interval(23, 9, 350)
    assert found.p == mcnemar_exact(23, 9)
    assert compare(a, b, seed=1) == found
    back = compare(b, a, seed=0)
    assert (back.delta, back.low, back.high, back.p) == (-found.delta, -found.high, -found.low, found.p)


def test_compare_bootstraps_other_scores() -> None:
    a, b = skewed(8, 60)
    found = compare(a, b, seed=3)
    expected = paired_bootstrap(a, b, seed=3)
    assert (found.delta, found.low, found.high, found.p) == (expected.delta, expected.low, expected.high, expected.p)
    assert (found.fixed, found.broken) == (int((b > a).sum()), int((b < a).sum()))
    assert (found.n, found.method) == (60, "paired-bootstrap")


def test_is_binary() -> None:
    assert is_binary([0, 1, 1.0, True])
    assert not is_binary([0.0, 0.5])


@pytest.mark.parametrize(
    ("a", "b", "match"),
    [
        ([1.0], [1.0, 0.0], "same rows"),
        ([], [], "at least one"),
        ([0.5, float("nan")], [0.5, 0.5], r"a\[1\] is not finite"),
        ([0.5], [float("inf")], r"b\[0\] is not finite"),
    ],
)
def test_compare_refuses(a: list[float], b: list[float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        compare(a, b, seed=0)


@pytest.mark.parametrize(("successes", "n", "level"), [(3, 2, 0.95), (-1, 2, 0.95), (0, 0, 0.95), (1, 2, 1.0)])
def test_wilson_refuses(successes: int, n: int, level: float) -> None:
    with pytest.raises(ValueError, match=r"successes|level"):
        wilson(successes, n, level)


def test_resamples_must_be_positive() -> None:
    with pytest.raises(ValueError, match="resamples"):
        paired_bootstrap([0.1, 0.2], [0.3, 0.7], resamples=0, seed=0)
