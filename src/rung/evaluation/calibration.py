"""Calibration: fit a decoder's probabilities to how often its answers are right, and measure how well they fit.

A calibration is fitted on validation rows: by one temperature over all labels (Guo et al., On calibration of modern
neural networks, ICML 2017), or by isotonic regression of the answer's probability alone (Zadrozny & Elkan, Transforming
classifier scores into accurate multiclass probability estimates, KDD 2002). Neither changes an answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rung.artifact.confidence import (
    SMALLEST,
    Calibration,
    CalibrationMethod,
    Decisions,
    Probs,
    ProbsLike,
    of_decisions,
    of_yes_and_no,
    tempered,
)
from rung.errors import ConfigError
from rung.evaluation.statistics import wilson

BINS = 15  # as in Guo et al.
COLDEST, HOTTEST = 0.1, 10.0  # bounds of a temperature
ISOTONIC_ROWS = 1000  # below, isotonic regression overfits (Niculescu-Mizil & Caruana, ICML 2005)
RESAMPLES = 2000


# ---- fitting


def fit(method: CalibrationMethod, probabilities: ProbsLike, truth: Sequence[int]) -> Calibration:
    """Fit a calibration on held-out rows.

    `probabilities` are the decoder's, of all labels, shape [rows, labels]; `truth` is the number of each row's expected
    label, shape [rows].

    Raises:
        ConfigError: `too-few-rows` for isotonic regression.
    """
    values, right = np.asarray(probabilities, np.float64), np.asarray(truth)
    if method == "temperature":
        return Calibration(temperature=fit_temperature(values, right))
    return _fit_isotonic(values.max(1), values.argmax(1) == right)


def fit_each(method: CalibrationMethod, probabilities: ProbsLike, given: Decisions, truth: Decisions) -> Calibration:
    """Fit a calibration on held-out rows that may have several labels.

    `temperature` maximizes the likelihood of the decisions on single labels. `isotonic` maps the probability of the
    whole answer, that of all decisions together, to the share of answers with exactly the expected labels. The
    probabilities that each label is right, and the labels `given` and expected, have the shape [rows, labels].

    Raises:
        ConfigError: `too-few-rows` for isotonic regression.
    """
    values, answered, right = np.asarray(probabilities, np.float64), np.asarray(given), np.asarray(truth)
    if method == "temperature":
        return Calibration(temperature=fit_temperature(of_yes_and_no(values).reshape(-1, 2), right.ravel().astype(int)))
    return _fit_isotonic(of_decisions(values, answered), (answered == right).all(1))


def _fit_isotonic(scores: Probs, right: npt.NDArray[np.bool_]) -> Calibration:
    if len(scores) < ISOTONIC_ROWS:
        raise ConfigError(
            "too-few-rows", f"isotonic regression needs {ISOTONIC_ROWS} validation rows, and there are {len(scores)}",
            hint="use `method: temperature`, or give more validation rows",
        )  # fmt: skip
    return Calibration("isotonic", thresholds=isotonic(scores, right))


def fit_temperature(probabilities: Probs, truth: npt.NDArray[np.integer]) -> float:
    """Find the temperature between 0.1 and 10 that maximizes the likelihood of the true labels.

    The log-likelihood is concave in 1/temperature: its slope, the mean over rows of z[true] - E[z] with z = log p, has
    one zero, found by bisection. If all rows are right, the optimum is at the bound, and the result is 1: no change.
    """
    if (probabilities.argmax(1) == truth).all():
        return 1.0
    logits = np.log(np.maximum(probabilities, SMALLEST))
    aim = float(logits[np.arange(len(truth)), truth].mean())
    low, high = 1 / HOTTEST, 1 / COLDEST
    for _ in range(60):
        middle = (low + high) / 2
        expected = float((tempered(probabilities, 1 / middle) * logits).sum(1).mean())
        low, high = (middle, high) if expected < aim else (low, middle)
    return 2 / (low + high)


def isotonic(scores: ProbsLike, right: Sequence[bool] | npt.NDArray[np.bool_]) -> tuple[tuple[float, float], ...]:
    """Fit the non-decreasing map from scores to shares of right answers with the least squared error.

    Pool adjacent violators (Ayer et al. 1955): neighbours out of order are replaced by their mean until none is. The
    pairs are the ends of each level; the map is linear between them.
    """
    order, level = np.unique(np.asarray(scores, np.float64), return_inverse=True)
    weight = np.bincount(level).astype(float)
    share = np.bincount(level, np.asarray(right, np.float64)) / weight
    levels: list[list[float]] = []  # value, weight, first, last
    for i, (value, rows) in enumerate(zip(share, weight, strict=True)):
        levels.append([value, rows, i, i])
        while len(levels) > 1 and levels[-2][0] >= levels[-1][0]:
            late, early = levels.pop(), levels.pop()
            rows_both = early[1] + late[1]
            levels.append([(early[0] * early[1] + late[0] * late[1]) / rows_both, rows_both, early[2], late[3]])
    ends = [(float(order[int(at)]), float(value)) for value, _, first, last in levels for at in {first, last}]
    return tuple(sorted(ends))


# ---- measuring


class ReliabilityBin(NamedTuple):
    """Rows of similar confidence: their mean confidence, and the share that is right with its 95 % interval."""

    rows: int
    confidence: float
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class CalibrationError:
    """Expected calibration error with its 95 % interval, and what perfect calibration would show on as many rows.

    `expected` is the mean error if every answer were right with exactly its confidence: the error is never negative, so
    chance alone puts it above zero. `p` is the share of such draws with an error at least as large as the measured one.
    The interval begins at 0 exactly where p is at least .05.
    """

    value: float
    low: float
    high: float
    expected: float
    p: float


def reliability(confidence: ProbsLike, right: ProbsLike, bins: int = BINS) -> list[ReliabilityBin]:
    """Sort rows into the bins of the reliability plot: equal widths over [0, 1], empty ones left out."""
    probs, hits = np.asarray(confidence, np.float64), np.asarray(right, np.float64)
    numbers = _bin_numbers(probs, bins)
    filled = []
    for number in np.unique(numbers):
        inside = numbers == number
        rows = int(inside.sum())
        interval = wilson(round(hits[inside].sum()), rows)
        filled.append(ReliabilityBin(rows, float(probs[inside].mean()), float(hits[inside].mean()), *interval))
    return filled


def calibration_error(
    confidence: ProbsLike, right: ProbsLike, *, bins: int = BINS, seed: int = 0, resamples: int = RESAMPLES
) -> CalibrationError:
    """Measure the expected calibration error: |accuracy - confidence| over equal-width bins, weighted by their rows.

    The definition is that of Guo et al. `expected` and `p` come from drawing right and wrong by the confidences
    themselves (Vaicenavicius et al., Evaluating model calibration in classification, AISTATS 2019). Noise makes the
    measured error too large, by an amount that depends on the unknown error of each bin. So the interval is one on the
    safe side: it ends above the measured error, as if that were not too large, and begins below an estimate that
    takes off the noise of each bin (as Kumar, Liang & Ma, Verified uncertainty calibration, NeurIPS 2019, do for
    squares), and at 0 where p is at least .05. It held the error of simulated confidences in 91 to 99 % of draws.

    Raises:
        ValueError: there are no rows, or a confidence is outside [0, 1].
    """
    probs, hits = np.asarray(confidence, np.float64), np.asarray(right, np.float64)
    if not len(probs) or len(probs) != len(hits):
        raise ValueError(f"need as many confidences as answers, got {len(probs)} and {len(hits)}")
    rows = len(probs)
    members = np.eye(bins)[_bin_numbers(probs, bins)]  # [rows, bins]
    gaps = members * (hits - probs)[:, None]
    value = float(np.abs(gaps.sum(0)).sum()) / rows
    random = np.random.default_rng(seed)
    again = np.empty(resamples)
    perfect = np.empty(resamples)
    for i in range(resamples):
        again[i] = np.abs(random.multinomial(rows, np.full(rows, 1 / rows)) @ gaps).sum() / rows
        drawn = (random.random(rows) < probs) - probs
        perfect[i] = np.abs(drawn @ members).sum() / rows
    p = (1 + float((perfect >= value - 1e-12).sum())) / (1 + resamples)
    low = 0.0 if p >= 0.05 else max(SMALLEST, _lower_end(probs, hits, members))
    return CalibrationError(value, low, value + 1.96 * float(again.std()), float(perfect.mean()), p)


def _lower_end(probs: Probs, hits: Probs, members: Probs) -> float:
    """The lower end of the error: each bin's gap without its noise, less 1.96 standard errors of the sum.

    A bin's measured gap is its true gap d plus noise of standard deviation s. The size of the gap then has the folded
    normal distribution (Leone et al. 1961); d is estimated by sqrt(gap^2 - s^2).
    """
    rows = members.sum(0)
    members, rows = members[:, rows > 0], rows[rows > 0]
    gaps = (hits - probs) @ members / rows
    share = (hits @ members + probs @ members / rows) / (rows + 1)  # of right answers; no bin is without spread
    variance = np.maximum(share * (1 - share), 1e-3) / rows
    true, s = np.sqrt(np.maximum(0.0, gaps**2 - variance)), np.sqrt(variance)
    erf = np.array([math.erf(ratio / math.sqrt(2)) for ratio in (true / s).tolist()])
    mean = s * math.sqrt(2 / math.pi) * np.exp(-(true**2) / (2 * variance)) + true * erf
    weights = rows / rows.sum()
    error = math.sqrt(float((weights**2 * np.maximum(0.0, true**2 + variance - mean**2)).sum()))
    return float((weights * (np.abs(gaps) - mean + true)).sum()) - 1.96 * error


def _bin_numbers(confidence: Probs, bins: int) -> npt.NDArray[np.intp]:
    """Number each row's bin; bins are open at the left, (i/bins, (i+1)/bins], and the first one includes 0."""
    if ((confidence < 0) | (confidence > 1)).any():
        raise ValueError("a confidence lies outside [0, 1]")
    return np.digitize(confidence, np.linspace(0, 1, bins + 1)[1:-1], right=True)


