"""A scheduler in the shape of an engine, so that artifacts answer through it without knowing that others do too."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from functools import partial

from rung.engines.base import (
    Delta,
    FinishReason,
    Floats,
    Forwarding,
    GenerateRequest,
    Generation,
    Scored,
    ScoreRequest,
)
from rung.progress import QUIET, Progress
from rung.serving.scheduler import Scheduler


class LeftError(Exception):
    """Whoever asked is gone."""


class ScheduledEngine(Forwarding):
    """An `Engine` for one request of one client, called from a worker thread; every call waits for the scheduler.

    Attributes:
        reasons: why each completion ended, in the order of the calls.
        completion_tokens: how many tokens came out of all of them.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__(scheduler.engine)
        self._scheduler = scheduler
        self._left = threading.Event()
        self._open: set[int] = set()
        self._futures: list[Future[Generation]] = []
        self.reasons: list[FinishReason] = []
        self.completion_tokens = 0

    def leave(self) -> None:
        """Drop everything under way: the client is gone. The call that waits raises `LeftError`."""
        self._left.set()
        self._scheduler.cancel(list(self._open))
        for future in self._futures:
            _settle(partial(future.set_exception, LeftError()))

    def generate(
        self,
        requests: Sequence[GenerateRequest],
        *,
        progress: Progress = QUIET,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[Generation]:
        """Complete every request among those of other clients."""
        del progress, cancelled  # a server shows no progress, and clients cancel by leaving
        futures = []
        for request in requests:
            if self._left.is_set():
                raise LeftError
            collector = _Collector(logprobs=request.logprobs)
            futures.append(collector.future)
            self._futures.append(collector.future)
            self._open.add(self._scheduler.complete(request, collector))
        made = [future.result() for future in futures]
        self.reasons += [one.finish_reason for one in made]
        self.completion_tokens += sum(one.completion_tokens for one in made)
        return made

    def stream(self, request: GenerateRequest) -> Iterator[str]:
        """Yield the text of one completion, in one piece."""
        yield self.generate([request])[0].text

    def score(self, requests: Sequence[ScoreRequest], *, progress: Progress = QUIET) -> list[Scored]:
        """Score the continuations of every request."""
        del progress
        return self._answer(self._scheduler.score(requests))

    def embed(self, texts: Sequence[str], *, progress: Progress = QUIET) -> Floats:
        """Return one vector per text."""
        del progress
        return self._scheduler.embed(texts).result()

    def _answer(self, future: Future[list[Scored]]) -> list[Scored]:
        if self._left.is_set():
            future.cancel()
            raise LeftError
        return future.result()


class _Collector:
    """Puts the pieces of one completion together; called by the engine's thread alone."""

    def __init__(self, *, logprobs: bool) -> None:
        self.future: Future[Generation] = Future()
        self._logprobs = logprobs
        self._pieces: list[Delta] = []

    def __call__(self, delta: Delta) -> None:
        self._pieces.append(delta)
        error = delta.error
        if error is not None:
            _settle(lambda: self.future.set_exception(error))
        elif delta.reason is not None:
            made = joined(self._pieces, logprobs=self._logprobs)
            _settle(lambda: self.future.set_result(made))


def _settle(settle: Callable[[], None]) -> None:
    """Settle a future, unless the other side (the engine's thread, or a client that left) was first."""
    with contextlib.suppress(InvalidStateError):
        settle()


def joined(pieces: Sequence[Delta], *, logprobs: bool) -> Generation:
    """Return a whole completion, the last of whose pieces ended it."""
    last = pieces[-1]
    assert last.reason is not None
    return Generation(
        text="".join(piece.text for piece in pieces),
        prompt_tokens=last.prompt_tokens,
        completion_tokens=last.completion_tokens,
        finish_reason=last.reason,
        seconds=0.0,
        logprobs=tuple(value for piece in pieces for value in piece.logprobs) if logprobs else (),
    )
