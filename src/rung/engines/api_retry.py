"""When to send again, and after how long.

Exponential back-off with full jitter (Brooker 2015, "Exponential Backoff And Jitter", AWS Architecture Blog): of the
strategies compared there it finishes soonest with the fewest calls when many clients were refused at once.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

from rung.errors import EngineError

T = TypeVar("T")
FIRST = 0.5  # seconds: upper end of the first pause
LONGEST = 30.0  # seconds: upper end of any pause that we choose ourselves
PATIENCE = 300.0  # seconds: a server that asks for a longer pause is given up


class Attempt(Exception):  # noqa: N818 - not an error for users: it says how one attempt ended
    """One attempt failed in a way that another may not.

    Attributes:
        error: what to raise when there is no attempt left.
        after: seconds that the server asked to wait, or None.
        billed: whether the server may have done the work.
    """

    def __init__(self, error: EngineError, *, after: float | None = None, billed: bool = False) -> None:
        super().__init__(error.message)
        self.error, self.after, self.billed = error, after, billed


class Retry:
    """Sends again, with pauses. A pause that the server asks for holds for all threads.

    Args:
        attempts: how often at most.
        scale: multiplies all pauses that we choose ourselves.
    """

    def __init__(self, attempts: int, *, scale: float = 1.0) -> None:
        self.attempts, self.scale = attempts, scale
        self._not_before = 0.0
        self._lock = threading.Lock()

    def run(self, attempt: Callable[[], T], stopped: threading.Event) -> T:
        """Return what `attempt` returns, calling it again while it raises `Attempt`.

        Raises:
            EngineError: the last attempt failed, or the server asks for a pause that is too long.
        """
        for number in range(self.attempts):
            self._pause(self._not_before - time.monotonic(), stopped)
            try:
                return attempt()
            except Attempt as failed:
                if number + 1 == self.attempts or (failed.after or 0) > PATIENCE:
                    raise failed.error from failed.__cause__
                if failed.after is not None:
                    with self._lock:
                        self._not_before = max(self._not_before, time.monotonic() + failed.after)
                own = random.uniform(0, min(LONGEST, FIRST * 2**number)) * self.scale
                self._pause(max(own, self._not_before - time.monotonic()), stopped)
                if stopped.is_set():
                    raise failed.error from failed.__cause__
        raise AssertionError("attempts is at least 1")

    def _pause(self, seconds: float, stopped: threading.Event) -> None:
        if seconds > 0:
            stopped.wait(seconds)


def retry_after(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Return the seconds that a server asks to wait: `retry-after-ms`, or `Retry-After` in seconds or as a date."""
    try:
        if milliseconds := headers.get("retry-after-ms"):
            return max(0.0, float(milliseconds) / 1000)
        if text := headers.get("retry-after"):
            if text.strip().replace(".", "", 1).isdigit():
                return float(text)
            return max(0.0, (parsedate_to_datetime(text) - (now or datetime.now(UTC))).total_seconds())
    except (ValueError, TypeError):
        return None  # not a time: our own pauses apply
    return None
