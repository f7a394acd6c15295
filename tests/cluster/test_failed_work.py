"""What goes wrong around jobs: full storage, changed files, other clocks, odd paths, ends at any moment."""

from __future__ import annotations

import errno
import json
import os
import shlex
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from letters import write_rows
from rung.artifact.files import fingerprint
from rung.cli.main import app
from rung.climbing.budget import Budget
from rung.climbing.store import open_run
from rung.cluster.executor import Dispatcher, jobs_in
from rung.cluster.job import Job, Storage, done, error_file, fetch, installation, sign_file
from rung.cluster.processes import Commands, Inline, Processes
from rung.cluster.worker import KINDS, run_job
from rung.errors import ConfigError, MachineError
from rung.progress import QUIET
from rung.task import Task
from rung.worker_pipes import error_to_dict

ODD = "a b::c [x]* 'q' #1"


def part(folder: Path, count: int) -> str:
    file = folder / f"{count}.jsonl"
    file.write_text("".join(json.dumps([f"rows:{i}", {"text": "ab"}, {}]) + "\n" for i in range(count)))
    return str(file)


@pytest.fixture
def job(letters_folder, tmp_path) -> Job:
    """A job that answers three rows."""
    return Job(
        kind="predict", out="", artifact=str(letters_folder), data=part(tmp_path, 3),
        artifact_fingerprint=fingerprint(letters_folder), options={"columns": {"kept": [], "top_k": 0}},
    )  # fmt: skip


def finished(dispatcher, key):
    dispatcher.wait([key])
    return dispatcher.result(key)


def test_full_storage_ends_the_work_with_its_reason(job, tmp_path, monkeypatch):
    from fsspec.implementations.local import LocalFileSystem

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    dispatcher = Dispatcher(Inline(), Storage(tmp_path / "jobs"))
    monkeypatch.setattr(LocalFileSystem, "put_file", full)
    with pytest.raises(MachineError, match="No space left") as caught:
        dispatcher.wait([dispatcher.send(job)])
    assert caught.value.code == "storage-refused"


def test_the_result_of_a_job_that_was_changed_on_its_way_is_not_taken(job, tmp_path):
    class Changes(Inline):
        """The first worker reads another job than the one that was sent."""

        def submit(self, uri, resources):
            if uri.endswith("job-1.json"):
                Path(uri).write_text(json.dumps({**json.loads(Path(uri).read_text()), "data": part(tmp_path, 5)}))
            super().submit(uri, resources)

    dispatcher = Dispatcher(Changes(), Storage(tmp_path / "jobs"))
    key = dispatcher.send(job)
    dispatcher.wait([key])
    assert dispatcher.result(key).folder.startswith("attempt-2-")
    assert dispatcher.result(key).values["rows"] == 3


@pytest.mark.parametrize(("place", "code"), [("elsewhere:/venv", "worker-mismatch"), (installation(), "missing-extra")])
def test_a_library_that_only_a_worker_lacks_ends_the_work(job, tmp_path, place, code):
    class Lacks(Inline):
        """Its workers have other extras than this process, or the same."""

        def submit(self, uri, resources):
            sent, error = Job.read(uri), MachineError("missing-extra", "heads need sklearn", hint="install it")
            record = {"error": error_to_dict(error), "installation": place}
            error_file(Storage(sent.out), sent.attempt).write(json.dumps(record))
            self._ended.append(uri)

    dispatcher = Dispatcher(Lacks(), Storage(tmp_path / "jobs"))
    key = dispatcher.send(job)
    with pytest.raises(MachineError, match="heads need sklearn") as caught:
        finished(dispatcher, key)
    assert caught.value.code == code


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"kind": "dance", "out": ""}'])
def test_a_later_process_does_not_take_over_what_a_damaged_job_file_names(job, tmp_path, damage):
    place = Storage(tmp_path / "jobs")
    dispatcher = Dispatcher(Inline(), place)
    key = dispatcher.send(job)
    dispatcher.wait([key])
    assert [found.id for found, _ in jobs_in(place)] == [key]
    (tmp_path / "jobs" / key / "job-1.json").write_text(damage)
    assert list(jobs_in(place)) == []


def test_changed_files_of_a_result_are_an_error_that_says_what_to_remove(job, tmp_path):
    dispatcher = Dispatcher(Inline(), Storage(tmp_path / "jobs"))
    key = dispatcher.send(job)
    dispatcher.wait([key])
    out, result = Storage(tmp_path / "jobs") / key, dispatcher.result(key)
    (tmp_path / "jobs" / key / result.folder / "answers.jsonl").write_text("")
    with pytest.raises(MachineError) as caught:
        fetch(out, result, tmp_path)
    assert f"remove {out.uri}" in caught.value.hint


