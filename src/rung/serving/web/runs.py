"""Run folders as the pages read them: finished climbs by their report, others by what they have written so far.

Nothing is written or repaired here: another process may be climbing in the folder.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rung.climbing.store import watch_lines
from rung.errors import ConfigError
from rung.evaluation.report.jsonfile import read
from rung.evaluation.result import ClimbResult
from rung.feedback.improve import IMPROVEMENT

STALE = 600.0  # seconds without a write, after which a climb is taken to have stopped


@dataclass(frozen=True, slots=True)
class RunFolder:
    """One climb.

    Attributes:
        name: of the folder.
        task: of the task.
        state: `finished`, `climbing`, or `stopped`: nothing was written for a while, and there is no report.
        written: when something was written last, in seconds since the epoch.
        improvement: whether it was made by `rung improve`.
    """

    name: str
    folder: Path
    task: str
    state: str
    written: float
    improvement: bool


@dataclass(frozen=True, slots=True)
class Progressing:
    """An artifact of a climb that goes on.

    Attributes:
        state: `to come`, `fitted`, `measured`, `skipped` or `failed`.
        rows: answered so far, by split.
        mean: score over the validation rows answered so far, or None.
        note: time of fitting, or why it was left out.
    """

    name: str
    state: str
    rows: dict[str, int]
    mean: float | None
    note: str


def run_folders(root: Path) -> list[RunFolder]:
    """Return the climbs below a folder, the one written last first."""
    found = [_described(file.parent) for file in root.glob("*/climb.json")]
    return sorted(found, key=lambda run: -run.written)


def run_folder(root: Path, name: str) -> RunFolder | None:
    """Return one of them by its name."""
    return next((run for run in run_folders(root) if run.name == name), None)


def report_of(run: RunFolder) -> ClimbResult:
    """Return the report of a finished climb.

    Raises:
        ConfigError: `run-unreadable`.
    """
    try:
        return read(run.folder)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            "run-unreadable", f"{run.folder / 'report.json'} cannot be read: {error}",
            hint="climb again with `--resume`: what was measured is kept",
        ) from error  # fmt: skip


def progress_of(run: RunFolder) -> list[Progressing]:
    """Return how far the artifacts of a climb are, in the order in which they came."""
    journal = watch_lines(run.folder / "journal.jsonl")
    planned = [*_identity(run.folder).get("rungs", ())]
    events = {entry["name"]: entry for entry in journal if entry["event"] in ("fitted", "failed", "skipped")}
    begun = sorted((run.folder / "rungs").glob("*"), key=lambda folder: folder.stat().st_mtime)
    names = dict.fromkeys(["zero-shot", *events, *(folder.name for folder in begun), *planned])
    return [_progressing(run.folder, name, events.get(name)) for name in names]


def seconds_spent(run: RunFolder) -> float:
    """Return how long a climb has worked."""
    return sum(float(e["seconds"]) for e in watch_lines(run.folder / "journal.jsonl") if e["event"] == "spent")


def _described(folder: Path) -> RunFolder:
    finished = (folder / "report.json").is_file()
    files = [folder / "climb.json", folder / "report.json", folder / "journal.jsonl", *folder.glob("rungs/*/*.jsonl")]
    written = max(file.stat().st_mtime for file in files if file.exists())
    state = "finished" if finished else "climbing" if time.time() - written < STALE else "stopped"
    task = str(_identity(folder).get("task", folder.name))
    return RunFolder(folder.name, folder, task, state, written, (folder / IMPROVEMENT).is_file())


def _identity(folder: Path) -> dict[str, Any]:
    try:
        values = json.loads((folder / "climb.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}  # it is being written at this moment, before anything else of the run
    return values if isinstance(values, dict) else {}


def _progressing(folder: Path, name: str, event: dict[str, Any] | None) -> Progressing:
    lines = watch_lines(folder / "rungs" / name / "predictions.jsonl")
    rows = {split: sum(line["split"] == split for line in lines) for split in ("validation", "test")}
    scores = [line["score"] for line in lines if line["split"] == "validation"]
    mean = sum(scores) / len(scores) if scores else None
    note = ""
    if event is not None:
        note = f"fitted in {event['fit_seconds']:.1f} s" if event["event"] == "fitted" else str(event["reason"])
    state = "measured" if lines else event["event"] if event is not None else "to come"
    return Progressing(name, state, rows, mean, note)
