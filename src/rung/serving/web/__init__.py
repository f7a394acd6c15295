"""Pages of the server: HTML made on the server, one script, one style sheet, and nothing from other sites."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI

from rung.serving.access import KeyRing, Sessions
from rung.serving.metrics import History
from rung.serving.web import general, playground, promotions, review, rows, starts
from rung.serving.web.site import PageSources, Site


def add_pages(app: FastAPI, sources: PageSources, keys: KeyRing | None) -> Sessions:
    """Add the pages to an application; return the sessions, which its access rules need."""
    site = app.state.site = Site(sources, Sessions(keys), History(app.state.rung.metrics.registry))

    @asynccontextmanager
    async def sampling(_app: object) -> AsyncIterator[None]:
        site.history.start()
        yield
        site.history.close()
        if sources.starter is not None:
            sources.starter.stop()

    app.include_router(APIRouter(lifespan=sampling))
    for router in (
        general.router, playground.router, promotions.router, promotions.trials_router, review.router, rows.router,
        starts.router,
    ):  # fmt: skip
        app.include_router(router)
    return site.sessions
