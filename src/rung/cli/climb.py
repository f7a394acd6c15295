"""`rung climb`, `rung report`, `rung eval`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from rung.cli.options import (
    RUN_FOLDERS,
    ArtifactFolder,
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
    TaskOfRows,
    climb_options,
    overrides,
    print_json,
    progress,
)
from rung.errors import ConfigError, ThresholdError


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("climb")(climb_command)
    app.command("report")(report_command)
    app.command("eval")(eval_command)


def climb_command(
    task: TaskFile,
    budget: Budget = None,
    rungs: RungNames = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what would run and what it would take.")] = False,
    resume: Resume = False,
    out: RunFolders = RUN_FOLDERS,
    seed: Seed = 0,
    engine: EngineOption = "auto",
    sets: Sets = None,
    json: Json = False,
    quiet: Quiet = False,
    offline: Offline = False,
) -> None:
    """Measure every technique on the same rows and recommend the cheapest that nothing significantly beats."""
    from rung.climbing.run import climb
    from rung.task import Task

    loaded = Task.load(task, overrides(sets))
    options = climb_options(budget=budget, rungs=rungs, seed=seed, engine=engine, out=out, resume=resume)
    if plan:
        _plan(loaded, options, json)
        return
    try:
        found = climb(loaded, progress=progress(quiet), options=options)
    except KeyboardInterrupt:
        again = [part for part in sys.argv[1:] if part != "--resume"]
        sys.stderr.write(f"\ninterrupted; nothing finished is lost. Go on with:\n  rung {shlex.join(again)} --resume\n")
        raise typer.Exit(130) from None
    write_reports(found.result, found.predictions, found.folder)
    _show(found.result, found.folder, json)


def write_reports(result: object, predictions: object, folder: Path) -> None:
    """Write a climb's reports into its run folder."""
    from rung.evaluation.report.html import write_html
    from rung.evaluation.report.jsonfile import write

    write(result, folder)  # type: ignore[arg-type]
    write_html(result, predictions, folder)  # type: ignore[arg-type]


def _show(result: object, folder: Path, json: bool) -> None:
    from rung.evaluation.report.jsonfile import summary

    if json:
        print_json(summary(result))  # type: ignore[arg-type]
        return
    from rich.console import Console

    from rung.evaluation.report.terminal import print_climb

    print_climb(result, Console())  # type: ignore[arg-type]
    typer.echo(f"\nreport: {folder / 'report.html'}")


def _plan(task: object, options: object, json: bool) -> None:
    from rung.climbing.planning import describe, plan_rows

    rows, notes = plan_rows(task, options)  # type: ignore[arg-type]
    if json:
        print_json({"plan": rows, "notes": notes})
    else:
        describe(rows, notes)


def report_command(
    run: Annotated[Path, typer.Argument(help="A run folder, such as runs/banking77.", metavar="RUN")],
    json: Json = False,
) -> None:
    """Show the report of a finished climb again."""
    from rung.evaluation.report.jsonfile import read

    if not (run / "report.json").is_file():
        raise ConfigError(
            "no-report", f"{run} has no report.json", hint="give a run folder of a finished climb, or resume it first"
        )
    _show(read(run), run, json)


def eval_command(
    artifact: ArtifactFolder,
    task: TaskOfRows,
    split: Annotated[str, typer.Option(help="validation or test.")] = "test",
    judge: Annotated[
        str | None,
        typer.Option(
            help="The model that says whether answers follow from the documents they are from.", metavar="MODEL"
        ),
    ] = None,
    at_least: Annotated[
        list[str] | None, typer.Option("--at-least", help="Fail below this.", metavar="METRIC=VALUE")
    ] = None,
    sets: Sets = None,
    json: Json = False,
    quiet: Quiet = False,
    offline: Offline = False,
) -> None:
    """Score an artifact on a split of a task; with --at-least, exit 1 below the bar."""
    from rung.artifact.artifact import Artifact
    from rung.engines.opening import open_engine
    from rung.evaluation.faithfulness import FaithfulnessJudge
    from rung.evaluation.report.words import retrieval_text
    from rung.evaluation.scoring import summarize
    from rung.task import Task

    if split not in ("validation", "test"):
        raise ConfigError("unknown-split", f"no split is named {split!r}", hint="choose validation or test")
    chosen: Literal["validation", "test"] = "test" if split == "test" else "validation"
    bars = [_bar(text) for text in at_least or ()]
    loaded = Task.load(task, overrides(sets))
    rows = getattr(loaded.read(), split)
    measured = Artifact.load(artifact)
    if judge is not None and measured.retriever is None:
        raise ConfigError(
            "bad-option", f"--judge {judge} has no effect: {artifact} looks no documents up", hint="leave --judge out"
        )
    scores = summarize(
        measured, rows, chosen, folder=loaded.folder, progress=progress(quiet),
        judge=None if judge is None else FaithfulnessJudge(open_engine(judge)),
    )  # fmt: skip
    if json:
        print_json(scores)
    else:
        for name, value in scores["metrics"].items():
            typer.echo(
                f"{name} {value['score']:.4f} [{value['low']:.4f}, {value['high']:.4f}] on {scores['n']} {split} rows"
            )
        for name, value in scores["whole"].items():
            typer.echo(f"{name} {value:.4f} over the whole set")
        for note, count in scores["notes"].items():
            typer.echo(f"{count} of {scores['n']} rows: {note}")
        if "retrieval" in scores:
            typer.echo(retrieval_text(scores["retrieval"]))
    for name, bar in bars:
        if name not in scores["metrics"]:
            raise ConfigError(
                "unknown-metric", f"{name!r} was not measured", hint=f"measured: {', '.join(scores['metrics'])}"
            )
        if scores["metrics"][name]["score"] < bar:
            raise ThresholdError("below-threshold", f"{name} is {scores['metrics'][name]['score']:.4f}, below {bar:g}")


def _bar(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise ConfigError("bad-threshold", f"--at-least {text!r}", hint="write --at-least accuracy=0.9") from None
