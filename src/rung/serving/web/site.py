"""What all pages share: the site's state, pages from templates, and forms.

Text of users and models is only ever a value in a template, and every value is escaped. A form is accepted only from a
page of the same session.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import parse_qsl

from fastapi import Depends
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.requests import Request

from rung.evaluation.report.words import count_text, meanings, rows_text, term
from rung.serving.access import Sessions
from rung.serving.context import RequestContext, context_of
from rung.serving.limits import Refused
from rung.serving.metrics import History

if TYPE_CHECKING:
    from jinja2 import Environment

    from rung.feedback.store import FeedbackStore
    from rung.serving.web.starter import Starter

HERE = Path(__file__).parent
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with `no-referrer`, browsers would hide the Origin of our own forms
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
PAGES = (("/", "Overview"), ("/runs", "Climbs"), ("/playground", "Playground"), ("/failures", "Failures"),
         ("/promotions", "Promotions"), ("/trials", "Trials"), ("/load", "Load"))  # fmt: skip
MAX_FIELDS = 100  # of one form
TOKEN = "form_token"  # noqa: S105  the name of a field


@dataclass(frozen=True, slots=True)
class PageSources:
    """Where pages read from."""

    runs: Path  # the folder of run folders
    store: FeedbackStore | None = None  # captured answers and corrections; None where nothing is captured
    registry: Path | None = None  # the folder of promoted artifacts; None where the server follows none
    starter: Starter | None = None  # starts climbs from the pages; None where they start none

    @property
    def promoted(self) -> tuple[FeedbackStore, Path] | None:
        """The store and the registry's folder; None where the server follows no registry."""
        return None if self.store is None or self.registry is None else (self.store, self.registry)


@dataclass(frozen=True, slots=True)
class Site:
    """The state of the pages: where they read from, who is signed in, and the recent metrics."""

    sources: PageSources
    sessions: Sessions
    history: History


def site_of(request: Request) -> Site:
    """Get the site of the application that serves a request."""
    site = request.app.state.site
    assert isinstance(site, Site)
    return site


def sources_of(request: Request) -> PageSources:
    """Get where the pages of a request read from."""
    return site_of(request).sources


# ---- pages


def page(request: Request, template: str, title: str, *, status: int = 200, **values: Any) -> Response:
    """Render the file of `templates/` that is named `template` with these values."""
    context = context_of(request)
    shared = {
        "title": title, "pages": [each for each in PAGES if _may_open(context, each[0])],
        "here": "/" + request.url.path.split("/")[1], "key": context.key,
        "form_token": site_of(request).sessions.form_token(request.headers.get("cookie", "")),
        "meanings": meanings(), "inside": context.key is not None or context.server.access.keys is None,
    }  # fmt: skip
    text = _environment().get_template(f"{template}.html").render({**shared, **values})
    return HTMLResponse(text.encode(errors="replace"), status, HEADERS)


def _may_open(context: RequestContext, path: str) -> bool:
    """Whether the key of a request opens a page; one that needs no rights is open to every key."""
    needed = {"/failures": context.may_review, "/promotions": context.may_decide, "/trials": context.may_decide}
    return needed.get(path, True)


def error_page(request: Request, refused: Refused) -> Response:
    """Render a refusal as a page."""
    response = page(request, "error", "Not possible", status=refused.status, refused=refused)
    response.headers.update(refused.headers)
    return response


def see_other(path: str) -> Response:
    """Send the browser to another page, after a form."""
    return RedirectResponse(path, 303, HEADERS)


def wants_page(request: Request) -> bool:
    """Tell whether an error should be a page: a browser asks, and not for the API."""
    return "text/html" in request.headers.get("accept", "") and not request.url.path.startswith("/v1/")


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        autoescape=True, loader=FileSystemLoader(HERE / "templates"), undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "term": term, "rows": rows_text,
        "pair": lambda value: (value, value),  # of an option: its value, and its text
        "percent": lambda value: f"{100 * value:.1f} %",
        "short": lambda value: str(value)[:12],
        "count": count_text, "time": _time, "seconds": _seconds,
    }  # fmt: skip
    return environment


def _time(value: datetime | float) -> str:
    """Format `2026-01-02 03:04 UTC`."""
    moment = datetime.fromtimestamp(value, UTC) if isinstance(value, (int, float)) else value.astimezone(UTC)
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _seconds(value: float) -> str:
    """Format `35 ms`, `4.1 s` or `12 min`."""
    if value < 1:
        return f"{1000 * value:.0f} ms"
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.0f} min"


# ---- forms


async def form_of(request: Request) -> dict[str, str]:
    """Read the names and values of a form; what did not come from a page of this session is refused."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise Refused(415, "no-form", "this takes forms, which are application/x-www-form-urlencoded")
    try:
        text = (await request.body()).decode()
        values = dict(parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict"))
    except ValueError as error:
        raise Refused(400, "bad-form", f"the form cannot be read: {error}") from error
    if not site_of(request).sessions.is_form_token(request.headers.get("cookie", ""), values.pop(TOKEN, "")):
        raise Refused(403, "form-expired", "this form belongs to another session: reload the page")
    return {name: value.replace("\r\n", "\n") for name, value in values.items()}


FormValues = Annotated[dict[str, str], Depends(form_of)]  # of an endpoint's argument
