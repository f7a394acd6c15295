"""The completions of one HTTP request, as they come from the engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from rung.engines.base import Delta, FinishReason, GenerateRequest
from rung.serving.scheduler import Scheduler
from rung.serving.visit import Visit


@dataclass(slots=True)
class Made:
    """One completion, so far or complete."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish: FinishReason = "cancelled"

    def add(self, delta: Delta) -> None:
        """Add a piece."""
        self.text += delta.text
        self.tokens += delta.tokens
        self.logprobs += delta.logprobs
        self.prompt_tokens, self.completion_tokens = delta.prompt_tokens, delta.completion_tokens
        self.finish = delta.reason or self.finish


class Running:
    """Begins completions and yields their pieces; what is under way when the visit ends is cancelled."""

    def __init__(self, scheduler: Scheduler, requests: Sequence[GenerateRequest], visit: Visit) -> None:
        self.made = [Made() for _ in requests]
        self._pieces: asyncio.Queue[tuple[int, Delta]] = asyncio.Queue()
        self._next: tuple[int, Delta] | None = None  # taken from the queue, and not yet looked at
        self._open = len(requests)
        loop = asyncio.get_running_loop()
        keys = [scheduler.complete(one, partial(self._put, i), loop) for i, one in enumerate(requests)]
        visit.at_end(lambda: scheduler.cancel(keys) if self._open else None)

    def _put(self, index: int, delta: Delta) -> None:
        self._pieces.put_nowait((index, delta))

    async def __aiter__(self) -> AsyncIterator[tuple[int, Delta]]:
        """Yield pieces with the index of their completion; the first error ends it all."""
        while self._open:
            index, delta = self._next or await self._pieces.get()
            self._next = None
            delta = self._with_more(index, delta)
            if delta.error is not None:
                raise delta.error
            self.made[index].add(delta)
            if delta.reason is not None:
                self._open -= 1
            yield index, delta

    def _with_more(self, index: int, delta: Delta) -> Delta:
        """Return a piece with those of the same completion that are there already: a busy server sends fewer."""
        while delta.reason is None and delta.error is None and not self._pieces.empty():
            other, more = self._pieces.get_nowait()
            if other != index or more.error is not None:
                self._next = other, more
                break
            delta = replace(
                more, text=delta.text + more.text, tokens=delta.tokens + more.tokens,
                logprobs=delta.logprobs + more.logprobs,
            )  # fmt: skip
        return delta

    async def finish(self) -> list[Made]:
        """Wait for all of it."""
        async for _ in self:
            pass
        return self.made
