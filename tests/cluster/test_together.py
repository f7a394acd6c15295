"""A job of the kind fit: several processes train together and one of them writes; a signal ends it for a while."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest
from typer.testing import CliRunner

from rung.artifact.artifact import Artifact
from rung.artifact.files import fingerprint
from rung.cli.main import app
from rung.cluster import executor as executor_module
from rung.cluster.executor import Dispatcher
from rung.cluster.job import Job, Storage, error_of, result_of
from rung.cluster.processes import Inline
from rung.cluster.worker import run_job
from rung.errors import PreemptedError
from rung.models.cache import cache_dir
from rung.task import Task
from rung.training.loop import _Run


@pytest.fixture
def job(small_task_file, tiny_zero, tiny_folder, tmp_path):
    overrides = {
        "model": str(tiny_folder), "data.train_per_label": "2", "data.validation_rows": "6", "data.test_rows": "6"
    }  # fmt: skip
    base = tiny_zero.save(tmp_path / "base")
    return Job(
        kind="fit", out=str(tmp_path / "out"), task=str(small_task_file), overrides=overrides, artifact=str(base),
        artifact_fingerprint=fingerprint(base), rung="lora", settings={"epochs": 1, "precision": "float32"},
    )  # fmt: skip


def written(job, folder):
    file = folder / "job.json"
    file.write_text(job.model_dump_json())
    return str(file)


def test_the_first_process_does_jobs_that_train_nothing(job, small_task_file, tmp_path, monkeypatch):
    rows = Task.load(small_task_file, dict(job.overrides)).read().test
    other = job.model_copy(update={"kind": "answer", "split": "test", "ids": tuple(row.id for row in rows[:2])})
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    run_job(written(other, tmp_path))
    assert result_of(Storage(other.out)) is None
    monkeypatch.setenv("RANK", "0")
    run_job(written(other, tmp_path))
    assert result_of(Storage(other.out)) is not None


@pytest.mark.parametrize(("name", "together"), [("majority", False), ("tfidf-head", False), ("lora", True)])
def test_processes_join_only_for_what_they_can_train_together(job, tmp_path, monkeypatch, name, together):
    worlds = []

    @contextmanager
    def notes(world):
        worlds.append(world.rank)
        yield world  # without others: `current` is that of one process

    monkeypatch.setattr("rung.cluster.worker.joined", notes)
    fit = job.model_copy(update={"rung": name, "settings": job.settings if together else {}})
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        run_job(written(fit, tmp_path))
        assert (result_of(Storage(fit.out)) is not None) == (together or rank == "0")
    assert worlds == ([1, 0] if together else [])


def test_a_process_without_the_files_ends_all_of_them(job, small_task_file, tmp_path):
    """The task file has a relative path, so the second process, in another folder, does not find it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = written(job.model_copy(update={"task": small_task_file.name}), tmp_path)
    told = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "rung", "worker", uri], cwd=folder, text=True,
            stderr=subprocess.PIPE, env=os.environ | told | {"RANK": str(rank), "RUNG_CACHE": str(tmp_path / "cache")},
        )
        for rank, folder in enumerate((small_task_file.parent, tmp_path))
    ]  # fmt: skip
    try:
        errors = [process.communicate(timeout=300)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [3, 2], errors
    assert "error[processes-apart]" in errors[0]
    assert "error[no-such-file]" in errors[1]
    assert error_of(Storage(job.out), 1)["error"]["code"] == "no-such-file"  # and not what followed from it


@pytest.fixture
def signals(monkeypatch):
    """A signal comes in each of these steps of a training: its handler is called, and this process is not at risk."""

    def step(run, batch):
        if run.result.steps + 1 in steps:
            steps.remove(run.result.steps + 1)
            handler = signal.getsignal(signal.SIGTERM)
            assert callable(handler)
            handler(signal.SIGTERM, None)
        return real(run, batch)

    steps, real = list[int](), _Run._step
    monkeypatch.setattr(_Run, "_step", step)
    return steps


class Apart(Inline):
    """Runs jobs as `rung worker` does, each on another machine, and notes what they ended with."""

    inside = False

    def __init__(self):
        super().__init__()
        self.ends = []

    def submit(self, uri, resources):
        for copy in (cache_dir() / "training").glob("job-*"):  # of a state that is elsewhere
            shutil.rmtree(copy)
        try:
            self.ends.append(run_job(uri))
        except PreemptedError as error:
            self.ends.append(error.message)
        self._ended.append(uri)


@pytest.mark.parametrize("place", ["", "memory://preempted"])
def test_a_lone_worker_that_is_preempted_keeps_its_training_and_the_next_attempt_goes_on(
    job, tmp_path, monkeypatch, signals, place
):
    monkeypatch.setenv("RUNG_CACHE", str(tmp_path / "cache"))
    long = job.model_copy(update={"settings": {**job.settings, "epochs": 4, "batch_size": 4}, "options": {"key": "a"}})
    plain = Dispatcher(Inline(), Storage(tmp_path / "plain"))
    key = plain.send(long)
    plain.wait([key])
    whole = plain.result(key)
    jobs, executor = Storage(place or tmp_path / "jobs"), Apart()

    signals += [3, 5, 6]
    dispatcher = Dispatcher(executor, jobs)
    key = dispatcher.send(long)
    dispatcher.wait([key])
    result = dispatcher.result(key)
    assert [end.partition(" of ")[0] for end in executor.ends[:3]] == [
        f"a signal ended the training after step {step}" for step in (3, 5, 6)
    ]
    assert result.folder.startswith("attempt-4-")
    assert {name: sha for name, sha in result.sha256.items() if "adapter" in name} == {
        name: sha for name, sha in whole.sha256.items() if "adapter" in name
    }
    jobs.remove()


def test_preemptions_are_neither_losses_nor_failures_and_have_an_end(job, tmp_path, monkeypatch, signals):
    monkeypatch.setenv("RUNG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(executor_module, "PREEMPTIONS", 2)
    executor = Apart()
    signals += [1, 2, 3]
    dispatcher = Dispatcher(executor, Storage(tmp_path / "jobs"))
    key = dispatcher.send(job.model_copy(update={"settings": {**job.settings, "batch_size": 2}}))
    dispatcher.wait([key])
    assert len(executor.ends) == 3
    with pytest.raises(PreemptedError) as caught:
        dispatcher.result(key)
    assert caught.value.exit_code == 75


def test_a_worker_that_is_preempted_says_so_and_a_worker_process_still_gives_up(job, tmp_path, monkeypatch, signals):
    monkeypatch.setenv("RUNG_CACHE", str(tmp_path / "cache"))
    signals.append(1)
    ended = CliRunner().invoke(app, ["worker", written(job, tmp_path)])
    assert isinstance(ended.exception, PreemptedError)
    assert "its state is kept" in str(ended.exception)
    assert error_of(Storage(job.out), 1)["error"]["code"] == "preempted"
    assert list((tmp_path / "cache" / "training").glob("*/step-00000001"))
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # as worker processes have it between two jobs
    try:
        real = _Run._step
        monkeypatch.setattr(
            _Run, "_step", lambda run, batch: (os.kill(os.getpid(), signal.SIGUSR1), real(run, batch))[1]
        )
        run_job(written(job.model_copy(update={"attempt": 2}), tmp_path))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert result_of(Storage(job.out)) is None
    assert error_of(Storage(job.out), 2) is None


@pytest.mark.slow
def test_torchrun_runs_one_job_in_two_processes(job, tmp_path):
    env = os.environ | {"RUNG_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "rung"]
    done = subprocess.run([*torchrun, "worker", written(job, tmp_path)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    attempts = [each for each in (tmp_path / "out").iterdir() if each.is_dir()]
    result = result_of(Storage(job.out))
    assert [each.name for each in attempts] == [result.folder]
    together = Artifact.load(attempts[0] / "artifact")
    alone = job.model_copy(update={"out": str(tmp_path / "alone")})
    run_job(written(alone, tmp_path))
    one = Artifact.load(tmp_path / "alone" / result_of(Storage(alone.out)).folder / "artifact")
    losses = [[loss for _, loss in json.loads(json.dumps(each.settings))["lora"]["losses"]] for each in (one, together)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
