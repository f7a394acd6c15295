"""The application: endpoints, what they share, and the front that every request passes."""

from __future__ import annotations

import copy
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import uvicorn
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from rung._version import __version__
from rung.errors import RungError
from rung.serving import chat, completions, endpoints
from rung.serving.access import Access
from rung.serving.context import Context, Shadows, watch_shadows
from rung.serving.front import Front
from rung.serving.limits import BusyError, Gate, Limits, Refused, refusal
from rung.serving.metrics import Metrics
from rung.serving.served import Served, ServedArtifact

if TYPE_CHECKING:
    from rung.serving.context import Recorder
    from rung.serving.web.site import Places


# --------------------
# Runs the application on a socket, and ends it gracefully.


CONNECTIONS = 2048  # open at once; those beyond are answered 503 before anything is read
BACKLOG = 1024
SWITCH_SECONDS = 0.0005  # after which a thread that waits for the interpreter gets it


class Server(uvicorn.Server):
    """Uvicorn's server, which tells the application when it is told to end."""

    def __init__(self, app: FastAPI, *, drain_seconds: float) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                server_header=False,
                limit_concurrency=CONNECTIONS,
                backlog=BACKLOG,
                timeout_graceful_shutdown=max(1, round(drain_seconds)),
                timeout_keep_alive=15,
                h11_max_incomplete_event_size=64 * 1024,
                ws="none",
                proxy_headers=False,
            )
        )
        self._app = app

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until told to end."""
        # The thread of the engine hands out pieces between two steps, and every step waits for it: by default it gets
        # the interpreter's lock back from the event loop after 5 ms, which was 3 % of the tokens of 32 clients.
        interval = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_SECONDS)
        try:
            await super().serve(sockets)
        finally:
            sys.setswitchinterval(interval)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Take nothing new, and finish what is under way."""
        self._app.state.rung.ready = False
        super().handle_exit(sig, frame)


