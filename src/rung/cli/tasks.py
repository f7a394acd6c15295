"""Commands on task files: `init`, `check`, `schema`, `explain`."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from rung.cli import options, render
from rung.errors import ConfigError, explanations


def init(
    data: Annotated[Path, Argument(help="A table with inputs and expected answers.", metavar="DATA")],
    output: Annotated[str | None, Option(help="The column of the expected answer.")] = None,
    out: Annotated[Path, Option(help="The task file to write.")] = Path("task.yaml"),
    force: Annotated[bool, Option("--force", help="Replace the task file if there is one.")] = False,
) -> None:
    """Guess a task from a table and write a commented task file."""
    from rung.data.guess import SCHEMA_FILE, guess_task, task_schema, task_text

    if out.exists() and not force:
        hint = "name another file with --out, or replace it with --force"
        raise ConfigError("file-exists", f"{out} exists", hint=hint)
    guess = guess_task(data, output)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(task_text(guess, data.resolve(), out.resolve().parent), encoding="utf-8")
    (out.parent / SCHEMA_FILE).write_text(task_schema() + "\n", encoding="utf-8")
    render.say(f"wrote {out}: {guess.kind}, because {guess.reason}\nNext: look at it, then\n  rung check {out}")


def check(
    task: options.TaskFile,
    tuning: Annotated[
        bool, Option("--tuning", help="Also show what tuning would learn from; needs the model's tokenizer.")
    ] = False,
    sets: options.Sets = None, json: options.Json = False,
) -> None:  # fmt: skip
    """Validate a task file and its data without a model, and print the data report."""
    from rung.climbing.check import check_task

    loaded = options.load_task(task, sets)
    checked = check_task(loaded, tuning=tuning)
    values = {"task": loaded.name, "unit": checked.unit, **checked.data.report.as_dict()}
    values |= {"training": checked.training} if tuning else {}
    render.result(json, values, lambda: render.task_check(loaded, checked, task))


def schema() -> None:
    """Print the JSON Schema of task files, for editors."""
    from rung.data.guess import task_schema

    render.say(task_schema())


def explain(code: Annotated[str | None, Argument(help="The code in error[CODE].", metavar="CODE")] = None) -> None:
    """Say what an error code means and how to fix it; without a code, list them."""
    entries = explanations()
    if code is None:
        width = max(map(len, entries))
        for name, entry in entries.items():
            render.say(f"{name:{width}}  {entry.meaning}")
    elif code in entries:
        render.say(f"error[{code}]\n\n{entries[code]}")
    else:
        near = get_close_matches(code, entries, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "`rung explain` lists all codes"
        raise ConfigError("unknown-name", f"no error has the code {code!r}", hint=hint)