# ---- abstaining


class Selective(NamedTuple):
    """What abstaining below a threshold gives."""

    threshold: float  # minimum confidence of an answer that is given
    coverage: float  # share of rows that are answered
    accuracy: float | None  # share of the answered rows that are right; None where none is answered
    low: float | None  # end of the accuracy's 95 % interval
    high: float | None
    handled: float  # share of all rows that were answered right, or abstained on and out of scope
    outside_held: float | None  # share of the rows out of scope that are held back; None where there is no such row
    inside_held: float | None  # share of the other rows that are held back; None where there is no such row


def selective(
    confidence: ProbsLike, right: ProbsLike, threshold: float, out_of_scope: Sequence[bool] = ()
) -> Selective:
    """Measure coverage and accuracy where answers with a confidence below `threshold` are held back.

    `out_of_scope` says for every row whether it is right to abstain; empty for no such row.
    """
    probs, hits = np.asarray(confidence, np.float64), np.asarray(right, np.float64)
    outside = np.asarray(out_of_scope, bool) if len(out_of_scope) else np.zeros(len(probs), bool)
    kept = probs >= threshold
    answered, correct = int(kept.sum()), round(hits[kept].sum())
    handled = (correct + int((outside & ~kept).sum())) / len(probs)
    held = [float((~kept[rows]).mean()) if rows.any() else None for rows in (outside, ~outside)]
    if not answered:
        return Selective(threshold, 0.0, None, None, None, handled, *held)
    low, high = wilson(correct, answered)
    return Selective(threshold, answered / len(probs), correct / answered, low, high, handled, *held)


