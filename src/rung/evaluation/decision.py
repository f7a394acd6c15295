"""The decision of a climb: which arms may be recommended, which one is, and what can be said of the others.

An arm is one customized artifact; the incumbent is what is used without a decision, usually zero-shot. All functions
are pure functions of scores in [0, 1], paired by row. docs/decision.md explains the method on one page.

* The *gate* decides what may be recommended: an arm that is better than the incumbent (one-sided mid-p McNemar for
  scores of 0 and 1; else both the one-sided paired sign flip and the score test on bounded scores; Holm 1979 over the
  comparisons with the incumbent), or one that is cheaper and worse by less than a margin (non-inferiority: the lower
  end of the interval is above -margin; it is that of Tango 1998, see `score_low`). At level .05 this bounds the
  probability of recommending anything that is not better, or cheaper and within the margin.
* The *choice* among those that pass claims nothing, so it needs no correction. It takes the cheapest whose expected
  regret is at most `within`, else the one of least regret. The regret is how far an arm is below the best one (Chick &
  Inoue, New two-stage and sequential procedures for selecting the best simulated system, Operations Research 49, 2001),
  in expectation over the Bayesian bootstrap of the rows (Rubin, Annals of Statistics 9, 1981). All arms share the
  weights of the rows, so the comparison is paired.
* Rows may be *looked* at while they are answered. Then the test is a union of two: bets against the incumbent row by
  row, valid at every look (`rung.evaluation.racing`), spend a fifth of the level, and the test on all planned rows
  spends the rest. A budget ends the rows whatever their scores are. Then half of that rest is spent on the rows so
  far, and a climb that goes on has the other half (an error-spending rule whose looks do not depend on the results:
  Lan & DeMets, Discrete sequential boundaries for clinical trials, Biometrika 70, 1983). Any other arm that stopped
  before the last planned row has only the bets.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal

import numpy as np

from rung.evaluation.racing import CHEAPER as CHEAPER
from rung.evaluation.racing import betting_capital, bounded_below, sign_capital
from rung.evaluation.racing import chance_better as chance_better
from rung.evaluation.racing import futile as futile
from rung.evaluation.statistics import (
    Array,
    delta_interval,
    holm,
    is_binary,
    mcnemar_midp,
    score_low,
    score_p,
    subset_means,
)

Outcome = Literal["better", "worse", "equivalent", "unclear"]

LEVEL = 0.05  # one-sided, of the gate, for the first decision on the same rows: see `level_of`
BETS = 0.2  # share of the level that the bets spend where rows are looked at
POWER = 0.8  # of `rows_needed`
DRAWS = 1000  # of the Bayesian bootstrap
_EDGE = 1e-9  # the end of an interval that just leaves out 0
_NORMAL = NormalDist()
_NONE: Array = np.empty(0)


@dataclass(frozen=True, slots=True)
class Verdict:
    """An arm against the incumbent on the rows that both answered.

    `p` is one-sided and corrected over the comparisons with the incumbent. Each end of the interval comes from the
    same test at the same level and holds by itself with at least 95 %: `low` is above 0 exactly where p < .05.
    """

    outcome: Outcome  # better: p < .05; equivalent: interval within the margin; worse: interval below 0; else unclear
    passed: bool  # the arm may be recommended: it is better, or cheaper and worse by less than the margin
    delta: float  # mean(arm) - mean(incumbent)
    low: float
    high: float
    p: float
    n: int
    fixed: int  # rows on which the arm scores higher
    broken: int  # rows on which it scores lower
    shrunken: float  # what `delta` likely is in truth, see `shrunken`
    rows_needed: int | None  # further rows that settle it with 80 % if the difference is the one seen; None if settled
    method: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What the scores say about all arms; differences are shares, .01 is one point."""

    recommended: str
    verdicts: dict[str, Verdict]  # of each arm but the incumbent
    regret: dict[str, float]  # how far each arm is expected to be below the best
    chance_worse: dict[str, float]  # probability that it is below the best by more than the margin
    best: str  # the arm of least expected regret, proven or not
    best_probability: float  # that `best` is better than the incumbent; 0 where it is the incumbent


