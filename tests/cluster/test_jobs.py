"""The seam: a job is a file, its result a folder with a manifest, written last; what differs is refused."""

from __future__ import annotations

import json
import os
import queue
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from letters import write_rows
from rung.artifact.files import fingerprint
from rung.cluster import executor as executor_module
from rung.cluster.executor import RETRIES, Dispatcher, worker_price
from rung.cluster.job import MANIFEST, Job, Resources, Storage, error_of, fetch, hashes, result_of, shared
from rung.cluster.processes import Inline, Processes, environments
from rung.cluster.worker import KINDS, STOPPED, run_job
from rung.engines.api_options import ApiBudget, Spent
from rung.errors import ConfigError, MachineError, RungError
from rung.worker_pipes import WorkerEndedError


@pytest.fixture
def job(letters_folder, tmp_path) -> Job:
    """A job that answers three rows."""
    rows = tmp_path / "part.jsonl"
    rows.write_text("".join(json.dumps([f"rows:{i}", {"text": "ab" * i}, {}]) + "\n" for i in (1, 2, 3)))
    return Job(
        kind="predict", out=str(tmp_path / "out"), artifact=str(letters_folder), data=str(rows),
        artifact_fingerprint=fingerprint(letters_folder), options={"columns": {"kept": [], "top_k": 0}},
    )  # fmt: skip


def written(job: Job, folder: Path) -> str:
    file = folder / "job.json"
    file.write_text(job.model_dump_json())
    return str(file)


def test_a_job_is_done_once_and_its_manifest_has_the_hashes_of_its_files(job, tmp_path):
    manifest = Path(run_job(written(job, tmp_path)))
    result = result_of(Storage(job.out))
    assert manifest == tmp_path / "out" / MANIFEST
    assert result.job == job.id
    assert {name: count for name, count in result.values.items() if count} == {"rows": 3}
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*")}
    run_job(written(job.model_copy(update={"attempt": 2}), tmp_path))
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*")} == before
    folder = fetch(Storage(job.out), result, tmp_path)
    assert [json.loads(line)["row"] for line in (folder / "answers.jsonl").read_text().splitlines()] == [
        "rows:1", "rows:2", "rows:3",
    ]  # fmt: skip
    (folder / "answers.jsonl").write_text("{}")
    with pytest.raises(MachineError, match="not those of its manifest"):
        fetch(Storage(job.out), result, tmp_path)


def test_half_a_manifest_is_none(job, tmp_path):
    manifest = Path(run_job(written(job, tmp_path)))
    manifest.write_text(manifest.read_text()[:50])
    assert result_of(Storage(job.out)) is None
    run_job(written(job.model_copy(update={"attempt": 2}), tmp_path))
    assert result_of(Storage(job.out)).folder.startswith("attempt-2-")


def test_a_job_has_an_identity_whoever_does_it_and_holds_no_secret(job):
    same = job.model_copy(update={"attempt": 3, "resources": Resources(cpus=8), "out": "elsewhere", "seconds": 5.0})
    assert same.id == job.id != job.model_copy(update={"seed": 1}).id
    for values in ({"environment": ("HF_TOKEN=abc",)}, {"out": "s3://me:secret@bucket/x"}, {"token": "abc"}):
        with pytest.raises(ValueError, match=r"password|pattern|not permitted"):
            Job.model_validate({**job.model_dump(), **values})


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"version": "0.0.1"}, "Rung 0.0.1"),
        ({"artifact_fingerprint": "0" * 64}, "another than when the job was made"),
        ({"environment": ("RUNG_NOT_SET_HERE",)}, "RUNG_NOT_SET_HERE"),
    ],
)
def test_a_worker_that_differs_refuses_and_nothing_is_tried_again(job, tmp_path, change, names):
    other = job.model_copy(update=change)
    starts = []

    class Counts(Inline):
        def submit(self, uri, resources):
            starts.append(uri)
            super().submit(uri, resources)

    dispatcher = Dispatcher(Counts(), Storage(tmp_path / "jobs"), other.environment)
    with pytest.raises(MachineError, match=names) as caught:
        dispatcher.wait([dispatcher.send(other)])
    assert caught.value.code == "worker-mismatch"
    assert len(starts) == 1


def test_storage_that_refuses_is_known_before_anything_starts(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError) as caught:
        Dispatcher(Inline(), Storage(tmp_path / "file" / "jobs"))
    assert caught.value.code == "storage-refused"
    with pytest.raises(MachineError, match="unheard"):
        Storage("unheard://bucket/folder")


