"""A bounded queue in front of everything: what does not fit is told when to come again."""

from __future__ import annotations

import threading
import time

PATIENCE = 60  # seconds, the longest that a client is told to wait


class BusyError(Exception):
    """The queue is full; `retry_after` seconds later there should be room."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Gate:
    """Counts answers that were asked for and are not made yet; `limit` at most.

    Args:
        limit: most answers in the house, waiting or under way.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.inside = 0
        self._lock = threading.Lock()
        self._seconds = 1.0  # that an answer takes, lately

    def enter(self, answers: int = 1) -> None:
        """Take `answers` in.

        Raises:
            BusyError: they do not fit.
        """
        with self._lock:
            if self.inside + answers > self.limit:
                wait = min(PATIENCE, max(1, round(self._seconds)))
                raise BusyError(f"{self.inside} answers are waited for already, and {self.limit} may be", wait)
            self.inside += answers

    def leave(self, answers: int, since: float) -> None:
        """Let `answers` out that came in at `since` (`time.monotonic`)."""
        with self._lock:
            self.inside -= answers
            self._seconds += 0.1 * (time.monotonic() - since - self._seconds)