def decide(
    scores: Mapping[str, Sequence[float]], costs: Mapping[str, float], incumbent: str, *,
    earlier: Mapping[str, Sequence[float]] | None = None, within: float = 0.01, margin: float | None = None,
    binary: bool | None = None, looked: bool = False, complete: Collection[str] = (), ended: bool = False,
    endings: int = 0, level: float = LEVEL, bounded: bool = True, seed: int,
) -> Decision:  # fmt: skip
    """Decide which arm to recommend.

    `scores` has the scores of each arm on the confirmation rows in one order; an arm that stopped early has fewer.
    Give all arms that were compared on these rows, also those that were dropped on the way: the correction counts
    them. `earlier` has the scores on rows that chose which arms are confirmed; they count for the regret alone.
    `costs` are in any unit. `within` is the expected regret that a lower cost may have; `margin`, twice that by
    default, is the loss that a cheaper arm must rule out. `binary` says whether the metric gives only 0 and 1; None
    decides by the scores. `looked` says that the rows were looked at before they were all answered; then `complete`
    names the arms that answered all planned rows. `ended` says that the budget ended the rows of the others; it did so
    `endings` times before. `level` is that of the gate. Scores that are not `bounded` may leave
    [0, 1], as those of a statistic of the whole set do; bets cannot look at them.

    Example:
        >>> found = decide({"zero-shot": [0, 1] * 50, "lora": [1, 1] * 50}, {"zero-shot": 1, "lora": 2}, "zero-shot",
        ...                seed=0)
        >>> found.recommended, found.verdicts["lora"].outcome, found.verdicts["lora"].fixed
        ('lora', 'better', 50)

    Raises:
        ValueError: an arm has no cost, the incumbent has no scores, or a score lies outside [0, 1] (not `bounded`: is
            not finite).
    """
    margin = 2 * within if margin is None else margin
    exact = all(is_binary(list(s)) for s in scores.values()) if binary is None else binary
    rows = {name: _checked(name, s, exact, bounded=bounded) for name, s in scores.items()}
    if incumbent not in rows or not len(rows[incumbent]) or set(costs) < set(rows):
        raise ValueError(f"need scores of {incumbent} and the cost of every arm")
    left = (1 - BETS) / 2**endings
    shares = {name: left if name in complete else left / 2 if ended else 0.0 for name in rows}
    pairs = {
        name: _Pair.of(rows[incumbent], own, exact, bounded, looked=looked, share=shares[name], seed=seed)
        for name, own in rows.items()
        if name != incumbent
    }
    verdicts = _verdicts(pairs, {name: costs[name] <= CHEAPER * costs[incumbent] for name in pairs}, margin, level)
    before = {name: np.array((earlier or {}).get(name, ()), dtype=np.float64) for name in rows}
    draws = _posterior([(before[name], rows[name]) for name in rows], seed)
    behind = dict(zip(rows, (draws.max(axis=0) - draws), strict=True))
    regret = {name: float(lost.mean()) for name, lost in behind.items()}
    best = min(rows, key=lambda name: (regret[name], costs[name]))
    passed = [incumbent, *(name for name, verdict in verdicts.items() if verdict.passed)]
    seen = _difference(*_common((before, rows), incumbent, best))
    return Decision(
        _choose(passed, regret, costs, within), verdicts, regret,
        {name: float((lost > margin).mean()) for name, lost in behind.items()},
        best, 0.0 if best == incumbent else chance_better(seen),
    )  # fmt: skip


