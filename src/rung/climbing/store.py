"""The run folder: everything that a climb has finished, so that a killed climb continues where it stopped.

climb.json                       what is climbed: task, data and settings fingerprints
journal.jsonl                    one line per finished step: chosen, fitted, failed, stopped, time spent
rungs/NAME/artifact/             the artifact, complete or absent
rungs/NAME/predictions.jsonl     one line per answered row, appended batch by batch
rungs/NAME/folds/I/artifact/     the one made without the rows of fold I; without folds, 0 is without the validation
                                 rows; removed at the end
jobs/                            with workers: their jobs and results; removed at the end
rungs/NAME/parts/P/              predictions of an artifact after P percent of its training
report.json, report.html         at the end

Every line and every JSON file ends in its sha256, so that reading finds damage; report.html is for people alone.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any, Literal, Self

from rung.artifact.artifact import Artifact
from rung.artifact.files import MANIFEST
from rung.climbing.budget import Budget
from rung.engines.api_options import ApiBudget, Spent
from rung.errors import ConfigError
from rung.evaluation.result import Prediction, TimeSpan
from rung.models.files import lock_alone, write_atomically, writing
from rung.progress import QUIET
from rung.yamlfile import read_sealed, sealed, sealed_lines, unreadable

RESUME = "free some space, then go on with the same command and --resume"
IDENTITY = "climb.json"  # what the climb is of
NEW, OLD = "artifact.new", "artifact.old"  # beside an artifact that is being replaced


class RunStore:
    """Read and extend one run folder."""

    def __init__(self, folder: Path, budget: Budget | None = None) -> None:
        self.folder, self.budget = folder, budget or Budget(QUIET)
        self.journal: list[dict[str, Any]] = _read_lines(folder / "journal.jsonl")
        try:
            self.budget.before = sum(entry["seconds"] for entry in self.journal if entry["event"] == "spent")
        except (LookupError, TypeError) as wrong:
            raise unreadable(folder / "journal.jsonl")(f"holds an entry without {wrong}") from wrong
        self._noted, self._noted_paid = self.budget.before, ApiBudget.process()
        self._predictions: dict[str, dict[tuple[str, str], Prediction]] = {}
        self._held: IO[bytes] | None = None

    def hold(self) -> Self:
        """Keep other climbs from going on with this folder until it is released.

        Raises:
            ConfigError: `file-in-use`: another climb goes on with it.
        """
        self._held = (self.folder / IDENTITY).open("r+b")
        hint = "wait for it, or begin another climb: leave out --resume"
        try:
            lock_alone(self._held, f"another climb is writing {self.folder}", hint)
        except ConfigError:
            self.release()
            raise
        return self

    def release(self) -> None:
        """Let other climbs go on with this folder."""
        if self._held is not None:
            self._held.close()

    @property
    def used(self) -> bool:
        """Whether the folder has anything that a later climb could continue from."""
        return any(self.folder.rglob("predictions.jsonl")) or self.noted("fitted") is not None

    def paid(self) -> Spent:
        """What this climb has used at endpoints, that of earlier processes included."""
        noted = [Spent(**entry["endpoints"]) for entry in self.journal if entry["event"] == "spent"]
        return Spent.total([*noted, ApiBudget.process() - self._noted_paid])

    def note(self, event: str, **values: Any) -> None:
        """Record a finished step and the time spent so far, durably."""
        now, paid = self.budget.spent(), ApiBudget.process()
        spent = {"seconds": round(now - self._noted, 3), "endpoints": asdict(paid - self._noted_paid)}
        lines = [{"event": event, **values}, {"event": "spent", **spent}]
        self._noted, self._noted_paid = now, paid
        _append_lines(self.folder / "journal.jsonl", [sealed(line) for line in lines])
        self.journal += lines

    def noted(self, event: str, **values: Any) -> dict[str, Any] | None:
        """The journal's first entry of this event with these values, if any."""
        for entry in self.journal:
            if entry["event"] == event and all(entry.get(key) == value for key, value in values.items()):
                return entry
        return None

    def all_noted(self, event: str) -> list[dict[str, Any]]:
        """The journal's entries of this event, the oldest first."""
        return [entry for entry in self.journal if entry["event"] == event]

    def spending(self) -> tuple[TimeSpan, ...]:
        """What the arms spent, by its beginning; neighbours of the same arm and work are one.

        A training that waits for answers, its own or the leader's, goes on after them; one of a worker waits for none
        but its own.
        """
        spans: list[TimeSpan] = []
        end = 0.0
        for entry, spent in zip(self.journal, self.journal[1:], strict=False):
            if spent["event"] != "spent":
                continue
            end += spent["seconds"]
            made, answered = "fit_seconds" in entry, entry["event"] == "answered"  # also a training that was stopped
            if not made and not answered:
                continue
            name, money = entry["name"].split("/")[0], spent["endpoints"]["money"]
            work: Literal["making", "answering"] = "making" if made else "answering"
            at = max(0.0, end - (entry["fit_seconds"] if made else entry["took"]))
            alone = made and not entry.get("aside")  # nothing else ran meanwhile but what the training waited for
            for other in [span for span in spans if (alone or (made and span.name == name)) and span.start >= at]:
                if other.start > at:
                    spans.append(TimeSpan(name, work, at, other.start - at))
                at = other.start + other.seconds
            spans.append(TimeSpan(name, work, at, max(0.0, end - at), money))
        merged: list[TimeSpan] = []
        for span in sorted(spans, key=lambda span: span.start):
            if merged and (merged[-1].name, merged[-1].work) == (span.name, span.work):
                last = merged.pop()
                span = replace(
                    last, seconds=span.start + span.seconds - last.start, money=last.money + span.money
                )  # fmt: skip
            merged.append(span)
        return tuple(replace(each, start=round(each.start, 3), seconds=round(each.seconds, 3)) for each in merged)

    # ---- artifacts

    def artifact_folder(self, key: str) -> Path:
        """The folder of an artifact: `key` is its name, or `NAME/folds/I` for one of a fold."""
        return self.folder / "rungs" / key / "artifact"

    def keep(self, artifact: Artifact, key: str = "") -> Artifact:
        """Save an artifact and load it again, so that the climb runs what it saved.

        An artifact of the same name is replaced once the new one is complete: its weights may be in the old folder.
        """
        folder = self.artifact_folder(key or artifact.name)
        new, old = folder.with_name(NEW), folder.with_name(OLD)
        shutil.rmtree(new, ignore_errors=True)
        artifact.save(new)
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)  # atomic: a kill never leaves half an artifact
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
        return Artifact.load(folder)

    def drop_folds(self) -> None:
        """Remove the artifacts of the folds, which only a running climb needs."""
        for folder in self.folder.glob("rungs/*/folds"):
            shutil.rmtree(folder)

    def kept(self, key: str) -> Artifact | None:
        """Load a saved artifact, if it is complete."""
        folder = self.artifact_folder(key)
        new = folder.with_name(NEW)
        if not folder.exists() and (new / MANIFEST).is_file():  # killed between the two renames of `keep`
            new.rename(folder)
        return Artifact.load(folder) if (folder / MANIFEST).is_file() else None

    # ---- predictions

    def predictions(self, name: str) -> dict[tuple[str, str], Prediction]:
        """The rows answered so far, by (split, row id)."""
        if name not in self._predictions:
            file = self.folder / "rungs" / name / "predictions.jsonl"
            lines = _read_lines(file)
            try:
                rows = [Prediction.of(line) for line in lines]
            except (LookupError, TypeError) as wrong:
                raise unreadable(file)(f"holds a line that is no prediction: {wrong}") from wrong
            self._predictions[name] = {(row.split, row.id): row for row in rows}
        return self._predictions[name]

    def add(self, name: str, rows: Sequence[Prediction]) -> None:
        """Append answered rows, durably."""
        known = self.predictions(name)
        file = self.folder / "rungs" / name / "predictions.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        _append_lines(file, [sealed(asdict(row)) for row in rows])
        known.update({(row.split, row.id): row for row in rows})


