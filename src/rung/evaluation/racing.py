"""A race with a fixed price: successive halving over a paired score matrix.

Where arms are many and cheap to make, such as prompts, most of them lie close together, and no test can tell them
apart on the rows there are. Then the question is not which arm is proven worse (`rung.evaluation.racing`), but
where a fixed number of evaluations is spent best. Sequential halving (Karnin, Koren & Somekh, Almost optimal
exploration in multi-armed bandits, ICML 2013) spends the same on every round and keeps the better half after each. All
arms answer the same rows in the same order, so that the rows' difficulty cancels, and rows answered in one round count
in the next.

Halving promises no error rate, and its winner is not proven better than anything. Whoever adopts it has to test it
against the incumbent on rows that the race never saw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rung.data.rows import Example
from rung.evaluation.statistics import is_binary

Ask = Callable[[str, int], Sequence[float]]


@dataclass(frozen=True, slots=True)
class Round:
    """One round: `arms` survivors answer rows up to `until` (exclusive, counted from the first)."""

    arms: int
    until: int


@dataclass(frozen=True, slots=True)
class Halving:
    """A finished race: the winner, the order of the arms (the winner first), and each arm's scores on rows seen."""

    winner: str
    order: tuple[str, ...]
    scores: Mapping[str, tuple[float, ...]]

    @property
    def evaluations(self) -> int:
        """How many scores were asked for."""
        return sum(map(len, self.scores.values()))


def race_order(rows: Sequence[Example]) -> tuple[Example, ...]:
    """Return the rows in the order in which every race looks at them: by id, which is a hash of the input."""
    return tuple(sorted(rows, key=lambda example: example.id))


