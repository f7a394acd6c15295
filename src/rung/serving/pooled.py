"""Completions of an engine that answers from elsewhere (an endpoint): each in a thread of its own, in one piece."""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from rung.engines.base import Delta, Engine, GenerateRequest, Generation
from rung.errors import RungError

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
