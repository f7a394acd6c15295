"""Commands on task files: `init`, `check`, `schema`, `explain`."""

from __future__ import annotations

import json as json_module
import os
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rung.cli.options import Json, Sets, TaskFile, overrides, print_json
from rung.data.rows import SHOWN
from rung.errors import ConfigError

if TYPE_CHECKING:
    from rung.data.guess import Guess
    from rung.data.rows import Data, DataReport
    from rung.task import Task

SCHEMA_FILE = "task.schema.json"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (init, check, schema, explain):
        app.command()(command)


def init(
    data: Annotated[Path, typer.Argument(help="A table with inputs and expected answers.", metavar="DATA")],
    output: Annotated[str | None, typer.Option(help="The column of the expected answer.")] = None,
    out: Annotated[Path, typer.Option(help="The task file to write.")] = Path("task.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace the task file if there is one.")] = False,
) -> None:
    """Guess a task from a table and write a commented task file."""
    from rung.data.guess import guess_task

    if out.exists() and not force:
        hint = "name another file with --out, or replace it with --force"
        raise ConfigError("file-exists", f"{out} exists", hint=hint)
    guess = guess_task(data, output)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(task_text(guess, data.resolve(), out.resolve().parent), encoding="utf-8")
    (out.parent / SCHEMA_FILE).write_text(schema_text() + "\n", encoding="utf-8")
    typer.echo(f"wrote {out}: {guess.kind}, because {guess.reason}\nNext: look at it, then\n  rung check {out}")


def task_text(guess: Guess, data: Path, folder: Path) -> str:
    """Return a commented task file."""
    path = str(data.relative_to(folder)) if data.is_relative_to(folder) else str(data)
    quoted = partial(json_module.dumps, ensure_ascii=False)  # JSON strings are YAML strings
    instruction = {
        "category": f"Which {(guess.output or 'label').replace('_', ' ')} does this text belong to?",
        "multilabel": f"Which {(guess.output or 'labels').replace('_', ' ')} apply to this text?",
        "text": f"Write the {(guess.output or 'answer').replace('_', ' ')} for this input.",
        "json": "Extract the fields from this text as JSON.",
        "chat": "Continue the conversation helpfully.",
    }[guess.kind]
    column = "" if guess.output is None else f"\n  column: {quoted(guess.output)}"
    limit = "train_per_label: 10     # keep so many training rows of each label"
    limits = f"\n  # {limit}" if guess.kind == "category" else ""
    return f"""# yaml-language-server: $schema={SCHEMA_FILE}
name: {quoted(guess.name)}

# What to do, as you would tell a person. Say it precisely: every technique builds on it.
instruction: {quoted(instruction)}
# system: a persona or rules; whether it helps is measured

# The columns that the model reads.
inputs: [{", ".join(quoted(name) for name in guess.inputs)}]

# The answer. Guessed: {guess.reason}.
output:
  kind: {guess.kind}             # text, category, multilabel, json or chat{column}

data:
  train: {quoted(path)}
  # test: test.csv          # without, a share of the rows is kept for the test, chosen by a hash of the input
  # split: {{validation: 0.2, test: 0.2}}{limits}
  # text: corpus.txt        # plain text of the domain, or a list of files, to adapt the model to

# metric: accuracy          # without, the usual one for the kind
# overflow: drop_demonstrations  # of a prompt longer than the model reads; without, such a row is an error
model: embedded             # or a Hub id, a folder, a .gguf file; a list of them is raced
"""


def check(
    task: TaskFile,
    tuning: Annotated[
        bool, typer.Option("--tuning", help="Also tell what tuning would learn from; needs the model's tokenizer.")
    ] = False,
    sets: Sets = None,
    json: Json = False,
) -> None:
    """Validate a task file and its data without a model, and print the data report."""
    from rung.evaluation.scoring import validate_references
    from rung.task import Task

    loaded = Task.load(task, overrides(sets))
    data = loaded.read()
    validate_references(loaded, data)
    count = token_counter(loaded)
    if count is not None:
        for name, rows in (("train", data.train), ("validation", data.validation), ("test", data.test)):
            data.report.measure(name, rows, kind=loaded.output.kind, count=count)
        if data.text:
            data.report.measure_text(data.text, count=count)
    training = training_reports(loaded, data) if tuning else {}
    unit = "tokens" if count else "characters"
    if json:
        told = {"training": training} if tuning else {}
        print_json({"task": loaded.name, "unit": unit, **data.report.as_dict(), **told})
    else:
        _print_report(loaded, data, unit, training, str(task))


