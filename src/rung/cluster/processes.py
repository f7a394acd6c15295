"""Executors without a cluster: this process, worker processes of this machine, and a command such as `srun`."""

from __future__ import annotations

import os
import queue
import shlex
import subprocess
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from rung import user_code
from rung.cluster.executor import SILENCE, Executor, worker_price
from rung.cluster.job import Resources
from rung.cluster.worker import STOP, run_job
from rung.errors import ConfigError, RungError
from rung.machine import end_group, own_cores
from rung.worker_pipes import WorkerEndedError, WorkerError, WorkerProcess

JOB = "{job}"
GRACE = 10.0  # seconds in which a command may end by itself
PATIENCE = 3.0  # seconds in which a worker may give up a job; then it is ended, and what it has loaded is lost


def open_executor(workers: str = "", on: str = "") -> Executor:
    """The executor that `--workers` and `--on` name.

    Args:
        workers: how many work at once: a number, or `auto` for one for each GPU, else one for each core.
        on: `ray`, the address of a Ray cluster (`ray://HOST:10001`), or a command with `{job}` in it; empty for this
            machine.

    Raises:
        ConfigError: `bad-option`.
        MachineError: `missing-extra`: Ray is not installed.
    """
    count = count_workers(workers, on)
    if _is_ray(on):
        from rung.cluster.ray_tasks import RayTasks

        return RayTasks(on.removeprefix("ray") and on, count)
    if on:
        assert count is not None
        return Commands(on, count)
    return Inline() if count == 1 else Processes(count or len(devices()) or len(own_cores()))


def count_workers(workers: str, on: str) -> int | None:
    """The number in `--workers`, or None for all that there are; raise ConfigError where it or `--on` is wrong."""
    count = None
    if workers not in ("", "auto"):
        if not workers.isdecimal() or not 1 <= int(workers) <= 10_000:
            where = " with --on" if on else ""
            raise ConfigError("bad-option", f"--workers {workers!r}{where}", hint="give a number from 1, or auto")
        count = int(workers)
    if on and not _is_ray(on):
        if JOB not in on:
            hint = "write `ray`, `ray://HOST:10001`, or a command such as --on 'srun rung worker {job}'"
            raise ConfigError("bad-option", f"--on {on!r} has no {JOB}", hint=hint)
        if count is None:
            hint = "say how many jobs may run at once: --workers 8"
            raise ConfigError("bad-option", "--on with a command needs --workers", hint=hint)
    return count


def _is_ray(on: str) -> bool:
    return on == "ray" or on.startswith("ray://")


def devices() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [each for each in named.split(",") if each.strip() not in ("", "-1")]
    return [path.name.removeprefix("nvidia") for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]


class Inline:
    """Runs every job in this process, when it is submitted."""

    needs = Resources()
    inside = True
    silence = float("inf")

    def __init__(self) -> None:
        self._ended: list[str] = []

    def submit(self, uri: str, resources: Resources) -> None:
        """Run the job."""
        del resources
        with suppress(Exception):  # its folder has the error
            run_job(uri, inside=True)
        self._ended.append(uri)

    def poll(self) -> Iterable[str]:
        """What was submitted since."""
        ended, self._ended = self._ended, []
        return ended

    def cancel(self, uri: str) -> None:
        """Nothing runs between two calls."""

    def capacity(self, resources: Resources) -> int:
        """One job."""
        del resources
        return 1

    def price(self, resources: Resources) -> float:
        """This machine's hour is priced already."""
        del resources
        return 0.0

    def close(self) -> None:
        """Nothing is open."""