def coverage_curve(confidence: ProbsLike, right: ProbsLike) -> list[tuple[float, float, float]]:
    """List (threshold, coverage, accuracy of what is answered) for every threshold that changes something.

    The list goes from the most confident rows to all of them; rows of equal confidence come together. (El-Yaniv &
    Wiener, On the foundations of noise-free selective classification, JMLR 11, 2010.)
    """
    probs, hits = np.asarray(confidence, np.float64), np.asarray(right, np.float64)
    order = np.argsort(-probs, kind="stable")
    probs, correct = probs[order], np.cumsum(hits[order])
    last = np.append(probs[1:] != probs[:-1], True)
    counts = np.flatnonzero(last) + 1
    return [(float(probs[n - 1]), n / len(probs), float(correct[n - 1]) / n) for n in counts.tolist()]


class ProvenThreshold(NamedTuple):
    """A threshold above which the share of right answers is proven, with what it gives on the rows at hand."""

    threshold: float
    coverage: float
    accuracy: float


def proven_threshold(
    confidence: ProbsLike, right: ProbsLike, accuracy: float, *, level: float = 0.95
) -> ProvenThreshold | None:
    """Find the threshold that answers most rows, of those where at least this share of answers is right on new rows.

    The claim holds with probability `level` (learn then test: Angelopoulos et al., Learn then test: calibrating
    predictive algorithms to achieve risk control, arXiv:2110.01052, 2021). Exact binomial tests go through the
    thresholds in steps of 5 % of the rows, from the most confident 25, 50 and 75 % on, each at a third of the level,
    until one does not reject; steps with too few rows to reject at all are passed over. Returns None where nothing is
    proven: 80 answers that are all right prove 95 %.
    """
    curve = coverage_curve(confidence, right)
    rows = len(np.asarray(confidence))
    best, least = None, (1 - level) / len(STARTS)
    for start in STARTS:
        for step in range(start, 101, STEP):
            inside = [point for point in curve if point[1] <= step / 100 + 1e-9]
            threshold, coverage, share = inside[-1] if inside else (1.0, 0.0, 0.0)
            n = round(coverage * rows)
            if accuracy**n > least:
                continue
            if binomial_tail(round(share * n), n, accuracy) > least:
                break
            if best is None or coverage > best.coverage:
                best = ProvenThreshold(threshold, coverage, share)
    return best


