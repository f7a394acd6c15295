"""What runs a job: the only code that runs on other machines. `rung worker JOB` runs one, `python -m` several.

A job that is done is not run again. One that fails leaves its error in its folder, so that whoever started the worker
needs nothing from it but to know when it ended.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from functools import lru_cache
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rung._version import __version__
from rung.artifact.artifact import Artifact
from rung.artifact.files import fingerprint
from rung.climbing.budget import Budget, Limits, TimeUp
from rung.climbing.trust import check_allowed
from rung.climbing.tune import race_trial
from rung.cluster.job import (
    MANIFEST,
    Job,
    Result,
    Storage,
    done,
    error_file,
    error_of,
    hashes,
    installation,
    result_of,
    sign_file,
)
from rung.cluster.parts import ANSWERS, answer_part
from rung.data.rows import Data, Example, hash_of
from rung.engines.api_options import ApiBudget, Spent
from rung.engines.opening import machine_id
from rung.errors import ConfigError, MachineError, PreemptedError, RungError
from rung.evaluation.scoring import evaluate
from rung.models.cache import cache_dir, training_in
from rung.progress import QUIET, Progress
from rung.rungs import build, registered
from rung.rungs.base import REGISTERED, Rung, with_settings
from rung.task import Task
from rung.training.distributed import World, current, joined, launched
from rung.user_code import HOSTS
from rung.worker_pipes import error_to_dict, serve

STOP: signal.Signals | None = getattr(signal, "SIGUSR1", None)  # has a worker give its job up; Windows has none
STOPPED = Limits(0.0, 0.0)
CHOSEN = ("batch_size", "learning_rate")  # settings that a training may choose itself


def run_job(uri: str, *, inside: bool = False) -> str:
    """Run a job unless it is done; return the address of its manifest.

    Where torchrun or srun has started several processes for it, they train together what can be trained so, and the
    first one writes. It does all other jobs alone. SIGTERM and SIGUSR1 have a training keep its state and end, unless
    the job runs `inside` the process that sent it, whose signals are its own.

    Raises:
        PreemptedError: a signal ended the training; another attempt goes on from there.
        RungError: it failed. Its folder has the error, too.
    """
    job, world = Job.read(uri), launched()
    with _signs_of_life(job) if job.beat and world.first else nullcontext():
        if not world.alone and not (job.kind == "fit" and _says(job, "trains_together")):  # a trial also races
            if not world.first:
                return (Storage(job.out) / MANIFEST).uri
            world = World()
        if world.alone and (inside or not _says(job, "trains_weights")):
            return _run_unless_done(job)
        with joined(world):
            return _run_unless_done(job)


@contextmanager
def _signs_of_life(job: Job) -> Iterator[None]:
    """Rewrite a file as long as this process lives, each time with other contents, so that no clock is compared."""
    file, own, end = sign_file(Storage(job.out), job.attempt), secrets.token_hex(4), threading.Event()

    def beat() -> None:
        for number in count():
            with suppress(MachineError):  # the storage may be away for a moment; the work needs it only at its end
                file.write(f"{own} {number}")
            if end.wait(job.beat):
                return

    thread = threading.Thread(target=beat, name="rung-alive", daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()  # or it might write into a folder that was removed meanwhile


def _says(job: Job, what: str) -> bool:
    """What the class of the job's rung says; no file is read that one process may lack and another have.

    A process that does not know the rung joins the others all the same: the error that it meets then ends all of them.
    """
    if job.kind not in ("fit", "trial"):
        return False
    with suppress(ConfigError):  # met again in `_run`
        registered()
    # The name of a variant begins with that of its rung.
    named = [name for name in REGISTERED if f"{job.rung}-".startswith(f"{name}-")]
    return not named or bool(getattr(REGISTERED[max(named, key=len)].rung_type, what))


def _run_unless_done(job: Job) -> str:
    out = Storage(job.out)
    if current().from_first(lambda: done(job) is None):
        began, paid = time.perf_counter(), ApiBudget.process()

        def leave(record: Mapping[str, Any]) -> None:
            """Leave a record of an attempt that is not done; of several processes, the first that failed tells why."""
            if current().alone or error_of(out, job.attempt) is None:
                spent, seconds = asdict(ApiBudget.process() - paid), time.perf_counter() - began
                whole = {**record, "installation": installation(), "seconds": seconds, "spent": spent}
                error_file(out, job.attempt).write(json.dumps(whole))

        try:
            _run(job, out, began, paid)
        except _GivenUp:
            if ApiBudget.process() != paid:
                leave({})
        except Exception as error:
            leave(
                {"error": error_to_dict(error)} if isinstance(error, RungError) else
                {"failed": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
            )  # fmt: skip
            raise
    return (out / MANIFEST).uri


class _GivenUp(Exception):  # noqa: N818
    """Whoever sent the job no longer wants it."""


def _run(job: Job, out: Storage, began: float, paid: Spent) -> None:
    """Work in a folder of this machine, copy it to storage, and write the manifest."""
    _check_versions(job)
    limits = Budget(QUIET, Limits(job.seconds, job.money))
    limits.money = lambda: (ApiBudget.process() - paid).money
    with TemporaryDirectory(prefix="rung-job-") as scratch:
        folder = Path(scratch) / "result"
        folder.mkdir()
        try:
            with _stoppable(limits):
                limits.check()  # remembered answers take no time, and report no progress
                values = KINDS[job.kind](job, folder, limits)
        except TimeUp:
            if limits.limits is STOPPED:
                raise _GivenUp from None
            raise MachineError("budget-spent", f"the job {job.id} used up its share of the budget") from None
        work = Work(time.perf_counter() - began, asdict(ApiBudget.process() - paid))
        publish(job, out, folder, work, values)


@contextmanager
def _stoppable(limits: Budget) -> Iterator[None]:
    """In a worker process, have the signal `STOP` end the job at its next report of progress; models stay loaded."""
    if STOP is None or signal.getsignal(STOP) is not signal.SIG_IGN:
        yield
        return

    def stop(*_: object) -> None:
        limits.limits = STOPPED

    signal.signal(STOP, stop)
    try:
        yield
    finally:
        signal.signal(STOP, signal.SIG_IGN)


class Work:
    """What some work took: seconds, and what it used at endpoints."""

    def __init__(self, seconds: float, spent: Mapping[str, float]) -> None:
        self.seconds, self.spent = seconds, spent


def publish(job: Job, out: Storage, folder: Path, work: Work, values: Mapping[str, Any]) -> None:
    """Copy a folder of this machine to `out`, and write the manifest last."""
    if not current().first:
        return
    name = f"attempt-{job.attempt}-{secrets.token_hex(4)}"
    (out / name).put(folder)
    result = Result(
        job=job.id, folder=name, sha256=hashes(folder), machine=machine_id(), seconds=work.seconds, spent=work.spent,
        values=values,
    )  # fmt: skip
    (out / MANIFEST).write(result.model_dump_json(indent=1))


def _check_versions(job: Job) -> None:
    """Refuse work that would not be what was asked for.

    Raises:
        MachineError: `worker-mismatch`.
    """
    if job.version != __version__:
        raise _mismatch(f"the job is for Rung {job.version}, and this worker has {__version__}")
    if lacking := [name for name in job.environment if not os.environ.get(name)]:
        raise _mismatch(f"this worker lacks the environment variables {', '.join(lacking)}")
    if job.resources.gpus:
        import torch

        if torch.cuda.device_count() < job.resources.gpus:
            raise _mismatch(
                f"the job needs {job.resources.gpus:g} GPUs, and this worker has {torch.cuda.device_count()}"
            )


def _mismatch(what: str) -> MachineError:
    hint = "give all workers the same version of Rung, the same files and the same environment, then run it again"
    return MachineError("worker-mismatch", what, hint=hint)


@lru_cache(maxsize=4)
def _read(file: str, overrides: tuple[tuple[str, str], ...], held_out: bool) -> tuple[Task, Data, dict[str, Example]]:
    task = Task.load(file, dict(overrides))
    check_allowed(task, file)
    task = task.held_out() if held_out else task
    data = task.read()
    rows = (*data.train, *data.validation, *data.test)
    return task, data, {row.id: row for row in rows}


def _task_of(job: Job) -> tuple[Task, Data, dict[str, Example]]:
    task, data, rows = _read(job.task, tuple(job.overrides.items()), job.held_out)
    for what, wanted, own in (
        ("task", job.task_fingerprint, task.fingerprint()), ("data", job.data_fingerprint, data.fingerprint),
    ):  # fmt: skip
        if wanted and wanted != own:
            raise _mismatch(f"the {what} of {job.task} is another here than where the job was made")
    return task, data, rows


@contextmanager
def _artifact_of(job: Job) -> Iterator[Artifact]:
    """Load the artifact that the job starts from; one that is not on this machine is copied for as long as it runs."""
    place = Storage(job.artifact)
    if (made := result_of(place)) is not None:
        place = place / made.folder / "artifact"
    with TemporaryDirectory(prefix="rung-artifact-") as scratch:
        folder = Path(place.path)
        if not place.local:
            folder = Path(scratch) / "artifact"
            place.get(folder)
        check_allowed(folder)
        own = fingerprint(folder) if (folder / MANIFEST).is_file() else ""
        loaded = _loaded(str(folder), own)
        if job.artifact_fingerprint not in ("", own):
            raise _mismatch(f"the artifact in {job.artifact} is another than when the job was made")
        yield loaded


@lru_cache(maxsize=8)
def _loaded(folder: str, key: str) -> Artifact:
    del key  # so that changed files are read again
    return Artifact.load(folder)


# ---- what each kind does: fill a folder, and return what the manifest tells besides


def _fit(job: Job, folder: Path, progress: Progress) -> dict[str, Any]:
    task, data, _ = _task_of(job)
    rung = _rung_of(job, task)
    rows = rung.rows_to_fit(data, job.fold)
    share = 1.0
    with _artifact_of(job) as base:
        with _kept_state(job) if rung.trains_weights else nullcontext():
            if job.options.get("parts"):
                share, made = next(rung.fit_in_parts(base, rows, after=job.options["after"], progress=progress))
            else:
                made = rung.fit(base, rows, progress=progress)
        if current().first:
            made.save(folder / "artifact")
    # What was chosen by trials is not chosen again for the other parts.
    chosen = {name: made.settings[rung.name][name] for name in CHOSEN if getattr(rung, name, None) == "auto"}
    return {"share": share, "chosen": chosen}


@contextmanager
def _kept_state(job: Job) -> Iterator[None]:
    """Have a climb's training keep its state among the jobs, where the workers of its other parts find it."""
    if "key" not in job.options:
        yield
        return
    place = Storage(job.out.rpartition("/")[0]) / "training" / hash_of(str(job.options["key"]), 16)
    folder = Path(place.path) if place.local else cache_dir() / "training" / f"job-{hash_of(place.uri, 16)}"
    if not place.local and current().first:
        place.get(folder)

    def put() -> None:
        if not place.local and current().first:
            place.put(folder)

    try:
        with training_in(folder):
            yield
    except PreemptedError:
        put()
        current().any(True)  # the others wait: torchrun ends the first process once another has ended
        raise
    put()


