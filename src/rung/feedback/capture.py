"""Capture: interactions are offered on the response path, and written behind it by one thread, in batches.

The queue is bounded in number and in size. What does not fit is dropped and counted: a slow store must never slow an
answer down. `counts` shows it all: offered = left out + dropped + waiting + written.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Literal, Self, get_args

from rung.data.rows import place_of
from rung.errors import ConfigError, MachineError
from rung.feedback.interaction import Interaction
from rung.feedback.redact import Redactor
from rung.feedback.store import Store

Mode = Literal["off", "sampled", "on"]
BATCH = 256  # interactions in one transaction
GATHER = 0.05  # seconds that a batch may wait for company
RETRY = 1.0  # seconds between tries while the store cannot be written


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of the interactions offered so far.

    Attributes:
        offered: all of them.
        left_out: by the mode: off, or not in the sample.
        dropped: because the queue was full, or the store could not be written until the capture was closed.
        waiting: in the queue.
        written: in the store.
        error: why the store could not be written the last time, empty once it could again.
    """

    offered: int
    left_out: int
    dropped: int
    waiting: int
    written: int
    error: str


class Capture:
    """Writes what it is offered to a store. `offer` never waits and never raises; `close` writes what is waiting."""

    def __init__(
        self,
        store: Store,
        mode: Mode = "on",
        rate: float = 1.0,
        redact: Redactor | None = None,
        *,
        most: int = 10_000,
        most_characters: int = 64_000_000,
    ) -> None:
        """Start the writer.

        Args:
            store: where to.
            mode: `off`, `sampled` or `on`.
            rate: the share that is kept where sampled, in (0, 1].
            redact: what is taken out of the text; None for the built-in patterns.
            most: interactions that may wait.
            most_characters: of their text, together.

        Raises:
            ConfigError: `bad-capture`.
        """
        if mode not in get_args(Mode):
            raise ConfigError("bad-capture", f"no mode of capture is named {mode!r}", hint="choose off, sampled or on")
        if not 0 < rate <= 1 or (mode != "sampled" and rate != 1):
            raise ConfigError(
                "bad-capture", f"a rate of {rate:g} with mode {mode}", hint="a rate above 0 and below 1 needs `sampled`"
            )
        self.store, self.mode, self.rate = store, mode, rate
        self.redact = redact or Redactor()
        self._most, self._most_characters = most, most_characters
        self._queue: deque[Interaction] = deque()
        self._characters = self._offered = self._left_out = self._refused = 0
        self._accepted = self._written = self._lost = 0
        self._error = ""
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="rung-capture", daemon=True)
        self._thread.start()

    def offer(self, interaction: Interaction) -> None:
        """Take one interaction, or count why not."""
        with self._changed:
            self._offered += 1
            if not self.takes(interaction.shadows or interaction.id):
                self._left_out += 1
                return
            size = _size(interaction)
            full = len(self._queue) >= self._most or self._characters + size > self._most_characters
            if full or self._closing:
                self._refused += 1
                return
            self._queue.append(interaction)
            self._accepted += 1
            self._characters += size
            if len(self._queue) in (1, BATCH):  # otherwise the writer has no reason to look
                self._changed.notify_all()

    def takes(self, identity: str) -> bool:
        """Tell whether the mode keeps an interaction; one that shadows another is kept where that one is."""
        return self.mode == "on" or (self.mode == "sampled" and place_of(identity) < self.rate)

    @property
    def counts(self) -> Counts:
        """What became of all interactions, at this moment."""
        with self._changed:
            waiting = self._accepted - self._written - self._lost
            dropped = self._refused + self._lost
            return Counts(self._offered, self._left_out, dropped, waiting, self._written, self._error)

    def flush(self, timeout: float = 30.0) -> bool:
        """Wait until everything accepted so far is written, or given up; return whether it is."""
        with self._changed:
            target = self._accepted
            return self._changed.wait_for(lambda: self._written + self._lost >= target, timeout)

    def close(self, timeout: float = 30.0) -> Counts:
        """Take nothing more, write what is waiting, stop the writer; what could not be written counts as dropped."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout)
        return self.counts

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    # ---- the writer's thread

    def _run(self) -> None:
        while batch := self._next():
            self._keep([self.redact.interaction(row) for row in batch])

    def _next(self) -> list[Interaction]:
        """Wait for the next batch; empty when the capture is closed and nothing is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            self._changed.wait_for(lambda: len(self._queue) >= BATCH or self._closing, GATHER)
            batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
            self._characters -= sum(map(_size, batch))
            return batch

    def _keep(self, rows: list[Interaction]) -> None:
        """Write rows; wait for a store that cannot be written, and give up only rows that it refuses."""
        while True:
            try:
                self.store.record(rows)
            except MachineError as error:
                if self._give_up(str(error)):
                    self._account(lost=len(rows))
                    return
            except Exception as error:
                # A row that no store takes must not stop the others, nor this thread: it is counted, with the reason.
                self._error = f"{type(error).__name__}: {error}"
                if len(rows) == 1:
                    self._account(lost=1)
                    return
                for row in rows:
                    self._keep([row])
                return
            else:
                self._error = ""
                self._account(written=len(rows))
                return

    def _give_up(self, error: str) -> bool:
        """Note the error and wait a little; return whether there is no time for another try."""
        with self._changed:
            self._error = error
            return self._changed.wait_for(lambda: self._closing, RETRY)

    def _account(self, *, written: int = 0, lost: int = 0) -> None:
        with self._changed:
            self._written += written
            self._lost += lost
            self._changed.notify_all()


def _size(row: Interaction) -> int:
    """Return about how many characters an interaction holds."""
    return len(row.actual) + sum(len(v) if isinstance(v, str) else len(str(v)) for v in row.inputs.values())
