"""One thread that runs one engine: completions of all clients share its steps, and scoring runs between them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, InvalidStateError, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rung.engines.base import (
    Closes,
    Continuous,
    Delta,
    Engine,
    FinishReason,
    Floats,
    Forwarding,
    GenerateRequest,
    Generation,
    Reads,
    Scored,
    ScoreRequest,
    Session,
    TokenScores,
)
from rung.errors import EngineError, RungError
from rung.progress import QUIET, Progress

# --------------------
# Completions of an engine that answers from elsewhere (an endpoint): each in a thread of its own, in one piece.


WORKERS = 64
PAUSE = 0.02  # seconds that a step waits for an answer, so that new requests are not held up


class PooledSession:
    """A `Session` for engines that may be called by many threads at once. A text comes when it is complete."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._workers = ThreadPoolExecutor(WORKERS, "rung-endpoint")
        self._futures: dict[Future[list[Generation]], int] = {}

    @property
    def active(self) -> int:
        """How many completions have not ended."""
        return len(self._futures)

    def add(self, key: int, request: GenerateRequest) -> None:
        """Send a request."""
        self._futures[self._workers.submit(self._engine.generate, [request])] = key

    def cancel(self, key: int) -> None:
        """Forget a request; one that was sent already is answered there all the same."""
        for future, own in list(self._futures.items()):
            if own == key:
                future.cancel()
                del self._futures[future]

    def step(self) -> list[Delta]:
        """Return what was answered meanwhile."""
        done, _ = wait(self._futures, PAUSE, FIRST_COMPLETED)
        return [_delta(self._futures.pop(future), future) for future in done]


def _delta(key: int, future: Future[list[Generation]]) -> Delta:
    error = future.exception()
    if isinstance(error, RungError):
        return Delta(key, error=error)
    made = future.result()[0]
    return Delta(key, made.text, (), made.logprobs, made.prompt_tokens, made.completion_tokens, made.finish_reason)


AT_ONCE = 64  # rows that are scored together, so that completions under way wait no longer than for these
LOG = logging.getLogger("rung.serving")
Sink = Callable[[Delta], None]


@dataclass(slots=True)
class _Completion:
    """Where the pieces of one completion go: a function, called in `loop` where there is one."""

    request: GenerateRequest
    sink: Sink
    loop: asyncio.AbstractEventLoop | None


@dataclass(slots=True)
class _Call:
    """One call of the engine for a caller that waits for it; `rows` of the same `kind` run together."""

    kind: tuple[Any, ...]
    rows: Sequence[Any]
    future: Future[Any] = field(default_factory=Future)


