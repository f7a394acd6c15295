"""Server-sent events, and text that is trimmed while it comes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi.responses import StreamingResponse

from rung.errors import RungError
from rung.serving.errors import refusal

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
