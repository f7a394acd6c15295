"""The application: its endpoints, error handlers and middleware; and the HTTP server that runs it."""

from __future__ import annotations

import copy
import ctypes
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import uvicorn
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from rung._version import __version__
from rung.errors import MachineError, RungError
from rung.serving import completions, embeddings, endpoints, responses
from rung.serving.access import Access
from rung.serving.connections import BoundedConnection, OpenConnections
from rung.serving.context import ServerContext
from rung.serving.conversations import ConversationPolicy
from rung.serving.limits import Refused, RequestLimits, refusal
from rung.serving.middleware import ServerMiddleware
from rung.serving.served import Served, ServedArtifact

if TYPE_CHECKING:
    from rung.feedback.capture import Capture
    from rung.serving.on_demand import Loader
    from rung.serving.web.site import PageSources

BACKLOG = 1024
GRACE = 10.0  # seconds after the drain in which engines end; then the process ends without them
PROBLEMS = {  # of requests, by pydantic's names for them
    "extra_forbidden": "the server does not know this field", "missing": "it is missing", "too_short": "it is empty",
}  # fmt: skip
_FORM = re.compile(r"(str|int|list\[.*|constrained-.*|function-.*)$")  # pydantic's names for the forms of a union
M_ARENA_MAX = -8  # in glibc's malloc.h
SWITCH_SECONDS = 0.0005  # after which a thread that waits for the interpreter gets it


def _few_arenas() -> None:
    """Let the threads of this process share two arenas of memory.

    By default, glibc makes eight for each core, and what one thread gave back in its own is not used by the others:
    64 clients of a TF-IDF head took 970 MB instead of 630.
    """
    if sys.platform == "linux":
        with suppress(AttributeError):  # another C library
            ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)


class HttpServer(uvicorn.Server):
    """Uvicorn's server; it stops new work in the application when the server is asked to end."""

    def __init__(self, app: FastAPI, *, drain_seconds: float) -> None:
        everything = OpenConnections(app.state.rung.limits)
        config = uvicorn.Config(
            app, http=partial(BoundedConnection, everything, everything.most()),  # type: ignore[arg-type]
            loop="asyncio", log_level="warning", access_log=False, server_header=False, backlog=BACKLOG,
            timeout_graceful_shutdown=max(1, round(drain_seconds)), timeout_keep_alive=15,
            h11_max_incomplete_event_size=64 * 1024, ws="none", proxy_headers=False,
        )  # fmt: skip
        super().__init__(config)
        self._app, self._drain = app, drain_seconds
        self._deadline: threading.Timer | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until asked to end."""
        # The engine's thread hands out pieces between two steps. By default it gets the interpreter's lock back from
        # the event loop after 5 ms, which cost 3 % of the tokens of 32 clients.
        interval = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_SECONDS)
        _few_arenas()
        try:
            await super().serve(sockets)
        finally:
            sys.setswitchinterval(interval)
            if self._deadline is not None:
                self._deadline.cancel()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Take nothing new, and finish running requests."""
        self._app.state.rung.ready = False
        if self._deadline is None:
            self._deadline = threading.Timer(self._drain + GRACE, self._give_up, [sig])
            self._deadline.daemon = True
            self._deadline.start()
        super().handle_exit(sig, frame)

    def _give_up(self, sig: int) -> NoReturn:
        """End the process where an engine does not return from its call; what was captured is written."""
        print("an engine still works after the drain; the server ends without it", file=sys.stderr, flush=True)
        if (recorder := self._app.state.rung.recorder) is not None:
            recorder.close(timeout=5.0)
        os._exit(130 if sig == signal.SIGINT else 0)


@contextmanager
def exiting_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end the program normally, with exit code 0, also while models load.

    Uvicorn finishes running requests and then raises the signal again. By default that would kill the process before
    captured answers are written and the engines' processes end.
    """

    def end(_number: int, _frame: Any) -> NoReturn:
        raise SystemExit(0)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def listen(host: str, port: int) -> socket.socket:
    """Bind a socket; port 0 takes a free one; raise MachineError `system-error` if it is not to be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio switches Nagle's algorithm off only for sockets that are declared TCP; with it, every piece of a stream
    # waits 40 ms for an acknowledgement.
    opened = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((host.strip("[]"), port))
    except OSError as error:
        opened.close()
        hint = "choose another --port (0 takes a free one), or end the program that uses it"
        raise MachineError("system-error", f"{host}:{port}: {error.strerror}", hint=hint) from error
    return opened


