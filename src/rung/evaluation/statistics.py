"""Statistics: intervals, paired tests, and the correction for many comparisons.

Every comparison is paired: `a` and `b` are scores of two artifacts on the same rows, and the difference is always
score(b) - score(a). A row is *fixed* where b scores higher than a, and *broken* where it scores lower.

Where all scores are 0 or 1, tests are exact (McNemar) and intervals are score intervals (Wilson for one proportion,
Tango for a difference of paired ones). Otherwise intervals are bootstrapped (BCa) and the test flips signs. The exact
test and the score interval answer slightly different questions, so in a borderline case p may be just above 0.05 while
the interval just excludes 0; decisions use p.

Random numbers come from numpy's PCG64 seeded by the caller: the same scores and seed give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Scores = Sequence[float] | npt.NDArray[np.floating]
TestMethod = Literal["mcnemar-exact", "paired-bootstrap"]

_NORMAL = NormalDist()
_CHUNK = 1 << 21  # random draws held at once: 16 MiB of int64 indices, 16 MiB of gathered scores


class Interval(NamedTuple):
    """A confidence interval, both ends included."""

    low: float
    high: float


class BootstrapResult(NamedTuple):
    """Mean difference b - a, its BCa interval, and the two-sided p-value of the sign-flip test."""

    delta: float
    low: float
    high: float
    p: float


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """`b` against `a` on the same `n` rows: delta = mean(b) - mean(a), and how it was tested."""

    delta: float
    low: float
    high: float
    p: float
    fixed: int
    broken: int
    n: int
    method: TestMethod


# ---- one artifact: how good is it?


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Compute the score interval of a proportion.

    It is never empty and never outside [0, 1], even for 0 or n successes.
    Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927).

    Raises:
        ValueError: `n` is below 1 or `successes` is outside 0..n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"need 0 <= successes <= n and n >= 1, got {successes} of {n}")
    z = _z(level)
    centre = (successes + z * z / 2) / (n + z * z)
    half = z * math.sqrt(successes * (n - successes) / n + z * z / 4) / (n + z * z)
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Interval(low, high)


def mean_interval(scores: Scores, level: float = 0.95, *, seed: int, resamples: int = 10_000) -> Interval:
    """Compute the interval of a mean score: Wilson's where all scores are 0 or 1, else the BCa bootstrap's.

    If all scores are the same but neither 0 nor 1, the interval has width zero: the bootstrap sees no spread. The ends
    lie in [0, 1], as means do.

    Raises:
        ValueError: there are no scores, or one is not finite.
    """
    values = _vector(scores, "scores")
    if is_binary(values):
        return wilson(int(values.sum()), len(values), level)
    low, high = _bca(values, level, resamples, seed)
    return Interval(min(1.0, max(0.0, low)), min(1.0, max(0.0, high)))


def is_binary(scores: Scores) -> bool:
    """Tell whether every score is exactly 0 or 1."""
    values = np.asarray(scores)
    return bool(np.all((values == 0) | (values == 1)))


# ---- two artifacts on the same rows, scores 0 or 1


def mcnemar_exact(fixed: int, broken: int) -> float:
    """Compute the two-sided p-value of McNemar's exact test.

    If the two are equally good, each row on which they disagree is fixed or broken with probability 1/2;
    p is twice the smaller tail of Binomial(fixed + broken, 1/2), at most 1. Computed in integers, rounded once.
    McNemar, Psychometrika 12 (1947).
    """
    return min(1.0, 2 * sign_test(max(fixed, broken), min(fixed, broken)))


@lru_cache(maxsize=65_536)
def sign_test(wins: int, losses: int) -> float:
    """Compute the one-sided exact p-value P(X >= wins), X ~ Binomial(wins + losses, 1/2).

    Raises:
        ValueError: a count is negative.
    """
    if wins < 0 or losses < 0:
        raise ValueError(f"counts must not be negative, got {wins} and {losses}")
    n = wins + losses
    term = tail = 1  # C(n, 0); by symmetry P(X >= wins) = P(X <= losses)
    for k in range(1, losses + 1):
        term = term * (n - k + 1) // k
        tail += term
    return tail / (1 << n)  # Python divides big integers with one correct rounding


def mcnemar_midp(fixed: int, broken: int) -> float:
    """Compute the one-sided mid-p-value of McNemar's test: P(X > fixed) + P(X = fixed) / 2, X as in `mcnemar_exact`.

    The exact test stays far below its level where few rows differ; the mid-p test keeps its level in nearly all cases
    and has more power.
    Fagerland, Lydersen & Laake, The McNemar test for binary matched-pairs data, BMC Med. Res. Methodology 13 (2013).
    """
    return (sign_test(fixed, broken) + (sign_test(fixed + 1, broken - 1) if broken else 0.0)) / 2


def delta_interval(fixed: int, broken: int, n: int, level: float = 0.95) -> Interval:
    """Compute Tango's score interval of (fixed - broken) / n, a difference of two paired proportions.

    The ends are the differences at which the score statistic, with its variance under that difference, equals the
    normal quantile. Unlike the Wald interval it stays inside [-1, 1], has width even without disagreements, and
    covers close to its level for small n.
    Tango, Equivalence test and confidence interval for the difference in proportions for the paired-sample design,
    Statistics in Medicine 17 (1998); recommended by Fagerland, Lydersen & Laake, Statistics in Medicine 33 (2014).

    Raises:
        ValueError: the counts are negative, or more rows changed than there are.
    """
    if n < 1 or fixed < 0 or broken < 0 or fixed + broken > n:
        raise ValueError(f"need fixed + broken <= n and n >= 1, got {fixed} + {broken} of {n}")
    low = -1.0 if broken == n else _tango_low(fixed, broken, n, _z(level))
    high = 1.0 if fixed == n else -_tango_low(broken, fixed, n, _z(level))
    return Interval(low, high)


def _tango_low(fixed: int, broken: int, n: int, z: float) -> float:
    """Bisect for the difference, below the observed one, whose score statistic equals z."""

    def excess(delta: float) -> float:
        return fixed - broken - n * delta - z * math.sqrt(_tango_variance(fixed, broken, n, delta))

    return _falls_to_zero(excess, -1.0, (fixed - broken) / n)


def _tango_variance(fixed: int, broken: int, n: int, delta: float) -> float:
    """Variance of fixed - broken if the true difference is delta: P(broken) is its constrained maximum likelihood."""
    b = (2 * n - fixed + broken) * delta - fixed - broken
    c = -broken * delta * (1 - delta)
    p_broken = (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)
    return max(0.0, n * (2 * p_broken + delta * (1 - delta)))


# ---- two artifacts on the same rows, scores in [0, 1]


def score_p(difference: Array) -> float:
    """Compute the one-sided p-value of "the mean of these paired differences is at most 0"; see `score_low`."""
    return 1.0 if difference.mean() <= 0 else 1 - _NORMAL.cdf(_score(difference, 0.0))


def score_low(difference: Array, alpha: float) -> float:
    """Compute the lower end, at a one-sided level, of the mean of paired differences that lie in [-1, 1].

    This is Tango's interval for any bounded scores, and equals it for scores of 0 and 1: the variance under a supposed
    mean is that of the likeliest distribution with this mean on the differences seen and on -1. So rows that do not
    differ prove little while they are few, because a rare and large loss would not have been seen. Tests that see
    the differences alone, as sign flips do, then claim too much.
    Tango (see `delta_interval`); Owen, Empirical likelihood ratio confidence intervals for a single functional,
    Biometrika 75 (1988).

    Example:
        >>> round(score_low(np.zeros(16), 0.05), 3)
        -0.145
    """
    wanted = _NORMAL.inv_cdf(1 - alpha)
    return _falls_to_zero(lambda mean: _score(difference, mean) - wanted, -1.0, float(difference.mean()))


def _score(difference: Array, mean: float) -> float:
    """How many standard errors, under a supposed true mean, the differences lie above it."""
    weights, rest = _likeliest(difference, mean)
    variance = float(weights @ difference**2) + rest - mean**2
    return (float(difference.mean()) - mean) / math.sqrt(max(variance, 1e-300) / len(difference))


def _likeliest(difference: Array, mean: float) -> tuple[Array, float]:
    """The probabilities of the differences, and of -1 beside them, that are the likeliest ones with this mean."""
    n = len(difference)
    if difference.min() > -1:
        weights = (1 + mean) / (n * (1 + difference))
        if (rest := 1 - float(weights.sum())) >= 0:
            return weights, rest
    over = difference - mean

    def excess(slope: float) -> float:
        return float((over / (n + slope * over)).sum())

    weights = 1 / (n + _falls_to_zero(excess, 0.0, n / float(-over.min())) * over)
    return weights / weights.sum(), 0.0


# ---- two artifacts on the same rows, any scores


def paired_bootstrap(
    a: Scores, b: Scores, *, level: float = 0.95, resamples: int = 10_000, seed: int
) -> BootstrapResult:
    """Compute the mean difference b - a with a BCa bootstrap interval and a sign-flip p-value.

    The interval is bias-corrected and accelerated: second-order accurate for skewed differences (Efron, Better
    bootstrap confidence intervals, JASA 82, 1987). The p-value is two-sided: if a and b were exchangeable, each
    row's difference could as well have had the other sign. With at most log2(resamples) rows that differ, all sign
    patterns are counted and p is exact. Otherwise `resamples` random patterns are drawn, and the observed one is added
    to both counts, so that p is never 0 and the test keeps its level (Phipson & Smyth 2010). If all differences are the
    same, the interval has width zero; p still shows how little a few rows prove.

    Raises:
        ValueError: a and b differ in length, are empty, or hold a value that is not finite.
    """
    difference = _difference(a, b)
    low, high = _bca(difference, level, resamples, seed)
    return BootstrapResult(float(difference.mean()), low, high, _sign_flip(difference, resamples, seed))


def compare(
    a_scores: Scores, b_scores: Scores, *, seed: int, level: float = 0.95, resamples: int = 10_000
) -> PairedComparison:
    """Compare b with the incumbent a on the same rows, exactly where all scores are 0 or 1, else by resampling.

    `seed` and `resamples` are those of the bootstrap and the sign flips, without effect on 0/1 scores.

    Raises:
        ValueError: the two differ in length, are empty, or hold a value that is not finite.
    """
    difference = _difference(a_scores, b_scores)
    n, fixed, broken = len(difference), int((difference > 0).sum()), int((difference < 0).sum())
    if is_binary(a_scores) and is_binary(b_scores):
        low, high = delta_interval(fixed, broken, n, level)
        p = mcnemar_exact(fixed, broken)
        return PairedComparison((fixed - broken) / n, low, high, p, fixed, broken, n, "mcnemar-exact")
    result = paired_bootstrap(a_scores, b_scores, level=level, resamples=resamples, seed=seed)
    return PairedComparison(*result, fixed, broken, n, "paired-bootstrap")


def _bca(values: Array, level: float, resamples: int, seed: int) -> Interval:
    """BCa interval of the mean. For a mean the jackknife has a closed form, so the acceleration costs nothing."""
    mean = float(values.mean())
    centred = values - mean
    if not np.any(values != values[0]):
        return Interval(float(values[0]), float(values[0]))
    generator = np.random.default_rng(seed)
    n = len(values)
    chunks = [values[generator.integers(0, n, (rows, n))].mean(axis=1) for rows in _chunks(resamples, n)]
    means = np.concatenate(chunks)
    below = (int((means < mean).sum()) + int((means <= mean).sum())) / (2 * resamples)
    # If all resamples fall on one side of the mean, half a resample keeps the bias finite.
    bias = _NORMAL.inv_cdf(min(max(below, 0.5 / resamples), 1 - 0.5 / resamples))
    acceleration = float((centred**3).sum() / (6 * (centred**2).sum() ** 1.5))
    z = _z(level)
    shares = [_NORMAL.cdf(bias + (bias + q) / (1 - acceleration * (bias + q))) for q in (-z, z)]
    low, high = np.quantile(means, shares)
    return Interval(float(low), float(high))


def _sign_flip(difference: Array, resamples: int, seed: int) -> float:
    """Two-sided p-value of the sum of differences under random signs. Rows without a difference do not matter."""
    size = np.abs(difference[difference != 0])
    # Rounding makes equal sums differ in their last bits: count them as equal.
    bar = abs(float(difference.sum())) * (1 - 1e-12) - 1e-15
    if len(size) < 60 and 2 ** len(size) <= resamples:
        patterns = (np.arange(2 ** len(size))[:, None] >> np.arange(len(size))) & 1
        return float((np.abs((2 * patterns - 1) @ size) >= bar).mean())
    generator = np.random.default_rng([seed, 1])  # its own stream: independent of the bootstrap's
    beyond = 0
    for rows in _chunks(resamples, len(size)):
        signs = generator.integers(0, 2, (rows, len(size)), dtype=np.int8)
        beyond += int((np.abs(2 * (signs @ size) - size.sum()) >= bar).sum())
    return (beyond + 1) / (resamples + 1)


def subset_means(difference: Scores, *, resamples: int = 10_000, seed: int) -> Array:
    """Compute the sorted means of the non-empty subsets of paired differences, or of random ones; empty ones are -inf.

    They are the sign-flip test for every possible mean difference at once: flipping the signs of a subset raises the
    sum of the differences from `d` exactly where the subset's mean is below `d`. So the one-sided p-value of "the mean
    is at most d" is (1 + number of means <= d) / (1 + number of means), and a mean of the right rank is the end of the
    confidence interval that agrees with it.
    Hartigan, Using subsample values as typical values, JASA 64 (1969).
    """
    values = _vector(difference, "difference")
    n = len(values)
    if n < 60 and 2**n <= resamples:
        chosen = (np.arange(1, 2**n)[:, None] >> np.arange(n)) & 1
        return np.sort(_subset_means(values, chosen.astype(np.int8)))
    generator = np.random.default_rng([seed, 2])
    means = [_subset_means(values, generator.integers(0, 2, (k, n), dtype=np.int8)) for k in _chunks(resamples, n)]
    return np.sort(np.concatenate(means))


def _subset_means(values: Array, chosen: npt.NDArray[np.int8]) -> Array:
    count = chosen.sum(axis=1, dtype=np.int64)
    means = np.where(count > 0, chosen @ values / np.maximum(count, 1), -np.inf)
    # Rounding must not tell a subset whose differences cancel from zero.
    return np.where(np.abs(means) < 1e-12, 0.0, means)


# ---- many comparisons


def holm(ps: Sequence[float]) -> list[float]:
    """Adjust p-values by Holm's step-down method, in the order given.

    Comparing the results with alpha bounds the probability of any false positive by alpha, for any dependence.
    Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6 (1979).

    Raises:
        ValueError: a value is outside [0, 1].
    """
    if not all(0 <= p <= 1 for p in ps):
        raise ValueError(f"p-values must lie in [0, 1], got {list(ps)}")
    adjusted = [0.0] * len(ps)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        running = max(running, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = running
    return adjusted


def _falls_to_zero(excess: Callable[[float], float], low: float, high: float) -> float:
    """Bisect for the place at which a falling function is 0."""
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            return middle
        if excess(middle) > 0:
            low = middle
        else:
            high = middle


def _z(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    return _NORMAL.inv_cdf((1 + level) / 2)


def _vector(scores: Scores, name: str) -> Array:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"{name} must be a list of at least one number")
    if not np.isfinite(values).all():
        raise ValueError(f"{name}[{int(np.argmin(np.isfinite(values)))}] is not finite")
    return values


def _difference(a: Scores, b: Scores) -> Array:
    first, second = _vector(a, "a"), _vector(b, "b")
    if len(first) != len(second):
        raise ValueError(f"paired scores need the same rows: a has {len(first)}, b has {len(second)}")
    return second - first


def _chunks(resamples: int, width: int) -> Iterator[int]:
    """Split the resamples so that one chunk draws at most about `_CHUNK` numbers."""
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    step = max(1, _CHUNK // max(1, width))
    for start in range(0, resamples, step):
        yield min(step, resamples - start)
