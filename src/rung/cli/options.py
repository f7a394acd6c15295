"""Options that several commands share, each defined once."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from rung.errors import ConfigError
from rung.progress import QUIET, Progress

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


def progress(quiet: bool) -> Progress:
    """Return what long operations report to."""
    if quiet:
        return QUIET
    from rung.cli.progress import TerminalProgress

    return TerminalProgress()


def print_json(value: Any) -> None:
    """Print one JSON value on stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
