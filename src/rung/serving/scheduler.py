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
    EngineWrapper,
    FinishReason,
    Floats,
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

WORKERS = 64  # requests to an endpoint at once
PAUSE = 0.02  # seconds that a step waits for an endpoint's answer, so that new requests are not held up
AT_ONCE = 64  # rows scored together, so that completions wait no longer than for these
LOG = logging.getLogger("rung.serving")
Sink = Callable[[Delta], None]


class PooledSession:
    """A `Session` over an endpoint: each completion runs in its own thread and comes in one piece."""

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
        """Forget a request; the endpoint still answers one that was already sent."""
        for future, own in list(self._futures.items()):
            if own == key:
                future.cancel()
                del self._futures[future]

    def step(self) -> list[Delta]:
        """Collect the answers that arrived."""
        deltas = []
        for future in wait(self._futures, PAUSE, FIRST_COMPLETED).done:
            key, error = self._futures.pop(future), future.exception()
            if isinstance(error, RungError):
                deltas.append(Delta(key, error=error))
                continue
            whole = future.result()[0]
            counts = whole.prompt_tokens, whole.completion_tokens
            deltas.append(Delta(key, whole.text, (), whole.logprobs, *counts, whole.finish_reason))
        return deltas


@dataclass(slots=True)
class Completion:
    """One completion, in progress or finished."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish: FinishReason = "cancelled"
    reasoning: str = ""  # what was thought before the text

    def add(self, delta: Delta) -> None:
        """Append a piece."""
        self.text += delta.text
        self.tokens += delta.tokens
        self.logprobs += delta.logprobs
        self.prompt_tokens, self.completion_tokens = delta.prompt_tokens, delta.completion_tokens
        self.finish = delta.reason or self.finish


@dataclass(slots=True)
class _Listener:
    """Takes the pieces of one completion: a function, called in `loop` where there is one."""

    request: GenerateRequest
    sink: Sink
    loop: asyncio.AbstractEventLoop | None


@dataclass(slots=True)
class _Call:
    """One call of the engine for a caller that waits for it; calls of the same `kind` run together."""

    kind: tuple[Any, ...]
    work: Callable[[list[Any]], Any]
    rows: Sequence[Any]
    future: Future[Any] = field(default_factory=Future)


class Scheduler:
    """Runs an engine, which must not cache answers, in its own thread; any other thread may call every method."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.engine = engine
        self._keys = itertools.count()
        self._changed = threading.Condition()
        self._new: deque[tuple[int, _Listener]] = deque()
        self._cancelled: set[int] = set()
        self._calls: deque[_Call] = deque()
        self._listeners: dict[int, _Listener] = {}
        self._session: Session = self._open()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"rung-engine-{name}", daemon=True)
        self._thread.start()

    def _open(self) -> Session:
        return self.engine.session() if isinstance(self.engine, Continuous) else PooledSession(self.engine)

    # ---- for other threads

    @property
    def running(self) -> int:
        """How many completions are running."""
        return len(self._listeners)

    @property
    def waiting(self) -> int:
        """How many completions and calls have not reached the engine."""
        return len(self._new) + len(self._calls)

    def complete(self, request: GenerateRequest, sink: Sink, loop: asyncio.AbstractEventLoop | None = None) -> int:
        """Begin a completion and return its key; `sink` gets its pieces, the last one with a reason or an error."""
        with self._changed:
            self._check_open()
            key = next(self._keys)
            self._new.append((key, _Listener(request, sink, loop)))
            self._changed.notify()
        return key

    def cancel(self, keys: Sequence[int]) -> None:
        """Drop completions; their sinks get nothing more."""
        with self._changed:
            self._cancelled.update(keys)
            self._changed.notify()

    def score(self, requests: Sequence[ScoreRequest]) -> Future[list[Scored]]:
        """Score the continuations of every request, together with those of other callers."""
        return self._call(("score",), self.engine.score, requests)

    def embed(self, texts: Sequence[str]) -> Future[Floats]:
        """Embed texts, together with those of other callers."""
        return self._call(("embed",), self.engine.embed, texts)

    def read(self, texts: Sequence[tuple[int, ...]], top: int, adapter: str | None) -> Future[list[TokenScores]]:
        """Score every token of texts; raise EngineError if the engine cannot."""
        if not isinstance(self.engine, Reads):
            raise EngineError(
                "scoring-unsupported", f"{self.engine.info.model} does not say how likely a given text is",
                hint="serve a model on this machine, through torch or openvino",
            )  # fmt: skip
        return self._call(("read", top, adapter), partial(self.engine.read, top=top, adapter=adapter), texts)

    def close(self) -> None:
        """End the thread when all accepted work is done, and close the engine."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        if isinstance(self.engine, Closes):
            self.engine.close()

    def _call(self, kind: tuple[Any, ...], work: Callable[[list[Any]], Any], rows: Sequence[Any]) -> Future[Any]:
        call = _Call(kind, work, rows)
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
        while True:
            with self._changed:
                while not (self._new or self._calls or self._listeners or self._closing):
                    self._changed.wait()
                if not (self._new or self._calls or self._listeners):
                    return
                cancelled, self._cancelled = self._cancelled, set()
                new, self._new = self._new, deque()
                calls = self._next_calls()
            for key in cancelled & set(self._listeners):
                self._session.cancel(key)
                del self._listeners[key]
            for key, listener in new:
                if key not in cancelled:
                    self._begin(key, listener)
            if calls:
                self._answer(calls)
            if self._listeners:
                self._step()

    def _begin(self, key: int, listener: _Listener) -> None:
        self._listeners[key] = listener
        try:
            self._session.add(key, listener.request)
        except Exception as error:  # of this request alone: the others go on
            self._deliver([Delta(key, error=_as_rung_error(error))])

    def _next_calls(self) -> list[_Call]:
        """Take the next batch of calls: those of the kind that waits longest."""
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
        return chosen

    def _answer(self, calls: Sequence[_Call]) -> None:
        try:
            results = calls[0].work([row for call in calls for row in call.rows])
        except Exception as error:
            if len(calls) == 1:
                calls[0].future.set_exception(_as_rung_error(error))
                return
            for call in calls:  # one of them fails: each gets its own answer or error
                self._answer([call])
            return
        first = 0
        for call in calls:
            call.future.set_result(results[first : first + len(call.rows)])
            first += len(call.rows)

    def _step(self) -> None:
        try:
            deltas = self._session.step()
        except Exception as error:  # the session and all its completions are lost; later requests get a new one
            known = _as_rung_error(error)
            deltas = [Delta(key, error=known) for key in self._listeners]
            self._session = self._open()
        self._deliver(deltas)

    def _deliver(self, deltas: Sequence[Delta]) -> None:
        """Hand pieces to their sinks; each event loop is woken once."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Sink, Delta]]] = defaultdict(list)
        for delta in deltas:
            listener = self._listeners.get(delta.key)
            if listener is None:
                continue
            if delta.reason is not None or delta.error is not None:
                del self._listeners[delta.key]
            if listener.loop is None:
                listener.sink(delta)
            else:
                by_loop[listener.loop].append((listener.sink, delta))
        for loop, pairs in by_loop.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_hand_out, pairs)