@pytest.mark.parametrize("moment", [0, 4102444800])  # 1970 and 2100
def test_clocks_that_differ_change_nothing(job, tmp_path, moment):
    place = Storage(tmp_path / "jobs")
    dispatcher = Dispatcher(Inline(), place)
    key = dispatcher.send(job)
    dispatcher.wait([key])
    for file in (tmp_path / "jobs").rglob("*"):
        os.utime(file, (moment, moment))
    later = Dispatcher(Inline(), place)
    assert later.over(later.send(job))
    assert done(later.job(key)) == dispatcher.result(key)


def test_a_second_climb_may_not_go_on_with_the_folder_of_one_that_runs(tmp_path):
    identity = {"task": "letters"}
    first = open_run(tmp_path, identity, Budget(QUIET), resume=False)
    with pytest.raises(ConfigError, match="another climb is writing") as caught:
        open_run(tmp_path, identity, Budget(QUIET), resume=True)
    assert caught.value.code == "file-in-use"
    other = open_run(tmp_path, identity, Budget(QUIET), resume=False)
    assert other.folder != first.folder
    other.release()
    again = open_run(tmp_path, identity, Budget(QUIET), resume=True)
    assert again.folder == other.folder
    again.release()
    first.release()


def test_any_path_will_do_for_jobs_and_commands_get_it_as_one_word(job, tmp_path):
    place = Storage(tmp_path / ODD)
    place.probe()
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "a").write_text("1")
    copy = place / "copy"
    copy.put(tmp_path / "from")
    copy.get(tmp_path / "back")
    assert (tmp_path / "back" / "a").read_text() == "1"
    copy.remove()
    assert place.folders() == []
    code = "import sys, pathlib; pathlib.Path(sys.argv[1] + '.seen').touch()"
    for template in (f'{sys.executable} -c "{code}" {{job}}', "sh -c 'touch {job}.seen'"):
        executor = Commands(template, 1)
        executor.submit(str(tmp_path / ODD / "job.json"), executor.needs)
        while not list(executor.poll()):
            time.sleep(0.01)
        (seen,) = (tmp_path / ODD).iterdir()
        assert seen.name == "job.json.seen"
        seen.unlink()


def test_a_name_too_long_for_folders_is_refused_where_it_stands():
    fields = {"instruction": "Which?", "inputs": ["text"], "output": {"column": "label", "kind": "category"}}
    rows = [{"text": "x", "label": "a"}, {"text": "y", "label": "b"}]
    assert Task(name="n" * 100, data=rows, **fields).name
    with pytest.raises(ConfigError, match="name"):
        Task(name="n" * 101, data=rows, **fields)


@pytest.mark.parametrize("seconds", [0.0, 0.5, 3.0])
def test_workers_end_at_whatever_they_are(job, tmp_path, seconds):
    executor = Processes(2)
    workers = []
    dispatcher = Dispatcher(executor, Storage(tmp_path / "jobs"))
    data = part(tmp_path, 200_000)
    for seed in range(3):
        dispatcher.send(job.model_copy(update={"data": data, "seed": seed}))
    time.sleep(seconds)
    workers += [worker.process for worker, _ in executor._workers.values()]
    dispatcher.close()
    assert all(worker.poll() is not None for worker in workers)
    assert not any(thread.is_alive() for thread in executor._threads)
    assert list((tmp_path / "jobs").glob("*/manifest.json")) == []


@pytest.mark.parametrize("command", ["predict", "climb", "tune"])
def test_workers_end_with_a_command_that_fails_before_it_uses_them(
    command, letters_folder, free_task_file, tmp_path, monkeypatch
):
    opened, closed = [], []

    class Watched(Inline):
        def __init__(self, count):
            super().__init__()
            opened.append(count)

        def close(self):
            closed.append(True)

    out = tmp_path / "out.jsonl"
    out.write_text("")
    words = {
        "predict": [letters_folder, write_rows(tmp_path / "rows.csv", 3), "--out", out],
        "climb": [free_task_file, "--rungs", "nonsense", "--out", tmp_path],
        "tune": [free_task_file, "--rung", "nonsense", "--out", tmp_path],
    }
    monkeypatch.setattr("rung.cluster.processes.Processes", Watched)
    failed = CliRunner().invoke(app, [command, *map(str, words[command]), "--workers", "2", "--quiet"])
    assert isinstance(failed.exception, ConfigError)
    assert opened == [2]
    assert closed


