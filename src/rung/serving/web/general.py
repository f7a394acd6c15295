"""The overview, signing in and out, climbs, and the files that pages load."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import FileResponse, Response

from rung.evaluation.report.words import left_out
from rung.serving.access import SIGN_IN
from rung.serving.context import context_of
from rung.serving.errors import Refused
from rung.serving.served import Base, Encoder
from rung.serving.web.forms import form_of
from rung.serving.web.ladder import ladder_of
from rung.serving.web.rendering import HEADERS, HERE, page, see_other
from rung.serving.web.runs import progress_of, report_of, run_folder, run_folders, seconds_spent
from rung.serving.web.sessions import COOKIE, HOURS
from rung.serving.web.site import site_of
from rung.serving.web.trying import has_trial

router = APIRouter(include_in_schema=False)
Form = Annotated[dict[str, str], Depends(form_of)]
FILES = {
    "style.css": "text/css", "app.js": "text/javascript", "htmx.min.js": "text/javascript", "icon.svg": "image/svg+xml"
}  # fmt: skip


@router.get("/")
def overview(request: Request) -> Response:
    """Show what is served, and the tasks."""
    served = context_of(request).served
    bases = [one for one in served.all() if isinstance(one, Base)]
    encoders = [one for one in served.all() if isinstance(one, Encoder)]
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
