"""Metrics of numbers: how close an answer is, whether it is close enough, and the usual statistics of a whole set.

A race needs a score in [0, 1] for every row, so an error is divided by a scale: `closeness` is 1 - |error| / scale, at
least 0. Its mean is 1 - MAE / scale (1 - normalized MAE) where no error is larger than the scale. With `power: 2` it is
1 - (error / scale)², which ranks by RMSE; on a scale from 1 to K, that is the observed agreement of Cohen's quadratic
weights. An answer that is no number scores 0.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rung.data.texts import numbers, read_number
from rung.errors import ConfigError
from rung.evaluation.metrics.base import Case, Metric, RowScore, some

NOT_A_NUMBER = "the answer is not a number"


def number_of(text: str) -> float | None:
    """Read the number of an answer: the whole text, else the last number in it; None if there is none."""
    try:
        return read_number(text)
    except ValueError:
        found = numbers(text)
        return float(found[-1]) if found else None


def closeness_metric(settings: Mapping[str, Any]) -> Metric:
    """Make the metric from `ClosenessSettings`."""

    def score(case: Case) -> RowScore:
        if settings["scale"] is None:
            raise ConfigError(
                "bad-setting", "the metric closeness has no scale: this artifact was not made from the task's rows",
                hint="write `metric: {name: closeness, scale: ...}`: the error that scores 0",
            )  # fmt: skip
        error = _error(case)
        if error is None:
            return RowScore(0.0, NOT_A_NUMBER)
        return RowScore(max(0.0, 1 - (error / settings["scale"]) ** settings["power"]))

    return Metric(
        "closeness", None, "1 - |error| / scale", ("number",), rows=lambda cases, _: [score(case) for case in cases]
    )


def within_metric(settings: Mapping[str, Any]) -> Metric:
    """Make the metric from `WithinSettings`."""

    def score(case: Case) -> RowScore:
        found = number_of(case.prediction)
        if found is None:
            return RowScore(0.0, NOT_A_NUMBER)
        return RowScore(float(any(_near(found, float(reference)) for reference in some(case.references))))

    def _near(found: float, wanted: float) -> bool:
        allowed = settings["tolerance"] if settings["share"] is None else settings["share"] * abs(wanted)
        return math.isclose(found, wanted, rel_tol=1e-9, abs_tol=allowed * (1 + 1e-9))

    return Metric(
        "within", None, "the number is within the tolerance", ("number",), binary=True,
        rows=lambda cases, _: [score(case) for case in cases],
    )  # fmt: skip


def _error(case: Case) -> float | None:
    found = number_of(case.prediction)
    return None if found is None else min(abs(found - float(reference)) for reference in some(case.references))


def number_statistics(predictions: Sequence[str], expected: Sequence[str]) -> dict[str, float]:
    """Compute MAE and RMSE over the answers that are numbers, the share that is none, and kappa where all are whole.

    `quadratic_kappa` is Cohen's kappa with quadratic weights (Cohen 1968), for up to 20 different numbers.

    Raises:
        ValueError: the two differ in length or are empty.
    """
    if len(predictions) != len(expected) or not expected:
        raise ValueError(f"need as many predictions as expected answers, got {len(predictions)} and {len(expected)}")
    read = [(number_of(text), float(truth)) for text, truth in zip(predictions, expected, strict=True)]
    pairs = [(found, truth) for found, truth in read if found is not None]
    values = {"not_a_number": 1 - len(pairs) / len(read)}
    if pairs:
        errors = [abs(found - truth) for found, truth in pairs]
        values["mae"] = sum(errors) / len(errors)
        values["rmse"] = math.sqrt(sum(error**2 for error in errors) / len(errors))
        distinct = {value for pair in pairs for value in pair}
        if len(distinct) <= MOST_GRADES and all(value.is_integer() for value in distinct):
            values["quadratic_kappa"] = quadratic_kappa(pairs)
    return values


MOST_GRADES = 20


def quadratic_kappa(pairs: Sequence[tuple[float, float]]) -> float:
    """Compute Cohen's kappa with weights of the squared difference; 1 where there is nothing to disagree about."""
    n = len(pairs)
    observed = sum((a - b) ** 2 for a, b in pairs) / n
    first, second = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    chance = sum(k * m * (a - b) ** 2 for a, k in first.items() for b, m in second.items()) / n**2
    return 1 - observed / chance if chance else 1.0
