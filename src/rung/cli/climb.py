"""`rung climb`, `rung report`, `rung eval`."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
    seconds_of,
)
from rung.errors import ConfigError, ThresholdError

if TYPE_CHECKING:
    from rung.climbing.tune import Tuning


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
    from rung.climbing.plan import describe, plan_rows

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
            "wrong-folder",
            f"{run} has no report.json",
            hint="give a run folder of a finished climb, or resume it first",
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
    from rung.evaluation.rag_metrics import FaithfulnessJudge
    from rung.evaluation.report.words import retrieval_text
    from rung.evaluation.scoring import summarize
    from rung.task import Task

    if split not in ("validation", "test"):
        raise ConfigError("unknown-name", f"no split is named {split!r}", hint="choose validation or test")
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
                "unknown-name", f"{name!r} was not measured", hint=f"measured: {', '.join(scores['metrics'])}"
            )
        if scores["metrics"][name]["score"] < bar:
            raise ThresholdError("below-threshold", f"{name} is {scores['metrics'][name]['score']:.4f}, below {bar:g}")


def _bar(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise ConfigError("bad-option", f"--at-least {text!r}", hint="write --at-least accuracy=0.9") from None


# --------------------
# `rung rungs`, `rung tune`.


def register_tuning(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("rungs")(rungs_command)
    app.command("tune")(tune_command)


def rungs_command(
    name: Annotated[str | None, typer.Argument(help="One rung, with its settings.", metavar="RUNG")] = None,
    json: Json = False,
) -> None:
    """List the techniques, and the settings that a task file may give each."""
    from rung.rungs import DEFAULT, RUNGS, build
    from rung.rungs.base import settable
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
        _show_tuning(found)


def _show_tuning(found: Tuning) -> None:
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


# --------------------
# `rung advise`: the decision guide.


def register_advise(app: typer.Typer) -> None:
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
    from rung.evaluation.report.html import outcomes
    from rung.evaluation.report.jsonfile import read
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
