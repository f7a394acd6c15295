"""Options that several commands share, each defined once."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rung.errors import ConfigError
from rung.progress import QUIET, Progress

if TYPE_CHECKING:
    from rung.climbing.options import ClimbOptions

TaskFile = Annotated[Path, typer.Argument(help="The task file.", metavar="TASK")]
ArtifactFolder = Annotated[Path, typer.Argument(help="An artifact's folder.", metavar="ARTIFACT")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON value on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
Offline = Annotated[bool, typer.Option("--offline", help="Attempt no connection.", callback=lambda on: _offline(on))]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", help="Override a setting of the task file.", metavar="KEY=VALUE")
]
EngineOption = Annotated[
    str, typer.Option("--engine", help="What generates: auto, torch, openvino (int8), openvino-fp32.")
]
TaskOfRows = Annotated[Path, typer.Argument(help="The task file whose rows are answered.", metavar="TASK")]
Budget = Annotated[str | None, typer.Option("--budget", help="Most time to spend, such as 90s, 10m, 1h.")]
RungNames = Annotated[str | None, typer.Option("--rungs", help="Rungs to try, comma-separated.", metavar="NAMES")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the latest such run, if any.")]
RunFolders = Annotated[Path, typer.Option("--out", help="Folder for run folders.")]
RUN_FOLDERS = Path("runs")


def _offline(on: bool) -> bool:
    if on:
        os.environ["RUNG_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"
    return on


def overrides(sets: Sequence[str] | None) -> dict[str, str]:
    """Return `--set key=value` options as a mapping.

    Raises:
        ConfigError: an option has no `=`.
    """
    result = {}
    for text in sets or ():
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError("bad-set", f"--set {text!r} has no `=`", hint="write --set data.train_per_label=5")
        result[key.strip()] = value
    return result


def seconds_of(budget: str | None) -> float | None:
    """Return the seconds of `--budget`, or None without.

    Raises:
        ConfigError: `bad-duration`: it is none.
    """
    from rung.climbing.options import parse_duration

    return None if budget is None else parse_duration(budget)


def climb_options(
    *, budget: str | None, rungs: str | None, seed: int, engine: str, out: Path, resume: bool
) -> ClimbOptions:
    """Return how to climb, as the options of that name say.

    Raises:
        ConfigError: `bad-duration`: the budget is none.
    """
    from rung.climbing.options import ClimbOptions

    return ClimbOptions(
        budget_seconds=seconds_of(budget),
        rungs=tuple(name.strip() for name in rungs.split(",")) if rungs else (),
        seed=seed,
        engine=engine,
        out=out,
        resume=resume,
    )


def progress(quiet: bool) -> Progress:
    """Return what long operations report to."""
    if quiet:
        return QUIET
    from rung.cli.progress import TerminalProgress

    return TerminalProgress()


def print_json(value: Any) -> None:
    """Print one JSON value on stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
