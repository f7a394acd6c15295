"""Options that several commands share, each defined once."""

from __future__ import annotations

import json
import os
import sys
import time
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
            raise ConfigError("bad-option", f"--set {text!r} has no `=`", hint="write --set data.train_per_label=5")
        result[key.strip()] = value
    return result


def seconds_of(budget: str | None) -> float | None:
    """Return the seconds of `--budget`, or None without.

    Raises:
        ConfigError: `bad-option`: it is none.
    """
    from rung.climbing.options import parse_duration

    return None if budget is None else parse_duration(budget)


def climb_options(
    *, budget: str | None, rungs: str | None, seed: int, engine: str, out: Path, resume: bool
) -> ClimbOptions:
    """Return how to climb, as the options of that name say.

    Raises:
        ConfigError: `bad-option`: the budget is none.
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

    return TerminalProgress()


def print_json(value: Any) -> None:
    """Print one JSON value on stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")


# --------------------
# Progress on stderr: a live bar on a terminal, a line every ten seconds elsewhere.


class TerminalProgress:
    """Shows one step at a time with its rate, time left and note."""

    INTERVAL_LIVE = 0.2
    INTERVAL_LOG = 10.0

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._label, self._total, self._done, self._note = "", 0, 0, ""
        self._start = self._shown = time.monotonic()
        self._nested = 0

    def start(self, label: str, total: int | None = None) -> None:
        """Begin a step; a step inside a step (embedding while scoring) stays silent."""
        self._nested += 1
        if self._nested > 1:
            return
        self._label, self._total, self._done, self._note = label, total or 0, 0, ""
        self._start = self._shown = time.monotonic()

    def advance(self, units: int = 1, note: str = "") -> None:
        """Count units as done."""
        if self._nested != 1:
            return
        self._done += units
        self._note = note or self._note
        now = time.monotonic()
        if now - self._shown >= (self.INTERVAL_LIVE if self._live else self.INTERVAL_LOG):
            self._shown = now
            self._show(end="" if self._live else "\n")

    def finish(self, note: str = "") -> None:
        """End the step; on a terminal its line stays, with the time it took."""
        self._nested -= 1
        if self._nested:
            return
        took = time.monotonic() - self._start
        if took >= 1.0:
            text = f"{self._label}: {self._done or self._total} in {_duration(took)}"
            self._write(f"{text}, {note}" if note else text, end="\n")
        elif self._live:
            self._write("", end="")

    def _show(self, end: str) -> None:
        spent = time.monotonic() - self._start
        parts = [f"{self._label}: {self._done}/{self._total}" if self._total else f"{self._label}: {self._done}"]
        if self._done and self._total > self._done:
            parts.append(f"{_duration(spent / self._done * (self._total - self._done))} left")
        if self._note:
            parts.append(self._note)
        self._write(", ".join(parts), end)

    def _write(self, text: str, end: str) -> None:
        sys.stderr.write(("\r\x1b[2K" if self._live else "") + text + end)
        sys.stderr.flush()


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds // 60:.0f} min {seconds % 60:02.0f} s"
