"""The completions of one HTTP request, as they come from the engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import isnan
from typing import Any

from fastapi.responses import StreamingResponse

from rung.engines.base import Delta, FinishReason, GenerateRequest, TokenScores
from rung.errors import RungError
from rung.models.tokenizer import Tokenizer
from rung.serving.front import Visit
from rung.serving.limits import refusal
from rung.serving.scheduler import Scheduler


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


# --------------------
# Server-sent events, and text that is trimmed while it comes.


HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


async def event_stream(chunks: AsyncIterator[dict[str, Any]]) -> StreamingResponse:
    """Return a stream of chunks. What fails before the first one is an ordinary error with its status."""
    first = await anext(chunks, None)
    return StreamingResponse(_events(first, chunks), media_type="text/event-stream", headers=HEADERS)


async def _events(first: dict[str, Any] | None, chunks: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
    try:
        if first is not None:
            yield _event(first)
        async for chunk in chunks:
            yield _event(chunk)
    except RungError as error:  # the status is sent already; clients look for `error` in a chunk
        yield _event(refusal(error).body())
    yield b"data: [DONE]\n\n"


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


class Trimmed:
    """Trims a text that comes in pieces: joined they are `strip` of the whole."""

    def __init__(self) -> None:
        self._begun = False
        self._held = ""  # white space that may turn out to be the end

    def more(self, piece: str) -> str:
        """Return what can be shown now."""
        text = self._held + piece
        if not self._begun:
            text = text.lstrip()
        shown = text.rstrip()
        self._begun = self._begun or bool(shown)
        self._held = text[len(shown) :]
        return shown


# --------------------
# Tokens as text, one by one, and log-probabilities in OpenAI's two shapes.


FLOOR = -9999.0  # what OpenAI writes for minus infinity, which JSON lacks


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a text.

    Attributes:
        text: what it adds to the text; the last token of a character that takes several adds all of it, and the others
            are named by their number.
        start: where that begins in the text.
        logprob: None for the first token of a text.
        top: the likeliest tokens at this place, by text.
    """

    text: str
    start: int
    logprob: float | None
    top: dict[str, float]


def spelled(
    tokenizer: Tokenizer, tokens: Sequence[int], logprobs: Sequence[float], scores: TokenScores | None = None
) -> list[Token]:
    """Return tokens with their texts.

    Args:
        tokenizer: the model's.
        tokens: token ids.
        logprobs: of each token; NaN where there is none.
        scores: of these very tokens, for the likeliest others.
    """
    result = []
    begin = read = start = 0  # tokens[begin:read] is context that the next token is read behind
    for place, token in enumerate(tokens):
        context = [*tokens[begin:read]]
        before = tokenizer.decode(context)
        behind = [*tokens[read : place + 1]]
        text = tokenizer.decode([*context, *behind])[len(before) :]
        whole = not text.endswith("\ufffd")
        top: dict[str, float] = {}
        if scores is not None:
            for other, value in zip(scores.top_tokens[place], scores.top_logprobs[place], strict=True):
                if other >= 0:
                    name = tokenizer.decode([*context, *behind[:-1], int(other)])[len(before) :]
                    top.setdefault(_name(name, int(other)), _finite(float(value)))
        value = float(logprobs[place])
        result.append(Token(_name(text, token), start, None if isnan(value) else _finite(value), top))
        if whole:
            start += len(text)
            begin, read = read, place + 1
    return result


def _name(text: str, token: int) -> str:
    return f"<token {token}>" if not text or text.endswith("\ufffd") else text


def _finite(value: float) -> float:
    return max(value, FLOOR)


def chat_logprobs(tokens: Sequence[Token]) -> dict[str, Any]:
    """Return log-probabilities as chat completions hold them."""
    return {
        "content": [
            {
                **_entry(token.text, token.logprob),
                "top_logprobs": [_entry(text, value) for text, value in token.top.items()],
            }
            for token in tokens
        ],
        "refusal": None,
    }


def _entry(text: str, logprob: float | None) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def text_logprobs(tokens: Sequence[Token], offset: int = 0) -> dict[str, Any]:
    """Return log-probabilities as text completions hold them; `offset` is where the first token stands."""
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [token.top or None for token in tokens],
        "text_offset": [offset + token.start for token in tokens],
    }
