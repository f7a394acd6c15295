"""What arms take: estimates from operations, corrected by what was measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rung.rungs.base import Cost
from rung.rungs.costs import WRITING, time_tokens

NEAR = 30.0  # estimates of two arms within this factor are corrected alike
SAME = 1.5  # ratio of the operations a token of two models that are taken for one


class Paces:
    """Corrects estimates by what was measured: of the same arm, else of the most similar one that runs the same model.

    The time of a language model says nothing about an encoder's or of what runs none.
    """

    def __init__(self, speedup: float = 1.0) -> None:
        self.first = 1 / max(1.0, speedup)  # before anything was measured: how much faster the engine is than torch
        self.model: Cost | None = None  # of the first base, whose model the engine runs
        self.rows: dict[str, tuple[Cost, float]] = {}  # arm: its estimate and the measured seconds of a row
        self.written: dict[str, float] = {}  # arm: the measured tokens that it writes for a row
        self.fits: dict[str, tuple[Cost, float]] = {}  # arm that was trained: the same of its fit

    def row_seconds(self, name: str, cost: Cost) -> float:
        """The expected seconds of a row."""
        if name in self.rows:
            return self.rows[name][1]
        rows = [(each, each.row_seconds, real) for each, real in self._as_estimated()]
        return cost.row_seconds * self._ratio(rows, cost, cost.row_seconds, self._first(cost))

    def fit_seconds(self, cost: Cost, *, trains: bool) -> float:
        """The expected seconds of a fit; one that does not train answers rows."""
        if trains:
            fits = [(each, each.fit_seconds, real) for each, real in self.fits.values()]
            return cost.fit_seconds * self._ratio(fits, cost, cost.fit_seconds, 1.0)
        rows = [(each, each.row_seconds, real) for each, real in self._as_estimated()]
        return cost.fit_seconds * self._ratio(rows, cost, cost.fit_seconds, self._first(cost))

    def _as_estimated(self) -> Iterator[tuple[Cost, float]]:
        """The estimates, and the seconds that a row would take if as many tokens were written as was expected.

        A model that does not know when to stop says nothing of another's time.
        """
        for name, (cost, real) in self.rows.items():
            expected, written = cost.written_tokens, self.written.get(name, cost.written_tokens)
            units = time_tokens(cost.row_tokens, expected)
            yield cost, real * units / (units + WRITING * (written - expected)) if expected else real

    def _first(self, cost: Cost) -> float:
        return self.first if self.model is not None and same_model(cost, self.model) else 1.0

    @staticmethod
    def _ratio(known: Sequence[tuple[Cost, float, float]], cost: Cost, estimated: float, otherwise: float) -> float:
        pairs = [(guess, real) for each, guess, real in known if guess > 0 and real > 0 and same_model(each, cost)]
        if not pairs or estimated <= 0:
            return otherwise

        def distance(pair: tuple[float, float]) -> float:
            return abs(math.log(pair[0] / estimated))

        nearest = min(pairs, key=distance)
        ratio = nearest[1] / nearest[0]
        if distance(nearest) <= math.log(NEAR):
            return ratio
        # Fixed costs are a smaller share of far more work, so its ratio is at most this one.
        return min(ratio, otherwise) if estimated > nearest[0] else otherwise


def same_model(a: Cost, b: Cost) -> bool:
    """Whether two estimates are of the same model, or of none: a token takes about as many operations."""
    one, two = (cost.row_flops / cost.row_tokens if cost.row_tokens else 0.0 for cost in (a, b))
    return one == two or (min(one, two) > 0 and max(one, two) <= SAME * min(one, two))
