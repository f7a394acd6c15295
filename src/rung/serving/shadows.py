"""Shadow answers: a challenger answers rows again after the responses, one at a time, preferably while no client waits.

A row waits until no client does, but at most `PATIENCE` seconds after its turn came, or `REST` times as long as the
last row took that ran beside clients, if that is longer. So shadows answer on a server that is never idle too, and run
at most a fifth of the time there.

The queue is bounded; rows beyond it are dropped and counted. A row that the challenger fails on is recorded with an
empty answer, because leaving it out would favour the challenger.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rung.artifact.decoder import Answer
from rung.errors import RungError
from rung.feedback.records import interaction_of
from rung.serving.requests import answers_of
from rung.serving.scheduler import LeftError, ScheduledEngine
from rung.serving.served import ServedArtifact, finish_reasons, scheduled

if TYPE_CHECKING:
    from rung.feedback.capture import Capture

MAX_WAITING = 256  # rows
PAUSE = 0.01  # seconds between checks whether clients wait
PATIENCE = 2.0  # seconds that a row waits for a moment without clients before it runs beside them
REST = 4  # times as long as a row took beside clients, the next one waits at least
LOG = logging.getLogger("rung.serving")


def new_id(kind: str) -> str:
    """Make an id such as `chatcmpl-...`; clients report failures by it, and nobody can guess another's."""
    return f"{kind}-{secrets.token_hex(16)}"


@dataclass(frozen=True, slots=True)
class Shadow:
    """A row to answer again: by which challenger, after which response, to whose request."""

    challenger: ServedArtifact
    row: Mapping[str, Any]
    identity: str
    key: str | None


@dataclass(frozen=True, slots=True)
class ShadowCounts:
    """What became of the rows: offered = dropped + waiting + answered + failed; `beside` ran while clients waited."""

    offered: int = 0
    dropped: int = 0
    answered: int = 0
    failed: int = 0
    beside: int = 0

    @property
    def waiting(self) -> int:
        """Rows in the queue, the running one included."""
        return self.offered - self.dropped - self.answered - self.failed


class Shadows:
    """The queue of at most `most` rows and its one worker; `busy` tells whether clients wait for answers."""

    def __init__(
        self, recorder: Capture, busy: Callable[[], bool], *, most: int = MAX_WAITING,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._recorder, self._busy, self._most, self._clock = recorder, busy, most, clock
        self._patience = PATIENCE
        self._worker = ThreadPoolExecutor(1, "rung-shadow")
        self._lock = threading.Lock()
        self._closing = False
        self._engine: ScheduledEngine | None = None
        self.counts = ShadowCounts()

    def offer(self, shadow: Shadow) -> None:
        """Queue one row, or count it as dropped; returns at once."""
        with self._lock:
            full = self._closing or self.counts.waiting >= self._most
            self.counts = replace(self.counts, offered=self.counts.offered + 1)
            if not full:
                self._worker.submit(self._run, shadow)
        if full:
            self._count("dropped")

    def close(self) -> None:
        """Drop all rows, the running one included, and end the worker."""
        with self._lock:
            self._closing = True
            if self._engine is not None:
                self._engine.leave()
        self._worker.shutdown()

    # ---- in the worker

    def _run(self, shadow: Shadow) -> None:
        beside = self._wait()
        challenger = shadow.challenger
        artifact, engine = scheduled(challenger)
        with self._lock:
            self._engine = engine
            closing = self._closing
        if closing:
            self._count("dropped")
            return
        if beside:
            self._count("beside")
        begun = self._clock()
        finish: str
        try:
            answer, finish, outcome = answers_of(artifact, [shadow.row])[0], finish_reasons(engine, 1)[0], "answered"
        except LeftError:
            self._count("dropped")
            return
        except Exception as error:  # any failure of a challenger: the next row is still answered
            LOG.error("the challenger of %s failed: %s", challenger.name, error, exc_info=error)
            code = error.code if isinstance(error, RungError) else "internal-error"
            answer, finish, outcome = Answer("", None, None, 0, 0, 0.0), code, "failed"
        seconds = self._clock() - begun
        self._patience = max(PATIENCE, REST * seconds) if beside else PATIENCE
        assert challenger.trial is not None
        interaction = interaction_of(
            challenger.artifact, shadow.row, answer, id=new_id("shadow"), artifact_fingerprint=challenger.fingerprint,
            model_fingerprint=challenger.model_fingerprint, finish=finish, seconds=seconds, key=shadow.key,
            trial=challenger.trial.token, shadows=shadow.identity,
        )  # fmt: skip
        self._recorder.offer(interaction)
        self._count(outcome)

    def _wait(self) -> bool:
        """Wait until no client does, or until the row's patience ends; return whether clients still wait."""
        began = self._clock()
        while (busy := self._busy()) and not self._closing and self._clock() - began < self._patience:
            time.sleep(PAUSE)
        return busy

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts = replace(self.counts, **{what: getattr(self.counts, what) + 1})
