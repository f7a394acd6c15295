"""What several commands share: options, how to read them, and progress on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from typer import Argument, Option
from typer.core import click  # type: ignore[attr-defined]

from rung.errors import ConfigError, MachineError
from rung.progress import QUIET, Progress, TerminalProgress

if TYPE_CHECKING:
    from rung.artifact.artifact import Artifact
    from rung.climbing.options import ClimbOptions, CrewMaker
    from rung.climbing.tune import TrialCrewMaker
    from rung.cluster.executor import Executor
    from rung.data.sources import FileFormat
    from rung.feedback.store import FeedbackStore
    from rung.task import Task
    from rung.user_code import Permit

TaskFile = Annotated[Path, Argument(help="The task file.", metavar="TASK")]
TaskOfRows = Annotated[Path, Argument(help="The task file whose rows are answered.", metavar="TASK")]
TaskName = Annotated[str, Argument(help="Name of the task.", metavar="TASK")]
ArtifactFolder = Annotated[
    Path, Argument(
        help="An artifact's folder, or the run folder of a climb: its recommended artifact.", metavar="ARTIFACT",
        callback=lambda folder: _artifact_folder(folder),
    ),
]  # fmt: skip
ArtifactOrTask = Annotated[
    Path, Argument(
        help="An artifact's folder, the run folder of a climb, a folder of documents, or a task file without rows.",
        metavar="ARTIFACT", callback=lambda folder: _artifact_folder(folder),
    ),
]  # fmt: skip
Rows = Annotated[Path | None, Option("--data", help="Rows to use: a table of any kind, or hf:org/name.")]
Json = Annotated[bool, Option("--json", help="Print one JSON value on stdout.")]
QuietFlag = Annotated[bool, Option("--quiet", "-q", help="No progress on stderr.")]
Offline = Annotated[bool, Option("--offline", help="Attempt no connection.", callback=lambda on: _offline(on))]
SeedOption = Annotated[int, Option("--seed", help="Seed of everything random.")]
Sets = Annotated[list[str] | None, Option("--set", help="Override a setting of the task file.", metavar="KEY=VALUE")]
EngineOption = Annotated[
    str, Option("--engine", help="What generates: auto, torch, openvino (int8), openvino-int4, openvino-fp32.")
]
Budget = Annotated[str | None, Option(help="Most to spend: time such as 90s, 10m, 1h, or money such as 5USD.")]
RungNames = Annotated[str | None, Option("--rungs", help="Rungs to try, comma-separated.", metavar="NAMES")]
Resume = Annotated[bool, Option("--resume", help="Continue the latest such run, if any.")]
RunFolders = Annotated[Path, Option("--out", help="Folder for run folders.")]
RUN_FOLDERS = Path("runs")
# Files of what Rung runs: a folder with one of them is no folder of documents.
NO_DOCUMENTS = ("artifact.json", "manifest.json", "climb.json", "config.json", "adapter_config.json")
Workers = Annotated[
    str | None, Option("--workers", help="Work on several processes: a number, or auto.", metavar="N"),
]  # fmt: skip
On = Annotated[
    str | None, Option("--on", help="Work elsewhere: ray, ray://HOST:10001, or a command with {job}.", metavar="WHERE"),
]  # fmt: skip
Jobs = Annotated[
    str | None, Option("--jobs", help="Folder or URI of jobs and their results, which all workers reach."),
]  # fmt: skip
StorePlace = Annotated[
    str, Option("--store", envvar="RUNG_STORE", help="The store: an SQLite file, or a URL.", metavar="PLACE")
]


Encoding = Annotated[str, Option(help="Text encoding of the file; auto recognizes UTF-8, UTF-16 and cp1252.")]
Separator = Annotated[str, Option(help="Separator of a CSV: one character, or tab.")]
Quoting = Annotated[str, Option(help="Quotes in a CSV: double, backslash or none.")]
Sheet = Annotated[str | None, Option(help="Sheet of an Excel file; default: the first.")]


def file_format(encoding: str, separator: str, quoting: str, sheet: str | None, data: Path) -> FileFormat:
    """Collect the options that say how a file is written; raise ConfigError for a wrong one, or one without effect."""
    from rung.data.sources import EXCEL, READERS, SEPARATORS, FileFormat, is_hub, kind_of

    form, kind = FileFormat(encoding, separator, cast("Any", quoting), sheet), kind_of(data)
    concerned = {"encoding": READERS.keys() - {*EXCEL}, "separator": SEPARATORS, "quoting": SEPARATORS, "sheet": EXCEL}
    for name, kinds in concerned.items():
        given = getattr(form, name) != getattr(FileFormat(), name)
        if given and (is_hub(data) or (kind in READERS and kind not in kinds)):
            raise ConfigError("bad-option", f"--{name} has no effect on {data}", hint=f"leave --{name} out")
    return form


def _artifact_folder(folder: Path) -> Path:
    from rung.artifact.files import artifact_folder

    return artifact_folder(folder)


def _offline(on: bool) -> bool:
    if on:
        os.environ["RUNG_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"
    return on


def with_sets(sets: Sequence[str] | None, *command: object) -> tuple[object, ...]:
    """A command for the same task with the same `--set` options."""
    return (*command, *(word for one in sets or () for word in ("--set", one)))


def load_task(file: Path, sets: Sequence[str] | None = None, *, runs: bool = True) -> Task:
    """Load a task file with the `--set` options over it.

    With `runs`, ask for consent to what the task would run or reach before any of it happens.
    """
    from rung.climbing.check import validate_task
    from rung.climbing.trust import permits_of
    from rung.task import Task

    values = {key.strip(): value for key, value in pairs("--set", sets, "data.train_per_label=5")}
    for value in values.values():
        for one in value.strip("[]").split(","):
            named(one.strip(" '\""))
    task = Task.load(file, values)
    if runs:
        consent_to(permits_of(task), file)
    validate_task(task)
    return task


def load_artifact(folder: Path, *, runs: bool = True, quiet: bool = False) -> Artifact:
    """Load an artifact, and its base model where it is not here yet; with `runs`, ask for consent to what it runs."""
    from rung.artifact.artifact import Artifact
    from rung.climbing.trust import permits_of

    loaded = Artifact.load(folder, progress(quiet))
    if runs:
        consent_to(permits_of(folder), folder)
    return loaded


def named(reference: str | None) -> str | None:
    """Allow an endpoint that the command line names, for this command."""
    if reference is not None and "://" in reference.partition("#")[0]:
        from rung.user_code import name_endpoint

        name_endpoint(reference)
    return reference


def consent_to(permits: Sequence[Permit], place: Path, *, keys: bool = False) -> None:
    """Ask on a terminal for what the user has not allowed yet; elsewhere it is an error that names the command.

    With `keys`, also ask whether endpoints of this machine get the key.
    """
    from rung import user_code
    from rung.cli import render

    if not (refused := user_code.missing(permits, keys=keys)):
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise user_code.refusal(refused, place)
    render.note(f"{place} would run or reach what you have not allowed on this machine:")
    for permit in refused:
        render.note(f"  {permit}")
    if not render.confirmed("Allow it, until one of these files changes?"):
        raise user_code.refusal(refused, place)
    user_code.allow(refused)


def is_task_file(path: Path) -> bool:
    """Say whether a path is a task file, not an artifact's folder."""
    return path.suffix.lower() in (".yaml", ".yml") and path.is_file()


