"""What a request may look like, checked before anything parses it: size, time, depth, characters."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from rung.serving.errors import Refused

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"?', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a request.

    Attributes:
        body_bytes: longest body.
        body_seconds: longest time until all of it is there.
        write_seconds: longest time that a client may leave one piece of the answer unread.
        depth: deepest nesting of JSON.
        choices: most completions of one request (`n` times prompts), rows of one prediction, texts of one embedding.
        queue: most answers waited for by all clients.
    """

    body_bytes: int = 4 * 2**20
    body_seconds: float = 30.0
    write_seconds: float = 60.0
    depth: int = 64
    choices: int = 256
    queue: int = 512


async def read_body(receive: Receive, declared: str | None, limits: Limits) -> bytes:
    """Return the whole body of a request.

    Raises:
        Refused: it is too long, too slow, or its client is gone.
    """
    if declared is not None and (not declared.isdigit() or int(declared) > limits.body_bytes):
        raise _too_long(limits)
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refused(499, "client-left", "the client left")
                body += message.get("body", b"")
                if len(body) > limits.body_bytes:
                    raise _too_long(limits)
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise Refused(408, "body-timeout", f"the body was not there after {limits.body_seconds:g} seconds") from None


def check_json(body: bytes, limits: Limits) -> None:
    """Refuse JSON that is nested too deep, or that holds half a character.

    Raises:
        Refused: it does.
    """
    deep = depth(body, limits.depth)
    if deep > limits.depth:
        raise Refused(400, "json-too-deep", f"the body is nested deeper than {limits.depth} levels")
    if _SURROGATE.search(body):
        try:
            json.dumps(json.loads(body), ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise Refused(400, "bad-text", "the body holds half of a surrogate pair, which is no character") from None
        except ValueError:
            return  # no JSON at all: said in the same words as of any other


def depth(body: bytes, enough: int) -> int:
    """Return how deep brackets are nested outside strings; counting ends beyond `enough`."""
    level = deepest = 0
    for bracket in _BRACKET.findall(_STRING.sub(b"", body)):
        level += 1 if bracket in b"[{" else -1
        deepest = max(deepest, level)
        if deepest > enough:
            break
    return deepest


def _too_long(limits: Limits) -> Refused:
    return Refused(413, "body-too-long", f"the body is longer than {limits.body_bytes:,} bytes")
