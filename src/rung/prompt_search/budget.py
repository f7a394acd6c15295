"""What a search may spend, in calls, tokens, seconds and money, and what it has spent."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that a search may spend; None for no limit. A call is one prompt answered or written by a model."""

    calls: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    money: float | None = None


class Meter:
    """Counts, and foresees how many calls are left by what calls have cost so far.

    Args:
        limits: the budget.
        prices: of a million prompt tokens and a million completion tokens, for `money`.
        clock: returns seconds; another one makes tests exact.
    """

    def __init__(
        self, limits: Limits, prices: tuple[float, float] = (0.0, 0.0), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.limits, self.prices = limits, prices
        self.calls = self.prompt_tokens = self.completion_tokens = 0
        self._clock, self._start = clock, clock()

    def add(self, calls: int, prompt_tokens: int, completion_tokens: int = 0) -> None:
        """Count calls with the tokens that they read and wrote, all together."""
        self.calls += calls
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens

    @property
    def money(self) -> float:
        """What the tokens cost."""
        return (self.prices[0] * self.prompt_tokens + self.prices[1] * self.completion_tokens) / MILLION

    def left(self) -> int | None:
        """Return how many calls are left, the scarcest limit deciding; None without a limit."""
        spent = (
            (self.limits.calls, float(self.calls)),
            (self.limits.tokens, float(self.prompt_tokens + self.completion_tokens)),
            (self.limits.seconds, self._clock() - self._start),
            (self.limits.money, self.money),
        )
        left = [
            (limit - used) / (used / self.calls if self.calls and used else 1.0) if used < limit else 0.0
            for limit, used in spent
            if limit is not None
        ]
        return math.floor(min(left) + 1e-9) if left else None

    def as_dict(self) -> dict[str, Any]:
        """Return what was spent, as JSON values."""
        return {
            "calls": self.calls, "prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens,
            "seconds": round(self._clock() - self._start, 1), "money": round(self.money, 6),
        }  # fmt: skip
