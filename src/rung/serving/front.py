"""What every request passes first: who asks, how much, and is anybody still there to be answered.

A plain ASGI layer around the application. It reads the whole body before anything parses it, notices a client that
leaves (and then cancels what runs for it), gives up on a client that does not read, and turns refusals into OpenAI's
error envelope.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from rung.errors import RungError
from rung.serving.access import Access, Key
from rung.serving.limits import Gate, Limits, Message, Receive, Refused, check_json, read_body, refusal

if TYPE_CHECKING:
    from starlette.routing import BaseRoute
    from starlette.types import ASGIApp, Scope, Send

    from rung.serving.metrics import Metrics


# --------------------
# One HTTP request from its first byte to its last: who asks, what it holds, and what to undo when it ends.


STATE = "rung.visit"


@dataclass(slots=True)
class Visit:
    """What the front knows of a request; handlers ask for it by `visit_of`."""

    gate: Gate
    key: Key | None = None
    started: float = field(default_factory=time.monotonic)
    _undo: list[Callable[[], None]] = field(default_factory=list)

    def admit(self, answers: int) -> None:
        """Take a place in the queue for `answers`, until the request ends.

        Raises:
            BusyError: the queue is full.
        """
        self.gate.enter(answers)
        since = time.monotonic()
        self.at_end(lambda: self.gate.leave(answers, since))

    def at_end(self, undo: Callable[[], None]) -> None:
        """Call `undo` when the request ends, however it does."""
        self._undo.append(undo)

    def close(self) -> None:
        """End the request."""
        while self._undo:
            self._undo.pop()()

    @property
    def seconds(self) -> float:
        """Time since the request began."""
        return time.monotonic() - self.started


def visit_of(request: Request) -> Visit:
    """Return the visit that a request is."""
    visit = request.scope[STATE]
    assert isinstance(visit, Visit)
    return visit


LOG = logging.getLogger("rung.serving")
WITH_BODY = {"POST", "PUT", "PATCH", "DELETE"}
CLIENT_LEFT = 499  # as nginx writes it; nobody is there to read it


class Front:
    """The layer.

    Args:
        app: the application.
        access: who may ask.
        limits: how much.
        gate: the queue that visits take places in.
        metrics: told of every request.
    """

    def __init__(self, app: ASGIApp, access: Access, limits: Limits, gate: Gate, metrics: Metrics) -> None:
        self._app, self._access, self._limits, self._gate, self._metrics = app, access, limits, gate, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of any kind."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = Visit(self._gate)
        scope[STATE] = visit
        answer = _Answer(send, self._limits.write_seconds)
        try:
            await self._serve(scope, receive, answer, visit)
        finally:
            visit.close()
            self._count(scope, answer.status, visit)

    async def _serve(self, scope: Scope, receive: Receive, answer: _Answer, visit: Visit) -> None:
        try:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            visit.key = self._access.check(scope["path"], headers, scope["scheme"])
            body = b""
            if scope["method"] in WITH_BODY:
                body = await read_body(receive, headers.get("content-length"), self._limits)
                check_json(body, self._limits)
            await self._watch(scope, receive, answer, body)
        except Refused as refused:
            self._metrics.failures.labels(refused.code).inc()
            await answer.refuse(refused)
        except RungError as error:
            self._metrics.failures.labels(error.code).inc()
            await answer.refuse(refusal(error))
        except OSError:
            answer.status = CLIENT_LEFT
        except Exception:
            LOG.exception("a request failed")
            self._metrics.failures.labels("internal-error").inc()
            await answer.refuse(Refused(500, "internal-error", "the server failed; its log says more"))

    async def _watch(self, scope: Scope, receive: Receive, answer: _Answer, body: bytes) -> None:
        """Run the application, and cancel it when the client leaves before the end."""
        left = asyncio.Event()
        running = asyncio.ensure_future(self._app(scope, _replay(body, left), answer))
        watching = asyncio.ensure_future(_departure(receive))
        try:
            await asyncio.wait({running, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done() and not answer.complete:
                left.set()
                self._metrics.cancelled.inc()
                running.cancel()
            await running
        except asyncio.CancelledError:
            if not left.is_set():
                raise  # the server ends
            answer.status = CLIENT_LEFT
        finally:
            watching.cancel()
            running.cancel()

    def _count(self, scope: Scope, status: int, visit: Visit) -> None:
        route: BaseRoute | None = scope.get("route")
        endpoint = getattr(route, "path", "other")
        self._metrics.requests.labels(endpoint, str(status)).inc()
        self._metrics.seconds.labels(endpoint).observe(visit.seconds)


class _Answer:
    """The sending side: remembers how far it is, and gives up on clients that do not read."""

    def __init__(self, send: Send, seconds: float) -> None:
        self._send, self._seconds = send, seconds
        self.status = 0
        self.complete = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["type"] == "http.response.body":
            self.complete = not message.get("more_body", False)
        try:
            async with asyncio.timeout(self._seconds):
                await self._send(message)
        except TimeoutError:
            raise OSError("the client does not read") from None

    async def refuse(self, refused: Refused) -> None:
        """Send a refusal, where no answer was begun."""
        if self.status:
            return
        body = json.dumps(refused.body(), ensure_ascii=False).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body)), **refused.headers}
        if refused.status in (408, 413):
            headers["connection"] = "close"  # the rest of the body is not read
        raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
        await self({"type": "http.response.start", "status": refused.status, "headers": raw})
        await self({"type": "http.response.body", "body": body})


def _replay(body: bytes, left: asyncio.Event) -> Receive:
    """Return what the application receives: the body that was read already, then nothing until the client leaves."""
    bodies: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if bodies:
            return bodies.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    return receive


async def _departure(receive: Receive) -> None:
    """Return when the client has left."""
    message: dict[str, Any] = {}
    while message.get("type") != "http.disconnect":
        message = dict(await receive())
