"""What the endpoints of one server share."""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from starlette.requests import Request

from rung.artifact.parts import Answer
from rung.data.rows import hash_of
from rung.errors import RungError
from rung.feedback.records import DEFAULT_RULE, Interaction, interaction_of
from rung.serving.artifacts import answers_of
from rung.serving.limits import Limits, Refused
from rung.serving.metrics import Metrics
from rung.serving.scheduler import LeftError, ScheduledEngine
from rung.serving.served import Base, Encoder, ModelNotFoundError, Served, ServedArtifact, ending, scheduled

if TYPE_CHECKING:
    from rung.serving.front import Visit


# --------------------
# Names of responses: what a client reports a failure by.


def new_id(kind: str) -> str:
    """Return a new id, such as `chatcmpl-...`; nobody can guess another's."""
    return f"{kind}-{secrets.token_hex(16)}"


# --------------------
# Challengers that answer behind the responses: one row at a time, and while no client waits, if that ever comes.
#
# A row waits until no client does, but no longer than `PATIENCE` seconds from when its turn came, or `REST` times as
# long
# as the last row took that ran beside clients, whichever is more. So on a server that is never idle shadows answer too,
# and are at most one row in at most a fifth of the time.
#
# The queue is bounded; what does not fit is dropped and counted. A challenger that fails at a row is recorded as having
# answered nothing, since leaving such rows out would favour it.


MOST = 256  # rows that may wait
PAUSE = 0.01  # seconds between looks at whether clients wait
PATIENCE = 2.0  # seconds that a row waits for a moment without clients before it runs beside them
REST = 4  # times as long as a row took beside clients, the next one waits at least
LOG = logging.getLogger("rung.serving")


