"""A job of the kind fit in several processes: they train together, and one of them writes."""

import json
import os
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest

from rung.artifact.artifact import Artifact
from rung.artifact.files import fingerprint
from rung.cluster.job import Job, Storage, error_of, result_of
from rung.cluster.worker import run_job
from rung.task import Task


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