def is_asked(path: Path) -> bool:
    """Say whether a path holds documents to ask, not an artifact: a task file, or a folder of documents."""
    from rung.data.guess import documents_in

    if is_task_file(path) or not path.is_dir():
        return is_task_file(path)
    return not any((path / name).exists() for name in NO_DOCUMENTS) and any(documents_in(path))


def artifact_or_asking(path: Path, *, quiet: bool = False) -> Artifact:
    """Load an artifact, or make the one that asks the documents of a folder, or of a task file without rows."""
    if not is_asked(path):
        return load_artifact(path, quiet=quiet)
    from rung.cli import render
    from rung.machine import this_machine
    from rung.models.embedded import proposed
    from rung.rungs.retrieval import asking

    task = load_task(path) if is_task_file(path) else _task_on(path)
    artifact = asking(task, progress=progress(quiet=False))
    if not artifact.decoder.uses_llm:
        made = f"`model: MODEL` in {path}" if is_task_file(path) else f"rung init {path} --model MODEL"
        larger, _ = proposed(this_machine())
        example = "" if larger.alias else f", such as {larger.reference}"
        render.note(f"answers quote the documents; {made} lets a model write them{example}")
    return artifact


def _task_on(folder: Path) -> Task:
    """The task that `rung init FOLDER` would write."""
    from rung.data.guess import documents_guess
    from rung.task import Task

    guess = documents_guess(folder)
    return Task(
        name=guess.name, instruction=guess.instruction, inputs=list(guess.inputs),
        output={"kind": guess.kind, **guess.output}, corpus={"files": str(folder)}, overflow="shorten_passages",
    )  # fmt: skip


