"""A trial in production: two artifacts answer live requests until one is shown to be better, or the rows run out.

Shadow: both answer every request, the client gets the first's answer, and each row gives a pair of scores. A/B: each
request is answered by one, chosen by a hash of its id; the k-th scored answer of one is paired with the k-th of the
other, which are two independent draws from the same traffic, so the mean difference is the same.

Looking after every row is allowed: the test is by betting (Waudby-Smith & Ramdas 2024, `rung.evaluation.elimination`);
its p-value holds at all looks together. Both directions are tested, each at half the level. `rung.failures.challenge`
runs one on a server.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from rung.data.types import place_of
from rung.evaluation.elimination import betting_capital, sign_capital

Arm = Literal["a", "b"]


@dataclass(frozen=True, slots=True)
class Decision:
    """How a trial stands.

    Attributes:
        state: `a` or `b` is better, `none` was shown to be within the rows planned, or it is still `open`.
        n: pairs so far.
        delta: mean score of b less that of a over these.
        fixed, broken: pairs in which b scored above a, and below.
        p: two-sided, valid at every look.
    """

    state: Literal["a", "b", "none", "open"]
    n: int
    delta: float
    fixed: int
    broken: int
    p: float

    @property
    def stop(self) -> bool:
        """Whether the trial is over."""
        return self.state != "open"


@dataclass
class Trial:
    """Collects scores in [0, 1] and decides by a fixed rule.

    Attributes:
        alpha: bound on the probability of calling one better where they are equally good, over the whole trial.
        most: pairs after which it ends undecided.
        binary: whether scores are 0 or 1 only, for which there is a stronger test.
    """

    alpha: float = 0.05
    most: int = 10_000
    binary: bool = False
    _differences: list[float] = field(default_factory=list)
    _waiting: dict[Arm, list[float]] = field(default_factory=lambda: {"a": [], "b": []})
    _decided: Decision | None = None

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1 or self.most < 1:
            raise ValueError(f"need 0 < alpha < 1 and most >= 1, got {self.alpha} and {self.most}")

    def add_pair(self, a: float, b: float) -> Decision:
        """Add the scores of both on one row (shadow), and decide. Once decided, a trial stays so."""
        for score in (a, b):
            if not 0 <= score <= 1:
                raise ValueError(f"scores must lie in [0, 1], got {score}")
            if self.binary and score not in (0, 1):
                raise ValueError(f"binary scores must be 0 or 1, got {score}")
        if self._decided is None:
            self._differences.append(b - a)
            now = self.decision()
            if now.stop:
                self._decided = now
        return self._decided or self.decision()

    def add(self, arm: Arm, score: float) -> Decision:
        """Add the score of one answer (A/B); it waits for one of the other arm to be paired with."""
        other = self._waiting["b" if arm == "a" else "a"]
        if not other:
            self._waiting[arm].append(score)
            return self.decision()
        paired = other.pop(0)
        return self.add_pair(score, paired) if arm == "a" else self.add_pair(paired, score)

    def decision(self) -> Decision:
        """Return how the trial stands."""
        if self._decided is not None:
            return self._decided
        difference = np.array(self._differences, dtype=np.float64)
        n = len(difference)
        if n == 0:
            return Decision("open", 0, 0.0, 0, 0, 1.0)
        better, worse = self._p(difference), self._p(-difference)
        p = min(1.0, 2 * min(better, worse))
        winner: Arm = "b" if better < worse else "a"
        state = winner if p <= self.alpha else "none" if n >= self.most else "open"
        fixed, broken = int((difference > 0).sum()), int((difference < 0).sum())
        return Decision(state, n, float(difference.mean()), fixed, broken, p)

    def _p(self, difference: npt.NDArray[np.float64]) -> float:
        """Return a p-value for "the mean is at most 0" that holds at all looks: one over the largest capital so far."""
        capital = sign_capital(difference) if self.binary else betting_capital(difference)
        return math.exp(-max(0.0, float(capital.max())))


def arm_of(id: str, *, share: float = 0.5, salt: str = "") -> Arm:  # noqa: A002
    """Return which artifact answers a request: `b` for a share of the ids, always the same for the same one.

    Args:
        id: of the request, or of whatever shall always see the same artifact.
        share: of the requests that `b` answers.
        salt: another one draws anew; give each trial its own.
    """
    return "b" if place_of([salt, id]) < share else "a"
