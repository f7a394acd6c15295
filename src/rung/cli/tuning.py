"""`rung rungs`, `rung tune`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from rung.cli.options import (
    RUN_FOLDERS,
    Budget,
    EngineOption,
    Json,
    Offline,
    Quiet,
    RunFolders,
    Seed,
    Sets,
    TaskFile,
    overrides,
    print_json,
    progress,
    seconds_of,
)

if TYPE_CHECKING:
    from rung.climbing.tune import Tuning


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("rungs")(rungs_command)
    app.command("tune")(tune_command)


def rungs_command(
    name: Annotated[str | None, typer.Argument(help="One rung, with its settings.", metavar="RUNG")] = None,
    json: Json = False,
) -> None:
    """List the techniques, and the settings that a task file may give each."""
    from rung.rungs import DEFAULT, RUNGS, build
    from rung.rungs.settings import settable
    from rung.task import DataSource, Output, Task

    plain = Task(
        name="none", instruction="none", inputs=["text"], system="none",
        output=Output(kind="category", column="label"), data=DataSource(train="none.csv"),
    )  # fmt: skip
    found = []
    for made in build((name,) if name else tuple(RUNGS), plain, 0):
        settings = {key: getattr(made, key) for key in settable(made)}
        doc = (type(made).__doc__ or "").strip().splitlines()[0]
        found.append({
            "name": made.name, "family": made.family, "default": made.name in DEFAULT, "does": doc,
            "settings": settings,
        })  # fmt: skip
    if json:
        print_json(found)
        return
    for entry in found:
        mark = "*" if entry["default"] else " "
        typer.echo(f"{mark} {entry['name']:20} {entry['family']:20} {entry['does']}")
        if name:
            for key, value in entry["settings"].items():  # type: ignore[attr-defined]
                typer.echo(f"    {key}: {'null' if value is None else value}")
    if not name:
        typer.echo("\n* tried by `rung climb` unless told otherwise. Settings of one: rung rungs NAME")


def tune_command(
    task: TaskFile,
    rung: Annotated[str, typer.Option("--rung", help="The rung whose settings are searched.")] = "lora",
    trials: Annotated[int, typer.Option(min=1, help="Most trials.")] = 20,
    budget: Budget = None,
    out: RunFolders = RUN_FOLDERS,
    seed: Seed = 0,
    engine: EngineOption = "auto",
    sets: Sets = None,
    json: Json = False,
    quiet: Quiet = False,
    offline: Offline = False,
) -> None:
    """Search the settings of one rung; the same command goes on with a search that was interrupted."""
    from rung.climbing.tune import tune
    from rung.task import Task

    seconds = seconds_of(budget)
    try:
        found = tune(
            Task.load(task, overrides(sets)), rung, trials=trials, budget_seconds=seconds, seed=seed, engine=engine,
            out=out, progress=progress(quiet),
        )  # fmt: skip
    except KeyboardInterrupt:
        typer.echo("\ninterrupted; finished trials are kept. Run the same command to go on.", err=True)
        raise typer.Exit(130) from None
    if json:
        print_json(found.as_dict())
    else:
        _show(found)


def _show(found: Tuning) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("trial", found.metric, "rows", "seconds", "settings", ""):
        table.add_column(column, justify="left" if column in ("settings", "") else "right")
    for trial in sorted(found.trials, key=lambda t: -(t.score or 0)):
        score = "" if trial.score is None else f"{trial.score:.3f}"
        settings = ", ".join(f"{key} {_short(value)}" for key, value in trial.settings.items())
        mark = "best" if trial.number == found.best else trial.reason or trial.state
        table.add_row(str(trial.number), score, str(trial.rows), f"{trial.seconds:.0f}", settings, mark)
    Console().print(table)
    if (c := found.comparison) is not None:
        typer.echo(
            f"\non {c.n} test rows against the defaults: {100 * c.delta:+.1f} pp [{100 * c.low:+.1f}, "
            f"{100 * c.high:+.1f}], {c.fixed} fixed / {c.broken} broken, p = {c.p:.3f}"
        )
    else:
        typer.echo("\nno trial was better than the defaults on the validation rows")
    inside = ", ".join(f"{key}: {_short(value)}" for key, value in found.settings.items())
    typer.echo(f"\nfor the task file:\nrungs:\n  {found.rung}: {{{inside}}}\n\nartifact: {found.artifact}")


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
