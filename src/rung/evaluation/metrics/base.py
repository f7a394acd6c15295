"""Metric: a named function from an answer and the expected answers to a score in [0, 1]."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rung.data.kinds import OutputKind
from rung.data.rows import Example
from rung.progress import QUIET, Progress

MetricFunction = Callable[[str, Sequence[str]], float]


class RowScore(NamedTuple):
    """A score in [0, 1] and, where there is more to say, the reason: `no such column: nme`."""

    value: float
    note: str = ""


@dataclass(frozen=True, slots=True)
class Case:
    """One answered row: the answer, the acceptable answers, and the row's columns for metrics that read them."""

    prediction: str
    references: Sequence[str]
    row: Mapping[str, Any] = field(default_factory=dict)


RowsFunction = Callable[[Sequence[Case], Progress], list[RowScore]]


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric by name."""

    name: str  # its name in task files and reports
    function: MetricFunction | None  # scores one answer by its references; None where `rows` scores many at once
    description: str  # one line
    kinds: tuple[OutputKind, ...]  # the output kinds it suits
    binary: bool = False  # whether every score is 0 or 1
    rows: RowsFunction | None = None  # scores many answers, for metrics that read other columns or ask a model
    check: Callable[[Sequence[Example]], None] | None = None  # validates expected answers and the metric's own files
    # Of a statistic of the whole set: numbers for the rows, by answers and expected answers, whose mean it is. What
    # chooses inside a rung goes by the scores of single rows instead.
    whole: Callable[[Sequence[str], Sequence[str]], list[float]] | None = None
    # What an answer comes to when it is run or read, without the expected one; empty where it is invalid. Answers that
    # come to the same are equally right. None where the metric says nothing of an answer by itself.
    reading: Callable[[str], str] | None = None
    top: int = 0  # of `accuracy@K`: how many of the most probable labels count; 0 where only the answer does

    @property
    def of_rows(self) -> str:
        """What the scores of single rows are."""
        return "accuracy" if self.top or self.whole is not None else self.name

    def __call__(self, prediction: str, references: Sequence[str], row: Mapping[str, Any] | None = None) -> float:
        """Score one answer, in [0, 1]."""
        return self.scores([Case(prediction, references, row or {})])[0].value

    def scores(self, cases: Sequence[Case], progress: Progress = QUIET) -> list[RowScore]:
        """Score answers, in their order; `progress` is told what takes long."""
        if self.rows is not None:
            return self.rows(cases, progress)
        assert self.function is not None
        return [RowScore(float(self.function(case.prediction, case.references))) for case in cases]


def some(references: Sequence[str]) -> Sequence[str]:
    """Check that there is at least one reference.

    Raises:
        ValueError: there is none, or a bare text was given in place of a list.
    """
    if isinstance(references, str) or not references:
        raise ValueError(f"references must be a list of at least one text, got {references!r}")
    return references


def f1(shared: float, found: float, wanted: float) -> float:
    """Compute 2 shared / (found + wanted), the harmonic mean of precision and recall; 1 where both are empty."""
    return 2 * shared / (found + wanted) if found + wanted else 1.0


def multiset_f1(found: Counter[Any], wanted: Counter[Any]) -> float:
    """Compute the F1 of two multisets: repetitions count, and two empty sets agree."""
    return f1((found & wanted).total(), found.total(), wanted.total())