def engine_of_run(root: Path, identity: Mapping[str, Any]) -> str | None:
    """The engine of the latest run of the same climb, whatever engine that is; None if there is no such run."""
    for folder in reversed([folder for folder in _numbered(root, identity["task"]) if folder.exists()]):
        with suppress(ConfigError):  # it is not there, or damaged
            known = read_sealed(folder / IDENTITY)
            if {**known, "engine": None} == {**identity, "engine": None}:
                return str(known["engine"])
    return None


def _numbered(root: Path, name: str) -> list[Path]:
    return [root / name, *(root / f"{name}-{i}" for i in range(2, 10_000))]


def open_run(root: Path, identity: Mapping[str, Any], budget: Budget, *, resume: bool) -> RunStore:
    """Make a new run folder under `root`, or with `resume` open the latest one of the same climb.

    Runs belong to the same climb if task, data, seed, engine and version are the same; a resumed one may try further
    rungs. Folders are never overwritten: `banking77`, `banking77-2`, ... Raises ConfigError if the folder cannot be
    made, or if another climb goes on with it.
    """
    text = sealed(json.loads(json.dumps(identity, sort_keys=True)), indent=2)
    numbered = _numbered(root, identity["task"])
    if resume:
        for folder in reversed([folder for folder in numbered if folder.exists()]):
            file = folder / IDENTITY
            if file.is_file() and file.read_bytes() == text.encode():
                return RunStore(folder, budget).hold()
    folder = next(folder for folder in numbered if not folder.exists())
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)  # predictions and demonstrations hold the user's rows
    except OSError as error:
        hint = "choose another folder with `--out`"
        raise ConfigError("write-failed", f"cannot make {folder}: {error.strerror}", hint=hint) from error
    write_atomically(folder / IDENTITY, text)
    return RunStore(folder, budget).hold()


def _append_lines(file: Path, lines: Sequence[str]) -> None:
    with writing(file.name, file.parent, RESUME), file.open("a", encoding="utf-8") as out:
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
    return list(sealed_lines(data[:whole], file))


def watch_lines(file: Path) -> list[dict[str, Any]]:
    """Read the complete JSON lines of a file that another process may be writing."""
    if not file.exists():
        return []
    data = file.read_bytes()
    return list(sealed_lines(data[: data.rfind(b"\n") + 1], file))


def watch_predictions(run: Path, rung: str) -> list[Prediction]:
    """Read what a rung answered in a climb that may still go on; raise ConfigError if a line is no prediction."""
    file = run / "rungs" / rung / "predictions.jsonl"
    try:
        return [Prediction.of(line) for line in watch_lines(file)]
    except (LookupError, TypeError) as wrong:
        raise unreadable(file)(f"holds a line that is no prediction: {wrong}") from wrong
