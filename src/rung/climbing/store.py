"""The run folder: everything that a climb has finished, so that a killed climb continues where it stopped.

climb.json                     what is climbed: task, data and settings fingerprints
journal.jsonl                  one line per finished step: fitted, failed, skipped, stage decided, time spent
rungs/NAME/artifact/           the artifact, complete or absent
rungs/NAME/predictions.jsonl   one line per answered row, appended batch by batch
report.json, report.html       at the end
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rung.artifact.artifact import Artifact
from rung.artifact.files import MANIFEST
from rung.engines.api_options import ApiBudget, Spent
from rung.errors import ConfigError
from rung.evaluation.result import Prediction

NEW, OLD = "artifact.new", "artifact.old"  # beside an artifact that is being replaced


class RunStore:
    """Read and extend one run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journal: list[dict[str, Any]] = _read_lines(folder / "journal.jsonl")
        self._before: float = sum(entry["seconds"] for entry in self.journal if entry["event"] == "spent")
        self._start = time.monotonic()
        self._noted = 0.0
        self._noted_paid = ApiBudget.process()
        self._predictions: dict[str, dict[tuple[str, str], Prediction]] = {}

    def spent(self) -> float:
        """The seconds that this climb has taken, those of earlier processes included, interruptions excluded."""
        return self._before + time.monotonic() - self._start

    def paid(self) -> Spent:
        """What this climb has used at endpoints, that of earlier processes included."""
        noted = [Spent(**entry["endpoints"]) for entry in self.journal if entry["event"] == "spent"]
        return Spent.total([*noted, ApiBudget.process() - self._noted_paid])

    def note(self, event: str, **values: Any) -> None:
        """Record a finished step and the time spent so far, durably."""
        now, paid = time.monotonic() - self._start, ApiBudget.process()
        spent = {"seconds": round(now - self._noted, 3), "endpoints": asdict(paid - self._noted_paid)}
        lines = [{"event": event, **values}, {"event": "spent", **spent}]
        self._noted, self._noted_paid = now, paid
        _append_lines(self.folder / "journal.jsonl", [json.dumps(line, ensure_ascii=False) for line in lines])
        self.journal += lines

    def noted(self, event: str, **values: Any) -> dict[str, Any] | None:
        """The journal's first entry of this event with these values, if any."""
        for entry in self.journal:
            if entry["event"] == event and all(entry.get(key) == value for key, value in values.items()):
                return entry
        return None

    # ---- artifacts

    def artifact_folder(self, name: str) -> Path:
        """The folder of the artifact of this name."""
        return self.folder / "rungs" / name / "artifact"

    def keep(self, artifact: Artifact) -> Artifact:
        """Save an artifact and load it again, so that the climb runs what it saved.

        An artifact of the same name is replaced once the new one is complete: its weights may be in the old folder.
        """
        folder = self.artifact_folder(artifact.name)
        new, old = folder.with_name(NEW), folder.with_name(OLD)
        shutil.rmtree(new, ignore_errors=True)
        artifact.save(new)
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)  # atomic: a kill never leaves half an artifact
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
        return Artifact.load(folder)

    def kept(self, name: str) -> Artifact | None:
        """Load the saved artifact of this name, if it is complete."""
        folder = self.artifact_folder(name)
        new = folder.with_name(NEW)
        if not folder.exists() and (new / MANIFEST).is_file():  # killed between the two renames of `keep`
            new.rename(folder)
        return Artifact.load(folder) if (folder / MANIFEST).is_file() else None

    # ---- predictions

    def predictions(self, name: str) -> dict[tuple[str, str], Prediction]:
        """The rows answered so far, by (split, row id)."""
        if name not in self._predictions:
            lines = _read_lines(self.folder / "rungs" / name / "predictions.jsonl")
            rows = [Prediction.of(line) for line in lines]
            self._predictions[name] = {(row.split, row.id): row for row in rows}
        return self._predictions[name]

    def add(self, name: str, rows: Sequence[Prediction]) -> None:
        """Append answered rows, durably."""
        known = self.predictions(name)
        file = self.folder / "rungs" / name / "predictions.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        _append_lines(file, [json.dumps(asdict(row), ensure_ascii=False) for row in rows])
        known.update({(row.split, row.id): row for row in rows})


def open_run(root: Path, identity: Mapping[str, Any], *, resume: bool) -> RunStore:
    """Make a new run folder under `root`, or with `resume` open the latest one of the same climb.

    Runs belong to the same climb if task, data, rungs, seed, engine and version are the same. Folders are never
    overwritten: `banking77`, `banking77-2`, ... Raises ConfigError if the folder cannot be made.
    """
    text = json.dumps(identity, sort_keys=True, indent=2)
    name = identity["task"]
    numbered = [name, *(f"{name}-{i}" for i in range(2, 10_000))]
    taken = [root / n for n in numbered if (root / n).exists()]
    if resume:
        for folder in reversed(taken):
            file = folder / "climb.json"
            if file.is_file() and file.read_text() == text:
                return RunStore(folder)
    folder = next(root / n for n in numbered if root / n not in taken)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        hint = "choose another folder with `--out`"
        raise ConfigError("write-failed", f"cannot make {folder}: {error.strerror}", hint=hint) from error
    (folder / "climb.json").write_text(text)
    return RunStore(folder)


def _append_lines(file: Path, lines: Sequence[str]) -> None:
    with file.open("a", encoding="utf-8") as out:
        out.write("".join(line + "\n" for line in lines))
        out.flush()
        os.fsync(out.fileno())


def _read_lines(file: Path) -> list[dict[str, Any]]:
    """Read JSON lines; cut off a last line that a kill left incomplete, so that the next append starts a new one."""
    if not file.exists():
        return []
    data = file.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with file.open("r+b") as out:
            out.truncate(whole)
    return _parsed(data[:whole])


def watch_lines(file: Path) -> list[dict[str, Any]]:
    """Read the complete JSON lines of a file that another process may be writing."""
    if not file.exists():
        return []
    data = file.read_bytes()
    return _parsed(data[: data.rfind(b"\n") + 1])


def _parsed(lines: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.decode().split("\n") if line]
