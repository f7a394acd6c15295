"""A race in which all arms answer every look together, until one is left.

A climb makes its arms one after the other; here all are there from the start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rung.evaluation.racing import Ask, Elimination, eliminate, looks


@dataclass(frozen=True, slots=True)
class RaceResult:
    """The arms left at the end, and why the others were dropped."""

    survivors: tuple[str, ...]
    beaten: dict[str, Elimination]


def race(
    names: Sequence[str], ask: Ask, rows: int, *, alpha: float = 0.05, binary: bool | None = None,
    margin: float | None = None, costs: Mapping[str, float] | None = None, batch: int = 8,
) -> RaceResult:  # fmt: skip
    """Race `names` over `rows` rows; the race ends early when one arm is left, and a lone arm answers no row.

    `batch` is the number of rows that the engine answers together; for the other options see `eliminate`.
    """
    alive = tuple(names)
    beaten: dict[str, Elimination] = {}
    scores: dict[str, Sequence[float]] = {}
    for until in looks(rows, batch=batch):
        if len(alive) == 1:
            break
        scores |= {name: ask(name, until) for name in alive}
        beaten |= eliminate(scores, alpha=alpha, binary=binary, margin=margin, costs=costs)
        alive = tuple(name for name in alive if name not in beaten)
    return RaceResult(alive, beaten)
