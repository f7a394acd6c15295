"""`rung index`: build the index of a task's documents, look at it, search it, and write questions from it."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

from typer import Argument, Option

from rung.cli import options, render
from rung.cli.help import CommandGroup

if TYPE_CHECKING:
    from rung.retrieval.index import Index
    from rung.task import Task

app = CommandGroup(
    help="The index of a task's documents: build, show, search, write test questions.", no_args_is_help=True
)


@app.command()
def build(
    task: options.TaskFile,
    again: Annotated[bool, Option("--again", help="Build it from scratch, even if it is complete.")] = False,
    encoding: options.Encoding = "auto", separator: options.Separator = "auto", sets: options.Sets = None,
    json: options.Json = False, quiet: options.QuietFlag = False, offline: options.Offline = False,
) -> None:  # fmt: skip
    """Build the index, or continue a build that was stopped; only what changed is read."""
    from rung.retrieval.build import build_index

    given = {"encoding": encoding, "separator": separator}
    named = [f"corpus.{key}={value}" for key, value in given.items() if value != "auto"]
    settings = [*(sets or ()), *named]
    loaded = options.load_task(task, settings, runs=False)
    if named:
        keys = ", ".join(f"{key}: {value}" for key, value in given.items() if value != "auto")
        render.note(f"write {keys} below `corpus` in {task}: the other commands read it there")
    _show(build_index(loaded, again=again, progress=options.progress(quiet)), json, task, settings)


@app.command()
def update(
    task: options.TaskFile, sets: options.Sets = None, json: options.Json = False, quiet: options.QuietFlag = False,
    offline: options.Offline = False,
) -> None:  # fmt: skip
    """Bring a built index up to date: new and changed documents are added, removed ones taken out."""
    from rung.retrieval.build import build_index

    loaded, _ = _opened(task, sets)  # an error if there is none
    _show(build_index(loaded, progress=options.progress(quiet)), json, task, sets)


@app.command()
def show(task: options.TaskFile, sets: options.Sets = None, json: options.Json = False) -> None:
    """Say what the index holds, and which files were not, or not wholly, read."""
    loaded, index = _opened(task, sets)
    _show(index, json, task, sets)
    _note_changes(index, loaded)


@app.command()
def search(
    task: options.TaskFile,
    query: Annotated[str, Argument(help="What to look for.")],
    k: Annotated[int, Option("-k", min=1, help="How many passages.")] = 5,
    mode: Annotated[str, Option(help="hybrid, bm25 or dense.")] = "hybrid",
    filters: Annotated[list[str] | None, Option(
        "--filter", help="Only passages with this document, source, title or column.", metavar="KEY=VALUE"
    )] = None,
    sets: options.Sets = None, json: options.Json = False, offline: options.Offline = False,
) -> None:  # fmt: skip
    """Show the passages that a query finds, with document, page and characters."""
    from rung.retrieval.index import SearchMode, SearchSettings

    wanted: dict[str, list[str]] = {}
    for key, value in options.pairs("--filter", filters, "document=faq.md"):
        wanted.setdefault(key, []).append(value)
    settings = SearchSettings(mode=options.choose("--mode", mode, get_args(SearchMode)), filters=wanted)
    loaded, index = _opened(task, sets)
    _note_changes(index, loaded)
    passages = index.search([query], k, settings)[0]
    climb = options.with_sets(sets, "rung", "climb", task, "--plan")
    then = ("rung", "run", task, query) if loaded.data.train is None else climb
    render.result(json, [asdict(passage) for passage in passages], lambda: render.passages(passages), then=then)


@app.command()
def questions(
    task: options.TaskFile,
    out: Annotated[Path, Option(help="The file to write: JSONL.")] = Path("questions.jsonl"),
    number: Annotated[int, Option("--number", "-n", min=1, help="How many questions.")] = 100,
    model: Annotated[str | None, Option(help="The model that writes; default: the task's.")] = None,
    sets: options.Sets = None, seed: options.SeedOption = 0, quiet: options.QuietFlag = False,
    offline: options.Offline = False,
) -> None:  # fmt: skip
    """Let a model write test questions from the documents, marked as synthetic; each answer is a sentence of them."""
    from json import dumps

    from rung.engines.opening import open_engine
    from rung.errors import ConfigError, DataError
    from rung.models.files import write_atomically
    from rung.retrieval.questions import write_questions

    if out.exists():
        raise ConfigError("file-exists", f"{out} exists", hint="name another file with --out")
    loaded, index = _opened(task, sets)
    progress = options.progress(quiet)
    writer = options.named(model) or loaded.model
    engine = open_engine(writer, progress=progress)
    rows = write_questions(index, engine, number, seed=seed, progress=progress)
    if not rows:
        raise DataError("too-few-rows", f"{writer} wrote no usable question", hint="name a larger one with --model")
    write_atomically(out, "".join(dumps(row, ensure_ascii=False) + "\n" for row in rows))
    train = os.path.relpath(out, loaded.folder)
    render.note(f"to measure with them, write into {task}: data: {{train: {train}, spans: spans}}")
    text = f"{len(rows)} questions: {out}. They are synthetic: compare techniques with them, and read them first."
    then = options.with_sets([*(sets or ()), f"data={{train: {train}, spans: spans}}"], "rung", "check", task)
    render.result(False, None, text, then=then)


@app.command()
def path(task: options.TaskFile, sets: options.Sets = None) -> None:
    """Print the folder of the index, or its URL."""
    render.say(str(_opened(task, sets)[1].folder))


def _opened(file: Path, sets: list[str] | None) -> tuple[Task, Index]:
    from rung.retrieval.build import index_location
    from rung.retrieval.index import Index

    task = options.load_task(file, sets, runs=False)
    return task, Index.open(index_location(task))


def _note_changes(index: Index, task: Task) -> None:
    from rung.retrieval.build import changes_since

    if changes := changes_since(index, task.folder):
        counts = f"{len(changes.added)} new, {len(changes.changed)} changed, {len(changes.removed)} removed"
        render.note(f"the documents differ from those of the index: {counts}; run `rung index update`")


def _show(index: Index, json: bool, task: Path, sets: list[str] | None) -> None:
    left_out = sum(problem.left_out for problem in index.manifest.problems)
    contents = index.manifest.model_dump(exclude={"format", "table", "files", "version"})
    values = {"folder": str(index.folder), "left_out": left_out, **contents}
    then = options.with_sets(sets, "rung", "index", "search", task, "a question")
    render.result(json, values, lambda: render.index(index), then=then)