class Scheduler:
    """Runs an engine in a thread of its own; every method may be called from any other thread.

    Args:
        engine: what runs; it must not remember answers.
        name: of the base model, for the thread's name.
    """

    def __init__(self, engine: Engine, name: str) -> None:
        self.engine = engine
        self._keys = itertools.count()
        self._changed = threading.Condition()
        self._new: deque[tuple[int, _Completion]] = deque()
        self._cancelled: set[int] = set()
        self._calls: deque[_Call] = deque()
        self._completions: dict[int, _Completion] = {}
        self._session: Session = self._open()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"rung-engine-{name}", daemon=True)
        self._thread.start()

    def _open(self) -> Session:
        return self.engine.session() if isinstance(self.engine, Continuous) else PooledSession(self.engine)

    # ---- for other threads

    @property
    def running(self) -> int:
        """How many completions are under way."""
        return len(self._completions)

    @property
    def waiting(self) -> int:
        """How many completions and calls wait to be taken in."""
        return len(self._new) + len(self._calls)

    def complete(self, request: GenerateRequest, sink: Sink, loop: asyncio.AbstractEventLoop | None = None) -> int:
        """Begin a completion; its pieces go to `sink`, the last one with a reason or an error. Returns its key."""
        with self._changed:
            self._check_open()
            key = next(self._keys)
            self._new.append((key, _Completion(request, sink, loop)))
            self._changed.notify()
        return key

    def cancel(self, keys: Sequence[int]) -> None:
        """Drop completions; nothing more is told of them."""
        with self._changed:
            self._cancelled.update(keys)
            self._changed.notify()

    def score(self, requests: Sequence[ScoreRequest]) -> Future[list[Scored]]:
        """Score the continuations of every request, together with those of other callers."""
        return self._call(("score",), requests)

    def embed(self, texts: Sequence[str]) -> Future[Floats]:
        """Embed texts, together with those of other callers."""
        return self._call(("embed",), texts)

    def read(self, texts: Sequence[tuple[int, ...]], top: int, adapter: str | None) -> Future[list[TokenScores]]:
        """Score every token of texts.

        Raises:
            EngineError: the engine keeps its log-probabilities to itself.
        """
        if not isinstance(self.engine, Reads):
            raise EngineError(
                "scoring-unsupported",
                f"{self.engine.info.model} does not say how likely a given text is",
                hint="serve a model on this machine, through torch or openvino",
            )
        return self._call(("read", top, adapter), texts)

    def close(self) -> None:
        """End the thread once everything that was taken in is done, and close the engine."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        if isinstance(self.engine, Closes):
            self.engine.close()

    def _call(self, kind: tuple[Any, ...], rows: Sequence[Any]) -> Future[Any]:
        call = _Call(kind, rows)
        with self._changed:
            self._check_open()
            self._calls.append(call)
            self._changed.notify()
        return call.future

    def _check_open(self) -> None:
        if self._closing:
            raise EngineError("model-unloaded", f"{self.engine.info.model} is being unloaded", hint="ask another model")

    # ---- in the engine's thread

    def _run(self) -> None:
        while self._wait():
            self._drop_cancelled()
            self._take_in()
            self._answer_calls()
            self._step()

    def _wait(self) -> bool:
        """Sleep until there is something to do; say whether there ever will be."""
        with self._changed:
            while not (self._new or self._calls or self._completions or self._closing):
                self._changed.wait()
            return bool(self._new or self._calls or self._completions)

    def _drop_cancelled(self) -> None:
        with self._changed:
            cancelled, self._cancelled = self._cancelled, set()
            self._new = deque(pair for pair in self._new if pair[0] not in cancelled)
        for key in cancelled & set(self._completions):
            self._session.cancel(key)
            del self._completions[key]

    def _take_in(self) -> None:
        with self._changed:
            new, self._new = self._new, deque()
        for key, completion in new:
            self._completions[key] = completion
            try:
                self._session.add(key, completion.request)
            except Exception as error:  # of one request: the others must not hear of it
                self._deliver([Delta(key, error=_known(error))])

    def _answer_calls(self) -> None:
        """Run one batch of calls: those of the kind that waits longest."""
        with self._changed:
            chosen: list[_Call] = []
            rest: deque[_Call] = deque()
            rows = 0
            for call in self._calls:
                fits = not chosen or (call.kind == chosen[0].kind and rows + len(call.rows) <= AT_ONCE)
                if fits and call.future.set_running_or_notify_cancel():
                    chosen.append(call)
                    rows += len(call.rows)
                elif not call.future.cancelled():
                    rest.append(call)
            self._calls = rest
        if chosen:
            self._answer(chosen)

    def _answer(self, calls: Sequence[_Call]) -> None:
        try:
            results = self._compute(calls[0].kind, [row for call in calls for row in call.rows])
        except Exception as error:
            if len(calls) == 1:
                calls[0].future.set_exception(_known(error))
                return
            for call in calls:  # one of them is wrong: each has its own answer or error
                self._answer([call])
            return
        first = 0
        for call in calls:
            call.future.set_result(results[first : first + len(call.rows)])
            first += len(call.rows)

    def _compute(self, kind: tuple[Any, ...], rows: list[Any]) -> Any:
        if kind[0] == "score":
            return self.engine.score(rows)
        if kind[0] == "embed":
            return self.engine.embed(rows)
        assert isinstance(self.engine, Reads)
        return self.engine.read(rows, top=kind[1], adapter=kind[2])

    def _step(self) -> None:
        if not self._completions:
            return
        try:
            deltas = self._session.step()
        except Exception as error:  # the session is lost, and all that was in it; later requests get a new one
            known = _known(error)
            deltas = [Delta(key, error=known) for key in self._completions]
            self._session = self._open()
        self._deliver(deltas)

    def _deliver(self, deltas: Sequence[Delta]) -> None:
        """Hand pieces to those who wait for them; each event loop is woken once."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Sink, Delta]]] = defaultdict(list)
        for delta in deltas:
            completion = self._completions.get(delta.key)
            if completion is None:
                continue
            if delta.reason is not None or delta.error is not None:
                del self._completions[delta.key]
            if completion.loop is None:
                completion.sink(delta)
            else:
                by_loop[completion.loop].append((completion.sink, delta))
        for loop, pairs in by_loop.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_hand_out, pairs)


def _hand_out(pairs: Sequence[tuple[Sink, Delta]]) -> None:
    for sink, delta in pairs:
        sink(delta)


def _known(error: Exception) -> RungError:
    """Return an error as one of Rung's; what was not foreseen is logged with its traceback."""
    if isinstance(error, RungError):
        return error
    LOG.error("the engine failed", exc_info=error)
    return EngineError("generation-failed", f"the engine failed: {type(error).__name__}", hint="see the server's log")


# --------------------
# A scheduler in the shape of an engine, so that artifacts answer through it without knowing that others do too.


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
