"""Promotions: what is served of each task, how that came about, what could take its place, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from rung.artifact.files import MANIFEST, fingerprint
from rung.errors import ConfigError, RungError
from rung.evaluation.statistics import Interval
from rung.feedback.improve import promote, read_improvement
from rung.feedback.records import Promotion, command
from rung.feedback.registry import Registry, promoted_tasks
from rung.feedback.store import FeedbackStore
from rung.feedback.trials import TrialReport, stop, trial_report
from rung.serving.context import context_of
from rung.serving.limits import Refused, refusal
from rung.serving.served import ServedArtifact
from rung.serving.web.review import reviewer_of
from rung.serving.web.runs import PAD, WIDTH, RunFolder, report_of, run_folder, run_folders
from rung.serving.web.site import Site, form_of, may_review, page, reviewers_only, see_other, site_of

router = APIRouter(prefix="/promotions", include_in_schema=False, dependencies=[Depends(reviewers_only)])
Form = Annotated[dict[str, str], Depends(form_of)]


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a finished climb recommends in place of what is served.

    Attributes:
        artifact: its fingerprint.
        regressions: failures that were fixed once, and that it answers wrong again.
        outcome: what `rung improve` found about the reviewed failures, or None for a plain climb.
    """

    run: RunFolder
    name: str
    artifact: str
    decision: str
    regressions: tuple[str, ...]
    outcome: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Standing:
    """How a task stands: what is served, every switch (the latest first), and what could take its place."""

    task: str
    current: Promotion | None
    past: tuple[Promotion, ...]
    candidates: tuple[Candidate, ...]
    can_go_back: bool


@router.get("")
def promotions(request: Request) -> Response:
    """Show every task."""
    return _page(request)


@router.post("/{run}/promote")
def promote_run(run: str, request: Request, form: Form) -> Response:
    """Serve what a climb recommends from now on."""

    def switch(site: Site, store: FeedbackStore, root: Path, reviewer: str) -> None:
        found = run_folder(site.runs, run)
        if found is None or found.state != "finished":
            raise ConfigError("wrong-folder", f"there is no finished climb {run!r}", hint="load the page again")
        registry = Registry(root, found.task)
        if found.improvement:
            accepted = form.get("accept") == "yes"
            promote(found.folder, registry, store, reviewer=reviewer, accept_regressions=accepted)
            return
        reason = form.get("reason", "").strip()
        if not reason:
            raise ConfigError(
                "missing-field", f"{run} was not measured against what is served", hint="say why it should be"
            )
        result = report_of(found)
        evidence = {"reason": reason, "run": str(found.folder), "name": result.recommended, "decision": result.decision}
        registry.promote(_recommended(found), store, evidence=evidence, reviewer=reviewer)

    return _switched(request, form, switch)


@router.post("/{task}/rollback")
def rollback(task: str, request: Request, form: Form) -> Response:
    """Serve again what was served before."""

    def switch(_site: Site, store: FeedbackStore, root: Path, reviewer: str) -> None:
        known = {one.name for one in root.iterdir()} if root.is_dir() else set()
        if task not in known:
            raise ConfigError("nothing-to-undo", f"nothing was promoted for {task}", hint="load the page again")
        Registry(root, task).rollback(store, reviewer=reviewer, reason=form.get("reason", ""))

    return _switched(request, form, switch)


def _switched(request: Request, form: dict[str, str], switch: Any) -> Response:
    site, reviewer = site_of(request), form.get("reviewer", "").strip()
    try:
        if site.store is None or site.registry is None:
            raise ConfigError(
                "server-option-missing", "this server follows no registry", hint="start it with `--registry FOLDER`"
            )
        if not reviewer:
            raise ConfigError("missing-field", "a promotion needs the name of who decides", hint="write your name")
        switch(site, site.store, site.registry, reviewer)
    except RungError as error:
        return _page(request, problem=refusal(error).message, status=400)
    return see_other("/promotions?switched=yes")


def _page(request: Request, *, problem: str = "", status: int = 200) -> Response:
    site = site_of(request)
    if site.store is None or site.registry is None:
        return page(request, "no_registry", "Promotions")
    return page(
        request, "promotions", "Promotions", status=status, problem=problem, standings=_standings(site),
        switched="switched" in request.query_params and not problem,
        reviewer=reviewer_of(request),
    )  # fmt: skip


def _standings(site: Site) -> list[Standing]:
    assert site.store is not None and site.registry is not None  # noqa: PT018
    finished = [run for run in run_folders(site.runs) if run.state == "finished"]
    promoted = {pointer.parent.name for pointer in site.registry.glob("*/current")}
    standings = []
    for task in sorted(promoted | {run.task for run in finished}):
        current = Registry(site.registry, task).current()
        past = tuple(reversed(site.store.promotions(task)))
        candidates = _candidates([run for run in finished if run.task == task], current)
        back = current is not None and any(one.token == current.below for one in past)
        standings.append(Standing(task, current, past, candidates, back))
    return standings