def app_with(
    served: Served, *, access: Access | None = None, limits: RequestLimits | None = None,
    recorder: Capture | None = None, load_from: Path | None = None, routers: Sequence[APIRouter] = (),
    pages: PageSources | None = None, conversation: ConversationPolicy = "last", on_demand: Loader | None = None,
) -> FastAPI:  # fmt: skip
    """Make the application; by default anyone on this machine may ask.

    `load_from` is the folder below which artifacts may be loaded over HTTP. `routers` are more endpoints (feedback,
    review), with the same middleware and context. `conversation` says what artifacts read of several messages.
    `on_demand` loads artifacts by name when they are asked for.
    """
    server = ServerContext(
        served, access or Access(), limits or RequestLimits(), recorder, load_from, conversation, on_demand
    )

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        server.close()

    app = FastAPI(title="Rung", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.rung = server
    own = (
        completions.router,
        responses.router,
        embeddings.router,
        endpoints.router,
        endpoints.rung_router,
        endpoints.operation_router,
    )
    for router in (*own, *routers):
        app.include_router(router)
    if pages is not None:
        from rung.serving.web import add_pages

        server.access = replace(server.access, sessions=add_pages(app, pages, server.access.keys))
    _handle_errors(app, server, with_pages=pages is not None)
    _describe_tasks(app, served)
    app.add_middleware(ServerMiddleware, server=server)
    return app


def _handle_errors(app: FastAPI, server: ServerContext, *, with_pages: bool) -> None:
    async def refuse(request: Request, error: Exception) -> Response:
        refused = _refusal(error)
        server.metrics.failures.labels(refused.code).inc()
        if with_pages:
            from rung.serving.web.site import error_page, wants_page

            if wants_page(request):
                return error_page(request, refused)
        return JSONResponse(refused.body(), status_code=refused.status, headers=refused.headers)

    for kind in (RequestValidationError, HTTPException, Refused, RungError):
        app.add_exception_handler(kind, refuse)


def _refusal(error: Exception) -> Refused:
    if isinstance(error, (Refused, RungError)):
        return refusal(error)
    if isinstance(error, RequestValidationError):
        # of a union, the form that fits furthest
        first = max(error.errors(), key=lambda one: (len(one["loc"]), one["type"] in PROBLEMS))
        where = ".".join(str(part) for part in first["loc"] if part != "body" and not _FORM.match(str(part)))
        problem = PROBLEMS.get(first["type"]) or first["msg"].removeprefix("Value error, ").replace("Input s", "it s")
        if first["type"] == "json_invalid":
            where, problem = "", f"the body is not JSON: {first['ctx']['error']} at character {first['loc'][-1]}"
        elif first["loc"] == ("body",) and isinstance(error.body, bytes):
            problem = "the body is read as JSON only with the header `Content-Type: application/json`"
        return Refused(400, "invalid-request", f"{where}: {problem}" if where else problem, param=where or None)
    assert isinstance(error, HTTPException)
    code = {403: "forbidden", 404: "not-found", 405: "method-not-allowed"}.get(error.status_code, "invalid-request")
    return Refused(error.status_code, code, str(error.detail), headers=error.headers)


# ---- the OpenAPI description, with an endpoint for each task that is served now

ANY_TASK = "/v1/tasks/{name}/predict"


def _describe_tasks(app: FastAPI, served: Served) -> None:
    """Describe every served task with its own columns and labels."""
    plain = app.openapi

    def described() -> dict[str, Any]:
        document = copy.deepcopy(plain())
        for artifact in served.artifacts():
            path = copy.deepcopy(document["paths"][ANY_TASK])
            path["post"] |= _operation(artifact, path["post"]["responses"])
            document["paths"][f"/v1/tasks/{artifact.name}/predict"] = path
        return document

    app.openapi = described  # type: ignore[method-assign]


def _operation(served: ServedArtifact, responses: dict[str, Any]) -> dict[str, Any]:
    shape = served.artifact.signature
    column: dict[str, Any] = {}  # any value: what is not text is shown to the model as JSON
    if shape.kind == "chat":
        turn = {"role": {"enum": ["system", "user", "assistant", "tool"]}, "content": {"type": "string"}}
        column = {"type": "array", "minItems": 1, "items": _object(turn)}
    row = _object(dict.fromkeys(shape.inputs, column)) | {"additionalProperties": False}
    rows = {"type": "array", "minItems": 1, "items": row}
    top = {"type": "integer", "minimum": 0, "maximum": 1000, "default": 0}
    body = {**_object({"rows": rows, "top": top}), "required": ["rows"], "additionalProperties": False}
    text = {"type": "string"}
    output = {**text, "enum": list(shape.labels)} if shape.labels else text
    confidence = {"type": ["number", "null"]}
    prediction = _object({"id": text, "output": output, "confidence": confidence, "finish_reason": text})
    predictions = {"type": "array", "items": prediction}
    kind, usage = {"const": "predictions"}, {"type": "object"}
    response = {"object": kind, "task": text, "artifact": text, "predictions": predictions, "usage": usage}
    answered = {"200": {"description": "One prediction a row.", "content": _json(_object(response))}}
    return {
        "operationId": f"predict_{served.name}", "summary": f"Answer rows of the task {shape.task}", "parameters": [],
        "requestBody": {"required": True, "content": _json(body)}, "responses": responses | answered,
    }  # fmt: skip


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