@contextmanager
def exiting_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end the program as if it were done, with exit code 0; also while models are loaded.

    Uvicorn finishes what is under way and then raises the signal again: by default that would kill the process before
    what was captured is written and the engines' processes are ended.
    """

    def end(number: int, frame: Any) -> NoReturn:
        del number, frame
        raise SystemExit(0)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0 takes a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio switches Nagle's algorithm off only for sockets that say they are TCP; with it, every piece of a stream
    # waits 40 ms for an acknowledgement.
    opened = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    opened.bind((host.strip("[]"), port))
    return opened


# --------------------
# The OpenAPI description, with an endpoint of its own for each task that is served now.


ANY_TASK = "/v1/tasks/{name}/predict"


def describe_tasks(app: FastAPI, served: Served) -> None:
    """Make the application describe every served task with its own columns and labels."""
    plain = app.openapi

    def described() -> dict[str, Any]:
        document = copy.deepcopy(plain())
        for one in served.artifacts():
            document["paths"][f"/v1/tasks/{one.name}/predict"] = _task(document["paths"][ANY_TASK], one)
        return document

    app.openapi = described  # type: ignore[method-assign]


def _task(any_task: dict[str, Any], one: ServedArtifact) -> dict[str, Any]:
    """Return the endpoint of one task."""
    path = copy.deepcopy(any_task)
    operation = path["post"]
    operation["operationId"] = f"predict_{one.name}"
    operation["summary"] = f"Answer rows of the task {one.artifact.shape.task}"
    operation["parameters"] = []
    row = {
        "type": "object",
        "properties": {column: _column(one) for column in one.artifact.shape.inputs},
        "required": list(one.artifact.shape.inputs),
        "additionalProperties": False,
    }
    body = {
        "type": "object",
        "properties": {
            "rows": {"type": "array", "minItems": 1, "items": row},
            "top": {"type": "integer", "minimum": 0, "maximum": 1000, "default": 0},
        },
        "required": ["rows"],
        "additionalProperties": False,
    }
    operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    operation["responses"]["200"] = {
        "description": "One prediction per row, in order.",
        "content": {"application/json": {"schema": _predictions(one)}},
    }
    return path


def _column(one: ServedArtifact) -> dict[str, Any]:
    if one.artifact.shape.kind != "chat":
        return {}  # any value: what is no text is shown to the model as JSON
    turn = {
        "type": "object",
        "properties": {
            "role": {"enum": ["system", "user", "assistant", "tool"]},
            "content": {"type": "string"},
        },
        "required": ["role", "content"],
    }
    return {"type": "array", "minItems": 1, "items": turn}


def _predictions(one: ServedArtifact) -> dict[str, Any]:
    output: dict[str, Any] = {"type": "string"}
    if one.artifact.shape.labels:
        output["enum"] = list(one.artifact.shape.labels)
    prediction = {
        "type": "object",
        "properties": {
            "id": {"type": "string"},
            "output": output,
            "confidence": {"type": ["number", "null"]},
            "finish_reason": {"type": "string"},
        },
        "required": ["id", "output", "confidence", "finish_reason"],
    }
    return {
        "type": "object",
        "properties": {
            "object": {"const": "predictions"},
            "task": {"type": "string"},
            "artifact": {"type": "string"},
            "predictions": {"type": "array", "items": prediction},
            "usage": {"type": "object"},
        },
        "required": ["object", "task", "artifact", "predictions", "usage"],
    }


TITLE = "Rung"


def app_with(
    served: Served,
    *,
    access: Access | None = None,
    limits: Limits | None = None,
    recorder: Recorder | None = None,
    load_from: Path | None = None,
    routers: Sequence[APIRouter] = (),
    pages: Places | None = None,
) -> FastAPI:
    """Return the application.

    Args:
        served: what is served.
        access: who may ask; by default anyone on this machine.
        limits: how much may be asked.
        recorder: takes what was answered.
        load_from: the folder below which artifacts may be loaded over HTTP; None for no loading.
        routers: more endpoints (feedback, review); they pass the same front and find the same context.
        pages: what the pages read from; None for no pages.
    """
    access, limits = access or Access(), limits or Limits()
    gate = Gate(limits.queue)
    metrics = Metrics(served, gate)
    shadows = None if recorder is None else Shadows(recorder, lambda: gate.inside > 0)
    if shadows is not None:
        watch_shadows(metrics, shadows)
    context = Context(served, limits, metrics, recorder, shadows, load_from, access.keys is not None)

    @asynccontextmanager
    async def living(_app: FastAPI) -> AsyncIterator[None]:
        yield
        context.close()

    app = FastAPI(title=TITLE, version=__version__, lifespan=living, docs_url=None, redoc_url=None)
    app.state.rung = context
    own = (
        chat.router, completions.router, endpoints.router, endpoints.loading, endpoints.tasks_router,
        endpoints.health_router,
    )  # fmt: skip
    for router in (*own, *routers):
        app.include_router(router)
    if pages is not None:
        from rung.serving.web import add_pages

        access = replace(access, sessions=add_pages(app, pages, access.keys))
    _handle_errors(app, metrics)
    describe_tasks(app, served)
    app.add_middleware(Front, access=access, limits=limits, gate=gate, metrics=metrics)
    return app


def _handle_errors(app: FastAPI, metrics: Metrics) -> None:
    def told(request: Request, refused: Refused) -> Response:
        metrics.failures.labels(refused.code).inc()
        if getattr(request.app.state, "site", None) is not None:
            from rung.serving.web.site import error_page, wants_page

            if wants_page(request):
                return error_page(request, refused)
        return JSONResponse(refused.body(), status_code=refused.status, headers=refused.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        problem = first["msg"].removeprefix("Value error, ")
        return told(
            request, Refused(400, "invalid-request", f"{where}: {problem}" if where else problem, param=where or None)
        )

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        code = {403: "forbidden", 404: "not-found", 405: "method-not-allowed"}.get(error.status_code, "invalid-request")
        return told(request, Refused(error.status_code, code, str(error.detail), headers=error.headers))

    @app.exception_handler(Refused)
    async def refuse(request: Request, error: Refused) -> Response:
        return told(request, error)

    @app.exception_handler(BusyError)
    async def busy(request: Request, error: BusyError) -> Response:
        after = {"Retry-After": str(error.retry_after)}
        return told(request, Refused(429, "queue-full", f"{error}; try again in {error.retry_after} s", headers=after))

    @app.exception_handler(RungError)
    async def failed(request: Request, error: RungError) -> Response:
        return told(request, refusal(error))