def _candidates(runs: Sequence[RunFolder], current: Promotion | None) -> tuple[Candidate, ...]:
    """Return what could be switched to: not what is served, nor what was measured against something else."""
    now = current.artifact if current else None
    found = []
    for run in runs:
        if run.improvement:
            told = read_improvement(run.folder)
            if not told["better"] or told["served"] != now:
                continue
            failures = told["failures"]
            wrong_again = tuple(failures["regressions"])
            found.append(
                Candidate(run, told["name"], told["recommended"], told["decision"], wrong_again, failures)
            )  # fmt: skip
            continue
        result, folder = report_of(run), _recommended(run)
        if (folder / MANIFEST).is_file() and (mark := fingerprint(folder)) != now:
            found.append(Candidate(run, result.recommended, mark, result.decision, (), None))
    return tuple(found)


def _recommended(run: RunFolder) -> Path:
    """Return the folder of what a climb recommends; the run folder may have been moved since."""
    return run.folder / "rungs" / report_of(run).recommended / "artifact"


# --------------------
# Trials: what is tried beside what is served of each task, how it stands, and how it ends.


trials_router = APIRouter(prefix="/trials", include_in_schema=False, dependencies=[Depends(reviewers_only)])


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


@trials_router.get("")
def trials(request: Request) -> Response:
    """Show every task that something was promoted for."""
    return _trial_page(request)


@trials_router.get("/{task}")
def trial(task: str, request: Request) -> Response:
    """Show one task."""
    return _trial_page(request, task)


@trials_router.post("/{task}/stop")
def stop_trial(task: str, request: Request, form: Form) -> Response:
    """End the trial that the form shows."""
    try:
        _, registry, shown = _shown(request, task, form)
        if not shown.running:
            raise ConfigError("no-trial", f"no trial runs for {task}", hint="load the page again")
        stop(registry)
    except RungError as error:
        return _trial_page(request, task, problem=refusal(error).message, status=400)
    return see_other(f"/trials/{quote(task, safe='')}?stopped=yes")


@trials_router.post("/{task}/promote")
def promote_challenger(task: str, request: Request, form: Form) -> Response:
    """Serve the challenger that the form shows from now on, if the trial found it better."""
    try:
        store, registry, shown = _shown(request, task, form)
        reviewer = form.get("reviewer", "").strip()
        if not reviewer:
            raise ConfigError("missing-field", "a promotion needs the name of who decides", hint="write your name")
        if shown.step != "promote":
            raise ConfigError(
                "promotion-refused",
                f"the trial of {task} does not speak for its challenger",
                hint="load the page again",
            )
        decision = f"{shown.challenger} against {shown.served}: {shown.evidence}"
        evidence = {"decision": decision, "reason": form.get("reason", "").strip(), "trial": shown.trial.token}
        registry.promote(shown.folder, store, evidence=evidence, reviewer=reviewer)
    except RungError as error:
        return _trial_page(request, task, problem=refusal(error).message, status=400)
    return see_other("/promotions?switched=yes")


def has_trial(request: Request, task: str) -> bool:
    """Tell whether there is a trial of a task that whoever asks may look at."""
    site = site_of(request)
    if site.store is None or site.registry is None or not may_review(request):
        return False
    return any(one.task == task and (one.folder / "trial").is_file() for one in promoted_tasks(site.registry))


def _shown(request: Request, task: str, form: dict[str, str]) -> tuple[FeedbackStore, Registry, TrialReport]:
    """Return what a form is about, as it stands now.

    Raises:
        ConfigError: `server-option-missing`, or `no-trial`: the form shows another trial than there is.
    """
    store, registry = _place(request, task)
    found = trial_report(store, registry)
    if found.trial.token != form.get("trial"):
        raise ConfigError("no-trial", f"another trial of {task} was started", hint="load the page again")
    return store, registry, found


def _place(request: Request, task: str) -> tuple[FeedbackStore, Registry]:
    site = site_of(request)
    if site.store is None or site.registry is None:
        raise ConfigError(
            "server-option-missing", "this server follows no registry", hint="start it with `--registry FOLDER`"
        )
    registry = next((one for one in promoted_tasks(site.registry) if one.task == task), None)
    if registry is None:
        raise Refused(404, "no-task", f"nothing was promoted for {task!r}")
    return site.store, registry


def _trial_page(request: Request, task: str | None = None, *, problem: str = "", status: int = 200) -> Response:
    site = site_of(request)
    if site.store is None or site.registry is None:
        return page(request, "no_registry", "Trials", status=status)
    chosen = promoted_tasks(site.registry) if task is None else [_place(request, task)[1]]
    return page(
        request, "trials", "Trials", status=status, problem=problem, task=task,
        shown=[_tried(request, site.store, one) for one in chosen], width=WIDTH, reviewer=reviewer_of(request),
        stopped="stopped" in request.query_params and not problem,
    )  # fmt: skip


def _tried(request: Request, store: FeedbackStore, registry: Registry) -> Tried:
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
    served = next((one for one in context_of(request).server.served.all() if one.name == report.trial.task), None)
    on = served.trial if isinstance(served, ServedArtifact) else None
    return on is not None and on.record.token == report.trial.token


def _drawn(delta: float, interval: Interval) -> Drawn:
    reach = max(abs(interval.low), abs(interval.high), abs(delta)) or 1.0

    def place(value: float) -> float:
        return round(WIDTH / 2 + (WIDTH / 2 - PAD) * value / reach, 1)

    return Drawn(place(interval.low), place(delta), place(interval.high))
