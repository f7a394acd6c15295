"""What the pages show beside the server's own state, and how they are added to the application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.requests import Request

from rung.serving.context import context_of
from rung.serving.errors import Refused
from rung.serving.visit import visit_of
from rung.serving.web.history import History
from rung.serving.web.sessions import Sessions

if TYPE_CHECKING:
    from fastapi import FastAPI

    from rung.feedback.store import Store
    from rung.serving.keys import KeyRing


@dataclass(frozen=True, slots=True)
class Places:
    """Where pages read from.

    Attributes:
        runs: folder of run folders.
        store: of captured answers and corrections, or None where nothing is captured.
        registry: folder of promoted artifacts, or None where the server follows none.
    """

    runs: Path
    store: Store | None = None
    registry: Path | None = None


@dataclass(frozen=True, slots=True)
class Site:
    """The state of the pages.

    Attributes:
        places: that they read from.
        sessions: who is signed in.
        history: what the metrics were lately.
    """

    places: Places
    sessions: Sessions
    history: History

    @property
    def runs(self) -> Path:
        """The folder of run folders."""
        return self.places.runs

    @property
    def store(self) -> Store | None:
        """The store, where there is one."""
        return self.places.store

    @property
    def registry(self) -> Path | None:
        """The registry's folder, where there is one."""
        return self.places.registry


def add_pages(app: FastAPI, places: Places, keys: KeyRing | None) -> Sessions:
    """Add the pages to an application; return the sessions that its front has to know."""
    from fastapi import APIRouter

    from rung.serving.web import general, load, playground, trying
    from rung.serving.web import promotions as promoting
    from rung.serving.web import review as reviewing

    site = Site(places, Sessions(keys), History(app.state.rung.metrics.registry))

    @asynccontextmanager
    async def sampling(_app: object) -> AsyncIterator[None]:
        site.history.start()
        yield
        site.history.close()

    app.state.site = site
    app.include_router(APIRouter(lifespan=sampling))
    for part in (general, load, playground, promoting, reviewing, trying):
        app.include_router(part.router)
    return site.sessions


def site_of(request: Request) -> Site:
    """Return the site of the application that serves a request."""
    site = request.app.state.site
    assert isinstance(site, Site)
    return site


def may_review(request: Request) -> bool:
    """Tell whether whoever asks may correct and promote: anyone where no key is set, else admin keys."""
    key = visit_of(request).key
    return not context_of(request).keyed or (key is not None and key.admin)


def reviewers_only(request: Request) -> None:
    """Refuse everybody else.

    Raises:
        Refused: 403.
    """
    if not may_review(request):
        raise Refused(403, "forbidden", "this key may not review: make one with `rung keys create --admin`")
