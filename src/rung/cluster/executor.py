"""Where jobs run, behind one interface, and who starts them: retries, order, and what is begun ahead.

An executor only starts a worker on a job and tells when it has ended. Whether the job is done, failed or was lost is
read from its folder, so it does not matter what the worker ran on.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from rung.climbing.budget import duration_text
from rung.climbing.options import REFUSED
from rung.cluster.job import (
    Job,
    Resources,
    Result,
    Storage,
    done,
    error_file,
    error_of,
    installation,
    result_of,
    sign_file,
)
from rung.engines.api_options import ApiBudget, Spent
from rung.errors import ConfigError, MachineError, PreemptedError
from rung.worker_pipes import WorkerError, error_from_dict

RETRIES = 3  # times that a job whose worker ended without a word is started again
PREEMPTIONS = 100  # times that a job goes on whose machine was taken back: it is neither lost nor failed
SILENCE = 300.0  # seconds without a sign of life after which a worker elsewhere counts as lost
BEATS = 20  # signs of life in that time
FINAL = ("not-trusted", "budget-spent")  # another attempt would end alike
# Variables that every worker needs if this process has them: keys, and what answers are counted and allowed by.
SAME = (
    "RUNG_API_KEY", "OPENAI_API_KEY", "RUNG_API_PRICE_INPUT", "RUNG_API_PRICE_OUTPUT", "RUNG_API_PRICE_CACHED",
    "RUNG_API_HOSTS",
)  # fmt: skip
PRICE = "RUNG_WORKER_PRICE"  # money for an hour of a worker of another machine
SHORTEST, LONGEST = 0.005, 0.05  # seconds between two looks, growing
CAPACITY_SECONDS = 5.0  # between two looks at how many places there are: a cluster may grow


class Executor(Protocol):
    """Starts workers."""

    @property
    def needs(self) -> Resources:
        """What a job of one worker takes there."""

    @property
    def inside(self) -> bool:
        """Whether jobs run in this process, which itself counts what they use at endpoints."""

    @property
    def silence(self) -> float:
        """Seconds without a sign of life after which a worker that has begun is lost; infinite where `poll` tells."""

    def submit(self, uri: str, resources: Resources) -> None:
        """Start a worker on a job, or as soon as one is free."""

    def poll(self) -> Iterable[str]:
        """The jobs that have ended, however they did, since the last look."""

    def cancel(self, uri: str) -> None:
        """End a job; `poll` tells it as ended."""

    def capacity(self, resources: Resources) -> int:
        """How many such jobs run at the same time."""

    def price(self, resources: Resources) -> float:
        """What an hour of such a job costs, in the currency of the prices; 0 on this machine, whose hour is priced."""

    def close(self) -> None:
        """End all workers."""


def worker_price() -> float:
    """What an hour of a worker on another machine costs, from the environment; 0 where it is not set."""
    text = os.environ.get(PRICE, "0")
    try:
        price = float(text)
    except ValueError:
        price = -1.0
    if not 0 <= price < float("inf"):
        raise ConfigError("bad-option", f"{PRICE} is {text!r}", hint="set it to the price of an hour, such as 2.5")
    return price


@dataclass
class _Task:
    """A job on its way; `after` is the key of the job whose result it reads."""

    job: Job
    ahead: bool
    after: str
    uri: str = ""
    began: float = 0.0
    lost: int = 0
    preempted: int = 0
    errors: list[Exception] = field(default_factory=list)
    sign: str | None = None  # the last sign of life
    looked: float = 0.0  # when somebody last looked for one
    heard: float | None = None  # when there was a new one; None until the worker has begun
    result: Result | None = None
    failed: Exception | None = None
    used: bool = False

    @property
    def over(self) -> bool:
        return self.result is not None or self.failed is not None


class Dispatcher:
    """Sends jobs to an executor: those that are waited for first, those that may be needed only to idle workers."""

    def __init__(self, executor: Executor, place: Storage, environment: tuple[str, ...] | None = None) -> None:
        self.executor, self.place, self.resources = executor, place, executor.needs
        self.environment = tuple(filter(os.environ.get, SAME)) if environment is None else environment
        self._look_at_capacity()
        self.beat = 0.0 if executor.silence == float("inf") else executor.silence / BEATS
        self.busy = 0.0  # seconds that workers were, in what has ended
        self.money_left: Callable[[], float] = lambda: float("inf")  # of a budget; every job may take its share of it
        self.seconds_left: Callable[[], float] = lambda: float("inf")  # of a budget, all of which every job may take
        self._pause = SHORTEST
        self._tasks: dict[str, _Task] = {}
        self._running: dict[str, _Task] = {}
        self._given_up = Counter[str]()  # cancelled jobs that the executor has not told as ended
        self._ending: dict[str, Job] = {}  # the same, by their files
        place.probe()

    def _look_at_capacity(self) -> None:
        self.slots = max(1, self.executor.capacity(self.resources))
        self._looked = time.monotonic()

    # ---- sending

    def send(self, job: Job, *, ahead: bool = False, after: str = "") -> str:
        """Have a job run; return its key. One that was sent before, by whomever, is not run again."""
        change = {"resources": self.resources, "environment": self.environment, "beat": self.beat}
        job = job.model_copy(update=change)
        key = job.id
        if (known := self._tasks.get(key)) is None:
            job = job.model_copy(update={"out": (self.place / key).uri})
            known = self._tasks[key] = _Task(job, ahead, after, result=done(job))
        if not ahead:
            self._need(known)
        self._pump()
        return key

    def done(self, job: Job) -> bool:
        """Whether the result of a job is there."""
        return done(job.model_copy(update={"out": (self.place / job.id).uri})) is not None

    def found(self, job: Job, result: Result) -> str:
        """Take over a job that an earlier process had done."""
        key = result.job
        if key not in self._tasks:
            self._tasks[key] = _Task(job, ahead=False, after="", result=result)
        return key

    def need(self, keys: Iterable[str]) -> None:
        """Say that jobs are waited for, and with them those whose results they read."""
        for key in keys:
            self._need(self._tasks[key])

    def _need(self, task: _Task) -> None:
        task.ahead = False
        if task.after:
            self._need(self._tasks[task.after])

    def knows(self, key: str) -> bool:
        """Whether a job was sent and not cancelled."""
        return key in self._tasks

    def cancel(self, keys: Iterable[str]) -> None:
        """End jobs that are not over and those that would read their results, and forget them."""
        for key in keys:
            task = self._tasks.get(key)
            if task is not None and not task.over:
                if task.uri in self._running:
                    self.executor.cancel(task.uri)
                    self._given_up[task.uri] += 1
                    self.busy += time.monotonic() - self._running.pop(task.uri).began
                    self._ending[task.uri] = task.job
                del self._tasks[key]
                self.cancel([other for other, later in self._tasks.items() if later.after == key])

    def forget(self, key: str) -> None:
        """Have a failed job, and the failed ones whose results it reads, run anew when they are sent again."""
        task = self._tasks.get(key)
        if task is not None and task.failed is not None:
            del self._tasks[key]
            self.forget(task.after)

    # ---- waiting

    def over(self, key: str) -> bool:
        """Whether a job is done or has failed, by what is known now."""
        return self._tasks[key].over

    def wait(self, keys: Iterable[str], check: Callable[[], object] = lambda: None, *, one: bool = False) -> None:
        """Wait until all these jobs are over, or with `one` the first of them; `check` may raise to give up."""
        wanted = [self._tasks[key] for key in keys]
        for task in wanted:
            self._need(task)
        while wanted and not (any if one else all)(task.over for task in wanted):
            self.step(check)

    def step(self, check: Callable[[], object] = lambda: None) -> None:
        """Take in what has ended and start what may; if there is nothing, check, and wait for a moment."""
        if not self._pump():
            check()
            time.sleep(self._pause)
            self._pause = min(LONGEST, 1.5 * self._pause)
        else:
            self._pause = SHORTEST

    def result(self, key: str) -> Result:
        """The result of a job that is over.

        Raises:
            RungError: the job failed with it twice.
            WorkerError: it failed twice with another exception.
        """
        task = self._tasks[key]
        task.used = True
        if task.failed is not None:
            raise task.failed
        assert task.result is not None
        return task.result

    def job(self, key: str) -> Job:
        """The job of a key."""
        return self._tasks[key].job

    def close(self) -> None:
        """End what still runs."""
        self.executor.close()
        self.busy += self._under_way()
        self._running.clear()

    @property
    def note(self) -> str:
        """How many jobs run elsewhere, and how many wait there for a place; empty on this machine."""
        if not self.beat:
            return ""
        waiting = [task.began for task in self._running.values() if task.heard is None and task.looked > task.began]
        note = f"{len(self._running) - len(waiting)} at work"
        if waiting:
            note += f", {len(waiting)} waiting for a place since {duration_text(time.monotonic() - min(waiting))}"
        return note

    def _under_way(self) -> float:
        """The seconds since what runs was submitted."""
        return sum(time.monotonic() - task.began for task in self._running.values())

    @property
    def wasted(self) -> float:
        """Seconds of work that was done ahead and not needed."""
        return sum(task.result.seconds for task in self._tasks.values() if task.result is not None and not task.used)

    # ---- what runs

    def _pump(self) -> bool:
        """Take in what has ended, and start what may start; say whether anything did."""
        moved = False
        if time.monotonic() - self._looked >= CAPACITY_SECONDS:
            self._look_at_capacity()
        for uri in self.executor.poll():
            if self._given_up[uri]:  # the same job may have been sent again meanwhile
                self._given_up[uri] -= 1
                job = self._ending.pop(uri, None)
                if job is not None and uri not in self._running:
                    self._paid(error_of(Storage(job.out), job.attempt) or {})
            elif (task := self._running.pop(uri, None)) is not None:
                self._end(task)
                moved = True
        for task in self._silent():
            self.executor.cancel(task.uri)
            self._given_up[task.uri] += 1
            del self._running[task.uri]
            self._end(task)
            moved = True
        waiting = [task for task in self._tasks.values() if not task.over and task.uri not in self._running]
        # Ahead, fits come first: more is going to wait for them. Stable: in the order in which they were sent.
        for task in sorted(waiting, key=lambda each: (each.ahead, each.ahead and each.job.kind == "answer")):
            ahead = sum(each.ahead for each in self._running.values())
            if len(self._running) >= self.slots or (task.ahead and ahead >= self.slots - 1):
                break
            before = self._tasks.get(task.after) if task.after else None
            if before is not None and before.failed is not None:
                task.failed = before.failed
            elif before is None or before.result is not None:
                # What runs may still spend its shares of the money. Where nothing else is left, the next job waits.
                held = sum(each.job.money or 0.0 for each in self._running.values())
                share = max(0.0, self.money_left() - held) / (self.slots - len(self._running))
                if share == 0 and self._running:
                    break
                self._start(task, {"money": share, "seconds": self.seconds_left()})
                moved = True
        return moved

    def _silent(self) -> list[_Task]:
        """Look for signs of life; tell the jobs that have begun and of which none was seen for too long.

        A job that waits for a place has not begun, and may wait for ever. Only this process's clock counts.
        """
        if not self.beat:
            return []
        silent = []
        for task in self._running.values():
            if (now := time.monotonic()) - task.looked < self.beat:
                continue
            task.looked = now
            with suppress(MachineError):  # the storage may be away for a moment
                sign = sign_file(Storage(task.job.out), task.job.attempt).read()
                if sign not in (None, task.sign):
                    task.sign, task.heard = sign, now
                elif task.heard is not None and now - task.heard > self.executor.silence:
                    silent.append(task)
        return silent

    def _start(self, task: _Task, limits: Mapping[str, float]) -> None:
        limited = {name: None if limit == float("inf") else limit for name, limit in limits.items()}
        task.job = task.job.model_copy(update=limited)
        out = Storage(task.job.out)
        error_file(out, task.job.attempt).remove()  # of an earlier process that has sent this job
        file = out / f"job-{task.job.attempt}.json"
        file.write(task.job.model_dump_json(indent=1))
        task.uri, task.began = file.uri, time.monotonic()
        if self.beat:  # one that is there is of an earlier process that has sent this job
            task.sign, task.looked, task.heard = sign_file(out, task.job.attempt).read(), task.began, None
        self._running[task.uri] = task
        self.executor.submit(task.uri, task.job.resources)

    def _end(self, task: _Task) -> None:
        out = Storage(task.job.out)
        task.result = done(task.job)
        if task.result is not None:
            self.busy += task.result.seconds  # and not the time in which the job waited for a place
            self._paid({"spent": task.result.spent})
            return
        record = error_of(out, task.job.attempt) or {}
        self.busy += record.get("seconds", time.monotonic() - task.began)
        self._paid(record)
        if not record.keys() & {"error", "failed"}:
            task.lost += 1
            if task.lost > RETRIES:
                hint = f"read what the workers said on stderr; the job is {task.uri}"
                problem = f"a job lost its worker {task.lost} times before it was done"
                task.failed = MachineError("worker-lost", problem, hint=hint)
                return
        else:
            error = _error(record)
            code = getattr(error, "code", "")
            if code in REFUSED:
                raise error
            if code == "missing-extra" and record.get("installation") != installation():
                hint = f"install the same extras on all workers, then run it again; the job is {task.uri}"
                raise MachineError("worker-mismatch", f"a worker lacks a library: {error}", hint=hint) from error
            if isinstance(error, PreemptedError):
                task.preempted += 1
                if task.preempted > PREEMPTIONS:
                    task.failed = error
                    return
            elif code in FINAL or str(error) in map(str, task.errors) or len(task.errors) >= RETRIES:
                task.failed = error
                return
            else:
                task.errors.append(error)
        task.job = task.job.model_copy(update={"attempt": task.job.attempt + 1})
        task.uri = ""

    def _paid(self, record: Mapping[str, Any]) -> None:
        """Count what an attempt used at endpoints, however it ended."""
        if not self.executor.inside and "spent" in record:
            ApiBudget.add(Spent(**record["spent"]))

    @property
    def money(self) -> float:
        """What the hours of the workers have cost, those of what still runs or waits for a place included."""
        return (self.busy + self._under_way()) / 3600 * self.executor.price(self.resources)


def _error(record: Mapping[str, Any]) -> Exception:
    if "error" in record:
        return error_from_dict(record["error"])
    error = WorkerError(record["failed"])
    error.add_note(str(record.get("traceback", "")))
    return error


def jobs_in(storage: Storage) -> Iterable[tuple[Job, Result]]:
    """The finished jobs in a folder, whoever had sent them."""
    for name in storage.folders():
        if (result := result_of(storage / name)) is None:
            continue
        text = (storage / name / "job-1.json").read()
        with suppress(ValueError):  # a changed file: the job is asked for anew
            job = Job.model_validate_json(text or "")
            if job.out == (storage / name).uri and job.id == result.job == name:
                yield job, result
