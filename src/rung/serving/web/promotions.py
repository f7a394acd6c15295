"""Promotions: what is served of each task, its history, what could replace it, and the way back. And trials."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from rung.artifact.files import MANIFEST, fingerprint
from rung.errors import ConfigError, RungError
from rung.feedback.improve import promote, read_improvement
from rung.feedback.records import Promotion, command
from rung.feedback.registry import Registry, promoted_tasks
from rung.feedback.store import FeedbackStore
from rung.feedback.trials import TrialReport, stop, trial_report
from rung.serving.context import administrators_only, context_of
from rung.serving.limits import Refused, refusal
from rung.serving.served import ServedArtifact
from rung.serving.web.review import reviewer_of, signature
from rung.serving.web.runs import WIDTH, RunFolder, position, report_of, run_folder, run_folders
from rung.serving.web.site import FormValues, page, see_other, sources_of

router = APIRouter(prefix="/promotions", include_in_schema=False, dependencies=[Depends(administrators_only)])
trials_router = APIRouter(prefix="/trials", include_in_schema=False, dependencies=[Depends(administrators_only)])
SWITCHED = "/promotions?switched=yes"
RELOAD = "reload the page"


@dataclass(frozen=True, slots=True)
class PromotionCandidate:
    """What a finished climb recommends in place of what is served."""

    run: RunFolder
    name: str
    artifact: str  # its fingerprint
    decision: str
    regressions: tuple[str, ...]  # failures that were fixed once, and that it answers wrong again
    outcome: dict[str, Any] | None  # what `rung improve` measured on the reviewed failures; None for a plain climb


@dataclass(frozen=True, slots=True)
class TaskPromotions:
    """What is served of a task, every switch (the latest first), and what could replace it."""

    task: str
    current: Promotion | None
    past: tuple[Promotion, ...]
    candidates: tuple[PromotionCandidate, ...]
    can_go_back: bool


@router.get("")
def promotions(request: Request) -> Response:
    """Show every task."""
    return _page(request)


@router.post("/{run}/promote")
def promote_run(run: str, request: Request, form: FormValues) -> Response:
    """Serve what a climb recommends."""

    def change(store: FeedbackStore, root: Path) -> None:
        reviewer, climb = _reviewer(request, form), run_folder(sources_of(request).runs, run)
        if climb is None or climb.state != "finished":
            raise ConfigError("wrong-folder", f"there is no finished climb {run!r}", hint=RELOAD)
        registry = Registry(root, climb.task)
        if climb.improvement:
            accepted = form.get("accept") == "yes"
            promote(climb.folder, registry, store, reviewer=reviewer, accept_regressions=accepted)
            return
        reason = form.get("reason", "").strip()
        if not reason:
            message = f"{run} was not measured against what is served"
            raise ConfigError("missing-field", message, hint="give a reason to promote it")
        result = report_of(climb)
        evidence = {"reason": reason, "run": str(climb.folder), "name": result.recommended, "decision": result.decision}
        registry.promote(climb.artifact(result.recommended), store, evidence=evidence, reviewer=reviewer)

    return _changed(request, change, partial(_page, request), SWITCHED)


@router.post("/{task}/rollback")
def rollback(task: str, request: Request, form: FormValues) -> Response:
    """Serve again what was served before."""

    def change(store: FeedbackStore, root: Path) -> None:
        reviewer = _reviewer(request, form)
        if not root.is_dir() or task not in {folder.name for folder in root.iterdir()}:
            raise ConfigError("nothing-to-undo", f"nothing was promoted for {task}", hint=RELOAD)
        Registry(root, task).rollback(store, reviewer=reviewer, reason=form.get("reason", ""))

    return _changed(request, change, partial(_page, request), SWITCHED)


def _changed(
    request: Request, change: Callable[[FeedbackStore, Path], None], shown: Callable[..., Response], to: str
) -> Response:
    """Change what is served or tried and go to page `to`, or show why it failed."""
    try:
        promoted = sources_of(request).promoted
        if promoted is None:
            hint = "start it with `--registry FOLDER`"
            raise ConfigError("server-option-missing", "this server follows no registry", hint=hint)
        change(*promoted)
    except RungError as error:
        return shown(problem=refusal(error).message, status=400)
    return see_other(to)


def _reviewer(request: Request, form: dict[str, str]) -> str:
    if reviewer := signature(request, form):
        return reviewer
    raise ConfigError("missing-field", "a promotion needs the name of who decides", hint="write your name")


def _page(request: Request, *, problem: str = "", status: int = 200) -> Response:
    promoted = sources_of(request).promoted
    if promoted is None:
        return page(request, "no_registry", "Promotions")
    return page(
        request, "promotions", "Promotions", status=status, problem=problem, reviewer=reviewer_of(request),
        tasks=_tasks(*promoted, sources_of(request).runs), switched="switched" in request.query_params and not problem,
    )  # fmt: skip


def _tasks(store: FeedbackStore, root: Path, runs: Path) -> list[TaskPromotions]:
    finished = [run for run in run_folders(runs) if run.state == "finished"]
    tasks = []
    for task in sorted({registry.task for registry in promoted_tasks(root)} | {run.task for run in finished}):
        current = Registry(root, task).current()
        past = tuple(reversed(store.promotions(task)))
        candidates = _candidates([run for run in finished if run.task == task], current)
        can_go_back = current is not None and any(promotion.token == current.below for promotion in past)
        tasks.append(TaskPromotions(task, current, past, candidates, can_go_back))
    return tasks


def _candidates(runs: Sequence[RunFolder], current: Promotion | None) -> tuple[PromotionCandidate, ...]:
    """List what could be served: not what is served, nor what was measured against something else."""
    served = current.artifact if current else None
    candidates = []
    for run in runs:
        if run.improvement:
            measured = read_improvement(run.folder)
            if measured["better"] and measured["served"] == served:
                outcome = measured["failures"]
                what = measured["name"], measured["recommended"], measured["decision"]
                candidates.append(PromotionCandidate(run, *what, tuple(outcome["regressions"]), outcome))
            continue
        result = report_of(run)
        folder = run.artifact(result.recommended)
        if result.recommends and (folder / MANIFEST).is_file() and (mark := fingerprint(folder)) != served:
            candidates.append(PromotionCandidate(run, result.recommended, mark, result.decision, (), None))
    return tuple(candidates)


# ---- trials


@dataclass(frozen=True, slots=True)
class TaskTrial:
    """A task on the page of trials."""

    task: str
    start: str  # the command that starts a trial
    report: TrialReport | None = None  # of its trial; None before the first, or where there is a `problem`
    drawn: Mapping[str, float] | None = None  # the difference: positions of low, mean, high and zero
    here: bool = False  # whether this server answers with both artifacts
    problem: str = ""  # why the trial cannot be shown


@trials_router.get("")
def trials(request: Request) -> Response:
    """Show every task with a promotion."""
    return _trial_page(request)


@trials_router.get("/{task}")
def trial(task: str, request: Request) -> Response:
    """Show one task."""
    return _trial_page(request, task)


@trials_router.post("/{task}/stop")
def stop_trial(task: str, request: Request, form: FormValues) -> Response:
    """End the trial that the form shows."""

    def change(store: FeedbackStore, root: Path) -> None:
        registry, report = _reported(store, root, task, form)
        if not report.running:
            raise ConfigError("no-trial", f"no trial runs for {task}", hint=RELOAD)
        stop(registry)

    return _changed(request, change, partial(_trial_page, request, task), f"/trials/{quote(task, safe='')}?stopped=yes")


@trials_router.post("/{task}/promote")
def promote_challenger(task: str, request: Request, form: FormValues) -> Response:
    """Serve the challenger that the form shows, if the trial found it better."""

    def change(store: FeedbackStore, root: Path) -> None:
        registry, report = _reported(store, root, task, form)
        reviewer = _reviewer(request, form)
        if report.step != "promote":
            message = f"the trial of {task} does not show that its challenger is better"
            raise ConfigError("promotion-refused", message, hint=RELOAD)
        decision = f"{report.challenger} against {report.served}: {report.evidence}"
        evidence = {"decision": decision, "reason": form.get("reason", "").strip(), "trial": report.trial.token}
        registry.promote(report.folder, store, evidence=evidence, reviewer=reviewer)

    return _changed(request, change, partial(_trial_page, request, task), SWITCHED)


def has_trial(request: Request, task: str) -> bool:
    """Tell whether a task has a trial that this request may see."""
    promoted = sources_of(request).promoted
    if promoted is None or not context_of(request).may_decide:
        return False
    return any(each.task == task and (each.folder / "trial").is_file() for each in promoted_tasks(promoted[1]))


def _reported(store: FeedbackStore, root: Path, task: str, form: dict[str, str]) -> tuple[Registry, TrialReport]:
    """Report the trial that a form is about; raise ConfigError if another trial was started since."""
    registry = _registry(root, task)
    report = trial_report(store, registry)
    if report.trial.token != form.get("trial"):
        raise ConfigError("no-trial", f"another trial of {task} was started", hint=RELOAD)
    return registry, report


def _registry(root: Path, task: str) -> Registry:
    registry = next((each for each in promoted_tasks(root) if each.task == task), None)
    if registry is None:
        raise Refused(404, "no-task", f"nothing was promoted for {task!r}")
    return registry


def _trial_page(request: Request, task: str | None = None, *, problem: str = "", status: int = 200) -> Response:
    promoted = sources_of(request).promoted
    if promoted is None:
        return page(request, "no_registry", "Trials", status=status)
    store, root = promoted
    registries = promoted_tasks(root) if task is None else [_registry(root, task)]
    return page(
        request, "trials", "Trials", status=status, problem=problem, task=task, width=WIDTH,
        shown=[_task_trial(request, store, registry) for registry in registries], reviewer=reviewer_of(request),
        stopped="stopped" in request.query_params and not problem,
    )  # fmt: skip


def _task_trial(request: Request, store: FeedbackStore, registry: Registry) -> TaskTrial:
    task = registry.task
    start = command("rung trial start", task, "ARTIFACT", "--mode", "shadow", registry=registry.root)
    try:
        if registry.trial() is None:
            return TaskTrial(task, start)
        report = trial_report(store, registry)
    except RungError as error:
        return TaskTrial(task, start, problem=refusal(error).message)
    served = context_of(request).server.served.find(task)
    running = served.trial if isinstance(served, ServedArtifact) else None
    here = running is not None and running.token == report.trial.token
    delta, interval = report.standing.decision.delta, report.standing.interval
    values = {"low": interval.low, "mean": delta, "high": interval.high, "zero": 0.0}
    reach = max(map(abs, values.values())) or 1.0
    drawn = {name: position(value, -reach, reach) for name, value in values.items()}
    return TaskTrial(task, start, report, drawn, here)
