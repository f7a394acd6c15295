"""A climb on several workers ends with the report of one process, whatever is killed on the way."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from crews import RUNGS, SPEED, report_of, run, without_times
from rung.cli.main import app
from rung.climbing.budget import NO_LIMITS, Budget, Limits, TimeUp
from rung.climbing.options import ClimbOptions
from rung.climbing.run import climb
from rung.climbing.store import RunStore
from rung.cluster.crew import ClimbCrew
from rung.cluster.job import Storage
from rung.cluster.processes import Inline, Processes
from rung.errors import ConfigError, MachineError
from rung.models.cache import cache_dir
from rung.progress import QUIET
from rung.rungs import build
from rung.task import Task
from rung.worker_pipes import WorkerError


@pytest.fixture(scope="module")
def folds_file(free_task_file) -> Path:
    """The same with few rows, which are answered out of fold."""
    file = free_task_file.with_name("folds.yaml")
    text = re.sub("data: .*", "data: {train: train.csv}", free_task_file.read_text())
    file.write_text(text)
    return file


def test_two_workers_end_with_the_report_of_one_process(free_task_file, alone, tmp_path):
    climbed = run(free_task_file, tmp_path, Processes(2))
    assert report_of(climbed) == alone
    assert not (climbed.folder / "jobs").exists()
    assert climbed.recommended.predict([{"text": "I lost my card"}])[0].text


def test_out_of_fold_all_folds_are_made_at_once_and_the_report_is_the_same(folds_file, tmp_path):
    alone = run(folds_file, tmp_path / "alone")
    shared = run(folds_file, tmp_path / "shared", Inline())
    assert shared.result.rows == "folds"
    assert report_of(shared) == report_of(alone)


class Records(Inline):
    """Several places, in which every job runs as soon as it is submitted; remembers the jobs."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: list[str] = []

    def submit(self, uri, resources):
        job = json.loads(Storage(uri).read())
        after = f" after {job['options']['after']}" if job["options"].get("after") else ""  # each part is a job
        self.kinds.append(f"{job['kind']} {job['options']['key']}{after}")
        super().submit(uri, resources)

    def capacity(self, resources):
        return 4


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--workers", "none"], "bad-option"),
        (["--jobs", "jobs"], "bad-option"),
        (["--on", "srun rung worker", "--workers", "2"], "bad-option"),
        (["--on", "srun rung worker {job}"], "bad-option"),
        (["--workers", "2", "--jobs", "ftp://me:secret@host/x"], "bad-option"),
        (["--track", "paper"], "unknown-name"),
    ],
)
def test_a_plan_refuses_the_options_that_its_climb_refuses(free_task_file, words, code):
    failed = CliRunner().invoke(app, ["climb", str(free_task_file), "--plan", *words])
    assert isinstance(failed.exception, ConfigError)
    assert failed.exception.code == code


def test_a_plan_says_that_its_times_are_for_one_process(free_task_file, tmp_path):
    command = ["climb", str(free_task_file), "--plan", "--json", "--rungs", "majority", "--out", str(tmp_path)]
    plans = [json.loads(CliRunner().invoke(app, [*command, *more]).stdout) for more in ([], ["--workers", "2"])]
    assert plans[1]["notes"] == [
        *plans[0]["notes"], "these times are for one process; workers share the work, so the climb takes less"
    ]  # fmt: skip


def test_what_is_done_ahead_changes_nothing_and_nothing_is_done_twice(free_task_file, alone, tmp_path):
    executor = Records()
    assert report_of(run(free_task_file, tmp_path, executor)) == alone
    fits = [kind for kind in executor.kinds if kind.startswith("fit")]
    assert sorted(set(fits)) == sorted(fits)
    assert {f"fit {name}/folds/0" for name in ("majority", "nearest-row", "tfidf-head")} | {"fit calibrate"} <= set(
        fits
    )


