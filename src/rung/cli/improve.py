"""`rung improve`, `rung promote`, `rung rollback`: the loop from failures to what is served."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rung.cli.feedback import Reviewer, StorePlace, open_store, reviewer_name
from rung.cli.options import (
    RUN_FOLDERS,
    Budget,
    EngineOption,
    Json,
    Offline,
    Quiet,
    Resume,
    RunFolders,
    RungNames,
    Seed,
    Sets,
    TaskFile,
    climb_options,
    overrides,
    print_json,
    progress,
)
from rung.errors import ConfigError
from rung.feedback.defaults import REGISTRY, STORE

if TYPE_CHECKING:
    from rung.feedback.improve import Improvement
    from rung.feedback.records import Promotion
    from rung.feedback.registry import Registry

RegistryFolder = Annotated[
    Path, typer.Option("--registry", envvar="RUNG_REGISTRY", help="Folder of promoted artifacts.", metavar="FOLDER")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("improve")(improve_command)
    app.command("promote")(promote_command)
    app.command("rollback")(rollback_command)


def improve_command(
    task: TaskFile,
    store: StorePlace = STORE,
    registry: RegistryFolder = REGISTRY,
    budget: Budget = None,
    rungs: RungNames = None,
    resume: Resume = False,
    out: RunFolders = RUN_FOLDERS,
    seed: Seed = 0,
    engine: EngineOption = "auto",
    sets: Sets = None,
    json: Json = False,
    quiet: Quiet = False,
    offline: Offline = False,
) -> None:
    """Climb again with the reviewed failures, against what is served."""
    from rung.cli.climb import write_reports
    from rung.feedback.improve import improve
    from rung.feedback.registry import Registry
    from rung.task import Task

    loaded = Task.load(task, overrides(sets))
    options = climb_options(budget=budget, rungs=rungs, seed=seed, engine=engine, out=out, resume=resume)
    with open_store(store) as opened:
        found = improve(loaded, opened, Registry(registry, loaded.name), options=options, progress=progress(quiet))
    write_reports(found.climb.result, found.climb.predictions, found.climb.folder)
    if json:
        print_json(found.as_dict())
    else:
        _show(found, registry, store)


def _show(found: Improvement, registry: Path, store: str) -> None:
    from rich.console import Console

    from rung.evaluation.report.terminal import print_climb
    from rung.feedback.commands import command

    taken, outcome = found.taken, found.outcome
    typer.echo(
        f"{taken.failures} corrected and {taken.confirmed} confirmed answers joined the training rows "
        f"({taken.replaced} rows replaced, {taken.held_out} held out, {taken.superseded} superseded)\n"
        f"rungs: {', '.join(found.rungs)}: {found.reason}\n"
    )
    print_climb(found.climb.result, Console())
    (fixed, train), (test_fixed, test) = outcome.of_train, outcome.of_test
    typer.echo(
        f"\nreviewed failures answered better: {fixed} of {train} trained on, {test_fixed} of {test} held out\n"
        f"fixed once and wrong again: {len(outcome.regressions)} of {outcome.watched}\n"
        f"report: {found.climb.folder / 'report.html'}"
    )
    if not found.better:
        return
    accepting = []
    if outcome.regressions:
        typer.echo(f"Next: {command('rung failures show', outcome.regressions[0], store=store)}")
        accepting = ["--accept-regressions"]
    promote = command("rung promote", found.climb.folder, *accepting, registry=registry, store=store)
    typer.echo(f"{'And, if that may be: ' if accepting else 'Next: '}{promote}")


def promote_command(
    what: Annotated[Path, typer.Argument(help="A run folder of `rung improve`, or an artifact.", metavar="WHAT")],
    store: StorePlace = STORE,
    registry: RegistryFolder = REGISTRY,
    reviewer: Reviewer = None,
    reason: Annotated[str, typer.Option("--reason", help="With an artifact: why, as there is no measurement.")] = "",
    accept_regressions: Annotated[
        bool, typer.Option("--accept-regressions", help="Even if what was fixed once is wrong again.")
    ] = False,
    json: Json = False,
) -> None:
    """Serve an artifact from now on, at once; servers that follow the registry switch by themselves."""
    from rung.artifact.artifact import Artifact
    from rung.artifact.files import MANIFEST
    from rung.feedback.improve import promote, read_improvement
    from rung.feedback.registry import Registry

    plain = (what / MANIFEST).is_file()
    if plain and not reason.strip():
        raise ConfigError("reason-missing", f"{what} is an artifact without evidence", hint='say why: --reason "..."')
    task = Artifact.load(what).shape.task if plain else read_improvement(what)["task"]
    home = Registry(registry, task)
    with open_store(store, must_exist=False) as opened:
        if plain:
            made = home.promote(what, opened, evidence={"reason": reason}, reviewer=reviewer_name(reviewer))
        else:
            made = promote(
                what, home, opened, reviewer=reviewer_name(reviewer), accept_regressions=accept_regressions
            )  # fmt: skip
    _told(made, home, json)


def rollback_command(
    task: Annotated[str, typer.Argument(help="Name of the task.", metavar="TASK")],
    store: StorePlace = STORE,
    registry: RegistryFolder = REGISTRY,
    reviewer: Reviewer = None,
    reason: Annotated[str, typer.Option("--reason", help="Why.")] = "",
    json: Json = False,
) -> None:
    """Serve again what was served before the last promotion, at once."""
    from rung.feedback.registry import Registry

    home = Registry(registry, task)
    with open_store(store) as opened:
        made = home.rollback(opened, reviewer=reviewer_name(reviewer), reason=reason)
    _told(made, home, json)


def _told(made: Promotion, home: Registry, json: bool) -> None:
    folder = home.path(made)
    if json:
        print_json(
            {
                "task": made.task, "kind": made.kind, "artifact": made.artifact, "folder": str(folder),
                "reviewer": made.reviewer, "at": made.at.isoformat(), "evidence": dict(made.evidence),
            }
        )  # fmt: skip
    else:
        typer.echo(f"{made.task} is served from {folder}")
