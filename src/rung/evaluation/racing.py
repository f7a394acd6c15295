"""Races over a paired score matrix: compare many candidates without answering every row with each.

All arms answer the same rows in one fixed order (`race_order`), so that the rows' difficulty cancels. There are two
ways to race, and every part of Rung that compares candidates uses one of them:

`eliminate` drops by evidence, for few arms that are costly to make. At each of the `looks`, the arms that another one
clearly beats are dropped; the rows after it cost nothing for them. This is racing (Maron & Moore, Hoeffding races, NIPS
1993; Mnih, Szepesvari & Audibert, Empirical Bernstein stopping, ICML 2008).

With rows drawn independently, the arm with the best expected score is dropped as proven worse with probability at most
alpha, for any number of arms, looks and ties, and any dependence between the arms' scores. The test is by betting
(Waudby-Smith & Ramdas, Estimating means of bounded random variables by betting, JRSS B 86, 2024). Against every arm a
gambler bets row by row that the arm which led on the rows before is better. The choice of the leader knows only earlier
rows, so for the best arm the capital is a supermartingale, and it ever reaches 1/alpha with probability at most alpha
(Ville). Nothing is shared among arms: neither their number nor the number of looks matters. The bound is exact for arms
that are made without looking at these rows. For arms that later stages build on the leader it is simulated (the tests).

* Scores 0 or 1: bets on the sign of each difference, a mixture over how often the other arm wins (a sequential McNemar
  test: Robbins, Statistical methods related to the law of the iterated logarithm, 1970).
* Other scores in [0, 1]: adaptive bets on the difference. A paired t-test would need fewer rows, but its level is only
  approximate: where an arm loses a little on most rows and wins much on a few, 20 rows without a win make it drop the
  best arm far more often than alpha (the tests show it).

Where arms lie close, no proof comes. An arm is therefore also dropped as *futile* if it has less than a 1 % chance to
be better than the leader by a margin, or if its expected improvement over the leader (Jones, Schonlau & Welch,
Efficient global optimization, J. of Global Optimization 13, 1998) is below a tenth of the margin. This is a statement
about regret, not about error rates; what a climb claims is tested later.

The decisions are pure functions of the scores seen so far: a resumed race decides the same.

`halve` spends a fixed number of evaluations, for many arms that are cheap to make, such as prompts. Most of these lie
close together, and no test can tell them apart on the rows there are. Sequential halving (Karnin, Koren & Somekh,
Almost optimal exploration in multi-armed bandits, ICML 2013) spends the same on every round and keeps the better half
after each. Rows answered in one round count in the next. Halving promises no error rate, and does not prove its winner
better than anything: test the winner against the incumbent on rows that the race never saw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from rung.data.rows import Example
from rung.evaluation.statistics import Array, Scores, is_binary

# Gives an arm's scores on the first so many rows. Rows that an arm was asked for before should cost nothing.
Ask = Callable[[str, int], Sequence[float]]

FUTILE = 0.01  # chance to be better by the margin, below which an arm is not continued
SMALL_GAIN = 0.1  # the same for its expected improvement, as a share of the margin
CHEAPER = 0.9  # of another arm's cost; measured costs differ by chance

_WIN_RATES = np.linspace(0.525, 0.975, 10)  # of the better arm among the rows that differ
_LARGEST_BET = 0.95  # of the capital: a lost row must not ruin the gambler
_PRIOR_VARIANCE = 0.25  # of the differences, worth one row: keeps the first bets small


def race_order(rows: Sequence[Example]) -> tuple[Example, ...]:
    """Sort rows into the order in which every race looks at them: by id, which is a hash of the input."""
    return tuple(sorted(rows, key=lambda example: example.id))


# ---- elimination by evidence


@dataclass(frozen=True, slots=True)
class Elimination:
    """Why an arm was dropped: on `n` rows `by`, the leader, won on `fixed` and lost on `broken`."""

    by: str
    n: int
    fixed: int
    broken: int
    p: float  # probability of the best arm ever looking so bad
    chance: float | None = None  # of being better than `by` by `margin`, where it was dropped as futile
    gain: float = 0.0  # expected improvement over `by`, and over what is worse than it by the margin if it is cheaper
    margin: float = 0.0

    def __str__(self) -> str:
        counts = f"{self.fixed} fixed / {self.broken} broken"
        if self.chance is None:
            return f"beaten by {self.by} after {self.n} rows: {counts}, p = {self.p:.2g}"
        points = f"{100 * abs(self.margin):g} {'point' if abs(self.margin) == 0.01 else 'points'}"
        bar = f"better than {self.by} by {points}" if self.margin >= 0 else f"within {points} of {self.by}"
        gain = "" if self.margin < 0 else f", expected gain {100 * self.gain:.2f} points"
        return f"stopped after {self.n} rows: {100 * self.chance:.1f} % likely to be {bar}{gain}, {counts}"


def looks(rows: int, first: int = 16, growth: float = 1.5, batch: int = 8) -> tuple[int, ...]:
    """List the numbers of rows to look after: `first`, growing by the factor `growth`, and always `rows` at the end.

    All but the last are multiples of `batch`, and no look takes less than half a batch of new rows, which would take
    nearly as long as a whole one.

    Raises:
        ValueError: there are no rows, `first` or `batch` is below 1, or `growth` is not above 1.
    """
    if rows < 1 or first < 1 or growth <= 1 or batch < 1:
        raise ValueError(f"need rows >= 1, first >= 1, growth > 1, batch >= 1, got {rows}, {first}, {growth}, {batch}")
    counts = []
    count = batch * math.ceil(first / batch)
    while 2 * count + batch <= 2 * rows:
        counts.append(count)
        count = batch * math.ceil(count * growth / batch)
    return (*counts, rows)


def eliminate(
    scores: Mapping[str, Sequence[float]], *, alpha: float = 0.05, binary: bool | None = None,
    margin: float | None = None, costs: Mapping[str, float] | None = None,
) -> dict[str, Elimination]:  # fmt: skip
    """Find the arms to drop at this look, each with the evidence; at least one arm always stays.

    `scores` has the scores of all arms that raced, in [0, 1], on the same rows in the same order, from the first row
    on. Arms with fewer rows than the others were dropped before; they count where they led. `alpha` bounds the
    probability that the race ever drops the best arm as proven worse. `binary` says whether the metric gives only 0
    and 1 (`Metric.binary`). None decides by the scores given; for a metric that shows other values only after some
    looks, the bound is then 2 alpha. With a `margin`, arms that are futile are dropped too: see `futile`; `costs` says
    which are cheaper than the leader, and none is without it.

    Raises:
        ValueError: there are no scores, a score lies outside [0, 1], or `binary` is true and a score is neither 0
            nor 1.
    """
    matrix, lengths = _matrix(scores, alpha)
    exact = is_binary(matrix) if binary is None else binary
    if exact and not is_binary(matrix):
        raise ValueError("binary scores must be 0 or 1")
    names, n = list(scores), matrix.shape[1]
    totals = np.where(lengths == n, matrix.sum(1), -1.0)  # of the arms in the race
    leader = int(totals.argmax())
    before = np.concatenate([np.zeros((len(matrix), 1)), np.cumsum(matrix, axis=1)[:, :-1]], axis=1)
    before[np.arange(n) >= lengths[:, None]] = -1.0  # who has not answered the row cannot be bet on
    dropped = {}
    for arm in np.flatnonzero((totals >= 0) & (totals < totals[leader])).tolist():
        p = _p_best(matrix, before, arm, exact)
        difference = matrix[arm] - matrix[leader]
        won, lost = int((difference > 0).sum()), int((difference < 0).sum())
        evidence = Elimination(names[leader], n, lost, won, p)
        if p <= alpha:
            dropped[names[arm]] = evidence
        elif margin is not None:
            cheaper = costs is not None and costs[names[arm]] <= CHEAPER * costs[names[leader]]
            if _futile(difference, margin, cheaper):
                bar = -margin if cheaper else margin
                chance, gain = chance_better(difference, bar), expected_gain(difference, min(0.0, bar))
                dropped[names[arm]] = replace(evidence, chance=chance, gain=gain, margin=bar)
    return dropped


def _p_best(matrix: Array, before: Array, arm: int, exact: bool) -> float:
    """Test whether an arm is the best by betting, on each row, on the one that led the others on the rows before."""
    sums = before.copy()
    sums[arm] = -2.0
    leaders = sums.argmax(0)
    difference = matrix[leaders, np.arange(matrix.shape[1])] - matrix[arm]
    path = (sign_capital if exact else betting_capital)(difference)
    return math.exp(-max(0.0, float(path.max())))


def futile(leader: Scores, arm: Scores, *, margin: float = 0.01, cheaper: bool = False) -> bool:
    """Whether an arm is not worth further rows, by the rows that both answered.

    It is not if it has less than a 1 % chance to be better than the leader by the margin, or if it is expected to gain
    less than a tenth of the margin. A cheaper arm is compared with what is worse than the leader by the margin.
    """
    n = min(len(leader), len(arm))
    return _futile(np.subtract(arm[:n], leader[:n], dtype=np.float64), margin, cheaper)


def _futile(difference: Array, margin: float, cheaper: bool) -> bool:
    least = chance_better(difference, -margin if cheaper else margin) < FUTILE
    return least or expected_gain(difference, -margin if cheaper else 0.0) < SMALL_GAIN * margin


def chance_better(difference: Array, margin: float = 0.0) -> float:
    """Compute the posterior probability that the mean of paired differences is above `margin`."""
    found = _posterior(difference)
    return 1 - found.cdf(margin)


def expected_gain(difference: Array, margin: float = 0.0) -> float:
    """Compute the posterior expectation of how far the mean of paired differences is above `margin`, 0 if below."""
    found = _posterior(difference)
    z, standard = (found.mean - margin) / found.stdev, NormalDist()
    return found.stdev * (standard.pdf(z) + z * standard.cdf(z))


def _posterior(difference: Array) -> NormalDist:
    """The posterior of the mean of paired differences.

    It is that of the shares of rows with each difference under a Dirichlet prior of 1/3 for each of -1, 0 and 1, as a
    normal distribution of the same mean and variance.
    """
    n = len(difference) + 1
    mean = float(difference.sum()) / n
    variance = (float((difference**2).sum()) + 2 / 3) / n - mean**2
    return NormalDist(mean, math.sqrt(variance / (n + 1)))


def sign_capital(difference: Array, mean: float = 0.0) -> Array:
    """Bet on the sign of paired differences, and return the log of the capital after each row.

    The capital is the mean over win rates r of (2 r)^wins (2 (1 - r))^losses; rows without a difference change nothing.
    These are bets of fixed shares 2 r - 1 that the expected difference is above `mean`, in (-1, 1]. Against another
    mean than 0 they bet on the distance from it, as in `betting_capital`. The differences are -1, 0 or 1, in the
    order of the rows, shape [..., rows].
    """
    wins, losses = np.cumsum(difference > 0, axis=-1), np.cumsum(difference < 0, axis=-1)
    ties = np.arange(1, difference.shape[-1] + 1) - wins - losses
    shares = (2 * _WIN_RATES - 1).reshape(-1, *(1 for _ in difference.shape))

    def factor(value: float) -> Array:
        return np.log1p(shares * (value - mean) / (1 + mean))

    paths = wins * factor(1.0) + losses * factor(-1.0) + ties * factor(0.0)
    largest = paths.max(axis=0)
    result: Array = largest + np.log(np.exp(paths - largest).sum(axis=0)) - math.log(len(_WIN_RATES))
    return result


def betting_capital(difference: Array, mean: float = 0.0) -> Array:
    """Bet that the mean difference is above `mean`, and return the log of the capital after each row.

    The share staked on each row is the approximate growth-rate adaptive bet (aGRAPA of Waudby-Smith & Ramdas), mean /
    (variance + mean^2) of the rows before it, within [0, 0.95]. The differences are in [-1, 1], per row in the order
    seen, shape [..., rows]; `mean` is in (-1, 1].
    """
    difference = (difference - mean) / (1 + mean)  # at least -1: no bet loses more than its stake
    seen = np.arange(1, difference.shape[-1] + 1)
    total, squares = np.cumsum(difference, axis=-1), np.cumsum(difference**2, axis=-1)
    average = total / (seen + 1)
    variance = (_PRIOR_VARIANCE + np.maximum(0.0, squares - total**2 / seen)) / (seen + 1)
    bets = np.clip(average / (variance + average**2), 0.0, _LARGEST_BET)
    bets = np.concatenate([np.zeros_like(bets[..., :1]), bets[..., :-1]], axis=-1)  # a bet knows only earlier rows
    capital: Array = np.cumsum(np.log1p(bets * difference), axis=-1)
    return capital


def bounded_below(difference: Array, alpha: float, *, exact: bool, precision: float = 1e-4) -> float:
    """Find the lower end of the mean difference: the bets against every smaller mean have reached 1/alpha by now.

    It holds with probability 1 - alpha at all looks together. `exact` says that the scores are 0 or 1. It is above 0
    exactly where the bets against 0 have reached 1/alpha; -1 without rows.
    """
    capital, enough = sign_capital if exact else betting_capital, -math.log(alpha)

    def rejected(mean: float) -> bool:
        return len(difference) > 0 and float(capital(difference, mean).max()) >= enough

    low, high = (0.0, 1.0) if rejected(0.0) else (-1.0, 0.0)
    while high - low > precision:
        middle = (low + high) / 2
        low, high = (middle, high) if rejected(middle) else (low, middle)
    return low


def _matrix(scores: Mapping[str, Sequence[float]], alpha: float) -> tuple[Array, npt.NDArray[np.int64]]:
    """Check the scores and stack them, shape [arms, rows], zeros after the end of an arm; and the numbers of rows."""
    lengths = np.array([len(values) for values in scores.values()], dtype=np.int64)
    if not len(lengths) or not lengths.min():
        raise ValueError(f"every arm needs a score: {dict(zip(scores, lengths.tolist(), strict=True))}")
    if not 0 < alpha < 1:
        raise ValueError(f"need 0 < alpha < 1, got {alpha}")
    matrix = np.zeros((len(lengths), lengths.max()))
    for row, values in zip(matrix, scores.values(), strict=True):
        row[: len(values)] = values
    if not ((matrix >= 0) & (matrix <= 1)).all():  # also false for NaN
        raise ValueError("scores must lie in [0, 1]")
    return matrix, lengths


# ---- successive halving at a fixed price


@dataclass(frozen=True, slots=True)
class Round:
    """One round: `arms` survivors answer rows up to `until` (exclusive, counted from the first)."""

    arms: int
    until: int


@dataclass(frozen=True, slots=True)
class Halving:
    """A finished race: the arms in order (the winner first), and each arm's scores on the rows that it answered."""

    order: tuple[str, ...]
    scores: Mapping[str, tuple[float, ...]]

    @property
    def winner(self) -> str:
        """The arm that is left."""
        return self.order[0]

    @property
    def evaluations(self) -> int:
        """How many scores were asked for."""
        return sum(map(len, self.scores.values()))


