"""Pages from templates. Text of users and models is only ever a value in them, and every value is escaped."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.requests import Request

from rung.evaluation.report.words import count_text
from rung.serving.context import context_of
from rung.serving.errors import Refused
from rung.serving.visit import visit_of
from rung.serving.web.site import site_of

if TYPE_CHECKING:
    from jinja2 import Environment

HERE = Path(__file__).parent
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with `no-referrer`, browsers would hide the Origin of our own forms
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
PAGES = (("/", "Overview"), ("/runs", "Climbs"), ("/playground", "Playground"), ("/failures", "Failures"),
         ("/promotions", "Promotions"), ("/trials", "Trials"), ("/load", "Load"))  # fmt: skip


def page(request: Request, template: str, title: str, *, status: int = 200, **values: Any) -> Response:
    """Return a page.

    Args:
        request: what it answers.
        template: a file of `templates/`, without `.html`.
        title: of the page.
        status: of the answer.
        values: what the template shows.
    """
    site, key = site_of(request), visit_of(request).key
    shared = {
        "title": title, "pages": PAGES, "here": "/" + request.url.path.split("/")[1], "key": key,
        "form_token": site.sessions.form_token(request.headers.get("cookie", "")),
        "inside": key is not None or not context_of(request).keyed,
    }  # fmt: skip
    text = _environment().get_template(f"{template}.html").render({**shared, **values})
    return HTMLResponse(text.encode(errors="replace"), status, HEADERS)


def error_page(request: Request, refused: Refused) -> Response:
    """Return a refusal as a page."""
    answer = page(request, "error", "Not possible", status=refused.status, refused=refused)
    answer.headers.update(refused.headers)
    return answer


def see_other(path: str) -> Response:
    """Send the browser to another page, after a form."""
    return RedirectResponse(path, 303, HEADERS)


def wants_page(request: Request) -> bool:
    """Tell whether an error should be a page: a browser asks, and not for the API."""
    has_site = getattr(request.app.state, "site", None) is not None
    return has_site and "text/html" in request.headers.get("accept", "") and not request.url.path.startswith("/v1/")


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        autoescape=True, loader=FileSystemLoader(HERE / "templates"), undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    filters: Mapping[str, Any] = {
        "percent": lambda value: f"{100 * value:.1f} %",
        "short": lambda value: str(value)[:12],
        "count": count_text,
        "time": _time,
        "seconds": _seconds,
    }
    made.filters.update(filters)
    return made


def _time(value: datetime | float) -> str:
    """Return `2026-01-02 03:04` in UTC."""
    moment = datetime.fromtimestamp(value, UTC) if isinstance(value, (int, float)) else value.astimezone(UTC)
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _seconds(value: float) -> str:
    """Return `35 ms`, `4.1 s` or `12 min`."""
    if value < 1:
        return f"{1000 * value:.0f} ms"
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.0f} min"