def settled(
    scores: Mapping[str, Sequence[float]], costs: Mapping[str, float], incumbent: str, *,
    earlier: Mapping[str, Sequence[float]] | None = None, within: float = 0.01, margin: float | None = None,
    binary: bool | None = None, precision: float = 0.1, level: float = LEVEL, seed: int,
) -> set[str]:  # fmt: skip
    """Find the arms that need no further rows, at a look at rows of which more are to come; see `decide`.

    An arm is settled if it is proven that it will not pass, if it is futile against the best so far, or if it passed
    and its gain is known to `precision` or to half of itself. Arms that passed go on together until the expected regret
    of the choice is at most `within`. The incumbent is settled when all comparisons with it are.
    """
    margin = 2 * within if margin is None else margin
    found = decide(
        scores, costs, incumbent, earlier=earlier, within=within, margin=margin, binary=binary, looked=True,
        level=level, seed=seed,
    )  # fmt: skip
    before = {name: np.array((earlier or {}).get(name, ()), dtype=np.float64) for name in scores}
    rows = {name: np.array(own, dtype=np.float64) for name, own in scores.items()}
    compared, contenders = set(), set()
    for name, verdict in found.verdicts.items():
        best, own = _common((before, rows), found.best, name)
        cheaper = costs[name] <= CHEAPER * costs[found.best]
        if name != found.best and futile(best, own, margin=within, cheaper=cheaper):
            continue
        if verdict.passed:
            contenders.add(name)
        lost = verdict.high < (-margin if costs[name] <= CHEAPER * costs[incumbent] else 0.0)
        known = verdict.passed and (verdict.high - verdict.low) / 2 <= max(precision, abs(verdict.delta) / 2)
        if not (lost or known):
            compared.add(name)
    needed = compared | ({incumbent} if compared else set())
    if len(contenders) > 1 and found.regret[found.recommended] > within:
        needed |= contenders
    return set(scores) - needed


def gains_only_on(own: float, others: Mapping[str, float]) -> bool:
    """Whether an arm gains by the metric that it was rewarded for, `own`, and by none of the `others`.

    Such a gain may be a reward that was gamed (Goodhart's law; Gao et al. 2023, Scaling laws for reward model
    overoptimization, https://arxiv.org/abs/2210.10760): the arm is shown, and never recommended.
    """
    return own > 0 and bool(others) and all(gain <= 0 for gain in others.values())


def shrunken(delta: float, se: float) -> float:
    """Estimate the true difference behind a measured one of standard error `se`, which is likely too large if thin.

    What is reported because it is significant is exaggerated, the more the less evidence there is. The estimate is the
    posterior mean under a prior for the ratio of signal to noise that was fitted to 20,000 controlled trials.
    van Zwet, Schwab & Senn, The statistical properties of RCTs and a proposal for shrinkage, Statistics in Medicine 40
    (2021).
    """
    if se <= 0:
        return delta
    z = delta / se
    prior = ((0.32, 0.61), (0.31, 1.42), (0.30, 2.16), (0.07, 5.64))  # share, standard deviation
    weights = [p * NormalDist(0, math.hypot(1, sd)).pdf(z) for p, sd in prior]
    if not sum(weights):
        return delta  # beyond any noise
    kept = sum(w * sd**2 / (1 + sd**2) for w, (_, sd) in zip(weights, prior, strict=True)) / sum(weights)
    return delta * kept


def rows_needed(effect: float, spread: float, *, alpha: float = LEVEL, power: float = POWER) -> int:
    """Compute the number of rows with which a one-sided paired test finds a true difference with this power.

    `spread` is the mean square of the paired differences: of scores of 0 and 1, the share of rows on which they differ.
    Connor, Sample size for testing differences in proportions for the paired-sample design, Biometrics 43 (1987).
    """
    z = _NORMAL.inv_cdf(1 - alpha) * math.sqrt(spread)
    return math.ceil(((z + _NORMAL.inv_cdf(power) * math.sqrt(max(0.0, spread - effect**2))) / effect) ** 2)


# ---- the gate


