"""The application: endpoints, what they share, and the front that every request passes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from rung import __version__
from rung.errors import RungError
from rung.serving import chat as chat_api
from rung.serving import completions as text_api
from rung.serving import embeddings_api, health_api, tasks_api
from rung.serving import endpoints as models_api
from rung.serving.access import Access
from rung.serving.admission import BusyError, Gate
from rung.serving.context import Context
from rung.serving.errors import Refused, refusal
from rung.serving.front import Front
from rung.serving.limits import Limits
from rung.serving.metrics import Metrics
from rung.serving.openapi import describe_tasks
from rung.serving.shadows import Shadows, watch_shadows

if TYPE_CHECKING:
    from rung.serving.recording import Recorder
    from rung.serving.served import Served
    from rung.serving.web.site import Places

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
        chat_api.router, text_api.router, embeddings_api.router, models_api.router, models_api.loading,
        tasks_api.router, health_api.router,
    )  # fmt: skip
    for router in (*own, *routers):
        app.include_router(router)
    if pages is not None:
        from rung.serving.web.site import add_pages

        access = replace(access, sessions=add_pages(app, pages, access.keys))
    _handle_errors(app, metrics)
    describe_tasks(app, served)
    app.add_middleware(Front, access=access, limits=limits, gate=gate, metrics=metrics)
    return app


def _handle_errors(app: FastAPI, metrics: Metrics) -> None:
    def told(request: Request, refused: Refused) -> Response:
        metrics.failures.labels(refused.code).inc()
        if getattr(request.app.state, "site", None) is not None:
            from rung.serving.web.rendering import error_page, wants_page

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
