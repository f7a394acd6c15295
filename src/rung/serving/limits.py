"""Refusals in OpenAI's error format, and the limits of requests: size, time, nesting, connections, the queue."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.types import Receive

from rung.errors import ConfigError, EngineError, ModelError, RungError

# Engine and model errors that the request causes; so does every ConfigError.
OF_THE_REQUEST = {
    "bad-constraint", "chat-template-refused", "constraint-failed", "constraint-unsupported", "context-overflow",
    "control-token", "embedding-unsupported", "no-chat-template", "scoring-unsupported",
}  # fmt: skip
TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
MAX_WAIT = 60  # seconds, the longest `Retry-After`
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"?', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class Refused(Exception):  # noqa: N818  it is an answer, not a failure of the server
    """A request that is not served: status, code, message, and headers of the response."""

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Format the error as OpenAI's clients read it."""
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def refusal(error: Refused | RungError) -> Refused:
    """Convert one of Rung's errors: 400 if the request causes it, 503 while a model unloads, else 500."""
    if isinstance(error, Refused):
        return error
    message = f"{error}; {error.hint}" if error.hint else str(error)
    if isinstance(error, ConfigError):
        return Refused(400, error.code, message)
    if isinstance(error, (EngineError, ModelError)) and error.code in OF_THE_REQUEST:
        code = "context_length_exceeded" if error.code == "context-overflow" else error.code  # OpenAI's own name
        return Refused(400, code, message)
    if error.code == "model-unloaded":
        return Refused(503, error.code, message, headers={"Retry-After": "1"})
    return Refused(500, error.code, message)


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Bounds of a request."""

    body_bytes: int = 4 * 2**20
    body_seconds: float = 30.0  # to receive the body
    write_seconds: float = 60.0  # that a client may leave one piece of the response unread
    depth: int = 64  # of nested JSON
    keys: int = 20_000  # of all JSON objects in a body
    choices: int = 256  # completions of one request (`n` times prompts), rows of a prediction
    queue: int = 512  # pending answers of all clients
    head_seconds: float = 15.0  # to receive a request's head
    connections: int = 2048  # open at once, and requests under way; probes are answered beyond it
    per_address: int = 1024  # connections of one address


class Gate:
    """Counts pending answers, waiting or running, and admits at most `limit` of them."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.inside = 0
        self._lock = threading.Lock()
        self._seconds = 1.0  # that an answer takes, as a moving average

    def enter(self, answers: int) -> float:
        """Admit `answers` and return the time of entry; a full queue refuses them."""
        with self._lock:
            if self.inside + answers > self.limit:
                wait = min(MAX_WAIT, max(1, round(self._seconds)))
                message = f"{self.inside} answers are pending and at most {self.limit} may be; try again in {wait} s"
                raise Refused(429, "queue-full", message, headers={"Retry-After": str(wait)})
            self.inside += answers
        return time.monotonic()

    def leave(self, answers: int, since: float) -> None:
        """Release the places of `answers` that entered at `since`."""
        with self._lock:
            self.inside -= answers
            self._seconds += 0.1 * (time.monotonic() - since - self._seconds)


async def read_body(receive: Receive, declared: str | None, limits: RequestLimits) -> bytes:
    """Receive the whole body of a request; one that is too long or too slow is refused."""
    too_long = Refused(413, "body-too-long", f"the body is longer than {limits.body_bytes:,} bytes")
    if declared is not None and (not declared.isdigit() or int(declared) > limits.body_bytes):
        raise too_long
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refused(499, "client-left", "the client left")
                body += message.get("body", b"")
                if len(body) > limits.body_bytes:
                    raise too_long
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise Refused(408, "body-timeout", f"the body did not arrive within {limits.body_seconds:g} seconds") from None


def check_json(body: bytes, limits: RequestLimits) -> None:
    """Refuse JSON that is nested too deeply, has too many keys, or contains half of a surrogate pair."""
    outside = _STRING.sub(b"", body)
    if depth(outside, limits.depth) > limits.depth:
        raise Refused(400, "json-too-deep", f"the body is nested deeper than {limits.depth} levels")
    if outside.count(b":") > limits.keys:
        raise Refused(400, "json-too-many-keys", f"the body has more than {limits.keys:,} keys")
    if _SURROGATE.search(body):
        try:
            json.dumps(json.loads(body), ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise Refused(400, "bad-text", "the body contains half of a surrogate pair") from None
        except ValueError:
            return  # invalid JSON: the endpoint refuses it


def depth(outside: bytes, enough: int) -> int:
    """Count how deeply the brackets of JSON without its strings are nested; counting ends beyond `enough`."""
    level = deepest = 0
    for match in _BRACKET.finditer(outside):
        bracket = match.group()
        level += 1 if bracket in b"[{" else -1
        deepest = max(deepest, level)
        if deepest > enough:
            break
    return deepest
