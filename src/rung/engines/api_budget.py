"""Money: what every request may cost at most is set aside before it is sent, so that a budget is never exceeded."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from rung.engines.api_options import ApiOptions
from rung.engines.base import Prompt
from rung.errors import EngineError

MILLION = 1_000_000
TURN_TOKENS = 32  # most that a chat template writes around one message
TEMPLATE_TOKENS = 128  # most that it writes besides, such as a default system prompt


@dataclass(frozen=True, slots=True)
class Spent:
    """What was used so far; `money` counts attempts whose outcome is unknown at the most they can have cost."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    money: float


class Budget:
    """Counts tokens and money over all threads.

    A request is admitted when all that was spent, all that is set aside for requests in flight, and its own worst case
    stay within the budget. While others are in flight it waits: they mostly cost less than was set aside for them.
    """

    def __init__(self, options: ApiOptions) -> None:
        self.options = options
        self._changed = threading.Condition()
        self._requests = self._prompt = self._completion = self._in_flight = 0
        self._money = self._reserved = 0.0

    @property
    def spent(self) -> Spent:
        """What was used so far."""
        with self._changed:
            return Spent(self._requests, self._prompt, self._completion, self._money)

    def price(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return what so many tokens cost."""
        paid = prompt_tokens * self.options.price_input + completion_tokens * self.options.price_output
        return paid / MILLION

    def reserve(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Set aside the worst case of one attempt, and return it for `settle`.

        Raises:
            EngineError: `budget-spent`: nothing is in flight any more, and it would not fit.
        """
        worst, limit = self.price(prompt_tokens, completion_tokens), self.options.budget
        with self._changed:
            while limit is not None and self._money + self._reserved + worst > limit:
                if self._in_flight == 0:
                    raise EngineError(
                        "budget-spent",
                        f"{self._money:.6g} of the budget of {limit:.6g} is spent, and the next request may cost "
                        f"{worst:.6g}",
                        hint="raise RUNG_API_BUDGET and run again: answers made so far are remembered",
                    )
                self._changed.wait()
            self._in_flight += 1
            self._reserved += worst
        return worst

    def settle(self, worst: float, used: tuple[int, int] | None, *, billed: bool = True) -> None:
        """Replace what was set aside by what was used.

        Args:
            worst: what `reserve` returned.
            used: prompt and completion tokens, or None where they are unknown.
            billed: without, the server refused the attempt and it costs nothing. An attempt that was billed with an
                unknown number of tokens counts at its worst.
        """
        with self._changed:
            self._in_flight -= 1
            self._reserved = max(0.0, self._reserved - worst) if self._in_flight else 0.0
            if billed:
                self._requests += 1
                self._money += worst if used is None else self.price(*used)
                self._prompt += used[0] if used else 0
                self._completion += used[1] if used else 0
            self._changed.notify_all()


def most_tokens(prompt: Prompt) -> int:
    """Return a number of tokens that the prompt cannot exceed: vocabularies of bytes have no token below one byte."""
    if prompt and isinstance(prompt[0], int):
        return len(prompt)
    turns = [message["content"] for message in prompt]  # type: ignore[index]
    return sum(len(text.encode()) + TURN_TOKENS for text in turns) + TEMPLATE_TOKENS
