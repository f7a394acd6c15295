"""Promotions: what is served of each task, how that came about, what could take its place, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from rung.artifact.files import MANIFEST, fingerprint
from rung.errors import ConfigError, RungError
from rung.feedback.improve import promote, read_improvement
from rung.feedback.records import Promotion
from rung.feedback.registry import Registry
from rung.feedback.store import Store
from rung.serving.errors import refusal
from rung.serving.web.forms import form_of
from rung.serving.web.rendering import page, see_other
from rung.serving.web.review import reviewer_of
from rung.serving.web.runs import RunFolder, report_of, run_folder, run_folders
from rung.serving.web.site import Site, reviewers_only, site_of

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

    def switch(site: Site, store: Store, root: Path, reviewer: str) -> None:
        found = run_folder(site.runs, run)
        if found is None or found.state != "finished":
            raise ConfigError("no-improvement", f"there is no finished climb {run!r}", hint="load the page again")
        registry = Registry(root, found.task)
        if found.improvement:
            accepted = form.get("accept") == "yes"
            promote(found.folder, registry, store, reviewer=reviewer, accept_regressions=accepted)
            return
        reason = form.get("reason", "").strip()
        if not reason:
            raise ConfigError(
                "reason-missing", f"{run} was not measured against what is served", hint="say why it should be"
            )
        result = report_of(found)
        evidence = {"reason": reason, "run": str(found.folder), "name": result.recommended, "decision": result.decision}
        registry.promote(_recommended(found), store, evidence=evidence, reviewer=reviewer)

    return _switched(request, form, switch)


@router.post("/{task}/rollback")
def rollback(task: str, request: Request, form: Form) -> Response:
    """Serve again what was served before."""

    def switch(_site: Site, store: Store, root: Path, reviewer: str) -> None:
        known = {one.name for one in root.iterdir()} if root.is_dir() else set()
        if task not in known:
            raise ConfigError("nothing-to-roll-back", f"nothing was promoted for {task}", hint="load the page again")
        Registry(root, task).rollback(store, reviewer=reviewer, reason=form.get("reason", ""))

    return _switched(request, form, switch)


def _switched(request: Request, form: dict[str, str], switch: Any) -> Response:
    site, reviewer = site_of(request), form.get("reviewer", "").strip()
    try:
        if site.store is None or site.registry is None:
            raise ConfigError(
                "no-registry", "this server follows no registry", hint="start it with `--registry FOLDER`"
            )
        if not reviewer:
            raise ConfigError("reviewer-missing", "a promotion needs the name of who decides", hint="write your name")
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
