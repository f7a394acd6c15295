"""The ladder of a finished climb as rows with drawn intervals."""

from __future__ import annotations

from dataclasses import dataclass

from rung.evaluation.report.words import against, count_text, delta_text, measured, per_row, score_text
from rung.evaluation.result import ClimbResult, RungResult

WIDTH = 200.0  # of a drawn interval, in units of its view box
PAD = 6.0


@dataclass(frozen=True, slots=True)
class Step:
    """A row: the figures as text, and the interval and the mean as places between 0 and `WIDTH`."""

    name: str
    score: str
    rows: str
    against: str
    milliseconds: str
    tokens: str
    trainable: str
    size: str
    left: float
    mean: float
    right: float
    best: bool
    confirmed: bool


@dataclass(frozen=True, slots=True)
class Ladder:
    """The steps, and what stands at the ends of their axis."""

    steps: tuple[Step, ...]
    low: float
    high: float
    incumbent: float | None


def ladder_of(result: ClimbResult) -> Ladder:
    """Return the measured rungs of a climb on one axis."""
    rungs = measured(result)
    low = min((rung.low or 0.0 for rung in rungs), default=0.0)
    high = max((rung.high or 0.0 for rung in rungs), default=1.0)

    def place(value: float) -> float:
        return round(PAD + (WIDTH - 2 * PAD) * (value - low) / ((high - low) or 1.0), 1)

    def step(rung: RungResult) -> Step:
        score, comparison = rung.score or 0.0, against(result, rung.name)
        milliseconds, tokens = per_row(rung)
        return Step(
            rung.name, score_text(rung), f"{rung.n} {rung.split}",
            delta_text(comparison) if comparison else rung.reason, milliseconds, tokens,
            count_text(rung.trainable_parameters), count_text(rung.artifact_bytes),
            place(score if rung.low is None else rung.low), place(score),
            place(score if rung.high is None else rung.high),
            rung.name == result.recommended, rung.status == "confirmed",
        )  # fmt: skip

    zero = next((rung.score for rung in rungs if rung.name == result.rungs[0].name), None)
    return Ladder(tuple(step(rung) for rung in rungs), low, high, None if zero is None else place(zero))
