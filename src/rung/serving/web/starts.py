"""Climbs and improvements that are started from a page, and rows that are uploaded for them.

The pages do so only where the server was started with `--start FOLDER`, and only for administrators. Each runs
the command `rung` in a process of its own, one at a time, so consent, budgets and errors are those of the command.
Uploaded rows go into a new folder below FOLDER; nothing that is there is replaced.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from rung.climbing.budget import parse_budget
from rung.serving.context import administrators_only
from rung.serving.limits import Refused
from rung.serving.web.site import FormValues, page, see_other, sources_of
from rung.serving.web.starter import Starter

router = APIRouter(prefix="/start", include_in_schema=False, dependencies=[Depends(administrators_only)])


def starter_of(request: Request) -> Starter:
    """The starter of the server; where it starts nothing, refuse with 404."""
    starter = sources_of(request).starter
    if starter is None:
        raise Refused(404, "no-start", "this server starts nothing; run it with `--start FOLDER`")
    return starter


Starts = Annotated[Starter, Depends(starter_of)]


@router.get("")
def form(request: Request, starter: Starts) -> Response:
    """Show the tasks, what runs, and the form for rows."""
    return page(request, "start", "Start", starter=starter, tasks=starter.tasks(), said=starter.said())


@router.post("")
def start(starter: Starts, form: FormValues) -> Response:
    """Start a climb or an improvement of a task; a budget that is none is refused as on the command line."""
    task, budget = form.get("task", ""), form.get("budget", "10m")
    if task not in starter.tasks():
        raise Refused(404, "no-task", f"there is no task {task!r}")
    parse_budget(budget)
    improve = form.get("what") == "improve"
    if improve and starter.improving is None:
        raise Refused(409, "no-store", "this server captures nothing, so there is nothing to improve from")
    more = starter.improving or () if improve else ()
    starter.begin("improve" if improve else "climb", task, "--budget", budget, *starter.options, *more)
    return see_other("/start")


@router.post("/stop")
def stop(starter: Starts, form: FormValues) -> Response:  # noqa: ARG001  reading the form checks its token
    """End what runs."""
    starter.stop()
    return see_other("/start")


@router.post("/rows")
def upload(starter: Starts, form: FormValues) -> Response:
    """Take rows, and make a task of them."""
    starter.take(form.get("name", ""), form.get("rows", ""), form.get("output", "").strip())
    return see_other("/start")
