"""`rung failures`: look at what was captured, correct it, take it out and in."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

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
    climb_options,
    overrides,
    print_json,
    progress,
)
from rung.errors import ConfigError
from rung.feedback.records import PAIRS, REGISTRY, SHARE, STORE

if TYPE_CHECKING:
    from rung.feedback.improve import Improvement
    from rung.feedback.records import ABTest, CaseFilter, Promotion, ReviewCase
    from rung.feedback.registry import Registry
    from rung.feedback.store import FeedbackStore
    from rung.feedback.trials import TrialReport


app = typer.Typer(no_args_is_help=True)
StorePlace = Annotated[
    str,
    typer.Option("--store", envvar="RUNG_STORE", help="The store: an SQLite file, or a URL.", metavar="PLACE"),
]
Id = Annotated[str, typer.Argument(help="Id of the response.", metavar="ID")]
Reviewer = Annotated[str | None, typer.Option("--reviewer", help="Who says so; by default the user.", metavar="NAME")]
Comment = Annotated[str, typer.Option("--comment", help="Why.")]
TaskName = Annotated[str | None, typer.Option("--task", help="Of this task only.", metavar="NAME")]
SplitName = Annotated[str | None, typer.Option("--split", help="train or test.")]
SHOWN = 60  # characters of a cell


def open_store(place: str, *, must_exist: bool = True) -> FeedbackStore:
    """Open the store; one that is to be read from must be there.

    Raises:
        ConfigError: `no-such-file`.
    """
    from rung.feedback.store import FeedbackStore

    if must_exist and "://" not in place and not Path(place).expanduser().is_file():
        raise ConfigError(
            "no-such-file", f"there is no store {place}",
            hint="capture makes one, as `rung failures import` does; or name another with --store",
        )  # fmt: skip
    return FeedbackStore(place)


@app.command("list")
def list_command(
    store: StorePlace = STORE,
    task: TaskName = None,
    split: SplitName = None,
    reason: Annotated[str | None, typer.Option(help="Suspicious for this reason.")] = None,
    reviewed: Annotated[bool | None, typer.Option("--reviewed/--unreviewed", help="Reviewed, or not.")] = None,
    wrong: Annotated[bool, typer.Option("--wrong", help="Reviewed and found wrong.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Also what nothing speaks against.")] = False,
    text: Annotated[str | None, typer.Option(help="With this text in input or response.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most cases to show.")] = 50,
    json: Json = False,
) -> None:
    """List suspicious answers, the worst first; what nobody reviewed, unless asked otherwise."""
    narrowed = everything or wrong or reviewed is not None
    which = _filter(
        task=task, split=split, reason=reason, text=text, failure=True if wrong else None,
        reviewed=reviewed if narrowed else False, suspicious=None if narrowed else True,
    )  # fmt: skip
    with open_store(store) as opened:
        cases, count = opened.cases(which, limit=limit), opened.count(which)
    if json:
        print_json({"cases": [case.as_dict() for case in cases], "count": count})
        return
    _table(cases)
    typer.echo(f"{len(cases)} of {count} cases")


@app.command()
def show(id: Id, store: StorePlace = STORE, json: Json = False) -> None:  # noqa: A002
    """Show one case: what was asked, answered and expected, its feedback and its history."""
    with open_store(store) as opened:
        values = opened.details(id)
    if json:
        print_json(values)
        return
    for name, value in values.items():
        if name not in ("feedback", "history", "shadowed_by") and value not in (None, "", []):
            _say(f"{name}: {', '.join(value) if isinstance(value, list) else value}")
    for one in values["feedback"]:
        said = [one["thumb"], one["score"], one["comment"], one["expected"] and f"expected {one['expected']!r}"]
        _say(f"feedback {one['at']} by {one['source']}: {', '.join(str(s) for s in said if s not in (None, ''))}")
    for one in values["shadowed_by"]:
        _say(f"in a trial, the artifact {one['artifact'][:16]} answered {one['actual']!r}")
    for one in values["history"]:
        what = f"undid {one['undoes']}" if one["undoes"] else f"expected {one['expected']!r}"
        _say(f"{one['number']}. {one['at']} {one['reviewer']}: {what} {one['comment']}".rstrip())


@app.command()
def correct(
    id: Id,  # noqa: A002
    expected: Annotated[str, typer.Argument(help="The expected response; the actual one says that it was right.")],
    reviewer: Reviewer = None,
    comment: Comment = "",
    store: StorePlace = STORE,
    json: Json = False,
) -> None:
    """Say what was expected. Nothing is overwritten: the history keeps every correction."""
    with open_store(store) as opened:
        number = opened.correct(id, expected, reviewer_name(reviewer), comment)
        case = opened.case(id)
    if json:
        print_json({"correction": number, "failure": case.failure, "split": case.interaction.split})
    else:
        typer.echo(f"{number}. {id}: {'expected ' + repr(case.expected) if case.failure else 'the answer was right'}")


@app.command()
def undo(
    id: Id,  # noqa: A002
    reviewer: Reviewer = None,
    comment: Comment = "",
    store: StorePlace = STORE,
    json: Json = False,
) -> None:
    """Undo the correction that holds; the one before it holds again."""
    with open_store(store) as opened:
        number = opened.undo(id, reviewer_name(reviewer), comment)
        case = opened.case(id)
    if json:
        print_json({"correction": number, "expected": case.expected})
    else:
        typer.echo(f"{number}. {id}: {'expected ' + repr(case.expected) if case.reviewed else 'not reviewed'}")


@app.command("import")
def import_command(
    file: Annotated[Path, typer.Argument(help="A CSV with the four columns, or an exported JSONL.", metavar="FILE")],
    task: TaskFile,
    reviewer: Reviewer = None,
    store: StorePlace = STORE,
    json: Json = False,
) -> None:
    """Take cases and their expected responses from a file."""
    from rung.feedback.exchange import read
    from rung.task import Task

    loaded = Task.load(task)
    with open_store(store, must_exist=False) as opened:
        cases, corrections = read(file, loaded, opened, reviewer_name(reviewer))
    if json:
        print_json({"cases": cases, "corrections": corrections})
    else:
        typer.echo(f"{cases} cases read, {corrections} corrections made")


@app.command()
def export(
    to: Annotated[str, typer.Option("--to", help="chat, completion, preference, csv or jsonl.")] = "jsonl",
    out: Annotated[Path | None, typer.Option("--out", help="A new file; without, stdout.", metavar="FILE")] = None,
    store: StorePlace = STORE,
    task: TaskName = None,
    split: SplitName = None,
    wrong: Annotated[bool, typer.Option("--wrong", help="Only what was reviewed and found wrong.")] = False,
) -> None:
    """Write reviewed cases for tuning tools, spreadsheets or another store. Train on --split train only."""
    from rung.feedback.exchange import ExportFormat, write

    form = next((known for known in get_args(ExportFormat) if known == to), None)
    if form is None:
        raise ConfigError("unknown-name", f"--to {to!r}", hint=f"choose {', '.join(get_args(ExportFormat))}")
    if out is not None and out.exists():
        raise ConfigError("file-exists", f"{out} exists", hint="name another file, or remove it first")
    which = _filter(task=task, split=split, reviewed=True, failure=True if wrong else None)
    with open_store(store) as opened:
        cases = opened.cases(which)
    if out is None:
        write(cases, form, sys.stdout)
        return
    with out.open("w", encoding="utf-8", newline="") as file:
        count = write(cases, form, file)
    sys.stderr.write(f"{out}: {count} cases\n")


@app.command()
def stats(store: StorePlace = STORE, task: TaskName = None, json: Json = False) -> None:
    """Count what was captured, what is suspicious and why, what was reviewed, and on which side of the split."""
    from rung.feedback.records import REASONS

    with open_store(store) as opened:
        values: dict[str, Any] = {
            "captured": opened.count(_filter(task=task)),
            "suspicious": opened.count(_filter(task=task, suspicious=True)),
            "queue": opened.count(_filter(task=task, suspicious=True, reviewed=False)),
            "reviewed": opened.count(_filter(task=task, reviewed=True)),
            "wrong": {
                side: opened.count(_filter(task=task, failure=True, split=side)) for side in ("train", "test")
            },
            "reasons": {name: opened.count(_filter(task=task, reason=name)) for name in REASONS},
            "fixed": len(opened.fixed(task)),
        }  # fmt: skip
    if json:
        print_json(values)
        return
    typer.echo(f"{values['captured']} captured, {values['suspicious']} suspicious, {values['queue']} to review")
    for name, count in values["reasons"].items():
        typer.echo(f"  {count} {name}")
    wrong = values["wrong"]
    typer.echo(
        f"{values['reviewed']} reviewed, {wrong['train']} wrong to train on, {wrong['test']} wrong and held out\n"
        f"{values['fixed']} failures were fixed once, and are watched"
    )


@app.command()
def check(
    artifact: Annotated[Path, typer.Argument(help="An artifact of the task; a stronger one.", metavar="ARTIFACT")],
    store: StorePlace = STORE,
    compare: Annotated[bool, typer.Option("--compare/--rules-only", help="Also have it answer.")] = True,
    json: Json = False,
    quiet: Quiet = False,
    offline: Offline = False,
) -> None:
    """Find unreviewed answers that break the task's rules, or with which an artifact disagrees."""
    from dataclasses import asdict

    from rung.artifact.artifact import Artifact
    from rung.artifact.files import fingerprint
    from rung.feedback.checks import check as look

    loaded = Artifact.load(artifact)
    with open_store(store) as opened:
        found = look(opened, loaded, fingerprint(artifact), compare=compare, progress=progress(quiet))
    if json:
        print_json(asdict(found))
    else:
        typer.echo(f"{found.looked_at} looked at: {found.invalid} invalid, {found.disagreed} disagreements")