def test_a_resumed_climb_asks_only_for_what_no_worker_has_finished(free_task_file, alone, tmp_path):
    class Lost(Records):
        """The driver ends at its twelfth job."""

        def submit(self, uri, resources):
            if len(self.kinds) == 12:
                raise KeyboardInterrupt
            super().submit(uri, resources)

    first, second = Lost(), Records()
    with pytest.raises(KeyboardInterrupt):
        run(free_task_file, tmp_path, first)
    (folder,) = tmp_path.iterdir()
    assert len(list(folder.glob("jobs/*/manifest.json"))) == 12
    climbed = run(free_task_file, tmp_path, second, resume=True)
    assert climbed.folder == folder
    assert report_of(climbed) == alone
    assert {kind for kind in first.kinds if kind.startswith("fit")}.isdisjoint(second.kinds)


def test_an_arm_whose_job_fails_twice_alike_has_failed_and_the_climb_goes_on(free_task_file, tmp_path):
    class Breaks(Records):
        def submit(self, uri, resources):
            file = Path(uri)
            job = json.loads(file.read_text())
            if job["rung"] == "tfidf-head":
                file.write_text(json.dumps({**job, "fold": 99}))
            super().submit(uri, resources)

    executor = Breaks()
    result = run(free_task_file, tmp_path, executor).result
    failed = next(rung for rung in result.rungs if rung.name == "tfidf-head")
    assert failed.status == "failed"
    assert "IndexError" in failed.reason
    assert executor.kinds.count("fit tfidf-head/folds/0") == 2
    assert {rung.status for rung in result.rungs if rung.name == "nearest-row"} <= {"confirmed", "beaten"}


def test_a_base_that_cannot_answer_ends_the_climb_with_the_reason(free_task_file, tmp_path):
    class Breaks(Records):
        def submit(self, uri, resources):
            file = Path(uri)
            job = json.loads(file.read_text())
            if job["kind"] == "answer" and job["options"]["key"] == "zero-shot":
                file.write_text(json.dumps({**job, "ids": ["nobody"]}))
            super().submit(uri, resources)

    with pytest.raises(WorkerError, match="nobody"):
        run(free_task_file, tmp_path, Breaks())


def test_workers_whose_files_differ_end_the_climb(free_task_file, tmp_path):
    class Other(Records):
        def submit(self, uri, resources):
            file = Path(uri)
            file.write_text(json.dumps({**json.loads(file.read_text()), "data_fingerprint": "0" * 64}))
            super().submit(uri, resources)

    with pytest.raises(MachineError, match=r"the data of .* is another here") as caught:
        run(free_task_file, tmp_path, Other())
    assert caught.value.code == "worker-mismatch"


def test_another_kind_of_machine_may_make_artifacts_and_not_answer(free_task_file, tmp_path, monkeypatch):
    from rung.cluster import worker

    names = iter(range(1000))
    with monkeypatch.context() as patch:
        patch.setattr(worker, "machine_id", lambda: f"machine {next(names)}")
        with pytest.raises(MachineError, match="another kind of machine") as caught:
            run(free_task_file, tmp_path, Inline())
    assert caught.value.code == "worker-mismatch"


class OnePlace(Records):
    """One place, in which nothing is begun ahead."""

    def capacity(self, resources):
        return 1


class Second(Records):
    """Runs the first job, and begins the second."""

    def __init__(self):
        super().__init__()
        self.begun, self.cancelled = [], []

    def submit(self, uri, resources):
        if self.kinds:
            self.begun.append(uri)
        else:
            super().submit(uri, resources)

    def cancel(self, uri):
        self.cancelled.append(uri)
        self._ended.append(uri)


@pytest.fixture(params=["", "memory://scale-parts"])
def trains(request, small_task_file, tiny_zero, tiny_folder, tmp_path):
    """The crew of a climb whose only arm is a training of eight steps, what its workers ran, and the same alone."""
    changes = {"model": str(tiny_folder), "data.train_per_label": "4", "rungs.lora.epochs": "2"}
    task = Task.load(small_task_file, {**changes, "rungs.lora.batch_size": str(len(tiny_zero.signature.labels))})
    data, store = task.read(), RunStore(tmp_path / "run")
    store.keep(tiny_zero)

    def begin(executor):
        crew = ClimbCrew(executor, request.param, task, data, store, 0)
        crew.fit("lora", "lora", "zero-shot", None, parts=True, ahead=False)
        return crew, executor, build(("lora",), task, 0)[0].fit(tiny_zero, data)

    return begin


