"""A trial in production: two artifacts answer live requests until one is shown to be better, or the rows run out.

Shadow: both answer every request, the client gets the first's answer, and each row gives a pair of scores. A/B: each
request is answered by one, chosen by a hash of its id; the k-th scored answer of one is paired with the k-th of the
other, which are two independent draws from the same traffic, so the mean difference is the same.

Looking after every row is allowed: the test is by betting (Waudby-Smith & Ramdas 2024, `rung.evaluation.racing`);
its p-value holds at all looks together. Both directions are tested, each at half the level. The interval holds all
differences that the same test would not reject, so it leaves out 0 just where the trial is decided, and it too holds at
all looks together. `rung.feedback.trials` runs one on a server.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from rung.data.rows import place_of
from rung.evaluation.racing import betting_capital, sign_capital
from rung.evaluation.statistics import Interval
from rung.feedback.defaults import PAIRS

Arm = Literal["a", "b"]
Floats = npt.NDArray[np.float64]
PRECISION = 1e-4  # of an interval's ends


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
    """Collects scores in [0, 1] and decides by a fixed rule. Once decided, a trial stays so, whatever is added.

    Attributes:
        alpha: bound on the probability of calling one better where they are equally good, over the whole trial.
        most: pairs after which it ends undecided.
        binary: whether scores are 0 or 1 only, for which there is a stronger test.
    """

    alpha: float = 0.05
    most: int = PAIRS
    binary: bool = False
    _differences: list[float] = field(default_factory=list)
    _waiting: dict[Arm, list[float]] = field(default_factory=lambda: {"a": [], "b": []})

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1 or self.most < 1:
            raise ValueError(f"need 0 < alpha < 1 and most >= 1, got {self.alpha} and {self.most}")

    def add_pair(self, a: float, b: float) -> None:
        """Add the scores of both on one row (shadow); those beyond `most` are not looked at."""
        for score in (a, b):
            if not 0 <= score <= 1:
                raise ValueError(f"scores must lie in [0, 1], got {score}")
            if self.binary and score not in (0, 1):
                raise ValueError(f"binary scores must be 0 or 1, got {score}")
        if len(self._differences) < self.most:
            self._differences.append(b - a)

    def add(self, arm: Arm, score: float) -> None:
        """Add the score of one answer (A/B); it waits for one of the other arm to be paired with."""
        other = self._waiting["b" if arm == "a" else "a"]
        if not other:
            self._waiting[arm].append(score)
        elif arm == "a":
            self.add_pair(score, other.pop(0))
        else:
            self.add_pair(other.pop(0), score)

    def decision(self) -> Decision:
        """Return how the trial stands: at the first pair that decided it, else at the last one."""
        difference, better, worse = self._seen()
        n = len(difference)
        if n == 0:
            return Decision("open", 0, 0.0, 0, 0, 1.0)
        p = min(1.0, 2 * math.exp(-max(better, worse)))
        winner: Arm = "b" if better > worse else "a"
        state = winner if max(better, worse) >= self._enough else "none" if n >= self.most else "open"
        fixed, broken = int((difference > 0).sum()), int((difference < 0).sum())
        return Decision(state, n, float(difference.mean()), fixed, broken, p)

    def interval(self) -> Interval:
        """Return the differences that these pairs do not rule out, at 1 - `alpha`; [-1, 1] without pairs."""
        difference, _, _ = self._seen()
        return Interval(self._least(difference), -self._least(-difference))

    @property
    def _enough(self) -> float:
        """The log of the capital that decides: each direction is tested at half the level."""
        return math.log(2 / self.alpha)

    def _seen(self) -> tuple[Floats, float, float]:
        """Return the differences until the trial was decided, and the log of the largest capital in either direction.

        A bet knows only the rows before its own, so what was won after each row is the same however many follow.
        """
        difference = np.array(self._differences, dtype=np.float64)
        if not len(difference):
            return difference, 0.0, 0.0
        better, worse = (np.maximum.accumulate(np.maximum(0.0, self._capital(d))) for d in (difference, -difference))
        decided = np.maximum(better, worse) >= self._enough
        n = int(decided.argmax()) + 1 if decided.any() else len(difference)
        return difference[:n], float(better[n - 1]), float(worse[n - 1])

    def _capital(self, difference: Floats, mean: float = 0.0) -> Floats:
        return (sign_capital if self.binary else betting_capital)(difference, mean)

    def _least(self, difference: Floats) -> float:
        """Return the smallest mean that betting on more does not reject; 0 is tried first, as the trial does."""

        def rejected(mean: float) -> bool:
            return len(difference) > 0 and float(self._capital(difference, mean)[-1]) >= self._enough

        low, high = (0.0, 1.0) if rejected(0.0) else (-1.0, 0.0)
        while high - low > PRECISION:
            middle = (low + high) / 2
            low, high = (middle, high) if rejected(middle) else (low, middle)
        return low


def arm_of(id: str, *, share: float = 0.5, salt: str = "") -> Arm:  # noqa: A002
    """Return which artifact answers a request: `b` for a share of the ids, always the same for the same one.

    Args:
        id: of the request, or of whatever shall always see the same artifact.
        share: of the requests that `b` answers.
        salt: another one draws anew; give each trial its own.
    """
    return "b" if place_of([salt, id]) < share else "a"