# ---- workers of other machines, of which nothing is heard


class Elsewhere(Inline):
    """Commands that never end by themselves; the test plays the workers."""

    inside, silence = False, 300.0

    def __init__(self):
        super().__init__()
        self.started, self.cancelled = [], []

    def submit(self, uri, resources):
        self.started.append(uri)

    def cancel(self, uri):
        self.cancelled.append(uri)


@pytest.fixture
def clock(monkeypatch):
    """The time of the dispatcher, which only the test lets go on."""
    now = [1000.0]
    stand_in = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: None)
    monkeypatch.setattr("rung.cluster.executor.time", stand_in)
    return now


def names(uris):
    return [Path(uri).name for uri in uris]


def test_a_job_that_waits_is_not_lost_and_one_whose_worker_falls_silent_is_started_again(job, tmp_path, clock):
    executor = Elsewhere()
    dispatcher = Dispatcher(executor, Storage(tmp_path / "jobs"))
    out = tmp_path / "jobs" / job.id
    out.mkdir()
    (out / "alive-1").write_text("earlier 7")  # of another command that had sent the job, and was killed
    key = dispatcher.send(job)

    def after(seconds, sign=""):
        if sign:
            sign_file(Storage(out), 1).write(sign)
        clock[0] += seconds
        dispatcher.step()
        return dispatcher.note

    assert Job.read(executor.started[0]).beat == 15.0
    assert dispatcher.note == "1 at work"
    assert after(720) == "0 at work, 1 waiting for a place since 12 min"
    assert after(15, "own 0") == "1 at work"
    assert after(600, "own 1") == "1 at work"  # this process did not look for long, and the worker lives
    assert after(300) == "1 at work"
    assert executor.cancelled == []
    after(15)
    assert names(executor.cancelled) == ["job-1.json"]
    assert names(executor.started) == ["job-1.json", "job-2.json"]
    executor._ended.append(executor.started[0])  # its command has ended now
    dispatcher.step()
    assert not dispatcher.over(key)
    run_job(executor.started[1])
    executor._ended.append(executor.started[1])
    dispatcher.wait([key])
    assert dispatcher.result(key).folder.startswith("attempt-2-")


def test_what_a_worker_had_finished_counts_although_its_command_hangs(job, tmp_path, clock):
    executor = Elsewhere()
    dispatcher = Dispatcher(executor, Storage(tmp_path / "jobs"))
    key = dispatcher.send(job)
    run_job(executor.started[0])
    for _ in range(2):
        clock[0] += 301
        dispatcher.step()
    assert dispatcher.result(key).values["rows"] == 3
    assert names(executor.started) == ["job-1.json"]


def test_a_worker_gives_signs_of_life_while_it_works_and_none_later(job, tmp_path, monkeypatch):
    file, seen = tmp_path / "out" / "alive-1", set()

    def works(*_):
        while len(seen) < 3:
            if file.exists():
                seen.add(file.read_text())
        return {"rows": 0}

    monkeypatch.setitem(KINDS, "predict", works)
    for beat, signs in ((0.01, True), (0.0, False)):
        out = tmp_path / ("out" if signs else "silent")
        written = tmp_path / "job.json"
        written.write_text(job.model_copy(update={"out": str(out), "beat": beat}).model_dump_json())
        run_job(str(written))
        assert (out / "alive-1").exists() == signs
    assert not [thread for thread in threading.enumerate() if thread.name == "rung-alive"]


def test_a_job_is_started_again_when_its_command_hangs_without_a_worker(job, tmp_path):
    worker = f"exec {shlex.quote(sys.executable)} -W ignore -m rung worker {{job}}"
    hangs = 'echo begun > "$(dirname {job})/alive-1"; exec sleep 600'
    script = f"case {{job}} in *job-1.json) {hangs};; *) {worker};; esac"
    executor = Commands(shlex.join(["sh", "-c", script]), 1, silence=4.0)
    dispatcher = Dispatcher(executor, Storage(tmp_path / "jobs"))
    try:
        assert finished(dispatcher, dispatcher.send(job)).values["rows"] == 3
    finally:
        dispatcher.close()


def test_a_command_that_ends_without_its_job_has_lost_it(job, tmp_path):
    dispatcher = Dispatcher(Commands("true {job}", 1), Storage(tmp_path / "jobs"))
    with pytest.raises(MachineError, match="lost its worker 4 times") as caught:
        finished(dispatcher, dispatcher.send(job))
    assert caught.value.code == "worker-lost"
    dispatcher.close()
