"""One HTTP request from its first byte to its last: who asks, what it holds, and what to undo when it ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.requests import Request

from rung.serving.admission import Gate
from rung.serving.keys import Key

STATE = "rung.visit"


@dataclass(slots=True)
class Visit:
    """What the front knows of a request; handlers ask for it by `visit_of`."""

    gate: Gate
    key: Key | None = None
    started: float = field(default_factory=time.monotonic)
    _undo: list[Callable[[], None]] = field(default_factory=list)

    def admit(self, answers: int) -> None:
        """Take a place in the queue for `answers`, until the request ends.

        Raises:
            BusyError: the queue is full.
        """
        self.gate.enter(answers)
        since = time.monotonic()
        self.at_end(lambda: self.gate.leave(answers, since))

    def at_end(self, undo: Callable[[], None]) -> None:
        """Call `undo` when the request ends, however it does."""
        self._undo.append(undo)

    def close(self) -> None:
        """End the request."""
        while self._undo:
            self._undo.pop()()

    @property
    def seconds(self) -> float:
        """Time since the request began."""
        return time.monotonic() - self.started


def visit_of(request: Request) -> Visit:
    """Return the visit that a request is."""
    visit = request.scope[STATE]
    assert isinstance(visit, Visit)
    return visit