@dataclass(frozen=True, slots=True)
class Shadow:
    """A row to answer again: by whom, and behind which response to whose request."""

    challenger: ServedArtifact
    row: Mapping[str, Any]
    identity: str
    key: str | None


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of the rows offered: offered = dropped + waiting + answered + failed.

    Attributes:
        beside: rows, of any outcome, that were begun while clients waited.
    """

    offered: int = 0
    dropped: int = 0
    answered: int = 0
    failed: int = 0
    beside: int = 0

    @property
    def waiting(self) -> int:
        """Rows in the queue, the one under way included."""
        return self.offered - self.dropped - self.answered - self.failed


class Shadows:
    """The queue and its one worker.

    Args:
        recorder: takes what challengers answered.
        busy: tells whether clients wait for answers.
        most: rows that may wait.
        clock: tells seconds.
    """

    def __init__(
        self,
        recorder: Recorder,
        busy: Callable[[], bool],
        *,
        most: int = MOST,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._recorder, self._busy, self._most, self._clock = recorder, busy, most, clock
        self._patience = PATIENCE
        self._worker = ThreadPoolExecutor(1, "rung-shadow")
        self._lock = threading.Lock()
        self._counts = Counts()
        self._closing = False
        self._engine: ScheduledEngine | None = None

    @property
    def counts(self) -> Counts:
        """What became of all rows, at this moment."""
        return self._counts

    def offer(self, shadow: Shadow) -> None:
        """Take one row, or count it as dropped; returns at once."""
        with self._lock:
            full = self._closing or self._counts.waiting >= self._most
            self._counts = replace(self._counts, offered=self._counts.offered + 1)
            if not full:
                self._worker.submit(self._run, shadow)
        if full:
            self._count("dropped")

    def close(self) -> None:
        """Drop what waits, also the row under way, and end the worker."""
        with self._lock:
            self._closing = True
            if self._engine is not None:
                self._engine.leave()
        self._worker.shutdown()

    # ---- in the worker

    def _run(self, shadow: Shadow) -> None:
        beside = self._wait()
        artifact, engine = scheduled(shadow.challenger)
        with self._lock:
            self._engine = engine
            closing = self._closing
        if closing:
            self._count("dropped")
            return
        if beside:
            self._count("beside")
        begun = self._clock()
        try:
            answer, finish = answers_of(artifact, [shadow.row])[0], ending(engine)
        except LeftError:
            self._count("dropped")
            return
        except Exception as error:  # whatever a challenger does, the next row is answered
            finish = error.code if isinstance(error, RungError) else "internal-error"
            LOG.error("the challenger of %s failed: %s", shadow.challenger.name, error, exc_info=error)
            answer, outcome = Answer("", None, None, 0, 0, 0.0), "failed"
        else:
            outcome = "answered"
        seconds = self._clock() - begun
        self._patience = max(PATIENCE, REST * seconds) if beside else PATIENCE
        self._record(shadow, answer, finish, seconds)
        self._count(outcome)

    def _wait(self) -> bool:
        """Wait until no client does, or for as long as a row waits for that; return whether clients still wait."""
        began = self._clock()
        while (busy := self._busy()) and not self._closing and self._clock() - began < self._patience:
            time.sleep(PAUSE)
        return busy

    def _record(self, shadow: Shadow, answer: Answer, finish: str, seconds: float) -> None:
        challenger = shadow.challenger
        assert challenger.trial is not None
        self._recorder.offer(
            interaction_of(
                challenger.artifact,
                shadow.row,
                answer,
                id=new_id("shadow"),
                artifact_fingerprint=challenger.fingerprint,
                model_fingerprint=challenger.model_fingerprint,
                finish=finish,
                seconds=seconds,
                key=shadow.key,
                trial=challenger.trial.record.token,
                shadows=shadow.identity,
            )
        )

    def _count(self, what: str) -> None:
        with self._lock:
            self._counts = replace(self._counts, **{what: getattr(self._counts, what) + 1})


def watch_shadows(metrics: Metrics, shadows: Shadows) -> None:
    """Show among the metrics what became of the rows that challengers were to answer behind responses."""
    told = {
        "offered": "Rows for a challenger to answer behind the response.",
        "dropped": "Rows left out: the queue was full, or the server ended.",
        "waiting": "Rows that wait for their turn, or for a moment without clients.",
        "beside": "Rows that were begun while clients waited: no moment without them came.",
        "answered": "Rows that a challenger answered.",
        "failed": "Rows that a challenger failed at; recorded with an empty answer.",
    }
    metrics.watch("rung_shadow", told, lambda: shadows.counts)


# --------------------
# What was answered, handed to whoever keeps it: behind the response's path, and never waited for.


class Recorder(Protocol):
    """Takes what was answered. `offer` must return at once: it is called by the event loop."""

    def offer(self, interaction: Interaction) -> None:
        """Take one interaction; a recorder that is full counts it as dropped."""

    def takes(self, identity: str) -> bool:
        """Tell whether an interaction with this id is kept, as far as its sample goes."""


def record_answer(
    context: Context,
    served: ServedArtifact,
    row: Mapping[str, Any],
    answer: Answer,
    visit: Visit,
    *,
    identity: str,
    finish: str,
) -> None:
    """Record what an artifact answered, under the id that the client is told; its shadow answers when that is done."""
    recorder, trial, key = context.recorder, served.trial, visit.key.id if visit.key else None
    if recorder is None:
        return
    recorder.offer(
        interaction_of(
            served.artifact,
            row,
            answer,
            id=identity,
            artifact_fingerprint=served.fingerprint,
            model_fingerprint=served.model_fingerprint,
            finish=finish,
            seconds=visit.seconds,
            key=key,
            trial="" if trial is None else trial.record.token,
        )
    )
    if trial is None or trial.record.mode != "shadow" or trial.challenger is None or not recorder.takes(identity):
        return
    assert context.shadows is not None  # there are where there is a recorder
    visit.at_end(partial(context.shadows.offer, Shadow(trial.challenger, row, identity, key)))


def record_plain(
    recorder: Recorder | None,
    base: Base,
    inputs: Mapping[str, Any],
    actual: str,
    tokens: Sequence[int],
    visit: Visit,
    *,
    identity: str,
    finish: str,
) -> None:
    """Record what a bare base model answered; `tokens` are those of prompt and answer."""
    if recorder is None:
        return
    recorder.offer(
        Interaction(
            id=identity,
            at=datetime.now(UTC),
            task="",
            artifact="",
            model=base.fingerprint,
            system="",
            template="",
            template_version="",
            inputs=inputs,
            prompt_sha256=hash_of(dict(inputs), digits=64),
            actual=actual,
            confidence=None,
            prompt_tokens=tokens[0],
            completion_tokens=tokens[1],
            seconds=visit.seconds,
            key=visit.key.id if visit.key else None,
            finish=finish,
            split=DEFAULT_RULE.side(inputs),
        )
    )


_Result = TypeVar("_Result")
RENDERERS = 4  # threads that render and tokenize


@dataclass
class Context:
    """The state behind the endpoints.

    Attributes:
        served: what is served.
        recorder: takes what was answered, or None.
        shadows: answers of challengers behind the responses; there where there is a recorder.
        load_from: below it lie artifacts that may be loaded over HTTP; None for no loading.
        keyed: whether requests need a key.
        ready: false from the moment when the server is told to end.
    """

    served: Served
    limits: Limits
    metrics: Metrics
    recorder: Recorder | None = None
    shadows: Shadows | None = None
    load_from: Path | None = None
    keyed: bool = False
    ready: bool = True
    _renderers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(RENDERERS, "rung-render"))
    _answerers: ThreadPoolExecutor | None = None

    def find(self, name: str) -> Base | Encoder | ServedArtifact:
        """Return what is served under a name.

        Raises:
            Refused: nothing is.
        """
        try:
            return self.served.find(name)
        except ModelNotFoundError:
            known = ", ".join(repr(one.name) for one in self.served.all())
            raise Refused(
                404, "model_not_found", f"no model is served as {name!r}; there are {known}", param="model"
            ) from None

    async def render(self, work: Callable[..., _Result], *arguments: Any, **options: Any) -> _Result:
        """Run short work (rendering, tokenizing) off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._renderers, partial(work, *arguments, **options))

    async def answer(self, work: Callable[..., _Result], *arguments: Any, **options: Any) -> _Result:
        """Run work that waits for an engine in a thread; there are enough for a full queue."""
        if self._answerers is None:
            self._answerers = ThreadPoolExecutor(self.limits.queue, "rung-answer")
        return await asyncio.get_running_loop().run_in_executor(self._answerers, partial(work, *arguments, **options))

    def close(self) -> None:
        """End threads and engines, once their work is done."""
        if self.shadows is not None:
            self.shadows.close()
        self._renderers.shutdown()
        if self._answerers is not None:
            self._answerers.shutdown()
        self.served.close()


def context_of(request: Request) -> Context:
    """Return the context of the application that serves a request."""
    context = request.app.state.rung
    assert isinstance(context, Context)
    return context
