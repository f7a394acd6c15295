"""The overview, signing in and out, climbs, and the files that pages load."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import FileResponse, Response

from rung.evaluation.report.words import left_out
from rung.serving.access import COOKIE, HOURS, SIGN_IN
from rung.serving.context import context_of
from rung.serving.limits import Refused
from rung.serving.served import ServedEncoder, ServedModel
from rung.serving.web.promotions import has_trial
from rung.serving.web.runs import ladder_of, progress_of, report_of, run_folder, run_folders, seconds_spent
from rung.serving.web.site import (
    EVERY,
    HEADERS,
    HERE,
    KEPT,
    form_of,
    latencies,
    page,
    polyline,
    rates,
    see_other,
    site_of,
)

router = APIRouter(include_in_schema=False)
Form = Annotated[dict[str, str], Depends(form_of)]
FILES = {
    "style.css": "text/css", "app.js": "text/javascript", "htmx.min.js": "text/javascript", "icon.svg": "image/svg+xml"
}  # fmt: skip


@router.get("/")
def overview(request: Request) -> Response:
    """Show what is served, and the tasks."""
    served = context_of(request).server.served
    bases = [one for one in served.all() if isinstance(one, ServedModel)]
    encoders = [one for one in served.all() if isinstance(one, ServedEncoder)]
    runs = run_folders(site_of(request).runs)
    return page(
        request, "overview", "Overview", artifacts=served.artifacts(), bases=bases, encoders=encoders, runs=runs
    )


@router.get("/runs")
def runs(request: Request) -> Response:
    """List the climbs."""
    root = site_of(request).runs
    return page(request, "runs", "Climbs", runs=run_folders(root), root=root)


@router.get("/runs/{name}")
def run(name: str, request: Request) -> Response:
    """Show the ladder of a climb, or how far it is."""
    found = run_folder(site_of(request).runs, name)
    if found is None:
        raise Refused(404, "no-run", f"there is no climb {name!r}")
    if found.state != "finished":
        steps = progress_of(found)
        return page(request, "climbing", found.task, run=found, steps=steps, spent=seconds_spent(found))
    result = report_of(found)
    return page(
        request, "run", found.task, run=found, result=result, ladder=ladder_of(result), left_out=left_out(result),
        trial=has_trial(request, result.task),
    )  # fmt: skip


@router.get("/runs/{name}/report")
def report(name: str, request: Request) -> Response:
    """Show the report's own file. It is sandboxed: whatever stands in the folder, it cannot act for who reads it."""
    found = run_folder(site_of(request).runs, name)
    if found is None or not (found.folder / "report.html").is_file():
        raise Refused(404, "no-run", f"there is no report of a climb {name!r}")
    policy = {"Content-Security-Policy": "sandbox allow-scripts; connect-src 'none'"}
    return FileResponse(found.folder / "report.html", media_type="text/html", headers={**HEADERS, **policy})


@router.get(SIGN_IN)
def sign_in_page(request: Request, to: str = "/") -> Response:
    """Ask for a key."""
    return page(request, "sign_in", "Sign in", to=_own(to), wrong=False)


@router.post(SIGN_IN)
def sign_in(request: Request, form: Form) -> Response:
    """Take a key, and give a cookie for it."""
    to = _own(form.get("to", "/"))
    value = site_of(request).sessions.sign_in(form.get("key", "").strip())
    if value is None:
        return page(request, "sign_in", "Sign in", status=401, to=to, wrong=True)
    answer = see_other(to)
    secure = request.url.scheme == "https"
    answer.set_cookie(COOKIE, value, 3600 * HOURS, httponly=True, samesite="strict", secure=secure)
    return answer


@router.post("/sign-out")
def sign_out(request: Request, form: Form) -> Response:  # noqa: ARG001  read, so that its token is checked
    """End the session."""
    site_of(request).sessions.sign_out(request.headers.get("cookie", ""))
    answer = see_other(SIGN_IN)
    answer.delete_cookie(COOKIE)
    return answer


@router.get("/static/{name}")
def static(name: str) -> Response:
    """Return a file of the pages."""
    if name not in FILES:
        raise Refused(404, "not-found", "there is no such file")
    headers = {"Cache-Control": "max-age=300", "X-Content-Type-Options": "nosniff"}
    return FileResponse(HERE / "static" / name, media_type=FILES[name], headers=headers)


def _own(path: str) -> str:
    """Return a path of this server, whatever a link said."""
    local = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
    return path if local else "/"


# --------------------
# How busy the server is: queue, tokens a second, latency, failures.


WIDTH, HEIGHT = 300.0, 60.0


@router.get("/load")
def load(request: Request) -> Response:
    """Show the metrics now and over the last minutes."""
    samples = site_of(request).history.look()
    now = samples[-1]
    written = rates(samples, "tokens")
    queue = [one.queue for one in samples]
    answered = rates(samples, "answered")
    charts = [_chart("Answers waited for", "", queue), _chart("Tokens written", "a second", written),
              _chart("Requests", "a second", answered)]  # fmt: skip
    return page(
        request, "load", "Load", charts=charts, now=now, latencies=latencies(now.buckets), minutes=KEPT * EVERY / 60,
        tables=_tables(request), width=WIDTH, height=HEIGHT,
    )  # fmt: skip


def _chart(name: str, unit: str, values: list[float]) -> dict[str, object]:
    most = max([*values, 1.0])
    points = polyline(values, WIDTH, HEIGHT - 4, most)
    return {"name": name, "unit": unit, "now": values[-1] if values else 0.0, "most": most, "points": points}


def _tables(request: Request) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """Return heading, columns and rows of what is counted by label."""
    registry = context_of(request).server.metrics.registry
    found: dict[str, list[tuple[str, ...]]] = {"tokens": [], "requests": [], "failures": [], "capture": []}
    for family in registry.collect():
        for one in family.samples:
            value = f"{one.value:,.0f}"
            if one.name == "rung_tokens_total":
                found["tokens"].append((one.labels["model"], one.labels["kind"], value))
            elif one.name == "rung_requests_total" and one.labels["endpoint"].startswith("/v1/"):
                found["requests"].append((one.labels["endpoint"], one.labels["status"], value))
            elif one.name == "rung_failures_total":
                found["failures"].append((one.labels["code"], value))
            elif one.name.startswith("rung_capture_"):
                found["capture"].append((one.name.removeprefix("rung_capture_").replace("_", " "), value))
    return [
        ("Tokens", ("model", "kind", "tokens"), found["tokens"]),
        ("Requests", ("endpoint", "status", "requests"), found["requests"]),
        ("Failures", ("code", "requests"), found["failures"]),
        ("Capture", ("answers", "count"), found["capture"]),
    ]
