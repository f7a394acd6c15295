"""The ASGI middleware that every request passes: who asks, how much, and whether the client is still there.

It reads the whole body before anything parses it, notices a client that leaves and cancels its work, gives up on a
client that does not read, and turns refusals into OpenAI's error format.
"""

from __future__ import annotations

import asyncio
import logging

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rung.errors import RungError
from rung.serving.access import OPEN
from rung.serving.context import STATE, RequestContext, ServerContext
from rung.serving.limits import Refused, check_json, read_body, refusal

LOG = logging.getLogger("rung.serving")
WITH_BODY = {"POST", "PUT", "PATCH", "DELETE"}
PROBES = OPEN | {"/metrics"}  # answered when the server is full
CLIENT_LEFT = 499  # as nginx logs it


class ServerMiddleware:
    """The middleware of one server."""

    def __init__(self, app: ASGIApp, server: ServerContext) -> None:
        self._app, self._server = app, server
        self._running = 0  # requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of any kind."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # the HTTP server leaves the body out itself
            scope = {**scope, "method": "GET"}
        metrics = self._server.metrics
        context = scope[STATE] = RequestContext(self._server)
        response = _Response(send, self._server.limits.write_seconds)
        self._running += 1
        try:
            await self._serve(scope, receive, response, context)
        finally:
            self._running -= 1
            context.exits.close()
            endpoint = getattr(scope.get("route"), "path", "other")
            metrics.requests.labels(endpoint, str(response.status)).inc()
            metrics.seconds.labels(endpoint).observe(context.seconds)

    async def _serve(self, scope: Scope, receive: Receive, response: _Response, context: RequestContext) -> None:
        limits = self._server.limits
        try:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            preflight = scope["method"] == "OPTIONS" and "access-control-request-method" in headers
            response.cors = self._server.access.cors(scope["path"], headers, preflight=preflight)
            if preflight and response.cors:  # browsers send no key with it
                await Response(status_code=204)(scope, receive, response)
                return
            context.key = self._server.access.check(scope["path"], headers, scope["scheme"])
            if self._running > limits.connections and scope["path"] not in PROBES:
                message = f"{limits.connections:,} requests are under way"
                raise Refused(503, "server-full", message, headers={"Retry-After": "1", "Connection": "close"})
            body = b""
            if scope["method"] in WITH_BODY:
                body = await read_body(receive, headers.get("content-length"), limits)
                check_json(body, limits)
            await self._watch(scope, receive, response, body)
        except (Refused, RungError) as error:
            self._server.metrics.failures.labels(error.code).inc()
            await response.refuse(refusal(error), scope, receive)
        except OSError:
            response.status = CLIENT_LEFT
        except Exception:
            LOG.exception("a request failed")
            self._server.metrics.failures.labels("internal-error").inc()
            await response.refuse(Refused(500, "internal-error", "the server failed; see its log"), scope, receive)

    async def _watch(self, scope: Scope, receive: Receive, response: _Response, body: bytes) -> None:
        """Run the application, and cancel it when the client leaves before the end."""
        left = asyncio.Event()
        running = asyncio.ensure_future(self._app(scope, _replay(body, left), response))
        watching = asyncio.ensure_future(_departure(receive))
        try:
            await asyncio.wait({running, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done() and not response.complete:
                left.set()
                self._server.metrics.cancelled.inc()
                running.cancel()
            await running
        except asyncio.CancelledError:
            if not left.is_set():
                raise  # the server ends
            response.status = CLIENT_LEFT
        finally:
            watching.cancel()
            running.cancel()


class _Response:
    """The sending side: remembers the status and whether the response is complete, and times out."""

    def __init__(self, send: Send, seconds: float) -> None:
        self._send, self._seconds = send, seconds
        self.status = 0
        self.complete = False
        self.cors: dict[str, str] = {}  # headers of every response to a page of another site, errors included

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            cors = [(name.lower().encode(), value.encode("latin-1")) for name, value in self.cors.items()]
            message = {**message, "headers": [*message.get("headers", ()), *cors]}
        elif message["type"] == "http.response.body":
            self.complete = not message.get("more_body", False)
        try:
            async with asyncio.timeout(self._seconds):
                await self._send(message)
        except TimeoutError:
            raise OSError("the client does not read") from None

    async def refuse(self, refused: Refused, scope: Scope, receive: Receive) -> None:
        """Send a refusal, unless a response has begun."""
        if self.status:
            return
        headers = dict(refused.headers)
        if refused.status in (408, 413):
            headers["connection"] = "close"  # the rest of the body is not read
        await JSONResponse(refused.body(), refused.status, headers)(scope, receive, self)


def _replay(body: bytes, left: asyncio.Event) -> Receive:
    """Give the application the body that was already read, and then nothing until the client leaves."""
    bodies: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if bodies:
            return bodies.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    return receive


async def _departure(receive: Receive) -> None:
    """Wait until the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