@dataclass(frozen=True, slots=True)
class _Pair:
    """An arm and the incumbent, with the tests of "the arm is not better"."""

    difference: Array
    exact: bool
    largest: float  # loss on a row that the scores suggest; 0 where they are not bounded
    looked: bool
    share: float  # of the level, for the test on all these rows, where they were looked at; 0 for none
    means: Array  # of subsets of the differences; empty where they are not needed

    @classmethod
    def of(
        cls, incumbent: Array, arm: Array, exact: bool, bounded: bool, *, looked: bool, share: float, seed: int
    ) -> _Pair:
        difference = _difference(incumbent, arm)
        n = len(difference)
        flips = n and not exact and (share > 0 or not looked)
        seen = float(np.ptp([incumbent[:n], arm[:n]])) if n else 0.0  # of a metric such as chrF, less than from 0 to 1
        means = subset_means(difference, seed=seed) if flips else _NONE
        return cls(difference, exact, (seen or 1.0) if bounded else 0.0, looked, share, means)

    def mirrored(self) -> _Pair:
        return replace(self, difference=-self.difference, means=-self.means[::-1])

    @property
    def counts(self) -> tuple[int, int]:
        return int((self.difference > 0).sum()), int((self.difference < 0).sum())

    def p(self) -> float:
        """The p-value of one comparison."""
        if not len(self.difference):
            return 1.0
        if not self.looked:
            return self._p_of_all()
        capital = (sign_capital if self.exact else betting_capital)(self.difference)
        p = math.exp(-max(0.0, float(capital.max()))) / BETS
        return min(1.0, p, self._p_of_all() / self.share if self.share else 1.0)

    def _p_of_all(self) -> float:
        if self.exact:
            return mcnemar_midp(*self.counts)
        p = float(1 + (self.means <= 0).sum()) / (1 + len(self.means))
        return max(p, score_p(self.difference / self.largest)) if self.largest else p

    def low(self, alpha: float) -> float:
        """The lower end of the difference at a one-sided level."""
        if not len(self.difference):
            return -1.0
        if not self.looked:
            return self._low_of_all(alpha)
        low = bounded_below(self.difference, alpha * BETS, exact=self.exact, precision=5e-4)
        return max(low, self._low_of_all(alpha * self.share)) if self.share else low

    def _low_of_all(self, alpha: float) -> float:
        if self.exact:
            return delta_interval(*self.counts, len(self.difference), 1 - 2 * alpha).low
        rank = math.ceil(alpha * (1 + len(self.means)) - 1 - 1e-9)
        low = max(-1.0, float(self.means[rank - 1])) if rank > 0 else -1.0
        return min(low, self.largest * score_low(self.difference / self.largest, alpha)) if self.largest else low

    @property
    def method(self) -> str:
        test = "mcnemar-midp" if self.exact else "sign-flip, score" if self.largest else "sign-flip"
        return test if not self.looked else f"{test}, betting" if self.share else "betting"


def level_of(number: int) -> float:
    """The level of the gate for the `number`-th decision on the same rows: .05 / number^2.

    Over any number of decisions, these levels add up to less than .05 pi^2 / 6 = .083. So the first decision errs with
    at most 5 %, and all together with at most 8.3 % (Bonferroni's inequality over a series of tests; Foster & Stine,
    Alpha-investing, JRSS B 70, 2008, discuss such spending rules).
    """
    return LEVEL / number**2


def _verdicts(
    pairs: Mapping[str, _Pair], cheaper: Mapping[str, bool], margin: float, whole: float
) -> dict[str, Verdict]:
    """Test every arm, each at its own level in Holm's order; those from the first that fails on share one level.

    The non-inferiority of an arm is tested at the level of its test for superiority. This costs nothing: with
    probability 1 - `whole` no true null hypothesis among both kinds is rejected at `whole` / (number of true
    ones), which no level in the order exceeds before the first error.
    """
    tested = [name for name, pair in pairs.items() if len(pair.difference)]
    ps = {name: pairs[name].p() for name in tested}
    corrected = dict(zip(tested, holm([ps[name] for name in tested]), strict=True))
    proven = sum(p < whole for p in corrected.values())
    order = sorted(tested, key=lambda name: ps[name])
    levels = {name: whole / (len(tested) - min(rank, proven)) for rank, name in enumerate(order)}
    verdicts = {}
    for name, pair in pairs.items():
        p, level = corrected.get(name, 1.0), levels.get(name, whole)
        other = pair.mirrored()
        # Tango's end and the mid-p test may disagree about 0 by a hair: the test decides, and the end is put beside 0.
        low = max(pair.low(level), _EDGE) if p < whole else min(pair.low(level), 0.0)
        high = min(-other.low(level), -_EDGE) if other.p() < level else max(-other.low(level), 0.0)
        delta = float(pair.difference.mean()) if len(pair.difference) else 0.0
        outcome: Outcome = "unclear"
        if p < whole:
            outcome = "better"
        elif -margin < low and high < margin:
            outcome = "equivalent"
        elif high < 0:
            outcome = "worse"
        passed = p < whole or (cheaper[name] and low > -margin)
        se = float(pair.difference.std()) / math.sqrt(max(1, len(pair.difference))) if len(pair.difference) else 0.0
        more = None if passed or outcome != "unclear" else _more(pair, delta, level, margin, cheaper[name])
        verdicts[name] = Verdict(
            outcome,
            passed,
            delta,
            low,
            high,
            p,
            len(pair.difference),
            *pair.counts,
            shrunken(delta, se),
            more,
            pair.method,
        )
    return verdicts