def test_a_training_in_parts_has_a_job_for_each_and_ends_with_the_weights_of_one(trains):
    crew, executor, alone = trains(OnePlace())
    made = {}
    for share, artifact in crew.made("lora", QUIET):
        made[share] = artifact
        for copy in (cache_dir() / "training").glob("job-*"):  # as on another machine
            shutil.rmtree(copy)
        kept = crew._storage.fs.glob(f"{crew._storage.path}/training/*/*/step-*/manifest.json")
        assert kept or share == 1
    assert list(made) == [0.25, 0.5, 1.0]
    assert executor.kinds == ["fit lora", "fit lora after 0.25", "fit lora after 0.5"]
    assert made[1.0].settings["lora"]["losses"] == alone.settings["lora"]["losses"]
    assert len(made[0.25].settings["lora"]["losses"]) == 2
    files = [each.weights.adapter / "adapter_model.safetensors" for each in (made[1.0], alone)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert crew.took("lora")[0] > 0
    crew.close(QUIET, done=True)


def test_the_next_part_of_a_training_begins_meanwhile_and_is_cancelled_where_the_climb_stops(trains):
    crew, executor, _ = trains(Second())
    shares = crew.made("lora", QUIET)
    assert next(shares)[0] == 0.25
    assert [json.loads(Storage(uri).read())["options"]["after"] for uri in executor.begun] == [0.25]
    assert executor.cancelled == []
    shares.close()
    assert executor.cancelled == executor.begun
    crew.close(QUIET, done=True)


def test_no_worker_goes_on_with_a_training_that_the_climb_stops(trains):
    crew, executor, _ = trains(OnePlace())
    crew.ask("lora", "validation", ["a"], ahead=True)  # there is nothing yet that could answer
    shares = crew.made("lora", QUIET)
    assert next(shares)[0] == 0.25
    shares.close()
    assert executor.kinds == ["fit lora"]
    crew.close(QUIET, done=True)


class Holds(Records):
    """Runs nothing until the test says so."""

    held = True

    def submit(self, uri, resources):
        if not self.held:
            super().submit(uri, resources)

    def cancel(self, uri):
        self._ended.append(uri)


class Ends:
    """A progress that ends whatever waits."""

    def advance(self, units=1, note=""):
        raise TimeUp


@pytest.fixture
def crew_of(small_task_file, tiny_zero, tiny_folder, tmp_path):
    def make(executor, budget=None):
        task = Task.load(small_task_file, {"model": str(tiny_folder), "data.train_per_label": "4"})
        data, store = task.read(), RunStore(tmp_path / "run", budget)
        store.keep(tiny_zero)
        return ClimbCrew(executor, "", task, data, store, 0)

    return make


def test_what_was_cancelled_with_its_base_is_made_when_it_is_asked_for_again(crew_of):
    executor = Holds()
    crew = crew_of(executor)
    rungs = {"majority": "zero-shot", "majority/tfidf-head": "majority"}

    def ask():
        for key, base in rungs.items():
            crew.fit(key, key.rpartition("/")[2], base, None, parts=False, ahead=False)

    ask()
    with pytest.raises(TimeUp):
        list(crew.made("majority", Ends()))
    executor.held = False
    ask()
    for key in rungs:
        ((share, _),) = crew.made(key, QUIET)
        assert share == 1
    crew.close(QUIET, done=True)


def test_a_job_that_takes_all_the_time_ends_the_stage_and_a_later_stage_asks_anew(crew_of):
    executor, budget = Records(), Budget(QUIET, Limits(0.0, None))
    crew = crew_of(executor, budget)
    ids = [row.id for row in Task.load(crew._job.task, dict(crew._job.overrides)).read().validation[:2]]
    with pytest.raises(TimeUp):
        list(crew.answers("zero-shot", "validation", ids, QUIET))
    budget.limits = NO_LIMITS
    answered = list(crew.answers("zero-shot", "validation", ids, QUIET))
    assert [row.id for part in answered for row in part] == ids
    assert executor.kinds == ["answer zero-shot"] * 2
    crew.close(QUIET, done=True)


def crew_on(executor):
    def crew(task, data, store, seed):
        executor.store = store
        return ClimbCrew(executor, "", task, data, store, seed)

    return crew


def test_a_climb_on_one_worker_ends_with_its_time_and_with_what_it_has(free_task_file, tmp_path):
    class Late(OnePlace):
        """The time is over while the sixth job runs, which holds up this process."""

        def submit(self, uri, resources):
            if len(self.kinds) == 5:
                budget = self.store.budget
                budget.limits = Limits(budget.spent(), None)
                job = json.loads(Path(uri).read_text())
                Path(uri).write_text(json.dumps({**job, "seconds": budget.left()}))
            super().submit(uri, resources)

    executor = Late()
    options = ClimbOptions(rungs=RUNGS, out=tmp_path, crew=crew_on(executor))
    climbed = climb(Task.load(free_task_file), options=options)
    assert climbed.result.recommended  # the time may be over before zero-shot answers
    assert "failed" not in {rung.status for rung in climbed.result.rungs}, climbed.result.rungs


def test_the_hours_of_workers_end_a_climb_in_money_with_what_it_has(free_task_file, tmp_path):
    class Hired(OnePlace):
        """Workers of a dear machine: each second of theirs costs 10."""

        def price(self, resources):
            return 36_000.0

    executor = Hired()
    options = ClimbOptions(budget_money=0.5, rungs=RUNGS, out=tmp_path, crew=crew_on(executor))
    climbed = climb(Task.load(free_task_file), options=options)
    assert climbed.result.money >= 0.5
    assert {rung.status for rung in climbed.result.rungs} & {"skipped", "stopped"}
    assert "failed" not in {rung.status for rung in climbed.result.rungs}, climbed.result.rungs


def test_jobs_that_cannot_be_removed_do_not_lose_the_result(crew_of, monkeypatch):
    def refuses(self):
        raise self.refused("removed: it is read only")

    crew, said = crew_of(Inline()), list[str]()
    monkeypatch.setattr(type(QUIET), "say", lambda _, text: said.append(text))
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "remove", refuses)
        crew.close(QUIET, done=True)
    assert any("cannot be removed" in text for text in said)