@pytest.mark.parametrize("address", ["ftp://me:secret@host/j", "simplecache::ftp://me:secret@host/j", "s3://:secret@b"])
def test_an_address_with_a_password_is_refused_and_not_repeated(address):
    with pytest.raises(ConfigError) as caught:
        Storage(address)
    assert caught.value.code == "bad-option"
    assert "secret" not in f"{caught.value} {caught.value.hint}"


def test_workers_in_other_folders_find_storage_that_was_named_by_a_relative_path(job, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dispatcher = Dispatcher(Inline(), Storage("runs/jobs"))
    key = dispatcher.send(job)
    assert dispatcher.job(key).out == str(tmp_path / "runs" / "jobs" / key)
    assert Storage(Path("runs")).uri == str(tmp_path / "runs")


def test_the_copy_of_an_artifact_is_complete_once_its_manifest_is_there(tmp_path, monkeypatch):
    from fsspec.implementations.memory import MemoryFileSystem

    for name in ("config.json", MANIFEST, "members/0/weights", f"members/0/{MANIFEST}"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    copied, put = [], MemoryFileSystem.put_file

    def notes(self, file, target, **more):
        copied.append(Path(file).relative_to(tmp_path).as_posix())
        put(self, file, target, **more)

    monkeypatch.setattr(MemoryFileSystem, "put_file", notes)
    place = Storage("memory://scale-copy")
    assert shared(place, tmp_path, "0" * 64) == f"{place.uri}/artifact-{'0' * 16}"
    assert copied[-1] == MANIFEST
    assert len(copied) == 4
    place.remove()


def test_the_probe_leaves_nothing_and_a_store_in_memory_is_like_a_folder(job, tmp_path):
    place = Storage("memory://scale/jobs")
    place.probe()
    assert place.folders() == []
    dispatcher = Dispatcher(Inline(), place)
    key = dispatcher.send(job)
    dispatcher.wait([key])
    folder = fetch(place / key, dispatcher.result(key), tmp_path / "copy")
    assert sorted(hashes(folder)) == ["answers.jsonl"]
    again = Dispatcher(Inline(), place)
    assert again.done(job)
    assert again.over(again.send(job))
    place.remove()


def test_a_job_that_fails_twice_alike_has_failed_and_one_that_is_lost_is_started_again(job, tmp_path):
    broken = job.model_copy(update={"data": str(tmp_path / "nowhere.jsonl"), "options": {"columns": {}}})
    dispatcher = Dispatcher(Inline(), Storage(tmp_path / "jobs"))
    key = dispatcher.send(broken.model_copy(update={"data": job.data}))
    dispatcher.wait([key])
    with pytest.raises(Exception, match="KeyError: 'kept'"):
        dispatcher.result(key)
    assert len(list((tmp_path / "jobs" / key).glob("failed-*.json"))) == 2

    class Loses(Inline):
        left = 2

        def submit(self, uri, resources):
            self.left -= 1
            if self.left < 0:
                super().submit(uri, resources)
            else:
                self._ended.append(uri)

    dispatcher = Dispatcher(Loses(), Storage(tmp_path / "other"))
    key = dispatcher.send(job)
    dispatcher.wait([key])
    assert dispatcher.result(key).folder.startswith("attempt-3-")
    Loses.left = RETRIES + 1
    dispatcher = Dispatcher(Loses(), Storage(tmp_path / "third"))
    key = dispatcher.send(job)
    dispatcher.wait([key])
    with pytest.raises(MachineError, match="lost its worker 4 times") as caught:
        dispatcher.result(key)
    assert caught.value.code == "worker-lost"


def test_a_killed_worker_process_is_replaced_and_its_job_done(job, tmp_path, letters_folder):
    rows = write_rows(tmp_path / "rows.csv", 4000).read_text().splitlines()[1:]
    part = tmp_path / "many.jsonl"
    part.write_text("".join(json.dumps([row, {"text": row.split(",")[1]}, {}]) + "\n" for row in rows))
    executor, killed = Processes(1), set()
    dispatcher = Dispatcher(executor, Storage(tmp_path / "jobs"))

    def kill():
        for worker, _ in list(executor._workers.values()):
            if len(killed) < 2 and worker.process.pid not in killed:
                os.killpg(worker.process.pid, signal.SIGKILL)
                killed.add(worker.process.pid)

    key = dispatcher.send(job.model_copy(update={"data": str(part)}))
    dispatcher.wait([key], kill)
    result = dispatcher.result(key)
    assert result.folder.startswith("attempt-3-")
    assert result.values["rows"] == 4000
    dispatcher.close()


def test_a_worker_gives_a_job_up_and_keeps_what_it_has_loaded(job, tmp_path):
    rows = write_rows(tmp_path / "rows.csv", 40_000).read_text().splitlines()[1:]
    part = tmp_path / "many.jsonl"
    part.write_text("".join(json.dumps([row, {"text": row.split(",")[1]}, {}]) + "\n" for row in rows))
    executor = Processes(1)
    dispatcher = Dispatcher(executor, Storage(tmp_path / "jobs"))
    dispatcher.wait([dispatcher.send(job)])
    long = job.model_copy(update={"data": str(part)})
    key = dispatcher.send(long)
    while not executor._workers:
        time.sleep(0.01)
    time.sleep(0.3)
    worker, _ = next(iter(executor._workers.values()))
    dispatcher.cancel([key])
    assert not dispatcher.knows(key)
    other = dispatcher.send(job.model_copy(update={"seed": 7}))
    dispatcher.wait([other])
    assert dispatcher.result(other).values["rows"] == 3
    assert worker.process.poll() is None
    assert not (tmp_path / "jobs" / key / "manifest.json").exists()
    assert [file.name for file in (tmp_path / "jobs" / key).iterdir()] == ["job-1.json"]  # no error either
    assert dispatcher.send(long) == key  # wanted after all
    dispatcher.cancel([dispatcher.send(job.model_copy(update={"seed": 8}))])  # one that waits for a worker
    dispatcher.wait([key])
    assert dispatcher.result(key).values["rows"] == 40_000
    assert worker.process.poll() is None
    dispatcher.close()
    assert worker.process.poll() is not None


def test_what_may_be_needed_waits_for_what_is_and_leaves_a_worker_free(job, tmp_path):
    class Holds(Inline):
        def __init__(self):
            super().__init__()
            self.started = []

        def submit(self, uri, resources):
            self.started.append(uri)

        def capacity(self, resources):
            return 3

    executor = Holds()
    dispatcher = Dispatcher(executor, Storage(tmp_path / "jobs"))
    jobs = [job.model_copy(update={"seed": seed}) for seed in range(6)]
    keys = [dispatcher.send(each, ahead=True) for each in jobs[:4]]
    assert len(executor.started) == 2  # one place is kept for what is waited for
    needed = dispatcher.send(jobs[4])
    later = dispatcher.send(jobs[5], after=needed)
    assert [Path(uri).parent.name for uri in executor.started] == [*keys[:2], needed]
    run_job(executor.started[-1])
    executor._ended.append(executor.started[-1])
    dispatcher._pump()
    assert Path(executor.started[-1]).parent.name == later
    dispatcher.cancel(keys)
    dispatcher.close()


class Held(Inline):
    """Three places elsewhere, with a price; the test says when a job runs and ends."""

    inside = False

    def __init__(self) -> None:
        super().__init__()
        self.started: list[str] = []

    def submit(self, uri, resources):
        self.started.append(uri)

    def finish(self, uri, *, run=True):
        if run:
            counted = list(ApiBudget._elsewhere)
            with suppress(Exception):
                run_job(uri)
            ApiBudget._elsewhere[:] = counted  # what another process uses is not seen here
        self._ended.append(uri)

    def capacity(self, resources):
        return 3

    def price(self, resources):
        return 3600.0  # 1 a second


def test_places_that_come_later_are_used(job, tmp_path, monkeypatch):
    class Grows(Held):
        places = 1

        def capacity(self, resources):
            return self.places

    monkeypatch.setattr(executor_module, "CAPACITY_SECONDS", 0.0)
    executor = Grows()
    dispatcher = Dispatcher(executor, Storage(tmp_path / "jobs"))
    for seed in range(6):
        dispatcher.send(job.model_copy(update={"seed": seed}))
    started = [len(executor.started)]
    for places in (3, 2, 4):
        executor.places = places
        dispatcher.step()
        started.append(len(executor.started))
    assert started == [1, 3, 3, 4]  # what runs goes on where there are fewer
    dispatcher.close()


@pytest.fixture
def pays(monkeypatch):
    """A job of the kind `predict` costs 0.5 at an endpoint, and does what the test says."""

    def paid(job, folder, progress):
        ApiBudget.add(Spent(requests=1, money=0.5))
        acts(progress)
        return {"rows": 0}

    def act(what):
        nonlocal acts
        acts = what

    acts = id
    monkeypatch.setitem(KINDS, "predict", paid)
    return act


def fails(_):
    raise ValueError("no")


def given_up(progress):
    progress.limits = STOPPED
    progress.advance(0)


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize(("act", "times"), [(id, 1), (fails, 2)])
def test_every_attempt_is_paid_once_wherever_it_runs(job, tmp_path, pays, inside, act, times):
    class Anywhere(Held):
        def submit(self, uri, resources):
            self.finish(uri)

    pays(act)
    before = ApiBudget.process()
    dispatcher = Dispatcher(Inline() if inside else Anywhere(), Storage(tmp_path / "jobs"))
    dispatcher.wait([dispatcher.send(job)])
    spent = ApiBudget.process() - before
    assert (spent.requests, spent.money) == (times, pytest.approx(0.5 * times))


def test_a_cancelled_attempt_is_paid_when_it_ends(job, tmp_path, pays):
    pays(given_up)
    before, executor = ApiBudget.process(), Held()
    dispatcher = Dispatcher(executor, Storage(tmp_path / "jobs"))
    dispatcher.cancel([dispatcher.send(job)])
    executor.finish(executor.started[0])
    dispatcher.step()
    assert (ApiBudget.process() - before).money == pytest.approx(0.5)


def test_hours_count_while_a_job_runs_and_then_only_what_it_took(job, tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("rung.cluster.executor.time", SimpleNamespace(monotonic=lambda: clock[0], sleep=time.sleep))
    executor = Held()
    dispatcher = Dispatcher(executor, Storage(tmp_path / "jobs"))
    key = dispatcher.send(job)
    clock[0] += 5000
    assert dispatcher.money == pytest.approx(5000)
    executor.finish(executor.started[0])
    dispatcher.wait([key])
    assert dispatcher.money == pytest.approx(dispatcher.result(key).seconds) != pytest.approx(5000)
    dispatcher.send(job.model_copy(update={"seed": 1}))
    clock[0] += 70
    dispatcher.close()
    assert dispatcher.money == pytest.approx(70 + dispatcher.result(key).seconds)


def test_the_shares_of_all_jobs_that_run_are_within_the_money_left(job, tmp_path):
    left, executor = [9.0], Held()
    dispatcher = Dispatcher(executor, Storage(tmp_path / "jobs"))
    dispatcher.money_left = lambda: left[0]
    for seed in range(5):
        dispatcher.send(job.model_copy(update={"seed": seed}))
    assert [Job.read(uri).money for uri in executor.started] == [3.0, 3.0, 3.0]
    left[0] = 7.0  # the first one took 2
    executor.finish(executor.started[0])
    dispatcher.step()
    assert Job.read(executor.started[3]).money == 1.0
    left[0] = 6.0
    executor.finish(executor.started[3])
    dispatcher.step()
    assert len(executor.started) == 4  # the two that run hold all that is left
    executor.finish(executor.started[1])
    dispatcher.step()
    assert Job.read(executor.started[4]).money == 1.5
    dispatcher.close()


class Stub:
    """Stands in for a worker process: it works until the test lets it, or it is killed."""

    def __init__(self, module, environment):
        self.process, self.free, self.killed = self, threading.Event(), False
        self.environment = environment
        STUBS.append(self)

    def call(self, name, uri, hosts):
        CALLS.put(uri)
        self.free.wait(20)
        self.free.clear()
        if self.killed:
            raise WorkerEndedError(-9)

    def send_signal(self, number):
        pass

    def close(self):
        pass


STUBS: list[Stub] = []
CALLS: queue.SimpleQueue[str] = queue.SimpleQueue()


def kill(stub):
    stub.killed = True
    stub.free.set()


def told(executor, count):
    """So many jobs that the executor tells as ended."""
    ended = []
    for _ in range(2000):
        ended += executor.poll()
        if len(ended) >= count:
            break
        time.sleep(0.005)
    return ended


@pytest.fixture
def stubs(monkeypatch):
    STUBS.clear()
    monkeypatch.setattr("rung.cluster.processes.WorkerProcess", Stub)
    monkeypatch.setattr("rung.cluster.processes.end_group", kill)
    return STUBS


def test_a_job_that_is_sent_again_while_its_cancelled_run_ends_is_told_twice(stubs):
    executor = Processes(2)
    executor.submit("job", executor.needs)
    CALLS.get(timeout=20)
    executor.cancel("job")
    executor.submit("job", executor.needs)
    CALLS.get(timeout=20)
    for stub in stubs:
        stub.free.set()
    assert told(executor, 2) == ["job", "job"]
    for name in ("other", "job", "job"):  # all workers are alive
        executor.submit(name, executor.needs)
    for _ in range(2):
        CALLS.get(timeout=20)
    folder = Path(stubs[0].environment["TMPDIR"])
    assert folder.is_dir()
    executor.close()
    assert [stub.killed for stub in stubs[:2]] == [True, True]
    assert not any(thread.is_alive() for thread in executor._threads)
    assert not folder.exists()
    executor.close()  # as whoever opened it may do once more


def test_workers_that_have_begun_end_where_another_cannot_begin(stubs, monkeypatch):
    begins, begun = threading.Thread.start, []

    def refuses(thread):
        if begun:
            raise RuntimeError("can't start new thread")
        begun.append(thread)
        begins(thread)

    monkeypatch.setattr(threading.Thread, "start", refuses)
    with pytest.raises(RuntimeError, match="new thread"):
        Processes(2)
    assert not begun[0].is_alive()
    assert not Path(stubs[0].environment["TMPDIR"]).exists()


def test_a_worker_that_cannot_start_is_a_lost_one(stubs, monkeypatch):
    def refuses(*_):
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("rung.cluster.processes.WorkerProcess", refuses)
    executor = Processes(1)
    executor.submit("job", executor.needs)
    assert told(executor, 1) == ["job"]
    monkeypatch.setattr("rung.cluster.processes.WorkerProcess", Stub)
    executor.submit("job", executor.needs)
    CALLS.get(timeout=20)
    stubs[0].free.set()
    assert told(executor, 1) == ["job"]
    executor.close()


def test_of_several_processes_the_first_that_failed_says_why(job, tmp_path, monkeypatch):
    monkeypatch.setattr("rung.cluster.worker.current", lambda: together)
    together = SimpleNamespace(alone=False, first=False, from_first=lambda value: value())
    causes = iter([ValueError("the cause"), ValueError("lost the others")])

    def fails_once(*_):
        raise next(causes)

    monkeypatch.setitem(KINDS, "predict", fails_once)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"cause|others"):
            run_job(written(job, tmp_path))
    assert error_of(Storage(job.out), 1)["failed"] == "ValueError: the cause"


def test_every_worker_has_its_share_of_the_cores_and_a_gpu(monkeypatch):
    cores = sorted(os.sched_getaffinity(0))
    one, other = environments(2)
    assert one["RUNG_WORKER_CORES"] == ",".join(map(str, cores[: max(1, len(cores) // 2)]))
    assert "CUDA_VISIBLE_DEVICES" not in one or one != other
    assert "OMP_NUM_THREADS" not in one  # what the libraries take follows from the cores
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("rung.cluster.processes.own_cores", lambda: [0, 1, 2, 3])
    monkeypatch.delattr(os, "sched_setaffinity")
    assert [each["OMP_NUM_THREADS"] for each in environments(2)] == ["2", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert [each["CUDA_VISIBLE_DEVICES"] for each in environments(3)] == ["3", "5", "3"]


def test_the_price_of_a_worker_is_read_from_the_environment(monkeypatch):
    assert worker_price() == 0.0
    monkeypatch.setenv("RUNG_WORKER_PRICE", "2.5")
    assert worker_price() == 2.5
    monkeypatch.setenv("RUNG_WORKER_PRICE", "cheap")
    with pytest.raises(ConfigError, match="cheap"):
        worker_price()


def test_a_file_that_is_no_job_is_refused(tmp_path):
    with pytest.raises(ConfigError) as caught:
        run_job(str(tmp_path / "nothing.json"))
    assert caught.value.code == "no-such-file"
    (tmp_path / "wrong.json").write_text('{"kind": "dance", "out": "x"}')
    with pytest.raises(RungError, match="kind"):
        run_job(str(tmp_path / "wrong.json"))
