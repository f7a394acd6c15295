"""GET /health, /ready and /metrics: for those who run the server."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from rung.serving.context import context_of

router = APIRouter(tags=["Operation"])


@router.get("/health")
async def health() -> Response:
    """Say that the process lives."""
    return JSONResponse({"status": "ok"})


@router.get("/ready", responses={503: {"description": "It ends, and takes nothing new."}})
async def ready(request: Request) -> Response:
    """Say whether requests are taken: everything is loaded, and the server is not ending."""
    yes = context_of(request).ready
    return JSONResponse({"status": "ready" if yes else "ending"}, status_code=200 if yes else 503)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Tell Prometheus what happened so far."""
    return Response(context_of(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)