def _filter(**values: Any) -> CaseFilter:
    from rung.feedback.records import REASONS, CaseFilter

    if values.get("split") not in (None, "train", "test"):
        raise ConfigError("unknown-name", f"no split is named {values['split']!r}", hint="choose train or test")
    if values.get("reason") not in (None, *REASONS):
        raise ConfigError("unknown-name", f"no reason is {values['reason']!r}", hint=f"choose {', '.join(REASONS)}")
    return CaseFilter(**values)


def reviewer_name(name: str | None) -> str:
    """Return the name given, or that of the user who runs the command."""
    return getpass.getuser() if name is None else name


def _table(cases: list[ReviewCase]) -> None:
    from rich.console import Console
    from rich.table import Table

    from rung.data.examples import text_of

    table = Table(box=None, pad_edge=False)
    for column in ("id", "why", "input", "actual", "expected"):
        table.add_column(column, overflow="fold", no_wrap=column == "id")
    for case in cases:
        row = case.interaction
        given = " ".join(text_of(value) for value in row.inputs.values())
        expected = case.expected if case.expected is not None else f"({case.suggestion}?)" if case.suggestion else ""
        cells = (row.id, ", ".join(case.reasons), given, row.actual, expected)
        table.add_row(*(_cell(cell) for cell in cells))
    if cases:
        Console().print(table, markup=False, highlight=False)


