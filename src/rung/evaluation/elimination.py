"""Racing: stop scoring candidates that are clearly beaten, with a bound on ever dropping the best.

All candidates are scored on the same validation rows in one fixed shuffled order, in growing batches. After each
batch, a *look*, every surviving candidate is tested against every other survivor on all rows seen so far, and
dropped if one of them is significantly better. What is dropped costs no further rows: the idea of racing (Maron &
Moore, Hoeffding races, NIPS 1993; Mnih, Szepesvari & Audibert, Empirical Bernstein stopping, ICML 2008). Successive
rejects (Audibert, Bubeck & Munos, Best arm identification, COLT 2010) drops one arm per phase whatever the evidence;
racing drops none, or many.

The guarantee: with rows drawn independently, the candidate with the best expected score is dropped with probability
at most alpha, for any number of candidates, ties, and any dependence between the candidates' scores. The best can
only go if one of the other arms - 1 beats it in one of the tests, so each pair may err with alpha / (arms - 1):

* Scores 0 or 1: the one-sided exact sign test (McNemar) at each look, at level alpha / ((arms - 1) looks).
* Other scores in [0, 1]: testing by betting (Waudby-Smith & Ramdas, Estimating means of bounded random variables by
  betting, JRSS B 86, 2024). A gambler stakes a share of the capital on the next row's difference being positive; if
  its mean is not, the capital is a supermartingale and ever reaches 1/a with probability at most a (Ville), at all
  looks together: level alpha / (arms - 1), with no price per look. A paired t-test would need fewer rows, but its
  level is only approximate: where an arm loses a little on most rows and wins much on a few, 20 rows without a win
  make it drop the best arm far more often than alpha (the tests show it).

The decisions are pure functions of the scores seen so far: a resumed race decides the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rung.evaluation.statistics import is_binary, sign_test

_LARGEST_BET = 0.95  # of the capital: a lost row must not ruin the gambler
_PRIOR_VARIANCE = 0.25  # of the differences, worth one row: keeps the first bets small


@dataclass(frozen=True, slots=True)
class Elimination:
    """Why an arm was dropped: on `n` rows `by` was better on `fixed` and worse on `broken`, one-sided p."""

    by: str
    n: int
    fixed: int
    broken: int
    p: float


def looks(rows: int, first: int = 20, growth: float = 2.0) -> tuple[int, ...]:
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
    scores: Mapping[str, Sequence[float]],
    *,
    arms: int,
    looks: int,
    alpha: float = 0.05,
    binary: bool | None = None,
) -> dict[str, Elimination]:
    """Return the arms to drop at this look, each with the evidence; at least one arm always stays.

    Args:
        scores: The surviving arms' scores in [0, 1], all on the same rows in the same order, from the first row on.
        arms: Number of arms that started the race.
        looks: Number of looks planned for the race.
        alpha: Bound on the probability that the race ever drops the best arm.
        binary: Whether the metric gives only 0 and 1 (`Metric.binary`). None decides by the scores given; for a
            metric that shows other values only after some looks, the bound is then 2 alpha.

    Raises:
        ValueError: If the arms have different numbers of rows, a score lies outside [0, 1], `binary` is true and a
            score is neither 0 nor 1, or more arms are given than started.
    """
    matrix = _matrix(scores, arms, looks, alpha)
    exact = is_binary(matrix.ravel()) if binary is None else binary
    if exact and not is_binary(matrix.ravel()):
        raise ValueError("binary scores must be 0 or 1")
    level = alpha / (max(1, arms - 1) * (looks if exact else 1))
    names = list(scores)
    beaten: dict[str, list[Elimination]] = {}
    for loser, losing in zip(names, matrix, strict=True):
        for winner, winning in zip(names, matrix, strict=True):
            # Only a higher mean can beat: no cycles, and the arm with the highest mean stays.
            if winning.sum() > losing.sum():
                found = _test(winner, winning - losing, exact)
                if found.p <= level:
                    beaten.setdefault(loser, []).append(found)
    # Of several that beat an arm, name the one with the best evidence, if possible one that stays.
    return {loser: min(found, key=lambda e: (e.by in beaten, e.p)) for loser, found in beaten.items()}


def _test(winner: str, difference: npt.NDArray[np.float64], exact: bool) -> Elimination:
    fixed, broken = int((difference > 0).sum()), int((difference < 0).sum())
    p = sign_test(fixed, broken) if exact else betting_p(difference)
    return Elimination(winner, len(difference), fixed, broken, p)


def betting_p(difference: npt.NDArray[np.float64]) -> float:
    """Return an anytime-valid one-sided p-value for "the mean difference is at most 0", differences in [-1, 1].

    One over the largest capital so far. The share staked on each row is the approximate growth-rate adaptive bet
    (aGRAPA of Waudby-Smith & Ramdas), mean / (variance + mean^2) of the rows before it, within [0, 0.95].

    Args:
        difference: Per-row score differences in the order seen, shape [rows].
    """
    seen = np.arange(1, len(difference) + 1)
    total, squares = np.cumsum(difference), np.cumsum(difference**2)
    mean = total / (seen + 1)
    variance = (_PRIOR_VARIANCE + np.maximum(0.0, squares - total**2 / seen)) / (seen + 1)
    bets = np.clip(mean / (variance + mean**2), 0.0, _LARGEST_BET)
    bets = np.concatenate([[0.0], bets[:-1]])  # a bet may only know the rows before its own
    capital = np.cumsum(np.log1p(bets * difference))
    return math.exp(-max(0.0, float(capital.max())))


def _matrix(scores: Mapping[str, Sequence[float]], arms: int, looks: int, alpha: float) -> npt.NDArray[np.float64]:
    """Return the scores as one array, shape [survivors, rows]."""
    lengths = {name: len(values) for name, values in scores.items()}
    if not scores or len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(f"all arms need the same rows, at least one: {lengths}")
    if len(scores) > arms or looks < 1 or not 0 < alpha < 1:
        raise ValueError(f"need arms >= {len(scores)}, looks >= 1 and 0 < alpha < 1, got {arms}, {looks}, {alpha}")
    matrix = np.array(list(scores.values()), dtype=np.float64)
    if not ((matrix >= 0) & (matrix <= 1)).all():  # also false for NaN
        raise ValueError("scores must lie in [0, 1]")
    return matrix