def halving_plan(arms: int, rows: int, evaluations: int, min_rows: int = 1) -> tuple[Round, ...]:
    """Plan the rounds of a race, as even in price as whole rows allow.

    A round that runs out of rows leaves what it does not need to the others. The last round always has two arms. All
    rounds together take at most `evaluations`, but every arm answers at least `min_rows` rows.

    Raises:
        ValueError: there are no arms or no rows, or `min_rows` is below 1.
    """
    if arms < 1 or rows < 1 or min_rows < 1:
        raise ValueError(f"need arms >= 1, rows >= 1 and min_rows >= 1, got {arms}, {rows} and {min_rows}")
    sizes = [arms]
    while sizes[-1] > 2:
        sizes.append((sizes[-1] + 1) // 2)
    low, high = 0.0, float(arms * rows)  # the price of one round
    for _ in range(60):
        price = (low + high) / 2
        low, high = (price, high) if _spent(_rounds(sizes, rows, price, min_rows)) <= evaluations else (low, price)
    return _rounds(sizes, rows, low, min_rows)


def _rounds(sizes: Sequence[int], rows: int, price: float, min_rows: int) -> tuple[Round, ...]:
    rounds, until = [], 0
    for size in sizes:
        until = min(rows, max(min_rows, until + int(price / size)))
        rounds.append(Round(size, until))
    return tuple(rounds)


def _spent(rounds: Sequence[Round]) -> int:
    before = (0, *(round_.until for round_ in rounds))
    return sum(round_.arms * (round_.until - start) for round_, start in zip(rounds, before, strict=False))


def halve(names: Sequence[str], ask: Ask, rows: int, evaluations: int, *, min_rows: int = 1) -> Halving:
    """Race `names` over `rows` rows at the price of `evaluations`; of equals, the arm named first stays.

    The race asks for at most `evaluations` scores, and in the first round for at least `min_rows` of every arm.

    Raises:
        ValueError: there are no arms, two have the same name, or there are no rows.
    """
    if len(set(names)) < len(names):
        raise ValueError("two arms have the same name")
    alive = list(names)
    dropped: list[str] = []
    scores: dict[str, tuple[float, ...]] = {}

    def ranked() -> list[str]:
        return sorted(alive, key=lambda name: -sum(scores[name]))  # equals keep their order

    for round_ in halving_plan(len(names), rows, evaluations, min_rows):
        worse = ranked()[round_.arms :] if scores else []
        dropped = [*worse, *dropped]
        alive = [name for name in alive if name not in worse]
        scores |= {name: tuple(ask(name, round_.until)) for name in alive}
    return Halving((*ranked(), *dropped), scores)