class Processes(Inline):
    """Worker processes of this machine, which keep models loaded; each has a GPU, or its share of the cores."""

    inside = False

    def __init__(self, count: int) -> None:
        super().__init__()
        # Workers end by SIGKILL, so this process removes their temporary files.
        self._scratch = TemporaryDirectory(prefix="rung-workers-", ignore_cleanup_errors=True)
        self._jobs: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._waiting: list[str] = []  # jobs that no worker has begun
        # By a mark of each run, as a job may be sent again while its cancelled run still ends: the worker, and the job.
        self._workers: dict[object, tuple[WorkerProcess, str]] = {}
        self._lock, self._closed = threading.Lock(), False
        self._threads: list[threading.Thread] = []
        try:
            for own in environments(count):
                arguments = ({**own, "TMPDIR": self._scratch.name},)
                thread = threading.Thread(target=self._serve, args=arguments, daemon=True)
                thread.start()
                self._threads.append(thread)
        except BaseException:  # such as too many threads: those before it have begun, each with a process
            self.close()
            raise

    def submit(self, uri: str, resources: Resources) -> None:
        """Give the job to the next free worker."""
        del resources
        with self._lock:
            self._waiting.append(uri)
        self._jobs.put(uri)

    def poll(self) -> Iterable[str]:
        """The jobs whose worker has replied or ended."""
        ended = []
        with suppress(queue.Empty):
            while True:
                ended.append(self._done.get_nowait())
        return ended

    def cancel(self, uri: str) -> None:
        """Have the worker give the job up at its next report of progress; one that reports none is ended."""
        with self._lock:
            if uri in self._waiting:
                self._waiting.remove(uri)
                return
            for run, (worker, own) in self._workers.items():
                if own != uri:
                    continue
                if STOP is None:
                    end_group(worker.process)
                    continue
                worker.process.send_signal(STOP)
                timer = threading.Timer(PATIENCE, self._end, (run,))
                timer.daemon = True
                timer.start()

    def _end(self, run: object) -> None:
        """End the worker if it is still at this run."""
        with self._lock:
            if run in self._workers:
                end_group(self._workers[run][0].process)

    def capacity(self, resources: Resources) -> int:
        """The number of workers."""
        del resources
        return len(self._threads)

    def close(self) -> None:
        """End all workers, and what they run."""
        with self._lock:
            self._closed = True
            running = list(self._workers)
        for run in running:
            self._end(run)
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._scratch.cleanup()

    def _serve(self, environment: dict[str, str]) -> None:
        worker: WorkerProcess | None = None
        with suppress(OSError):  # tried again when a job comes
            worker = WorkerProcess("rung.cluster.worker", environment)  # it loads until then
        while (uri := self._jobs.get()) is not None:
            run = object()
            try:
                worker = worker or WorkerProcess("rung.cluster.worker", environment)
                with self._lock:
                    if self._closed:
                        break
                    if uri not in self._waiting:
                        continue
                    self._waiting.remove(uri)
                    self._workers[run] = worker, uri
                worker.call("run", uri, user_code.named_endpoints())  # by the command line of this process, too
            except (WorkerEndedError, OSError):  # it was lost, or cannot start
                worker = None
            except (RungError, WorkerError):
                pass  # the job's folder has the error
            finally:  # whatever happens: who sent the job waits for this
                with self._lock:
                    self._workers.pop(run, None)
                self._done.put(uri)
        if worker is not None:
            worker.close()


def environments(count: int) -> list[dict[str, str]]:
    """The variables of each worker: a GPU of its own where there are any, and its share of the cores."""
    gpus, cores = devices(), own_cores()
    each = max(1, len(cores) // count)
    own = []
    for number in range(count):
        mine = [cores[(number * each + place) % len(cores)] for place in range(each)]
        values = {"RUNG_WORKER_CORES": ",".join(map(str, mine))}
        if not hasattr(os, "sched_setaffinity") and "OMP_NUM_THREADS" not in os.environ:
            values["OMP_NUM_THREADS"] = str(each)  # each worker would take all cores
        if gpus:
            values["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
        own.append(values)
    return own


class Commands(Inline):
    """Starts a command for each job, which ends when the job has: `srun`, `kubectl run --attach`, `ssh`.

    Some go on when the machine of their worker is lost, so that only `silence` tells.
    """

    inside = False

    def __init__(self, template: str, count: int, silence: float = SILENCE) -> None:
        super().__init__()
        self.silence = silence
        self._template, self._count = template, count
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []

    def submit(self, uri: str, resources: Resources) -> None:
        """Start the command."""
        del resources
        command: Sequence[str] = [
            # A part with spaces is a command for a shell, as in ssh HOST 'rung worker {job}'.
            part.replace(JOB, shlex.quote(uri) if " " in part else uri)
            for part in shlex.split(self._template)
        ]
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
            )
        except OSError as error:
            hint = "the command of --on must be on the PATH"
            raise ConfigError("bad-option", f"{command[0]} cannot be started: {error.strerror}", hint=hint) from error
        self._running.append((uri, process))

    def poll(self) -> Iterable[str]:
        """The jobs whose command has ended."""
        ended = [each for each in self._running if each[1].poll() is not None]
        self._running = [each for each in self._running if each not in ended]
        return [uri for uri, _ in ended]

    def cancel(self, uri: str) -> None:
        """Ask the command to end."""
        for own, process in self._running:
            if own == uri:
                process.terminate()

    def capacity(self, resources: Resources) -> int:
        """As many as were asked for."""
        del resources
        return self._count

    def price(self, resources: Resources) -> float:
        """Other machines have a price of their own."""
        return worker_price() * max(1.0, resources.gpus)

    def close(self) -> None:
        """End all commands."""
        for _, process in self._running:
            process.terminate()
        for _, process in self._running:
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            end_group(process)
            process.wait()
        self._running.clear()
