"""The `rung` command: what it is made of, and how errors leave it."""

from __future__ import annotations

import codecs
import os
import shlex
import sys
import tempfile
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from rung._version import __version__
from rung.cli import artifacts, climb, feedback, index, models, render, serve, tasks
from rung.cli.help import CommandGroup
from rung.errors import ConfigError, MachineError, RungError
from rung.models.files import system_error

app = CommandGroup(
    name="rung", suggest_commands=False,  # click names the nearest one itself
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
for command in (  # in the order of `rung --help`
    tasks.init, tasks.check, tasks.trust, tasks.schema, tasks.explain, climb.advise, climb.climb, climb.demo,
    climb.fit, climb.report, climb.evaluate,
    climb.rungs, climb.tune, artifacts.run, artifacts.chat, artifacts.predict, artifacts.show, artifacts.confidence,
    artifacts.merge, artifacts.export, artifacts.push, feedback.improve, feedback.promote, feedback.rollback,
    climb.judge, climb.worker, tasks.cluster, models.doctor, serve.serve,
):  # fmt: skip
    app.command("eval" if command is climb.evaluate else None)(command)
app.add_typer(models.cache, name="cache")
app.add_typer(serve.keys, name="keys")
app.add_typer(index.app, name="index")
app.add_typer(models.app, name="models")
app.add_typer(feedback.app, name="failures", help="Captured answers: what went wrong, and what was expected.")
app.add_typer(feedback.trial_app, name="trial", help="Try an artifact next to the served one, on live requests.")


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """Customize a language model for one task, and prove which customization is worth it."""
    if version:
        render.say(f"rung {__version__}")
    elif context.invoked_subcommand is None:
        render.say(next_step(Path.cwd()))


def next_step(folder: Path) -> str:
    """The most useful next step in `folder`, with its command."""
    reports = sorted(folder.glob("runs/*/report.json"), key=lambda file: file.stat().st_mtime)
    tasks_here = sorted(folder.glob("*.yaml"))
    data_here = sorted(file for kind in ("csv", "tsv", "jsonl", "parquet") for file in folder.glob(f"*.{kind}"))
    if reports:
        from rung.evaluation.result import ClimbResult

        report = ClimbResult.read(reports[-1].parent)
        run = shlex.quote(str(reports[-1].parent.relative_to(folder)))
        return f'{report.decision}\nNext: try it\n  rung run {run} "your text"'
    if tasks_here:
        name = shlex.quote(tasks_here[0].name)
        return f"Next: see what the climb would do, then climb:\n  rung climb {name} --plan\n  rung climb {name}"
    if data_here:
        return f"Next: make a task file from your data:\n  rung init {shlex.quote(data_here[0].name)}"
    from rung.data.guess import DOCUMENTS

    for path in sorted(folder.glob("[!.]*/*")):
        if path.suffix.lower() in DOCUMENTS:
            return f"Next: make a task file from your documents:\n  rung init {shlex.quote(path.parent.name)}"
    return """Rung measures what prompting, examples, features and tuning are worth for your task.
Next: make a task file from a table with inputs and expected outputs:
  rung init data.csv
All commands: rung --help"""


def main() -> None:
    """Run the command; errors end with exit codes: 1 bar or rows, 2 usage, 3 machine, 75 preempted, 130 interrupted."""
    _use_utf8()
    try:
        try:
            for argument in sys.argv[1:]:
                _check_text(argument)
            app(standalone_mode=True)
        finally:
            if sys.stdout is not None:  # None: the shell has closed it
                sys.stdout.flush()
    except RungError as error:
        _end(error)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    except BrokenPipeError:  # the reader, such as `head`, is gone
        _drop_output()
        sys.exit(0)
    except OSError as error:
        _drop_output()
        _end(system_error(error))
    except MemoryError:
        _end(MachineError("out-of-memory", "the memory is not enough", hint="close other programs, or do less at once"))
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):  # typer ends with 1 then, which means a bar that was missed
            sys.exit(0)
        raise
    except Exception as error:
        _end(_own_fault(error))


def _end(error: RungError) -> NoReturn:
    with suppress(OSError, AttributeError):  # stderr may be full or closed; the exit code tells
        render.note(error.render())
    sys.exit(error.exit_code)


def _use_utf8() -> None:
    """Begin again in UTF-8 where the locale is ASCII: file names, arguments and output could not be read or written."""
    if not sys.flags.utf8_mode and codecs.lookup(sys.getfilesystemencoding()).name == "ascii":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606


def _check_text(argument: str) -> None:
    try:
        argument.encode()
    except UnicodeEncodeError:
        shown = argument.encode(errors="backslashreplace").decode()
        raise ConfigError("bad-option", f"{shown!r} is not UTF-8", hint="write the text in a file of rows") from None


def _drop_output() -> None:
    """Let nothing be written at the end of the process, which would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _own_fault(error: Exception) -> RungError:
    """Keep the traceback of an error that Rung does not foresee, and say where."""
    problem, place = f"{type(error).__name__}: {error}", tempfile.mkstemp(prefix="rung-", suffix=".txt")[1]
    Path(place).write_text("".join(traceback.format_exception(error)), "utf-8")
    return RungError("internal-error", problem, hint=f"this is a fault of Rung: please report it, with {place}")