@pytest.mark.slow
def test_killed_workers_and_drivers_leave_the_report_as_it_is(free_task_file, alone, tmp_path):
    start = f"from rung import machine; machine._matmul_rate = lambda: {SPEED}; from rung.cli.main import main; main()"
    command = [
        sys.executable, "-W", "ignore", "-c", start, "climb", free_task_file, "--rungs", ",".join(RUNGS),
        "--out", tmp_path, "--workers", "2", "--quiet", "--resume",
    ]  # fmt: skip
    for victim in ("driver", "driver", "worker"):
        driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        before = len(list(tmp_path.glob("*/jobs/*/manifest.json")))
        while driver.poll() is None:
            if len(list(tmp_path.glob("*/jobs/*/manifest.json"))) >= before + 3:
                os.kill(_child(driver.pid) if victim == "worker" else driver.pid, signal.SIGKILL)
                break
            time.sleep(0.01)
        said = driver.communicate()[1].decode()
        assert driver.returncode in (0, -signal.SIGKILL), said
        if driver.returncode == 0:
            break
    (folder,) = (file.parent for file in tmp_path.glob("*/report.json"))
    report = json.loads((folder / "report.json").read_text())
    assert json.dumps(without_times(report), indent=1) == alone


def _child(pid: int) -> int:
    """A process that a process has started."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                return int(stat.parent.name)
        except OSError:
            continue
    raise AssertionError("it has no child")
