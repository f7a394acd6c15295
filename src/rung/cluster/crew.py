"""The workers of a climb, and those of a search of settings.

The jobs of a climb are fits, and answers to rows; its decisions stay in its own process. Those of a search are trials.
A climb asks in the same order for the same things as without workers, and decides by the same rule, so its report is
the same but for times. Workers only do sooner what it is going to ask for: all folds of a fit, all arms of a look, and
ahead of it the next look and the first rows of the arms that would be next.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rung.artifact.artifact import Artifact
from rung.artifact.files import fingerprint
from rung.climbing.budget import TimeUp
from rung.climbing.store import RunStore
from rung.climbing.tune import Raced
from rung.cluster.executor import Dispatcher, Executor, jobs_in
from rung.cluster.job import PARTS, Job, Result, Storage, fetch, result_of, shared
from rung.data.rows import Data, hash_of
from rung.errors import MachineError, RungError
from rung.evaluation.result import Prediction, Split
from rung.progress import Progress
from rung.task import Task

LEAST, MOST = 8, 128  # rows of a job
LOOKS = 0.2  # seconds between two looks for a part of a training


class _Crew:
    """What both kinds have in common: a folder of jobs, and who sends them."""

    def __init__(
        self, executor: Executor, run: Path, jobs: str, task: Task, data: Data, seed: int,
        money_left: Callable[[], float],
    ) -> None:  # fmt: skip
        own = f"{run.name}-{hash_of(str(run.resolve()), 8)}"
        self._storage = Storage(jobs) / own if jobs else Storage(run / "jobs")
        self._dispatcher = Dispatcher(executor, self._storage)
        self._dispatcher.money_left = money_left
        file, overrides = task.source
        self._job = Job(
            kind="fit", out="", task=str(file), overrides=overrides, task_fingerprint=task.fingerprint(),
            data_fingerprint=data.fingerprint, seed=seed,
        )  # fmt: skip
        self._scratch = TemporaryDirectory(prefix="rung-crew-")

    @property
    def workers(self) -> int:
        """How many jobs run at once."""
        return self._dispatcher.slots

    @property
    def money(self) -> float:
        """What the workers' hours have cost, without those of this machine."""
        return self._dispatcher.money

    def close(self, *, done: bool) -> None:
        """End the workers; when all is done, remove the jobs."""
        self._dispatcher.close()
        self._scratch.cleanup()
        if done:
            self._storage.remove()


