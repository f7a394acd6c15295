"""`rung advise`: the decision guide."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from rung.cli.options import Json, Sets, TaskFile, overrides, print_json


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("advise")(advise)


def advise(
    task: TaskFile,
    runs: Annotated[Path, typer.Option(help="Folder with the runs of climbs.")] = Path("runs"),
    sets: Sets = None,
    json: Json = False,
) -> None:
    """Say what rules expect of every technique and why, and what a climb showed; nothing is downloaded or run."""
    from rung import advice
    from rung.advice import latest_run
    from rung.evaluation.report.jsonfile import read
    from rung.evaluation.report.outcomes import outcomes
    from rung.task import Task

    loaded = Task.load(task, overrides(sets))
    given = advice.advise(loaded)
    run = latest_run(loaded, runs)
    found = None if run is None else outcomes(read(run[0]))
    if json:
        climbed = None
        if run is not None and found is not None:
            climbed = {"run": str(run[0]), "same_task": run[1], "rungs": [asdict(one) for one in found.values()]}
        print_json({**given.as_dict(), "measured": climbed})
        return
    from rich.console import Console

    from rung.advice.terminal import print_advice

    print_advice(given, Console(), found)
    if run is not None:
        state = "" if run[1] else "; the task file has changed since"
        typer.echo(f"measured: {run[0]}{state}")