def training_reports(task: Task, data: Data) -> dict[str, Any]:
    """Return what tuning learns from on top of zero-shot, by what it is trained on: `rows`, `text`.

    Rows that are too long are left out and counted, where training by default stops at the first.
    """
    from rung.artifact.artifact import Artifact
    from rung.engines.local import LocalModel
    from rung.models.reference import resolve
    from rung.rungs import DomainAdaptation
    from rung.training.examples import TrainingReport, blocks, tokenize

    model, reports = LocalModel(resolve(task.model)), {}
    report = reports["rows"] = TrainingReport()
    rows = tokenize(Artifact.zero_shot(task, data.labels), model, data.train, overlong="drop", report=report)
    report.measure(rows, model.tokenizer)
    if data.text:
        report = reports["text"] = TrainingReport(rows=len(data.text))
        report.measure(blocks(model, data.text, DomainAdaptation().block_tokens), model.tokenizer)
    return {name: one.as_dict() for name, one in reports.items()}


def token_counter(task: Task) -> Callable[[str], int] | None:
    """Return a token counter of the task's model if its files are here already; nothing is downloaded for a count."""
    from rung.errors import MachineError
    from rung.models.reference import is_endpoint, resolve
    from rung.models.tokenizer import Tokenizer

    if is_endpoint(task.model):
        return None
    before = os.environ.get("RUNG_OFFLINE")
    os.environ["RUNG_OFFLINE"] = "1"
    try:
        tokenizer = Tokenizer.load(resolve(task.model).folder)
    except MachineError:
        return None  # the report says that lengths are in characters
    finally:
        if before is None:
            del os.environ["RUNG_OFFLINE"]
        else:
            os.environ["RUNG_OFFLINE"] = before
    return lambda text: len(tokenizer.encode_plain(text))


def _print_report(task: Task, data: Data, unit: str, training: Mapping[str, Any], file: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from rung.evaluation.report.words import training_data_lines

    console = Console()
    table = Table(box=None, pad_edge=False)
    for name in ("split", "read", "kept", "labels", f"input {unit} (median, p95, max)", "output"):
        table.add_column(name, justify="left" if name == "split" else "right")
    report = data.report
    for name, split in report.splits.items():
        spans = [report.lengths.get(f"{name} {part}") for part in ("input", "output")]
        shown = [f"{s['median']:g}, {s['p95']:g}, {s['max']:g}" if s else "" for s in spans]
        labels = str(len(report.labels[name])) if name in report.labels else ""
        table.add_row(name, f"{split.read:,}", f"{split.kept:,}", labels, *shown)
    console.print(table)
    for line in data_lines(report):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for name, told in training.items():
        console.print(f"\ntuning on {name}:", highlight=False, markup=False)
        for line in training_data_lines(told):
            console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    for warning in [*report.warnings, *training_warnings(training)]:
        console.print(f"warning: {warning}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    console.print(f"{task.name} is fine. Next: rung climb {file} --plan", highlight=False, markup=False, soft_wrap=True)


def training_warnings(training: Mapping[str, Any]) -> Iterator[str]:
    """Yield what would stop a tuning rung with default settings."""
    from rung.training.examples import TOO_LONG

    for told in training.values():
        if count := told["dropped"].get(TOO_LONG):
            yield f"{count:,} training rows are {TOO_LONG}: tuning stops at them unless its `overlong` says otherwise"


def data_lines(report: DataReport) -> Iterator[str]:
    """Yield what the report says besides its table: rows per label, detectable differences, dropped rows."""
    for name, counts in report.labels.items():
        if counts:
            rows = sorted(counts.values())
            yield f"{name}: {rows[0]} / {median(rows):g} / {rows[-1]} rows a label (min / median / max)"
    if rare := report.rare():
        yield f"rare in training: {', '.join(rare[:SHOWN])}" + (
            f" and {len(rare) - SHOWN} more" if rare[SHOWN:] else ""
        )
    for name, effect in report.detectable.items():
        found = "no difference can be told from chance"
        if effect is not None:
            found = f"a difference of {100 * effect:.1f} points between two techniques is likely found"
        yield f"{name}: with {report.splits[name].kept:,} rows, {found}"
    for name, split in report.splits.items():
        for reason, sources in split.dropped.items():
            places = ", ".join(sources[:SHOWN]) + (", ..." if sources[SHOWN:] else "")
            yield f"{name}: {len(sources):,} dropped, {reason}: {places}"


def schema_text() -> str:
    """Return the JSON Schema of task files."""
    from rung.task import Task

    return json_module.dumps(Task.model_json_schema(by_alias=True), indent=2)


def schema() -> None:
    """Print the JSON Schema of task files, for editors."""
    typer.echo(schema_text())


def explain(
    code: Annotated[str | None, typer.Argument(help="The code in error[CODE].", metavar="CODE")] = None,
) -> None:
    """Say what an error code means and how to fix it; without a code, list them."""
    from rung.errors import explanations

    entries = explanations()
    if code is None:
        width = max(map(len, entries))
        for name, entry in entries.items():
            typer.echo(f"{name:{width}}  {entry.meaning}")
        return
    if code not in entries:
        near = get_close_matches(code, entries, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "`rung explain` lists all codes"
        raise ConfigError("unknown-name", f"no error has the code {code!r}", hint=hint)
    typer.echo(f"error[{code}]\n\n{entries[code]}")