class ClimbCrew(_Crew):
    """The workers of one climb; see `rung.climbing.options.Crew`."""

    def __init__(self, executor: Executor, jobs: str, task: Task, data: Data, store: RunStore, seed: int) -> None:
        super().__init__(executor, store.folder, jobs, task, data, seed, lambda: store.budget.money_left)
        self._store = store
        self._fits: dict[str, str] = {}  # by key, the job that makes it
        self._parts: dict[str, str] = {}  # by key of a part, where it is
        self._rows: dict[tuple[str, str], dict[str, str]] = {}  # by key and split, the job that answers each row
        self._machine = ""
        for job, result in jobs_in(self._storage):
            self._take_over(job, result)

    def _take_over(self, job: Job, result: Result) -> None:
        """Use what the workers of an earlier process of this climb have finished."""
        same = ("task_fingerprint", "data_fingerprint", "seed", "version")
        if any(getattr(job, name) != getattr(self._job, name) for name in same):
            return
        key, number = str(job.options["key"]), self._dispatcher.found(job, result)
        if job.kind == "fit":
            self._fits.setdefault(key, number)
        elif job.split:
            self._rows.setdefault((key, job.split), {}).update(dict.fromkeys(job.ids, number))

    def fit(self, key: str, rung: str, base: str, fold: int | None, *, parts: bool, ahead: bool) -> None:
        """Send the job that makes an artifact."""
        if key in self._fits:
            return
        change = {"rung": rung, "fold": fold, "options": {"key": key, "parts": parts}}
        self._fits[key] = self._send(self._job.model_copy(update=change), base, ahead=ahead)

    def _send(self, job: Job, key: str, *, ahead: bool) -> str:
        """Send a job that starts from an artifact of the run folder, of another job, or of a part of a training."""
        folder = self._store.artifact_folder(key)
        if (made := self._fits.get(key)) is not None:
            change = {"artifact": self._dispatcher.job(made).out}
            return self._dispatcher.send(job.model_copy(update=change), ahead=ahead, after=made)
        if (part := self._parts.get(key)) is not None:
            return self._dispatcher.send(job.model_copy(update={"artifact": part}), ahead=ahead)
        own = fingerprint(folder)
        change = {"artifact": shared(self._storage, folder, own), "artifact_fingerprint": own}
        return self._dispatcher.send(job.model_copy(update=change), ahead=ahead)

    def made(self, key: str, progress: Progress) -> Iterator[tuple[float, Artifact]]:
        """Wait for an artifact, and for those after parts of its training."""
        number, seen, looked = self._fits[key], set[str](), 0.0
        job = self._dispatcher.job(number)
        parts = Storage(job.out) / PARTS
        self._dispatcher.need([number])
        try:
            while True:
                over = self._dispatcher.over(number)
                if job.options["parts"] and (over or time.monotonic() - looked > LOOKS):
                    looked = time.monotonic()
                    for name in parts.folders():
                        if name not in seen and (result := result_of(parts / name)) is not None:
                            seen.add(name)
                            self._parts[f"{key.split('/')[0]}/parts/{round(100 * float(name))}"] = (parts / name).uri
                            yield float(name), self._loaded(parts / name, result)
                if over:
                    break
                self._dispatcher.step(lambda: progress.advance(0))
            yield 1.0, self._loaded(Storage(job.out), self._result(number))
        finally:
            if not self._dispatcher.over(number):
                self._dispatcher.cancel([number])
                del self._fits[key]

    def _result(self, number: str) -> Result:
        """The result of a job; one that used up its share of the budget's money ends the stage as the budget does."""
        try:
            return self._dispatcher.result(number)
        except RungError as error:
            if error.code == "budget-spent" and self._dispatcher.money_left() < float("inf"):
                raise TimeUp from error
            raise

    def _loaded(self, out: Storage, result: Result) -> Artifact:
        return Artifact.load(fetch(out, result, Path(self._scratch.name)) / "artifact")

    def took(self, key: str) -> tuple[float, float] | None:
        """The seconds and the money at endpoints of the job that made an artifact."""
        number = self._fits.get(key)
        if number is None or not self._dispatcher.over(number):
            return None
        result = self._dispatcher.result(number)
        return result.seconds, result.spent["money"]

    def ask(self, key: str, split: Split, ids: Sequence[str], *, ahead: bool) -> None:
        """Send jobs that answer the rows that none answers yet."""
        asked = self._rows.setdefault((key, split), {})
        rest = [name for name in ids if name not in asked or not self._dispatcher.knows(asked[name])]
        size = max(LEAST, min(MOST, -(-len(rest) // self.workers)))
        for start in range(0, len(rest), size):
            part = rest[start : start + size]
            change = {"kind": "answer", "split": split, "ids": tuple(part), "options": {"key": key}}
            number = self._send(self._job.model_copy(update=change), key, ahead=ahead)
            asked.update(dict.fromkeys(part, number))

    def answers(self, key: str, split: Split, ids: Sequence[str], progress: Progress) -> Iterator[list[Prediction]]:
        """Wait for the answers to rows, one job after the other."""
        self.ask(key, split, ids, ahead=False)
        asked = self._rows[key, split]
        numbers = list(dict.fromkeys(asked[name] for name in ids))
        self._dispatcher.need(numbers)
        try:
            for number in numbers:
                self._dispatcher.wait([number], lambda: progress.advance(0))
                rows = self._read(number)
                yield [rows[name] for name in ids if asked[name] == number]
        finally:
            left = [number for number in numbers if not self._dispatcher.over(number)]
            self._dispatcher.cancel(left)
            for name in [name for name, number in asked.items() if number in left]:
                del asked[name]

    def _read(self, number: str) -> dict[str, Prediction]:
        result = self._result(number)
        self._machine = self._machine or result.machine
        if result.machine != self._machine:
            hint = "times and texts depend on the machine: let one kind of machine answer, or climb anew"
            raise MachineError("worker-mismatch", "another kind of machine has answered rows of this climb", hint=hint)
        folder = fetch(Storage(self._dispatcher.job(number).out), result, Path(self._scratch.name))
        lines = (folder / "predictions.jsonl").read_text("utf-8").split("\n")[:-1]
        return {row.id: row for row in (Prediction.of(json.loads(line)) for line in lines)}

    def close(self, *, done: bool) -> None:
        """End the workers, and say what they did; when the climb is done, remove the jobs."""
        super().close(done=done)
        busy, wasted = 3600 * self._dispatcher.hours, self._dispatcher.wasted
        self._store.budget.say(f"workers were busy for {busy:.0f} s, {wasted:.0f} s of it not needed")


class SearchCrew(_Crew):
    """The workers of one search of settings; see `rung.climbing.tune.TrialCrew`."""

    def __init__(
        self, executor: Executor, jobs: str, task: Task, data: Data, rung: str, zero: Artifact, run: Path, seed: int,
        money_left: Callable[[], float],
    ) -> None:  # fmt: skip
        super().__init__(executor, run, jobs, task, data, seed, money_left)
        base = run / "zero-shot"
        if not base.exists():
            zero.save(base)
        own = fingerprint(base)
        address = shared(self._storage, base, own)
        change = {"kind": "trial", "rung": rung, "held_out": True, "artifact": address, "artifact_fingerprint": own}
        self._job = self._job.model_copy(update=change)
        self._numbers: dict[str, int] = {}  # of the trials that run, by job
        self._finished = [job for job, _ in self._found() if job.settings]

    def _found(self) -> Iterator[tuple[Job, Result]]:
        """The trials that the workers of an earlier process of this search have finished."""
        for job, result in jobs_in(self._storage):
            if job.model_copy(update={"settings": {}, "options": {}}).id == self._job.id:
                self._dispatcher.found(job, result)
                yield job, result

    def start(self, number: int, settings: Mapping[str, Any], earlier: Mapping[str, Sequence[float]]) -> None:
        """Send the job of a trial, unless one with these settings is done."""
        done = next((job for job in self._finished if job.settings == settings), None)
        if done is not None:
            self._finished.remove(done)
            self._numbers[done.id] = number
            return
        change = {
            "settings": dict(settings),
            "options": {"earlier": {name: list(own) for name, own in earlier.items()}},
        }
        self._numbers[self._dispatcher.send(self._job.model_copy(update=change))] = number

    def ended(self, progress: Progress) -> tuple[int, Raced]:
        """Wait for the next trial to end."""
        self._dispatcher.wait(self._numbers, lambda: progress.advance(0), one=True)
        key = next(key for key in self._numbers if self._dispatcher.over(key))
        result, number = self._dispatcher.result(key), self._numbers.pop(key)
        folder = fetch(Storage(self._dispatcher.job(key).out), result, Path(self._scratch.name)) / "artifact"
        return number, Raced(Artifact.load(folder) if folder.exists() else None, **result.values)
