"""Trials: what is tried beside what is served of each task, how it stands, and how it ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from rung.errors import ConfigError, RungError
from rung.evaluation.statistics import Interval
from rung.feedback.records import command
from rung.feedback.registry import Registry, promoted_tasks
from rung.feedback.store import Store
from rung.feedback.trials import TrialReport, stop, trial_report
from rung.serving.context import context_of
from rung.serving.errors import Refused, refusal
from rung.serving.served import ServedArtifact
from rung.serving.web.forms import form_of
from rung.serving.web.ladder import PAD, WIDTH
from rung.serving.web.rendering import page, see_other
from rung.serving.web.review import reviewer_of
from rung.serving.web.site import may_review, reviewers_only, site_of

router = APIRouter(prefix="/trials", include_in_schema=False, dependencies=[Depends(reviewers_only)])
Form = Annotated[dict[str, str], Depends(form_of)]


@dataclass(frozen=True, slots=True)
class Drawn:
    """The interval, the mean and 0 as places between 0 and `WIDTH`, 0 in the middle."""

    low: float
    mean: float
    high: float
    zero: float = WIDTH / 2


@dataclass(frozen=True, slots=True)
class Tried:
    """A task on the page.

    Attributes:
        report: of its trial; None before the first, or where there is a `problem`.
        drawn: the difference.
        here: whether this very server answers with both artifacts.
        start: the command that starts a trial.
        problem: why the trial cannot be shown.
    """

    task: str
    report: TrialReport | None
    drawn: Drawn | None
    here: bool
    start: str
    problem: str = ""


@router.get("")
def trials(request: Request) -> Response:
    """Show every task that something was promoted for."""
    return _page(request)


@router.get("/{task}")
def trial(task: str, request: Request) -> Response:
    """Show one task."""
    return _page(request, task)


@router.post("/{task}/stop")
def stop_trial(task: str, request: Request, form: Form) -> Response:
    """End the trial that the form shows."""
    try:
        _, registry, shown = _shown(request, task, form)
        if not shown.running:
            raise ConfigError("no-trial", f"no trial runs for {task}", hint="load the page again")
        stop(registry)
    except RungError as error:
        return _page(request, task, problem=refusal(error).message, status=400)
    return see_other(f"/trials/{quote(task, safe='')}?stopped=yes")


@router.post("/{task}/promote")
def promote_challenger(task: str, request: Request, form: Form) -> Response:
    """Serve the challenger that the form shows from now on, if the trial found it better."""
    try:
        store, registry, shown = _shown(request, task, form)
        reviewer = form.get("reviewer", "").strip()
        if not reviewer:
            raise ConfigError("reviewer-missing", "a promotion needs the name of who decides", hint="write your name")
        if shown.step != "promote":
            raise ConfigError(
                "trial-undecided", f"the trial of {task} does not speak for its challenger", hint="load the page again"
            )
        decision = f"{shown.challenger} against {shown.served}: {shown.evidence}"
        evidence = {"decision": decision, "reason": form.get("reason", "").strip(), "trial": shown.trial.token}
        registry.promote(shown.folder, store, evidence=evidence, reviewer=reviewer)
    except RungError as error:
        return _page(request, task, problem=refusal(error).message, status=400)
    return see_other("/promotions?switched=yes")


def has_trial(request: Request, task: str) -> bool:
    """Tell whether there is a trial of a task that whoever asks may look at."""
    site = site_of(request)
    if site.store is None or site.registry is None or not may_review(request):
        return False
    return any(one.task == task and (one.folder / "trial").is_file() for one in promoted_tasks(site.registry))


def _shown(request: Request, task: str, form: dict[str, str]) -> tuple[Store, Registry, TrialReport]:
    """Return what a form is about, as it stands now.

    Raises:
        ConfigError: `no-registry`, or `no-trial`: the form shows another trial than there is.
    """
    store, registry = _place(request, task)
    found = trial_report(store, registry)
    if found.trial.token != form.get("trial"):
        raise ConfigError("no-trial", f"another trial of {task} was started", hint="load the page again")
    return store, registry, found


def _place(request: Request, task: str) -> tuple[Store, Registry]:
    site = site_of(request)
    if site.store is None or site.registry is None:
        raise ConfigError("no-registry", "this server follows no registry", hint="start it with `--registry FOLDER`")
    registry = next((one for one in promoted_tasks(site.registry) if one.task == task), None)
    if registry is None:
        raise Refused(404, "no-task", f"nothing was promoted for {task!r}")
    return site.store, registry


def _page(request: Request, task: str | None = None, *, problem: str = "", status: int = 200) -> Response:
    site = site_of(request)
    if site.store is None or site.registry is None:
        return page(request, "no_registry", "Trials", status=status)
    chosen = promoted_tasks(site.registry) if task is None else [_place(request, task)[1]]
    return page(
        request, "trials", "Trials", status=status, problem=problem, task=task,
        shown=[_tried(request, site.store, one) for one in chosen], width=WIDTH, reviewer=reviewer_of(request),
        stopped="stopped" in request.query_params and not problem,
    )  # fmt: skip


def _tried(request: Request, store: Store, registry: Registry) -> Tried:
    begin = command("rung trial start", registry.task, "ARTIFACT", "--mode", "shadow", registry=registry.root)
    try:
        if registry.trial() is None:
            return Tried(registry.task, None, None, False, begin)
        found = trial_report(store, registry)
    except RungError as error:
        return Tried(registry.task, None, None, False, begin, refusal(error).message)
    drawn = _drawn(found.standing.decision.delta, found.standing.interval)
    return Tried(registry.task, found, drawn, _answers_here(request, found), begin)


def _answers_here(request: Request, report: TrialReport) -> bool:
    served = next((one for one in context_of(request).served.all() if one.name == report.trial.task), None)
    on = served.trial if isinstance(served, ServedArtifact) else None
    return on is not None and on.record.token == report.trial.token


def _drawn(delta: float, interval: Interval) -> Drawn:
    reach = max(abs(interval.low), abs(interval.high), abs(delta)) or 1.0

    def place(value: float) -> float:
        return round(WIDTH / 2 + (WIDTH / 2 - PAD) * value / reach, 1)

    return Drawn(place(interval.low), place(delta), place(interval.high))