def halving_plan(arms: int, rows: int, evaluations: int, least: int = 1) -> tuple[Round, ...]:
    """Return the rounds of a race, as even in price as whole rows allow.

    A round that runs out of rows leaves what it does not need to the others. The last round always has two arms.

    Args:
        arms: how many start.
        rows: how many rows there are.
        evaluations: most that may be spent, all rounds together; `least` rows per arm are always answered.
        least: rows of the first round, at least.

    Raises:
        ValueError: there are no arms or no rows, or `least` is below 1.
    """
    if arms < 1 or rows < 1 or least < 1:
        raise ValueError(f"need arms >= 1, rows >= 1 and least >= 1, got {arms}, {rows} and {least}")
    sizes = [arms]
    while sizes[-1] > 2:
        sizes.append((sizes[-1] + 1) // 2)
    low, high = 0.0, float(arms * rows)  # the price of one round
    for _ in range(60):
        price = (low + high) / 2
        low, high = (price, high) if _spent(_rounds(sizes, rows, price, least)) <= evaluations else (low, price)
    return _rounds(sizes, rows, low, least)


def _rounds(sizes: Sequence[int], rows: int, price: float, least: int) -> tuple[Round, ...]:
    made, until = [], 0
    for size in sizes:
        until = min(rows, max(least, until + int(price / size)))
        made.append(Round(size, until))
    return tuple(made)


def _spent(rounds: Sequence[Round]) -> int:
    before = (0, *(one.until for one in rounds))
    return sum(one.arms * (one.until - start) for one, start in zip(rounds, before, strict=False))


def halve(names: Sequence[str], ask: Ask, rows: int, evaluations: int, *, least: int = 1) -> Halving:
    """Race `names` over `rows` rows at the price of `evaluations`; of equals, the arm named first stays.

    Args:
        names: the arms; what is to be kept when nothing is better stands first.
        ask: returns an arm's scores on the first so many rows; rows that it was asked for before shall cost nothing.
        rows: how many rows there are.
        evaluations: most scores to ask for.
        least: rows of the first round, at least.

    Raises:
        ValueError: there are no arms, two have the same name, or there are no rows.
    """
    if len(set(names)) < len(names):
        raise ValueError("two arms have the same name")
    alive = list(names)
    beaten: list[str] = []
    scores: dict[str, tuple[float, ...]] = {}
    for one in halving_plan(len(names), rows, evaluations, least):
        out = _ranked(alive, scores)[one.arms :] if scores else []
        beaten = [*out, *beaten]
        alive = [name for name in alive if name not in out]
        for name in alive:
            scores[name] = tuple(ask(name, one.until))
    order = (*_ranked(alive, scores), *beaten)
    return Halving(order[0], order, scores)


def _ranked(names: Sequence[str], scores: Mapping[str, Sequence[float]]) -> list[str]:
    """Return arms that saw the same rows by their mean, the best first; equals keep their order."""
    return sorted(names, key=lambda name: -sum(scores[name]))


# --------------------
# Racing: stop scoring candidates that are clearly beaten, with a bound on ever dropping the best.
#
# All candidates are scored on the same validation rows in one fixed shuffled order, in growing batches. After each
# batch, a *look*, every surviving candidate is tested against every other survivor on all rows seen so far, and
# dropped if one of them is significantly better. What is dropped costs no further rows: the idea of racing (Maron &
# Moore, Hoeffding races, NIPS 1993; Mnih, Szepesvari & Audibert, Empirical Bernstein stopping, ICML 2008). Successive
# rejects (Audibert, Bubeck & Munos, Best arm identification, COLT 2010) drops one arm per phase whatever the evidence;
# racing drops none, or many.
#
# The guarantee: with rows drawn independently, the candidate with the best expected score is dropped with probability
# at most alpha, for any number of candidates, looks and ties, and any dependence between the candidates' scores. It is
# kept by testing by betting (Waudby-Smith & Ramdas, Estimating means of bounded random variables by betting, JRSS B 86,
# 2024). For every pair a gambler bets row by row that the other arm is better; if it is not, the capital is a
# supermartingale. For the best arm all capitals are, and so is their mean over the other arms - 1 arms, which ever
# reaches 1/alpha with probability at most alpha (Ville). The mean of e-values needs no correction for the number of
# pairs (Vovk & Wang, E-values, Annals of Statistics 49, 2021): several arms that are better count together, where
# dividing alpha by their number would count the strongest alone. Nor do looks cost anything, so there may be many.
#
# * Scores 0 or 1: bets on the sign of each difference, a mixture over how often the other arm wins (a sequential
#   McNemar test: Robbins, Statistical methods related to the law of the iterated logarithm, 1970).
# * Other scores in [0, 1]: adaptive bets on the difference. A paired t-test would need fewer rows, but its level is
# only
#   approximate: where an arm loses a little on most rows and wins much on a few, 20 rows without a win make it drop the
#   best arm far more often than alpha (the tests show it).
#
# The decisions are pure functions of the scores seen so far: a resumed race decides the same.


_WIN_RATES = np.linspace(0.525, 0.975, 10)  # of the better arm among the rows that differ
_LARGEST_BET = 0.95  # of the capital: a lost row must not ruin the gambler
_PRIOR_VARIANCE = 0.25  # of the differences, worth one row: keeps the first bets small


@dataclass(frozen=True, slots=True)
class Elimination:
    """Why an arm was dropped: on `n` rows `by`, the strongest of those better, won on `fixed` and lost on `broken`.

    `p` is that of the best arm ever looking so bad, over all pairs and looks.
    """

    by: str
    n: int
    fixed: int
    broken: int
    p: float


def looks(rows: int, first: int = 20, growth: float = 1.4) -> tuple[int, ...]:
    """Return after how many rows to look: `first`, growing by the factor `growth`, and always `rows` at the end.

    Raises:
        ValueError: If there are no rows, `first` is below 1, or `growth` is not above 1.
    """
    if rows < 1 or first < 1 or growth <= 1:
        raise ValueError(f"need rows >= 1, first >= 1 and growth > 1, got {rows}, {first}, {growth}")
    counts = []
    count = first
    while count < rows:
        counts.append(count)
        count = math.ceil(count * growth)
    return (*counts, rows)


def eliminate(
    scores: Mapping[str, Sequence[float]], *, arms: int, alpha: float = 0.05, binary: bool | None = None
) -> dict[str, Elimination]:
    """Return the arms to drop at this look, each with the evidence; at least one arm always stays.

    Args:
        scores: The surviving arms' scores in [0, 1], all on the same rows in the same order, from the first row on.
        arms: Number of arms that started the race.
        alpha: Bound on the probability that the race ever drops the best arm.
        binary: Whether the metric gives only 0 and 1 (`Metric.binary`). None decides by the scores given; for a
            metric that shows other values only after some looks, the bound is then 2 alpha.

    Raises:
        ValueError: If the arms have different numbers of rows, a score lies outside [0, 1], `binary` is true and a
            score is neither 0 nor 1, or more arms are given than started.
    """
    matrix = _matrix(scores, arms, alpha)
    exact = is_binary(matrix.ravel()) if binary is None else binary
    if exact and not is_binary(matrix.ravel()):
        raise ValueError("binary scores must be 0 or 1")
    names, totals = list(scores), matrix.sum(1)
    found = {i: _against(matrix, i, arms, exact) for i in range(len(names)) if totals[i] < totals.max()}
    beaten = {i: evidence for i, evidence in found.items() if evidence.p <= alpha}
    out = {}
    for i, evidence in beaten.items():
        # Only a higher mean can beat: no cycles. Of several that do, name the strongest, if possible one that stays.
        better: list[int] = np.flatnonzero(totals > totals[i]).tolist()
        by = max(better, key=lambda j: (j not in beaten, evidence.last[j]))
        difference = matrix[by] - matrix[i]
        won, lost = int((difference > 0).sum()), int((difference < 0).sum())
        out[names[i]] = Elimination(names[by], matrix.shape[1], won, lost, evidence.p)
    return out


@dataclass(frozen=True, slots=True)
class _Evidence:
    """Against one arm: p, and by arm the log of the capital that was won by betting on it until the last row."""

    p: float
    last: dict[int, float]


def _against(matrix: npt.NDArray[np.float64], arm: int, arms: int, exact: bool) -> _Evidence:
    others = [i for i in range(len(matrix)) if i != arm]
    capital = sign_capital if exact else betting_capital
    paths = capital(matrix[others] - matrix[arm])
    # Arms dropped before are missing here, as if those who bet on them had lost all: that can only spare an arm.
    mean = np.logaddexp.reduce(paths, axis=0) - math.log(arms - 1)
    p = math.exp(-max(0.0, float(mean.max())))
    return _Evidence(p, dict(zip(others, paths[:, -1].tolist(), strict=True)))


def sign_capital(difference: npt.NDArray[np.float64], mean: float = 0.0) -> npt.NDArray[np.float64]:
    """Return the log of the capital after each row of betting on the sign of paired differences.

    The mean over win rates r of (2 r)^wins (2 (1 - r))^losses; rows without a difference change nothing. These are
    bets of fixed shares 2 r - 1; against another mean they are on the distance from it, as in `betting_capital`.

    Args:
        difference: Per-row score differences, -1, 0 or 1, in the order seen, shape [..., rows], as is what is returned.
        mean: The bets are that the expected difference is above this, in (-1, 1].
    """
    wins, losses = np.cumsum(difference > 0, axis=-1), np.cumsum(difference < 0, axis=-1)
    ties = np.arange(1, difference.shape[-1] + 1) - wins - losses
    shares = (2 * _WIN_RATES - 1).reshape(-1, *(1 for _ in difference.shape))

    def factor(value: float) -> npt.NDArray[np.float64]:
        return np.log1p(shares * (value - mean) / (1 + mean))

    paths = wins * factor(1.0) + losses * factor(-1.0) + ties * factor(0.0)
    result: npt.NDArray[np.float64] = np.logaddexp.reduce(paths, axis=0) - math.log(len(_WIN_RATES))
    return result


def betting_capital(difference: npt.NDArray[np.float64], mean: float = 0.0) -> npt.NDArray[np.float64]:
    """Return the log of the capital after each row of betting that the mean difference is above `mean`.

    The share staked on each row is the approximate growth-rate adaptive bet (aGRAPA of Waudby-Smith & Ramdas), mean /
    (variance + mean^2) of the rows before it, within [0, 0.95].

    Args:
        difference: Per-row score differences in [-1, 1] in the order seen, shape [..., rows], as is what is returned.
        mean: What is bet against, in (-1, 1].
    """
    difference = (difference - mean) / (1 + mean)  # at least -1: no bet loses more than its stake
    seen = np.arange(1, difference.shape[-1] + 1)
    total, squares = np.cumsum(difference, axis=-1), np.cumsum(difference**2, axis=-1)
    average = total / (seen + 1)
    variance = (_PRIOR_VARIANCE + np.maximum(0.0, squares - total**2 / seen)) / (seen + 1)
    bets = np.clip(average / (variance + average**2), 0.0, _LARGEST_BET)
    # A bet may only know the rows before its own.
    bets = np.concatenate([np.zeros_like(bets[..., :1]), bets[..., :-1]], axis=-1)
    capital: npt.NDArray[np.float64] = np.cumsum(np.log1p(bets * difference), axis=-1)
    return capital


def _matrix(scores: Mapping[str, Sequence[float]], arms: int, alpha: float) -> npt.NDArray[np.float64]:
    """Return the scores as one array, shape [survivors, rows]."""
    lengths = {name: len(values) for name, values in scores.items()}
    if not scores or len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(f"all arms need the same rows, at least one: {lengths}")
    if len(scores) > arms or not 0 < alpha < 1:
        raise ValueError(f"need arms >= {len(scores)} and 0 < alpha < 1, got {arms} and {alpha}")
    matrix = np.array(list(scores.values()), dtype=np.float64)
    if not ((matrix >= 0) & (matrix <= 1)).all():  # also false for NaN
        raise ValueError("scores must lie in [0, 1]")
    return matrix