def _more(pair: _Pair, delta: float, level: float, margin: float, cheaper: bool) -> int | None:
    """The further rows that would settle a comparison: as better or worse, as equivalent, or as not inferior."""
    n = len(pair.difference)
    if not n:
        return None
    spread = (float((pair.difference**2).sum()) + 1) / (n + 2)
    ways = [rows_needed(delta, spread, alpha=level)] if delta else []
    if abs(delta) < margin:  # both ends must hold
        ways.append(rows_needed(margin - abs(delta), spread, alpha=level, power=(1 + POWER) / 2))
    if cheaper and delta > -margin:
        ways.append(rows_needed(margin + delta, spread, alpha=level))
    return max(1, min(ways) - n)


# ---- the choice


def _posterior(rows: Sequence[tuple[Array, Array]], seed: int) -> Array:
    """Draw the mean score of each arm by the Bayesian bootstrap, shape [arms, draws].

    An arm that answered fewer rows is placed by its difference to the arm with the most rows, on common rows.
    """
    widths = [max(len(own[part]) for own in rows) for part in (0, 1)]
    scores, known = np.zeros((len(rows), sum(widths))), np.zeros((len(rows), sum(widths)))
    for arm, own in enumerate(rows):
        for part, start in ((0, 0), (1, widths[0])):
            scores[arm, start : start + len(own[part])] = own[part]
            known[arm, start : start + len(own[part])] = 1
    weights = np.random.default_rng([seed, 3]).standard_exponential((DRAWS, sum(widths)))
    main = max(range(len(rows)), key=lambda arm: (known[arm].sum(), scores[arm].sum()))
    draws = np.empty((len(rows), DRAWS))
    draws[main] = weights @ scores[main] / (weights @ known[main])
    for arm in set(range(len(rows))) - {main}:
        common = known[arm] * known[main]
        if common.any():
            draws[arm] = draws[main] + weights @ ((scores[arm] - scores[main]) * common) / (weights @ common)
        elif known[arm].any():
            draws[arm] = weights @ scores[arm] / (weights @ known[arm])
        else:
            draws[arm] = 0.0
    return draws


def _choose(passed: Sequence[str], regret: Mapping[str, float], costs: Mapping[str, float], within: float) -> str:
    """The cheapest of small regret; of those that cost about the same, and without any, the one of least regret."""
    good = [name for name in passed if regret[name] <= within]
    cheapest = min((costs[name] for name in good), default=math.inf)
    same = [name for name in good if CHEAPER * costs[name] <= cheapest]
    return min(same or passed, key=lambda name: regret[name])


def _difference(a: Array, b: Array) -> Array:
    """B - a on the rows that both answered."""
    n = min(len(a), len(b))
    return np.asarray(b[:n] - a[:n], dtype=np.float64)


def _common(parts: Sequence[Mapping[str, Array]], a: str, b: str) -> tuple[Array, Array]:
    """The scores of two arms on the rows of all parts that both answered."""
    both = [(part[a], part[b], min(len(part[a]), len(part[b]))) for part in parts]
    return np.concatenate([one[:n] for one, _, n in both]), np.concatenate([other[:n] for _, other, n in both])


def _checked(name: str, scores: Sequence[float], exact: bool, *, bounded: bool) -> Array:
    values = np.array(scores, dtype=np.float64)
    inside = (values >= 0) & (values <= 1) if bounded else np.isfinite(values)
    if not inside.all() or (exact and not is_binary(values)):  # also for NaN
        raise ValueError(
            f"the scores of {name} must {'be 0 or 1' if exact else 'lie in [0, 1]' if bounded else 'be finite'}"
        )
    return values
