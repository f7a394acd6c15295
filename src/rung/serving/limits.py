"""What a request may look like, checked before anything parses it: size, time, depth, characters."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from rung.errors import ConfigError, EngineError, ModelError, RungError

# --------------------
# A bounded queue in front of everything: what does not fit is told when to come again.


PATIENCE = 60  # seconds, the longest that a client is told to wait


class BusyError(Exception):
    """The queue is full; `retry_after` seconds later there should be room."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Gate:
    """Counts answers that were asked for and are not made yet; `limit` at most.

    Args:
        limit: most answers in the house, waiting or under way.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.inside = 0
        self._lock = threading.Lock()
        self._seconds = 1.0  # that an answer takes, lately

    def enter(self, answers: int = 1) -> None:
        """Take `answers` in.

        Raises:
            BusyError: they do not fit.
        """
        with self._lock:
            if self.inside + answers > self.limit:
                wait = min(PATIENCE, max(1, round(self._seconds)))
                raise BusyError(f"{self.inside} answers are waited for already, and {self.limit} may be", wait)
            self.inside += answers

    def leave(self, answers: int, since: float) -> None:
        """Let `answers` out that came in at `since` (`time.monotonic`)."""
        with self._lock:
            self.inside -= answers
            self._seconds += 0.1 * (time.monotonic() - since - self._seconds)


# --------------------
# Errors as OpenAI's clients read them: {"error": {"message", "type", "param", "code"}} and a fitting status.


# Errors of the engine and the model that a request is to blame for, beside every ConfigError.
OF_THE_REQUEST = {
    "bad-constraint": "invalid_request_error",
    "chat-template-refused": "invalid_request_error",
    "constraint-failed": "invalid_request_error",
    "constraint-unsupported": "invalid_request_error",
    "context-overflow": "context_length_exceeded",
    "control-token": "invalid_request_error",
    "embedding-unsupported": "invalid_request_error",
    "no-chat-template": "invalid_request_error",
    "scoring-unsupported": "invalid_request_error",
}
TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class Refused(Exception):  # noqa: N818  it is an answer, not a failure of the server
    """A request that is not served: status, code, message, and headers of the answer."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Return the body of the answer."""
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def refusal(error: RungError) -> Refused:
    """Return one of Rung's errors as an answer: the request's fault, or the server's."""
    message = f"{error}; {error.hint}" if error.hint else str(error)
    if isinstance(error, ConfigError):
        return Refused(400, error.code, message)
    if isinstance(error, (EngineError, ModelError)) and error.code in OF_THE_REQUEST:
        code = OF_THE_REQUEST[error.code]
        return Refused(400, code if code != "invalid_request_error" else error.code, message)
    if error.code == "model-unloaded":
        return Refused(503, error.code, message, headers={"Retry-After": "1"})
    return Refused(500, error.code, message)


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
