"""Completions as they come from the engine: streams of pieces, server-sent events, trimmed text, spelled tokens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isnan
from typing import Any

from fastapi.responses import StreamingResponse

from rung.engines.base import Delta, GenerateRequest, TokenScores
from rung.errors import RungError
from rung.models.thinking import AfterThought
from rung.models.tokenizer import Tokenizer
from rung.serving.context import RequestContext
from rung.serving.limits import refusal
from rung.serving.scheduler import Completion, Scheduler

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
FLOOR = -9999.0  # what OpenAI writes for minus infinity, which JSON lacks


class CompletionStream:
    """Begins completions and yields their pieces; what is unfinished when the request ends is cancelled."""

    def __init__(self, scheduler: Scheduler, requests: Sequence[GenerateRequest], context: RequestContext) -> None:
        self.completions = [Completion() for _ in requests]  # what was written so far
        self.unfinished = len(requests)
        self._pieces: asyncio.Queue[tuple[int, Delta]] = asyncio.Queue()
        self._next: tuple[int, Delta] | None = None  # taken from the queue, and not yet yielded
        loop = asyncio.get_running_loop()
        keys = [scheduler.complete(request, partial(self._put, i), loop) for i, request in enumerate(requests)]
        context.exits.callback(lambda: scheduler.cancel(keys) if self.unfinished else None)

    def _put(self, index: int, delta: Delta) -> None:
        self._pieces.put_nowait((index, delta))

    async def __aiter__(self) -> AsyncIterator[tuple[int, Delta]]:
        """Yield pieces with the index of their completion; the first error ends all of them."""
        while self.unfinished:
            index, delta = self._next or await self._pieces.get()
            self._next = None
            delta = self._with_more(index, delta)
            if delta.error is not None:
                raise delta.error
            self.completions[index].add(delta)
            if delta.reason is not None:
                self.unfinished -= 1
            yield index, delta

    def _with_more(self, index: int, delta: Delta) -> Delta:
        """Join a piece with the next ones of the same completion that have arrived: a busy server sends fewer."""
        while delta.reason is None and delta.error is None and not self._pieces.empty():
            other, more = self._pieces.get_nowait()
            if other != index or more.error is not None:
                self._next = other, more
                break
            tokens, logprobs = delta.tokens + more.tokens, delta.logprobs + more.logprobs
            delta = replace(more, text=delta.text + more.text, tokens=tokens, logprobs=logprobs)
        return delta

    async def finish(self) -> list[Completion]:
        """Wait for all completions."""
        async for _ in self:
            pass
        return self.completions


async def event_stream(chunks: AsyncIterator[dict[str, Any]]) -> StreamingResponse:
    """Stream chunks as server-sent events, named by their `type` where they have one.

    A failure before the first one is an ordinary error with its status.
    """
    first = await anext(chunks, None)
    return StreamingResponse(_events(first, chunks), media_type="text/event-stream", headers=HEADERS)


async def _events(first: dict[str, Any] | None, chunks: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
    typed = first is not None and "type" in first
    try:
        if first is not None:
            yield _event(first)
        async for chunk in chunks:
            yield _event(chunk)
    except RungError as error:  # the status is already sent; clients look for `error` in a chunk
        body = refusal(error).body()
        yield _event({**body["error"], "type": "error"} if typed else body)
    if not typed:
        yield b"data: [DONE]\n\n"


def _event(chunk: dict[str, Any]) -> bytes:
    name = f"event: {chunk['type']}\n".encode() if "type" in chunk else b""
    return name + b"data: " + json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


class TrimmedText:
    """Trims a text that comes in pieces: the joined results are `strip` of the whole, without a thought before it."""

    def __init__(self) -> None:
        self._begun, self._shown = False, AfterThought()
        self._held = ""  # white space that may turn out to be the end

    def more(self, piece: str) -> str:
        """Add a piece and return what can be shown now."""
        text = self._held + self._shown.more(piece)
        if not self._begun:
            text = text.lstrip()
        shown = text.rstrip()
        self._begun = self._begun or bool(shown)
        self._held = text[len(shown) :]
        return shown


@dataclass(frozen=True, slots=True)
class SpelledToken:
    """One token; of several that make up one character, the last adds all of it, the others are named by number."""

    text: str
    start: int  # where it begins in the whole text
    logprob: float | None  # None for the first token of a text
    top: dict[str, float]  # the likeliest tokens at this position, by text


def spelled(
    tokenizer: Tokenizer, tokens: Sequence[int], logprobs: Sequence[float], scores: TokenScores | None = None
) -> list[SpelledToken]:
    """Spell tokens one by one, with their log-probabilities (NaN for none); `scores` adds the likeliest others."""
    result = []
    begin = read = start = 0  # tokens[begin:read] is the context that the next token is decoded after
    for position, token in enumerate(tokens):
        context = [*tokens[begin:read]]
        before = len(tokenizer.decode(context))
        added = [*tokens[read : position + 1]]
        text = tokenizer.decode([*context, *added])[before:]
        top: dict[str, float] = {}
        if scores is not None:
            for other, value in zip(scores.top_tokens[position], scores.top_logprobs[position], strict=True):
                if other >= 0:
                    name = tokenizer.decode([*context, *added[:-1], int(other)])[before:]
                    top.setdefault(_name(name, int(other)), max(float(value), FLOOR))
        logprob = None if isnan(logprobs[position]) else max(float(logprobs[position]), FLOOR)
        result.append(SpelledToken(_name(text, token), start, logprob, top))
        if not text.endswith("\ufffd"):  # a whole character
            start += len(text)
            begin, read = read, position + 1
    return result


def spelled_piece(tokenizer: Tokenizer, delta: Delta) -> list[SpelledToken]:
    """Spell the tokens of a piece, without the one that ends the answer."""
    pairs = [pair for pair in zip(delta.tokens, delta.logprobs, strict=True) if pair[0] not in tokenizer.eos_ids]
    return spelled(tokenizer, [token for token, _ in pairs], [logprob for _, logprob in pairs])


def _name(text: str, token: int) -> str:
    return f"<token {token}>" if not text or text.endswith("\ufffd") else text


def chat_logprobs(tokens: Sequence[SpelledToken]) -> dict[str, Any]:
    """Format log-probabilities for a chat completion."""
    content = [
        {**_entry(token.text, token.logprob), "top_logprobs": [_entry(*pair) for pair in token.top.items()]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _entry(text: str, logprob: float | None) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def text_logprobs(tokens: Sequence[SpelledToken], *, top: bool) -> dict[str, Any]:
    """Format log-probabilities for a text completion."""
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [token.top or None for token in tokens] if top else None,
        "text_offset": [token.start for token in tokens],
    }
