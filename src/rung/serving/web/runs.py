"""Run folders as the pages read them: finished climbs by their report, others by what they have written so far.

Nothing is written or repaired here: another process may be climbing in the folder.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rung.artifact.files import MANIFEST
from rung.climbing.store import watch_lines
from rung.errors import ConfigError
from rung.evaluation.report.words import against, costs, delta_text, gap_text, measured, score_text
from rung.evaluation.result import ClimbResult, RungResult
from rung.feedback.improve import IMPROVEMENT
from rung.models.cache import file_sha256
from rung.yamlfile import read_sealed

STALE = 600.0  # seconds without a write, after which a climb counts as stopped
WIDTH = 200.0  # of a drawn interval, in units of its view box
PAD = 6.0


@dataclass(frozen=True, slots=True)
class RunFolder:
    """One climb."""

    name: str  # of the folder
    folder: Path
    task: str
    state: str  # `finished`, `climbing`, or `stopped`: nothing was written for a while, and there is no report
    written: float  # the time of the last write, in seconds since the epoch
    improvement: bool  # whether `rung improve` made it

    def artifact(self, rung: str) -> Path:
        """Locate a rung's artifact; the run folder may have moved since the report was written."""
        return self.folder / "rungs" / rung / "artifact"


def run_folders(root: Path) -> list[RunFolder]:
    """List the climbs below a folder, the one written last first."""
    climbs = [_described(file.parent) for file in root.glob("*/climb.json")]
    return sorted(climbs, key=lambda run: -run.written)


def run_folder(root: Path, name: str) -> RunFolder | None:
    """Look up one of them by its name."""
    return next((run for run in run_folders(root) if run.name == name), None)


def _described(folder: Path) -> RunFolder:
    finished = (folder / "report.json").is_file()
    files = [folder / "climb.json", folder / "report.json", folder / "journal.jsonl", *folder.glob("rungs/*/*.jsonl")]
    written = max(file.stat().st_mtime for file in files if file.exists())
    state = "finished" if finished else "climbing" if time.time() - written < STALE else "stopped"
    task = str(_identity(folder).get("task", folder.name))
    return RunFolder(folder.name, folder, task, state, written, (folder / IMPROVEMENT).is_file())


def _identity(folder: Path) -> dict[str, Any]:
    try:
        return read_sealed(folder / "climb.json")
    except ConfigError:
        return {}  # the climb is writing it at this moment, before any other file; or it is damaged


def report_of(run: RunFolder) -> ClimbResult:
    """Read the report of a finished climb; raise ConfigError if it cannot be read."""
    return ClimbResult.read(run.folder)


@dataclass(frozen=True, slots=True)
class MeasuredArtifact:
    """What a climb measured of an artifact."""

    run: RunFolder
    rung: RungResult
    score: str


def measured_as(root: Path, marks: Collection[str]) -> dict[str, MeasuredArtifact]:
    """Find the artifacts with these fingerprints among those of finished climbs; of several climbs the last one."""
    found: dict[str, MeasuredArtifact] = {}
    for run in run_folders(root):
        missing = set(marks) - set(found)
        if not missing or run.state != "finished":
            continue
        kept = {file.parent.parent.name: file_sha256(file) for file in run.folder.glob(f"rungs/*/artifact/{MANIFEST}")}
        if missing & set(kept.values()):
            rungs = {rung.name: rung for rung in measured(report_of(run))}
            for name, mark in kept.items():
                if mark in missing and name in rungs:
                    found[mark] = MeasuredArtifact(run, rungs[name], score_text(rungs[name]))
    return found


# ---- a climb that goes on


@dataclass(frozen=True, slots=True)
class ArtifactProgress:
    """An artifact of a climb that goes on."""

    name: str
    state: str  # `to come`, `fitted`, `measured`, `skipped` or `failed`
    rows: dict[str, int]  # answered so far, by split
    mean: float | None  # score over the validation rows answered so far
    note: str  # time of fitting, or why it was left out


def progress_of(run: RunFolder) -> list[ArtifactProgress]:
    """List the artifacts of a climb with their progress, oldest first."""
    journal = watch_lines(run.folder / "journal.jsonl")
    planned = [*_identity(run.folder).get("rungs", ())]
    events = {entry["name"]: entry for entry in journal if entry["event"] in ("fitted", "failed", "skipped")}
    begun = sorted((run.folder / "rungs").glob("*"), key=lambda folder: folder.stat().st_mtime)
    names = dict.fromkeys(["zero-shot", *events, *(folder.name for folder in begun), *planned])
    return [_progress(run.folder, name, events.get(name)) for name in names]


def _progress(folder: Path, name: str, event: dict[str, Any] | None) -> ArtifactProgress:
    lines = watch_lines(folder / "rungs" / name / "predictions.jsonl")
    rows = {split: sum(line["split"] == split for line in lines) for split in ("validation", "test")}
    scores = [line["score"] for line in lines if line["split"] == "validation"]
    mean = sum(scores) / len(scores) if scores else None
    note = ""
    if event is not None:
        note = f"fitted in {event['fit_seconds']:.1f} s" if event["event"] == "fitted" else str(event["reason"])
    state = "measured" if lines else event["event"] if event is not None else "to come"
    return ArtifactProgress(name, state, rows, mean, note)


def seconds_spent(run: RunFolder) -> float:
    """Add up how long a climb has worked."""
    return sum(float(e["seconds"]) for e in watch_lines(run.folder / "journal.jsonl") if e["event"] == "spent")


# ---- the ladder of a finished climb


@dataclass(frozen=True, slots=True)
class LadderStep:
    """A row of the ladder; its interval and mean are positions between 0 and `WIDTH`."""

    rung: RungResult
    score: str
    against: str
    costs: tuple[str, ...]  # price of 1,000 predictions, seconds per row
    left: float
    mean: float
    right: float


@dataclass(frozen=True, slots=True)
class Ladder:
    """The steps, the ends of their axis, and the position of the incumbent."""

    steps: tuple[LadderStep, ...]
    low: float
    high: float
    incumbent: float | None


def ladder_of(result: ClimbResult) -> Ladder:
    """Lay out the measured rungs of a climb on one axis."""
    rungs, steps = measured(result), []
    low = min((rung.low or 0.0 for rung in rungs), default=0.0)
    high = max((rung.high or 0.0 for rung in rungs), default=1.0)
    for rung in rungs:
        score, comparison = rung.score or 0.0, against(result, rung.name)
        ends = (score if rung.low is None else rung.low, score, score if rung.high is None else rung.high)
        difference = delta_text(comparison) if comparison else rung.reason
        if rung.stopped is not None:
            difference = f"{gap_text(rung.stopped)} against {rung.stopped.a}, at the stop; {rung.reason}"
        places = [position(value, low, high) for value in ends]
        steps.append(LadderStep(rung, score_text(rung), difference, costs(rung)[:2], *places))
    zero = next((rung.score for rung in rungs if rung.name == result.rungs[0].name), None)
    return Ladder(tuple(steps), low, high, None if zero is None else position(zero, low, high))


def position(value: float, low: float, high: float) -> float:
    """Place a value on an axis from `low` to `high`, between 0 and `WIDTH`."""
    return round(PAD + (WIDTH - 2 * PAD) * (value - low) / ((high - low) or 1.0), 1)
