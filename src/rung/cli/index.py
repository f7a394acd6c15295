"""`rung index`: build the index of a task's documents, look at it, and search it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rung.cli.options import Json, Offline, Quiet, Sets, TaskFile, overrides, print_json, progress
from rung.errors import ConfigError

if TYPE_CHECKING:
    from rung.retrieval.index import Index
    from rung.task import Task

app = typer.Typer(help="The index of a task's documents: build, show, search.", no_args_is_help=True)

SHOWN = 20  # problems listed before the rest is only counted

Again = Annotated[bool, typer.Option("--again", help="Build it from scratch.")]
Filters = Annotated[
    list[str] | None,
    typer.Option("--filter", help="Only passages with this document, source, title or column.", metavar="KEY=VALUE"),
]


@app.command()
def build(
    task: TaskFile, again: Again = False, sets: Sets = None, json: Json = False,
    quiet: Quiet = False, offline: Offline = False,
) -> None:  # fmt: skip
    """Build the index, or go on with one that was stopped; only what changed is read."""
    from rung.retrieval.build import build_index

    index = build_index(_task(task, sets), again=again, progress=progress(quiet))
    _say(index, json)


@app.command()
def update(
    task: TaskFile, sets: Sets = None, json: Json = False, quiet: Quiet = False, offline: Offline = False
) -> None:
    """Bring a built index up to date: new and changed documents are added, removed ones taken out."""
    from rung.retrieval.build import build_index

    loaded, _ = _opened(task, sets)  # an error where there is none
    _say(build_index(loaded, progress=progress(quiet)), json)


@app.command()
def show(task: TaskFile, sets: Sets = None, json: Json = False) -> None:
    """Say what the index holds, and which files were not, or not wholly, read."""
    loaded, index = _opened(task, sets)
    _say(index, json)
    _tell_changes(index, loaded)


@app.command()
def search(
    task: TaskFile,
    query: Annotated[str, typer.Argument(help="What to look for.")],
    k: Annotated[int, typer.Option("-k", min=1, help="How many passages.")] = 5,
    mode: Annotated[str, typer.Option("--mode", help="hybrid, bm25 or dense.")] = "hybrid",
    filters: Filters = None,
    sets: Sets = None,
    json: Json = False,
    offline: Offline = False,
) -> None:
    """Show the passages that a query finds, with document, page and characters."""
    from typing import get_args

    from rung.retrieval.index import SearchMode, SearchSettings

    if mode not in (modes := get_args(SearchMode)):
        raise ConfigError("bad-value", f"no search is named {mode!r}", hint=f"choose from {', '.join(modes)}")
    wanted: dict[str, list[str]] = {}
    for one in filters or ():
        key, equals, value = one.partition("=")
        if not equals:
            raise ConfigError("bad-option", f"--filter {one!r} has no `=`", hint="write --filter document=faq.md")
        wanted.setdefault(key, []).append(value)
    settings = SearchSettings(mode=mode, filters=wanted)  # type: ignore[arg-type]
    loaded, index = _opened(task, sets)
    _tell_changes(index, loaded)
    found = index.search([query], k, settings)[0]
    if json:
        from dataclasses import asdict

        print_json([asdict(passage) for passage in found])
        return
    for rank, passage in enumerate(found, start=1):
        page = f", page {passage.page}" if passage.page is not None else ""
        typer.echo(f"[{rank}] {passage.document}{page}, characters {passage.start}-{passage.end}: {passage.title}")
        typer.echo(passage.text + "\n")
    if not found:
        typer.echo("nothing was found")


@app.command()
def path(task: TaskFile, sets: Sets = None) -> None:
    """Print the folder of the index, or its URL."""
    typer.echo(_opened(task, sets)[1].folder)


def _task(file: Path, sets: list[str] | None) -> Task:
    from rung.task import Task

    return Task.load(file, overrides(sets))


def _opened(file: Path, sets: list[str] | None) -> tuple[Task, Index]:
    from rung.retrieval.build import index_location
    from rung.retrieval.index import Index

    task = _task(file, sets)
    return task, Index.open(index_location(task))


def _tell_changes(index: Index, task: Task) -> None:
    from rung.retrieval.build import changes_since

    if changes := changes_since(index, task.folder):
        counts = f"{len(changes.added)} new, {len(changes.changed)} changed, {len(changes.removed)} removed"
        typer.echo(f"the documents are not those of the index: {counts}; run `rung index update`", err=True)


def _say(index: Index, json: bool) -> None:
    manifest = index.manifest
    left_out = sum(problem.left_out for problem in manifest.problems)
    if json:
        facts: dict[str, Any] = manifest.model_dump(exclude={"format", "table", "version"})
        print_json({"folder": str(index.folder), "left_out": left_out, **facts})
        return
    typer.echo(
        f"{manifest.passages} passages of up to {manifest.tokens} tokens from {manifest.documents} documents "
        f"in {len(manifest.sources)} files; {left_out} files left out"
    )
    for problem in manifest.problems[:SHOWN]:
        typer.echo(f"  {'left out' if problem.left_out else 'in part '}  {problem.source}: {problem.what}")
    if len(manifest.problems) > SHOWN:
        typer.echo(f"  and {len(manifest.problems) - SHOWN} more: --json lists all")