def open_store(location: str, *, must_exist: bool = True, redacting: bool = False) -> FeedbackStore:
    """Open a store; with `must_exist`, a misspelled name is an error and does not make a new one.

    With `redacting`, what the reviewer writes is redacted as captured texts are.
    """
    from rung.feedback.capture import Redactor
    from rung.feedback.store import FeedbackStore

    file = None if "://" in location else Path(location).expanduser()
    if must_exist and file is not None and not file.is_file():
        hint = "capture makes one, as `rung failures import` does; or name another with --store"
        raise ConfigError("no-such-file", f"there is no store {location}", hint=hint)
    if must_exist and file is not None and not file.stat().st_size and not Path(f"{file}-wal").exists():
        raise MachineError("store-failed", f"{location} is empty", hint="restore a copy of it, or name another --store")
    return FeedbackStore(location, redact=Redactor().text if redacting else str)


def pairs(option: str, texts: Sequence[str] | None, example: str) -> list[tuple[str, str]]:
    """Split the values of an option that is written KEY=VALUE; raise ConfigError if one has no key or no `=`."""
    split = []
    for text in texts or ():
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError("bad-option", f"{option} {text!r} has no `=`", hint=f"write {option} {example}")
        split.append((key, value))
    return split


def choose(option: str, value: str | None, choices: Sequence[str]) -> Any:
    """Check the value of an option; raise ConfigError if it is neither None nor one of `choices`."""
    if value is not None and value not in choices:
        raise ConfigError("unknown-name", f"unknown {option} {value!r}", hint=f"choose {', '.join(choices)}")
    return value


def climb_options(
    *, budget: str | None, rungs: str | None, seed: int, engine: str, out: Path, resume: bool,
    crew: CrewMaker | None = None,
) -> ClimbOptions:  # fmt: skip
    """Collect the options of a climb; raise ConfigError if the budget is neither a duration nor money."""
    from rung.climbing.budget import NO_LIMITS, parse_budget
    from rung.climbing.options import ClimbOptions

    limits = NO_LIMITS if budget is None else parse_budget(budget)
    names = tuple(name.strip() for name in rungs.split(",")) if rungs else ()
    return ClimbOptions(*limits, rungs=names, seed=seed, engine=engine, out=out, resume=resume, crew=crew)


def only_with(needed: str, there: object, **given: object) -> None:
    """Raise ConfigError for options that were given and have no effect without another one.

    Args:
        needed: the other option, or what takes its place.
        there: whether it was given.
        given: the values of the options by their names, None for those that were not given.
    """
    for name, value in given.items():
        if value is not None and not there:
            option = f"--{name.replace('_', '-')}"
            hint = f"add {needed}, or leave {option} out"
            raise ConfigError("bad-option", f"{option} has no effect without {needed}", hint=hint)


def wants_workers(workers: str | None, on: str | None, jobs: str | None) -> bool:
    """Whether the options name workers; raise ConfigError where one of them is wrong."""
    wanted = workers is not None or on is not None
    only_with("--workers or --on", wanted, jobs=jobs)
    if not wanted:
        return False
    from rung.cluster.job import refuse_password
    from rung.cluster.processes import count_workers

    refuse_password(jobs or "")
    count_workers(workers or "", on or "")
    return True


def executor(workers: str | None, on: str | None, jobs: str | None) -> Executor | None:
    """Open what `--workers` and `--on` name, until the command ends, however it does; None without them."""
    if not wants_workers(workers, on, jobs):
        return None
    from rung.cluster.processes import open_executor

    opened = open_executor(workers or "", on or "")
    click.get_current_context().call_on_close(opened.close)
    return opened


def crew(workers: str | None, on: str | None, jobs: str | None) -> CrewMaker | None:
    """What makes the workers of a climb; None without `--workers` and `--on`."""
    opened = executor(workers, on, jobs)
    if opened is None:
        return None
    from rung.cluster.crew import ClimbCrew

    return partial(ClimbCrew, opened, jobs or "")


def search_crew(workers: str | None, on: str | None, jobs: str | None) -> TrialCrewMaker | None:
    """The same for a search of settings."""
    opened = executor(workers, on, jobs)
    if opened is None:
        return None
    from rung.cluster.crew import SearchCrew

    return partial(SearchCrew, opened, jobs or "")


def progress(quiet: bool) -> Progress:
    """What long operations report to."""
    return QUIET if quiet else TerminalProgress()