def _rung_of(job: Job, task: Task) -> Rung:
    return with_settings(build((job.rung,), task, job.seed)[0], job.settings)


def _answer(job: Job, folder: Path, progress: Progress) -> dict[str, Any]:
    task, _, rows = _task_of(job)
    assert job.split
    with _artifact_of(job) as artifact:
        asked = [rows[name] for name in job.ids]
        answered = evaluate(artifact, asked, job.split, folder=task.folder, progress=progress)
    lines = [json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in answered]
    (folder / "predictions.jsonl").write_text("".join(lines), "utf-8")
    return {}


def _predict(job: Job, folder: Path, progress: Progress) -> dict[str, Any]:
    with _artifact_of(job) as artifact:
        rows, answers = Storage(job.data), folder / ANSWERS
        return answer_part(artifact, rows, job.data_fingerprint, answers, job.options, progress)


def _trial(job: Job, folder: Path, progress: Progress) -> dict[str, Any]:
    task, data, _ = _task_of(job)
    with _artifact_of(job) as zero:
        raced = race_trial(zero, data, _rung_of(job, task), job.options["earlier"], progress)
    if raced.artifact is not None:
        raced.artifact.save(folder / "artifact")
    return {"scores": raced.scores, "beaten": raced.beaten, "reason": raced.reason, "seconds": raced.seconds}


KINDS: Mapping[str, Callable[[Job, Path, Progress], dict[str, Any]]] = {
    "fit": _fit, "answer": _answer, "predict": _predict, "trial": _trial,
}  # fmt: skip


def main() -> None:
    """Run the jobs that the parent process names, one after the other."""
    cores = [int(core) for core in os.environ.pop("RUNG_WORKER_CORES", "").split(",") if core]
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)  # every library then starts as many threads
    if STOP is not None:
        signal.signal(STOP, signal.SIG_IGN)  # between two jobs there is nothing to give up
    serve({"run": _run_allowed})


def _run_allowed(uri: str, endpoints: str) -> str:
    os.environ[HOSTS] = endpoints
    return run_job(uri)


if __name__ == "__main__":
    main()