def _say(text: str) -> None:
    """Print what others wrote: without the characters that steer a terminal."""
    typer.echo("".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text))


def _cell(text: str) -> Any:
    from rich.text import Text

    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return Text(line if len(line) <= SHOWN else line[: SHOWN - 1] + "…")


# --------------------
# `rung improve`, `rung promote`, `rung rollback`: the loop from failures to what is served.


RegistryFolder = Annotated[
    Path, typer.Option("--registry", envvar="RUNG_REGISTRY", help="Folder of promoted artifacts.", metavar="FOLDER")
]


def register_improve(app: typer.Typer) -> None:
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
        _show_improvement(found, registry, store)


def _show_improvement(found: Improvement, registry: Path, store: str) -> None:
    from rich.console import Console

    from rung.evaluation.report.terminal import print_climb
    from rung.feedback.records import command

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
        raise ConfigError("missing-field", f"{what} is an artifact without evidence", hint='say why: --reason "..."')
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


# --------------------
# `rung trial`: one artifact beside the one that is served, on live requests, until a sequential test has decided.


trial_app = typer.Typer(no_args_is_help=True)
TaskNamed = Annotated[str, typer.Argument(help="Name of the task.", metavar="TASK")]


@trial_app.command("start")
def start_command(
    task: TaskNamed,
    artifact: ArtifactFolder,
    mode: Annotated[
        str, typer.Option("--mode", help="shadow: answers behind every response; ab: answers a share of the inputs.")
    ] = "shadow",
    share: Annotated[
        float | None,
        typer.Option("--share", help=f"With ab: the share of the inputs that it answers; {SHARE:g} by default."),
    ] = None,
    stop_after: Annotated[int, typer.Option("--stop-after", min=1, help="Pairs after which it ends.")] = PAIRS,
    registry: RegistryFolder = REGISTRY,
    json: Json = False,
    offline: Offline = False,
) -> None:
    """Try an artifact beside what is served; servers that follow the registry begin by themselves."""
    from rung.feedback.records import TrialMode, command
    from rung.feedback.registry import Registry
    from rung.feedback.trials import start

    known = next((one for one in get_args(TrialMode) if one == mode), None)
    if known is None:
        raise ConfigError("bad-option", f"--mode {mode!r} is none", hint=f"choose {' or '.join(get_args(TrialMode))}")
    if share is not None and (known == "shadow" or not 0 < share < 1):
        raise ConfigError(
            "bad-option", f"--share {share:g} with --mode {mode}",
            hint="a share above 0 and below 1 needs --mode ab; a shadow answers everything",
        )  # fmt: skip
    home = Registry(registry, task)
    made = start(home, artifact, mode=known, share=SHARE if share is None else share, most=stop_after)
    if json:
        print_json(_values(made, home))
        return
    what = "every response" if known == "shadow" else f"{made.share:.0%} of the inputs"
    typer.echo(f"{made.artifact[:16]} is tried on {what} beside {made.against[:16]}, up to {made.most:,} pairs")
    typer.echo(f"Next: {command('rung trial show', task, registry=registry)}")


