"""The overview, climbs, signing in and out, the server's load, and the files that pages use."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, Response

from rung.evaluation.report.html import content_policy
from rung.evaluation.report.words import glossary, left_out
from rung.serving.access import COOKIE, HOURS, SIGN_IN
from rung.serving.context import Context, context_of
from rung.serving.limits import Refused
from rung.serving.metrics import EVERY, KEPT, quantile, rates
from rung.serving.served import ServedEncoder, ServedModel
from rung.serving.web.promotions import has_trial
from rung.serving.web.runs import ladder_of, measured_as, progress_of, report_of, run_folder, run_folders, seconds_spent
from rung.serving.web.site import HEADERS, HERE, FormValues, page, see_other, site_of, sources_of

router = APIRouter(include_in_schema=False)
FILES = {
    "style.css": "text/css", "app.js": "text/javascript", "htmx.min.js": "text/javascript", "icon.svg": "image/svg+xml"
}  # fmt: skip
WIDTH, HEIGHT = 300.0, 60.0  # of a chart
CAPTURED = "rung_capture_"  # the metrics of capture
COUNTS = (("Tokens", "rung_tokens_total", ("model", "kind"), "tokens"),
          ("Requests", "rung_requests_total", ("endpoint", "status"), "requests"),
          ("Failures", "rung_failures_total", ("code",), "requests"))  # fmt: skip


@router.get("/")
def overview(request: Request, context: Context) -> Response:
    """Show what is served, and the climbs."""
    served = context.server.served.all()
    bases = [each for each in served if isinstance(each, ServedModel)]
    encoders = [each for each in served if isinstance(each, ServedEncoder)]
    runs, artifacts = run_folders(sources_of(request).runs), context.server.served.artifacts()
    scores = measured_as(sources_of(request).runs, [each.fingerprint for each in artifacts])
    return page(
        request, "overview", "Overview", artifacts=artifacts, bases=bases, encoders=encoders, runs=runs, scores=scores
    )


@router.get("/runs")
def runs(request: Request) -> Response:
    """List the climbs."""
    sources = sources_of(request)
    root, start = sources.runs, sources.starter is not None and context_of(request).may_decide
    return page(request, "runs", "Climbs", runs=run_folders(root), root=root, start=start)


@router.get("/runs/{name}")
def run(name: str, request: Request) -> Response:
    """Show the ladder of a finished climb, or the progress of another."""
    climb = run_folder(sources_of(request).runs, name)
    if climb is None:
        raise Refused(404, "no-run", f"there is no climb {name!r}")
    if climb.state != "finished":
        return page(request, "climbing", climb.task, run=climb, steps=progress_of(climb), spent=seconds_spent(climb))
    result = report_of(climb)
    return page(
        request, "run", climb.task, run=climb, result=result, ladder=ladder_of(result), left_out=left_out(result),
        trial=has_trial(request, result.task),
    )  # fmt: skip


@router.get("/runs/{name}/report")
def report(name: str, request: Request) -> Response:
    """Show the report's own file, in a sandbox: a report that others made runs no script and fetches nothing."""
    climb = run_folder(sources_of(request).runs, name)
    if climb is None or not (climb.folder / "report.html").is_file():
        raise Refused(404, "no-run", f"there is no report of a climb {name!r}")
    policy = {"Content-Security-Policy": f"sandbox allow-scripts; {content_policy()}"}
    return FileResponse(climb.folder / "report.html", media_type="text/html", headers={**HEADERS, **policy})


@router.get(SIGN_IN)
def sign_in_page(request: Request, to: str = "/") -> Response:
    """Ask for a key."""
    return page(request, "sign_in", "Sign in", to=_local_path(to), wrong=False)


@router.post(SIGN_IN)
def sign_in(request: Request, form: FormValues) -> Response:
    """Exchange a key for a cookie."""
    to = _local_path(form.get("to", "/"))
    value = site_of(request).sessions.sign_in(form.get("key", "").strip())
    if value is None:
        return page(request, "sign_in", "Sign in", status=401, to=to, wrong=True)
    response, secure = see_other(to), request.url.scheme == "https"
    response.set_cookie(COOKIE, value, 3600 * HOURS, httponly=True, samesite="strict", secure=secure)
    return response


@router.post("/sign-out")
def sign_out(request: Request, form: FormValues) -> Response:  # noqa: ARG001  reading the form checks its token
    """End the session."""
    site_of(request).sessions.sign_out(request.headers.get("cookie", ""))
    response = see_other(SIGN_IN)
    response.delete_cookie(COOKIE)
    return response


def _local_path(path: str) -> str:
    """Keep a path only if it is one of this server."""
    local = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
    return path if local else "/"


@router.get("/static/{name}")
def static(name: str) -> Response:
    """Give a file that pages use."""
    if name not in FILES:
        raise Refused(404, "not-found", "there is no such file")
    headers = {"Cache-Control": "max-age=300", "X-Content-Type-Options": "nosniff"}
    return FileResponse(HERE / "static" / name, media_type=FILES[name], headers=headers)


@router.get("/glossary")
def words(request: Request) -> Response:
    """Say what the words of the pages mean."""
    return page(request, "glossary", "Glossary", glossary=glossary())


@router.get("/load")
def load(request: Request, context: Context) -> Response:
    """Show the metrics now and over the last minutes."""
    samples = site_of(request).history.look()
    charts = [
        _chart("Pending answers", "", [each.queue for each in samples]),
        _chart("Tokens written", "a second", rates(samples, "tokens")),
        _chart("Requests", "a second", rates(samples, "answered")),
    ]
    latencies = {f"p{percent}": quantile(samples[-1].buckets, percent / 100) for percent in (50, 95, 99)}
    return page(
        request, "load", "Load", charts=charts, now=samples[-1], latencies=latencies, minutes=KEPT * EVERY / 60,
        tables=_tables(context), width=WIDTH, height=HEIGHT,
    )  # fmt: skip


def _chart(name: str, unit: str, values: list[float]) -> dict[str, object]:
    most = max([*values, 1.0])
    points = polyline(values, WIDTH, HEIGHT - 4, most)
    return {"name": name, "unit": unit, "now": values[-1] if values else 0.0, "most": most, "points": points}


def polyline(values: Sequence[float], width: float, height: float, most: float) -> str:
    """Format the points of an SVG polyline, the newest at the right edge; `most` is the value at the top."""
    step = width / max(1, KEPT - 1)
    first = width - step * (len(values) - 1)
    return " ".join(
        f"{first + step * i:.1f},{height - height * min(1.0, value / most if most else 0.0):.1f}"
        for i, value in enumerate(values)
    )


def _tables(context: Context) -> list[tuple[str, tuple[str, ...], Sequence[tuple[str, ...]]]]:
    """List the heading, columns and rows of each table of counts."""
    samples = [each for family in context.server.metrics.registry.collect() for each in family.samples]
    tables = []
    for heading, name, labels, unit in COUNTS:
        own = [each for each in samples if each.name == name and each.labels.get("endpoint", "/v1/").startswith("/v1/")]
        rows = [(*(each.labels[label] for label in labels), f"{each.value:,.0f}") for each in own]
        tables.append((heading, (*labels, unit), rows))
    captured = [each for each in samples if each.name.startswith(CAPTURED)]
    counts = [(each.name.removeprefix(CAPTURED).replace("_", " "), f"{each.value:,.0f}") for each in captured]
    return [*tables, ("Capture", ("answers", "count"), counts)]
