"""The workers of a climb, and those of a search of settings.

The jobs of a climb are fits, and answers to rows; its decisions stay in its own process. Those of a search are trials.
A climb asks in the same order for the same things as without workers, and decides by the same rule, so its report is
the same but for times. Workers only do sooner what it is going to ask for: all folds of a fit, all arms of a look, and
ahead of it the next look and the first rows of the arms that would be next.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rung.artifact.artifact import Artifact
from rung.artifact.files import fingerprint
from rung.climbing.budget import TimeUp
from rung.climbing.options import REFUSED
from rung.climbing.store import RunStore
from rung.climbing.tune import Raced
from rung.cluster.executor import Dispatcher, Executor, jobs_in
from rung.cluster.job import Job, Result, Storage, fetch, own_name, shared
from rung.data.rows import Data
from rung.errors import MachineError, RungError
from rung.evaluation.result import Prediction, Split
from rung.progress import Progress
from rung.task import Task
from rung.worker_pipes import WorkerError

LEAST, MOST = 8, 128  # rows of a job


class _Crew:
    """What both kinds have in common: a folder of jobs, and who sends them."""

    def __init__(
        self, executor: Executor, run: Path, jobs: str, task: Task, data: Data, seed: int,
        money_left: Callable[[], float],
    ) -> None:  # fmt: skip
        self._storage = Storage(jobs) / own_name(run) if jobs else Storage(run / "jobs")
        self._dispatcher = Dispatcher(executor, self._storage)
        self._dispatcher.money_left = money_left
        file, overrides = task.source
        self._job = Job(
            kind="fit", out="", task=str(file), overrides=overrides, task_fingerprint=task.fingerprint(),
            data_fingerprint=data.fingerprint, seed=seed,
        )  # fmt: skip
        self._opened = ExitStack()
        self._machine = ""

    @cached_property
    def _scratch(self) -> Path:
        """Where copies of results are, if the storage is no folder of this machine."""
        return Path(self._opened.enter_context(TemporaryDirectory(prefix="rung-crew-")))

    @property
    def workers(self) -> int:
        """How many jobs run at once."""
        return self._dispatcher.slots

    @property
    def money(self) -> float:
        """What the workers' hours have cost, without those of this machine."""
        return self._dispatcher.money

    def _cut(self, ids: Sequence[str], share: int) -> Iterator[tuple[str, ...]]:
        """Cut rows into those of each job, so that every worker gets `share` jobs if there are enough."""
        size = max(LEAST, min(MOST, -(-len(ids) // (share * self.workers))))
        return (tuple(ids[start : start + size]) for start in range(0, len(ids), size))

    def _result(self, number: str) -> Result:
        """The result of a job; one that used up its share of the budget ends the stage as the budget does."""
        try:
            return self._dispatcher.result(number)
        except MachineError as error:
            if error.code == "budget-spent":
                self._dispatcher.forget(number)  # a later stage may have more
                raise TimeUp from error
            raise

    def _read(self, number: str) -> dict[str, Prediction]:
        result = self._result(number)
        self._machine = self._machine or result.machine
        if result.machine != self._machine:
            hint = "times and texts depend on the machine: let one kind of machine answer, or climb anew"
            raise MachineError("worker-mismatch", "another kind of machine has answered rows of this climb", hint=hint)
        folder = fetch(Storage(self._dispatcher.job(number).out), result, self._scratch)
        lines = (folder / "predictions.jsonl").read_text("utf-8").split("\n")[:-1]
        return {row.id: row for row in (Prediction.of(json.loads(line)) for line in lines)}

    def close(self, progress: Progress, *, done: bool) -> None:
        """End the workers; when all is done, remove the jobs."""
        self._dispatcher.close()
        self._opened.close()
        if done:
            self._storage.remove_or_say(progress)


class ClimbCrew(_Crew):
    """The workers of one climb; see `rung.climbing.options.Crew`."""

    def __init__(self, executor: Executor, jobs: str, task: Task, data: Data, store: RunStore, seed: int) -> None:
        super().__init__(executor, store.folder, jobs, task, data, seed, lambda: store.budget.money_left)
        self._dispatcher.seconds_left = store.budget.left
        self._store = store
        self._fits: dict[str, str] = {}  # by key, the job that makes it
        self._begun: dict[str, str] = {}  # by key, the last job of what is made in parts, each a job
        self._parts: dict[str, str] = {}  # by key of a part, the job that makes it
        self._took: dict[str, tuple[float, float]] = {}  # by key, the seconds and the money that making it took
        self._rows: dict[tuple[str, str], dict[str, str]] = {}  # by key and split, the job that answers each row
        for job, result in jobs_in(self._storage):
            self._take_over(job, result)

    def _take_over(self, job: Job, result: Result) -> None:
        """Use what the workers of an earlier process of this climb have finished."""
        same = ("task_fingerprint", "data_fingerprint", "seed", "version")
        if any(getattr(job, name) != getattr(self._job, name) for name in same):
            return
        key, number = str(job.options["key"]), self._dispatcher.found(job, result)
        self._dispatcher.busy += result.seconds
        if job.kind == "fit":
            if not job.options["parts"]:
                self._fits.setdefault(key, number)
        elif job.split:
            self._rows.setdefault((key, job.split), {}).update(dict.fromkeys(job.ids, number))

    def fit(self, key: str, rung: str, base: str, fold: int | None, *, parts: bool, ahead: bool) -> None:
        """Send the job that makes an artifact, or with `parts` its first part."""
        for sent in (self._fits, self._begun):
            if key in sent and not self._dispatcher.knows(sent[key]):  # cancelled with what it starts from
                del sent[key]
        if key in self._fits or key in self._begun:
            return
        change = {"rung": rung, "fold": fold, "options": {"key": key, "parts": parts, "after": 0.0}}
        sent = self._begun if parts else self._fits
        sent[key] = self._send(self._job.model_copy(update=change), base, ahead=ahead)

    def _send(self, job: Job, key: str, *, ahead: bool) -> str:
        """Send a job that starts from an artifact of the run folder, or of another job."""
        folder = self._store.artifact_folder(key)
        made = self._fits.get(key) or self._parts.get(key)
        if made is not None and self._dispatcher.knows(made):
            change = {"artifact": self._dispatcher.job(made).out}
            return self._dispatcher.send(job.model_copy(update=change), ahead=ahead, after=made)
        own = fingerprint(folder)
        change = {"artifact": shared(self._storage, folder, own), "artifact_fingerprint": own}
        return self._dispatcher.send(job.model_copy(update=change), ahead=ahead)

    def made(self, key: str, progress: Progress) -> Iterator[tuple[float, Artifact]]:
        """Wait for an artifact, and for those after parts of its making.

        A part is a job of its own. The next one begins on an idle worker while the climb looks at what is made, and is
        cancelled if that stops it.
        """
        sent, seconds, money = self._begun if key in self._begun else self._fits, 0.0, 0.0
        try:
            while True:
                number = sent[key]
                self._dispatcher.wait([number], lambda: progress.advance(0, self._dispatcher.note))
                result, job = self._result(number), self._dispatcher.job(number)
                artifact, share = self._loaded(Storage(job.out), result), result.values["share"]
                seconds, money = seconds + result.seconds, money + result.spent["money"]
                if share == 1:
                    break
                self._parts[f"{key.split('/')[0]}/parts/{round(100 * share)}"] = number
                options = {**job.options, "after": share}
                job = job.model_copy(update={"settings": result.values["chosen"], "options": options, "attempt": 1})
                sent[key] = self._dispatcher.send(job, ahead=True)
                yield share, artifact
            self._fits[key], self._took[key] = number, (seconds, money)
            yield 1.0, artifact
        finally:
            self._dispatcher.cancel([sent[key]])
            if not self._dispatcher.knows(sent[key]):
                del sent[key]

    def _loaded(self, out: Storage, result: Result) -> Artifact:
        return Artifact.load(fetch(out, result, self._scratch) / "artifact")

    def took(self, key: str) -> tuple[float, float] | None:
        """The seconds and the money at endpoints of the jobs that made an artifact."""
        return self._took.get(key)

    def ask(self, key: str, split: Split, ids: Sequence[str], *, ahead: bool) -> None:
        """Send jobs that answer the rows that none answers yet; not ahead with what is made in parts."""
        if ahead and key in self._begun and key not in self._fits:
            return
        asked = self._rows.setdefault((key, split), {})
        rest = [name for name in ids if name not in asked or not self._dispatcher.knows(asked[name])]
        for part in self._cut(rest, 1):
            change = {"kind": "answer", "split": split, "ids": part, "options": {"key": key}}
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
                self._dispatcher.wait([number], lambda: progress.advance(0, self._dispatcher.note))
                rows = self._read(number)
                yield [rows[name] for name in ids if asked[name] == number]
        finally:
            self._dispatcher.cancel(numbers)
            for name in [name for name, number in asked.items() if not self._dispatcher.knows(number)]:
                del asked[name]

    def close(self, progress: Progress, *, done: bool) -> None:
        """End the workers, and say what they did; when the climb is done, remove the jobs."""
        super().close(progress, done=done)
        busy, wasted = self._dispatcher.busy, self._dispatcher.wasted
        progress.say(f"workers were busy for {busy:.0f} s, {wasted:.0f} s of it not needed")


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
        self._cuts: dict[str, list[tuple[str, ...]]] = {}  # by artifact, the test rows of each job
        self._numbers: dict[str, list[int]] = {}  # by job, the trials that run; equal settings may make one job
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
            self._numbers.setdefault(done.id, []).append(number)
            return
        change = {
            "settings": dict(settings),
            "options": {"earlier": {name: list(own) for name, own in earlier.items()}},
        }
        sent = self._dispatcher.send(self._job.model_copy(update=change))
        self._numbers.setdefault(sent, []).append(number)

    def ended(self, progress: Progress) -> tuple[int, Raced]:
        """Wait for the next trial to end; one that failed is the end of itself, one without money that of all."""
        self._dispatcher.wait(self._numbers, lambda: progress.advance(0, self._dispatcher.note), one=True)
        key = next(key for key in self._numbers if self._dispatcher.over(key))
        try:
            result = self._result(key)
        except (RungError, WorkerError) as error:
            code = error.code if isinstance(error, RungError) else ""
            if code == "budget-spent":
                raise TimeUp from error
            if code in REFUSED:
                raise
            return self._number(key), Raced(None, [], reason=f"{error} [{code}]" if code else str(error))
        number = self._number(key)
        folder = fetch(Storage(self._dispatcher.job(key).out), result, self._scratch) / "artifact"
        return number, Raced(Artifact.load(folder) if folder.exists() else None, **result.values)

    def _number(self, key: str) -> int:
        """One of the trials of a job, which then runs no more."""
        number, *others = self._numbers.pop(key)
        if others:
            self._numbers[key] = others
        return number

    def give_up(self) -> None:
        """End the trials that run."""
        self._dispatcher.cancel(list(self._numbers))
        self._numbers.clear()

    def ask(self, folder: Path, ids: Sequence[str], *, ahead: bool) -> list[str]:
        """Send the jobs that answer test rows; return their keys, which are the same the second time.

        A budget in money ends trials and not the comparison, as without workers, so nothing is begun ahead with one.
        """
        if not ahead:
            self._dispatcher.money_left = lambda: float("inf")
        elif self._dispatcher.money_left() < float("inf"):
            return []
        own = fingerprint(folder)
        change = {"kind": "answer", "rung": "", "split": "test", "artifact": shared(self._storage, folder, own)}
        job = self._job.model_copy(update=change | {"artifact_fingerprint": own})
        cut = self._cuts.setdefault(own, list(self._cut(ids, 2)))  # as before, though there are more workers now
        return [self._dispatcher.send(job.model_copy(update={"ids": part}), ahead=ahead) for part in cut]

    def answers(self, folder: Path, ids: Sequence[str], progress: Progress) -> list[Prediction]:
        """Wait for the answers to test rows."""
        numbers = self.ask(folder, ids, ahead=False)
        progress.start(f"{folder.name} on test", len(ids))
        rows = dict[str, Prediction]()
        for number in numbers:
            self._dispatcher.wait([number], lambda: progress.advance(0, self._dispatcher.note))
            rows |= self._read(number)
            progress.advance(len(self._dispatcher.job(number).ids))
        progress.finish()
        return [rows[name] for name in ids]
