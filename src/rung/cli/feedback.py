"""`rung failures`: look at what was captured, correct it, take it out and in."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from rung.cli.options import Json, Offline, Quiet, TaskFile, print_json, progress
from rung.errors import ConfigError
from rung.feedback.defaults import STORE

if TYPE_CHECKING:
    from rung.feedback.records import Case, Filter
    from rung.feedback.store import Store

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


def open_store(place: str, *, must_exist: bool = True) -> Store:
    """Open the store; one that is to be read from must be there.

    Raises:
        ConfigError: `no-store`.
    """
    from rung.feedback.store import Store

    if must_exist and "://" not in place and not Path(place).expanduser().is_file():
        raise ConfigError(
            "no-store", f"there is no store {place}",
            hint="capture makes one, as `rung failures import` does; or name another with --store",
        )  # fmt: skip
    return Store(place)


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
    from rung.feedback.values import case_values

    narrowed = everything or wrong or reviewed is not None
    which = _filter(
        task=task, split=split, reason=reason, text=text, failure=True if wrong else None,
        reviewed=reviewed if narrowed else False, suspicious=None if narrowed else True,
    )  # fmt: skip
    with open_store(store) as opened:
        cases, count = opened.cases(which, limit=limit), opened.count(which)
    if json:
        print_json({"cases": [case_values(case) for case in cases], "count": count})
        return
    _table(cases)
    typer.echo(f"{len(cases)} of {count} cases")


@app.command()
def show(id: Id, store: StorePlace = STORE, json: Json = False) -> None:  # noqa: A002
    """Show one case: what was asked, answered and expected, its feedback and its history."""
    from rung.feedback.values import details

    with open_store(store) as opened:
        values = details(opened, id)
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
    from rung.feedback.exchange import Form, write

    form = next((known for known in get_args(Form) if known == to), None)
    if form is None:
        raise ConfigError("unknown-format", f"--to {to!r}", hint=f"choose {', '.join(get_args(Form))}")
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


def _filter(**values: Any) -> Filter:
    from rung.feedback.records import REASONS, Filter

    if values.get("split") not in (None, "train", "test"):
        raise ConfigError("unknown-split", f"no split is named {values['split']!r}", hint="choose train or test")
    if values.get("reason") not in (None, *REASONS):
        raise ConfigError("unknown-reason", f"no reason is {values['reason']!r}", hint=f"choose {', '.join(REASONS)}")
    return Filter(**values)


def reviewer_name(name: str | None) -> str:
    """Return the name given, or that of the user who runs the command."""
    return getpass.getuser() if name is None else name


def _table(cases: list[Case]) -> None:
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