def binomial_tail(successes: int, n: int, rate: float) -> float:
    """Compute P(X >= successes) of X ~ Binomial(n, rate) for a rate inside (0, 1)."""
    counts = np.arange(successes, n + 1)
    logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in counts.tolist()]
    return min(1.0, float(np.exp(np.array(logs) + counts * math.log(rate) + (n - counts) * math.log1p(-rate)).sum()))


# ---- reporting

CURVE_POINTS = 200
ACCURACIES = (0.9, 0.95, 0.99)
STARTS, STEP = (25, 50, 75), 5  # of the rows, in %: where the tests of thresholds begin, and how they go on


def describe(
    calibration: Calibration, before: ProbsLike, after: ProbsLike, right: ProbsLike, *,
    fitted_on: int, out_of_scope: Sequence[bool] = (), seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Collect what the report shows as plain JSON values, measured on rows that the calibration was not fitted on.

    `before` is the decoder's own probability of its answer and `after` the confidence, per row; the calibration was
    fitted on `fitted_on` validation rows.
    """
    curve = coverage_curve(after, right)
    step = max(1, len(curve) // CURVE_POINTS)
    shown = sorted({*range(0, len(curve), step), len(curve) - 1})
    values: dict[str, Any] = {
        "method": calibration.method,
        "temperature": calibration.temperature if calibration.method == "temperature" else None,
        "fitted_on": fitted_on,
        "rows": len(np.asarray(after)),
        "before": _error_values(before, right, seed),
        "after": _error_values(after, right, seed),
        "curve": [list(curve[i]) for i in shown],
        "reaching": {
            f"{accuracy:g}": None if (found := proven_threshold(after, right, accuracy)) is None else found._asdict()
            for accuracy in ACCURACIES
        },
        "abstaining": None,
    }
    if calibration.abstain_below is not None:
        chosen = selective(after, right, calibration.abstain_below, out_of_scope)
        values["abstaining"] = {**chosen._asdict(), "out_of_scope": calibration.out_of_scope}
    return values


def _error_values(confidence: ProbsLike, right: ProbsLike, seed: int) -> dict[str, Any]:
    error = calibration_error(confidence, right, seed=seed)
    return {
        "error": error.value, "low": error.low, "high": error.high, "expected": error.expected, "p": error.p,
        "bins": [list(bin_) for bin_ in reliability(confidence, right)],
    }  # fmt: skip