def _hand_out(pairs: Sequence[tuple[Sink, Delta]]) -> None:
    for sink, delta in pairs:
        sink(delta)


def _as_rung_error(error: Exception) -> RungError:
    """Wrap an unforeseen error, and log its traceback."""
    if isinstance(error, RungError):
        return error
    LOG.error("the engine failed", exc_info=error)
    return EngineError("generation-failed", f"the engine failed: {type(error).__name__}", hint="see the server's log")


# ---- A scheduler in the shape of an engine, so that artifacts answer through it and need not know of other clients.


class LeftError(Exception):
    """The client left."""


class ScheduledEngine(EngineWrapper):
    """An `Engine` for one request of one client, called from a worker thread; every call waits for the scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__(scheduler.engine)
        self._scheduler = scheduler
        self._left = threading.Event()
        self._keys: list[int] = []
        self._futures: list[Future[Completion]] = []
        self.reasons: list[FinishReason] = []  # why each completion ended, in the order of the calls

    def leave(self) -> None:
        """Drop all running work, because the client left; the waiting call raises `LeftError`."""
        self._left.set()
        self._scheduler.cancel(self._keys)
        for future in self._futures:
            _settle(future, LeftError())

    def generate(
        self, requests: Sequence[GenerateRequest], *, progress: Progress = QUIET,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[Generation]:  # fmt: skip
        """Complete every request among those of other clients."""
        del progress, cancelled  # a server shows no progress, and clients cancel by leaving
        first = len(self._futures)
        for request in requests:
            if self._left.is_set():
                raise LeftError
            collector = _Collector()
            self._futures.append(collector.future)
            self._keys.append(self._scheduler.complete(request, collector))
        completions = [future.result() for future in self._futures[first:]]
        self.reasons += [completion.finish for completion in completions]
        return [
            Generation(
                text=completion.text, prompt_tokens=completion.prompt_tokens,
                completion_tokens=completion.completion_tokens, finish_reason=completion.finish, seconds=0.0,
                logprobs=tuple(completion.logprobs) if request.logprobs else (),
            )
            for request, completion in zip(requests, completions, strict=True)
        ]  # fmt: skip

    def stream(self, request: GenerateRequest) -> Iterator[str]:
        """Yield the text of one completion, in one piece."""
        yield self.generate([request])[0].text

    def score(self, requests: Sequence[ScoreRequest], *, progress: Progress = QUIET) -> list[Scored]:
        """Score the continuations of every request."""
        del progress
        future = self._scheduler.score(requests)
        if self._left.is_set():
            future.cancel()
            raise LeftError
        return future.result()

    def embed(self, texts: Sequence[str], *, progress: Progress = QUIET) -> Floats:
        """Embed texts."""
        del progress
        return self._scheduler.embed(texts).result()


class _Collector:
    """Joins the pieces of one completion; called by the engine's thread alone."""

    def __init__(self) -> None:
        self.future: Future[Completion] = Future()
        self._completion = Completion()

    def __call__(self, delta: Delta) -> None:
        self._completion.add(delta)
        if delta.error is not None or delta.reason is not None:
            _settle(self.future, delta.error or self._completion)


def _settle(future: Future[Completion], outcome: Completion | Exception) -> None:
    """Settle a future, unless the other side (the engine's thread, or a client that left) was first."""
    with contextlib.suppress(InvalidStateError):
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