@trial_app.command("show")
def show_command(
    task: TaskNamed,
    store: StorePlace = STORE,
    registry: RegistryFolder = REGISTRY,
    json: Json = False,
    offline: Offline = False,
) -> None:
    """Show how a trial stands: fixed, broken, p, and whether it may be stopped."""
    from rung.feedback.registry import Registry
    from rung.feedback.trials import trial_report

    home = Registry(registry, task)
    with open_store(store) as opened:
        report = trial_report(opened, home)
    if not json:
        _show_trial(report)
        return
    found, decision = report.standing, report.standing.decision
    print_json({
        **_values(report.trial, home), "answered": dict(found.answered), "judged": dict(found.judged),
        "pairs": decision.n, "delta": decision.delta, "low": found.interval.low, "high": found.interval.high,
        "fixed": decision.fixed, "broken": decision.broken, "p": decision.p, "state": decision.state,
        "stop": decision.stop, "next": report.next,
    })  # fmt: skip


@trial_app.command("stop")
def stop_command(task: TaskNamed, registry: RegistryFolder = REGISTRY, json: Json = False) -> None:
    """End a trial; what was collected stays, and `show` still shows it."""
    from rung.feedback.registry import Registry
    from rung.feedback.trials import stop

    home = Registry(registry, task)
    ended = stop(home)
    if json:
        print_json(_values(ended, home))
    else:
        typer.echo(f"the trial of {ended.artifact[:16]} is stopped")


def _values(trial: ABTest, home: Registry) -> dict[str, Any]:
    return {
        "id": trial.token, "task": trial.task, "mode": trial.mode, "share": trial.share, "stop_after": trial.most,
        "artifact": trial.artifact, "folder": str(home.path(trial)), "against": trial.against,
        "started": trial.at.isoformat(), "ended": None if trial.ended is None else trial.ended.isoformat(),
        "running": trial.runs(home.current()),
    }  # fmt: skip


def _show_trial(report: TrialReport) -> None:
    trial, decision = report.trial, report.standing.decision
    answered, judged = report.standing.answered, report.standing.judged
    typer.echo(
        f"{trial.mode} of {trial.artifact[:16]} ({report.challenger}) against {trial.against[:16]} ({report.served}): "
        f"{'runs' if report.running else 'is over'}\n"
        f"answered: {answered['a']} by what is served, {answered['b']} by the challenger; "
        f"judged: {judged['a']} and {judged['b']}\n"
        f"{decision.n} of at most {trial.most} pairs: {report.delta} {report.interval}, {decision.fixed} fixed / "
        f"{decision.broken} broken, {report.p}\n{report.verdict}"
    )
    if report.next:
        typer.echo(f"Next: {report.next}")
