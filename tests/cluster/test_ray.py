"""Jobs as Ray tasks, on a cluster of several nodes simulated on this machine; nodes are lost without warning."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from crews import report_of, run
from letters import lines_of, write_rows
from rung.artifact.artifact import Artifact
from rung.artifact.files import fingerprint
from rung.artifact.predict_file import Predicted, parts_folder
from rung.cluster import executor as executor_module
from rung.cluster.executor import Dispatcher
from rung.cluster.job import Job, Resources, Storage
from rung.cluster.parts import predict_in_parts
from rung.cluster.processes import open_executor
from rung.cluster.ray_tasks import RayTasks
from rung.errors import ArtifactError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray leaves its log files open
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
# Ray takes 127.0.0.1 for the address that other machines know this one by; this one stays what it is.
NODE = {"object_store_memory": 80 * 2**20, "node_ip_address": "127.0.0.2"}


@pytest.fixture(scope="module")
def nodes():
    """A head without places, and a node with one; both listen on this machine alone."""
    pytest.importorskip("ray")
    folder = tempfile.mkdtemp(prefix="ray-")  # sockets have short names
    (Path(folder) / "ray").mkdir()
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_TMPDIR", folder)
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **NODE})
    patch.setenv("RAY_ADDRESS", cluster.address)
    cluster.add_node(num_cpus=1, **NODE)
    yield cluster
    cluster.shutdown()
    patch.undo()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def two_nodes(nodes):
    """With a second node, which the test may lose."""
    node = nodes.add_node(num_cpus=1, **NODE)
    yield nodes, node
    if node in nodes.worker_nodes:
        nodes.remove_node(node)


def after(condition, act):
    """Do something from another thread as soon as a condition holds."""
    stop = threading.Event()

    def watch():
        while not stop.wait(0.05):
            if condition():
                act()
                return

    thread = threading.Thread(target=watch)
    thread.start()
    return lambda: (stop.set(), thread.join())


def test_every_row_is_answered_once_although_a_node_is_lost(letters, letters_folder, two_nodes, tmp_path):
    cluster, node = two_nodes
    rows, out = write_rows(tmp_path / "rows.csv", 3000, poisoned=(1, 2999)), tmp_path / "out.jsonl"
    lost = []
    end = after(
        lambda: len(list(parts_folder(out).glob("*/manifest.json"))) >= 2,
        lambda: lost.append(cluster.remove_node(node, allow_graceful=False)),
    )
    executor = open_executor("", "ray")
    assert executor.capacity(executor.needs) == 2
    made = predict_in_parts(letters, letters_folder, rows, out, executor, fingerprint=fingerprint(letters_folder))
    end()
    assert len(lost) == 1
    assert made == Predicted(3000, 3000, error_rows=2)
    assert [line["id"] for line in lines_of(out)] == [str(i) for i in range(3000)]


def test_a_climb_that_loses_a_node_ends_with_the_report_of_one_process(free_task_file, alone, two_nodes, tmp_path):
    cluster, node = two_nodes
    lost = []
    end = after(
        lambda: len(list(tmp_path.glob("*/jobs/*/manifest.json"))) >= 3,
        lambda: lost.append(cluster.remove_node(node, allow_graceful=False)),
    )
    climbed = run(free_task_file, tmp_path, open_executor("2", "ray"))
    end()
    assert len(lost) == 1
    assert report_of(climbed) == alone


class Trains(RayTasks):
    """Runs jobs that keep a checkpoint after every step in `cache`, and note where they ran and from which step."""

    def __init__(self, cache):
        super().__init__()

        def noted(uri):  # on the worker
            import json
            import os

            import ray

            from rung.cluster.worker import run_job
            from rung.training import loop
            from rung.training.checkpoints import Checkpoints

            os.environ["RUNG_CACHE"], loop.CHECKPOINT_SECONDS, loop.CHECKPOINT_SHARE = str(cache), 0.0, 1e9
            last = Checkpoints.last

            def note(kept):
                found = last(kept)
                with (cache / "notes").open("a") as notes:
                    line = [ray.get_runtime_context().get_node_id(), found[0] if found else 0]
                    notes.write(json.dumps(line) + "\n")
                return found

            Checkpoints.last = note
            try:
                run_job(uri)
            finally:
                Checkpoints.last = last

        cache.mkdir()
        self.needs = Resources(cpus=2)
        self._task = self._ray.remote(max_retries=0)(noted)


def test_a_training_whose_node_is_lost_goes_on_elsewhere_to_the_same_weights(
    small_task_file, tiny_zero, tiny_folder, nodes, tmp_path
):
    base = tiny_zero.save(tmp_path / "base")
    job = Job(
        kind="fit", out="", task=str(small_task_file), overrides={"model": str(tiny_folder)}, artifact=str(base),
        artifact_fingerprint=fingerprint(base), rung="lora", settings={"epochs": 12},
    )  # fmt: skip
    pair = [nodes.add_node(num_cpus=2, **NODE) for _ in range(2)]  # a job asks for two cores: only these have them

    def trained(name):
        dispatcher = Dispatcher(Trains(tmp_path / name), Storage(tmp_path / f"{name}-jobs"))
        key = dispatcher.send(job)
        try:
            dispatcher.wait([key])
        finally:
            dispatcher.close()
        result, notes = dispatcher.result(key), (tmp_path / name / "notes").read_text().splitlines()
        made = Artifact.load(tmp_path / f"{name}-jobs" / key / result.folder / "artifact")
        return result, made, [json.loads(line) for line in notes]

    _, whole, notes = trained("whole")
    assert notes[-1][1] == 0

    def lose():
        where, _ = json.loads((tmp_path / "lost" / "notes").read_text().splitlines()[-1])
        (node,) = (each for each in pair if each.node_id == where)
        nodes.remove_node(node, allow_graceful=False)
        pair.remove(node)

    end = after(lambda: list((tmp_path / "lost").glob("training/*/step-0000002*/manifest.json")), lose)
    result, resumed, notes = trained("lost")
    end()
    (other,) = pair
    nodes.remove_node(other)
    # A node of a machine that is too busy is taken for lost, so there may be more attempts.
    assert not result.folder.startswith("attempt-1-")
    assert notes[0][1] == 0
    where, step = notes[-1]
    assert where == other.node_id
    assert 20 <= step < 72
    assert resumed.settings["lora"]["losses"] == whole.settings["lora"]["losses"]
    assert len(resumed.settings["lora"]["losses"]) == 72
    files = [made.weights.adapter / "adapter_model.safetensors" for made in (resumed, whole)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_places_that_a_cluster_gets_later_are_used(nodes, tmp_path, monkeypatch):
    monkeypatch.setattr(executor_module, "CAPACITY_SECONDS", 0.0)
    asked = Dispatcher(open_executor("3", "ray"), Storage(tmp_path / "asked"))
    assert asked.slots == 3  # whatever is there
    asked.close()
    dispatcher = Dispatcher(open_executor("", "ray"), Storage(tmp_path / "jobs"))
    assert dispatcher.slots == 1
    node = nodes.add_node(num_cpus=1, **NODE)
    for _ in range(600):
        dispatcher.step()
        if dispatcher.slots == 2:
            break
    assert dispatcher.slots == 2
    dispatcher.close()
    nodes.remove_node(node)


SLEEPS = """
import sys, time
from pathlib import Path
from rung.cluster.ray_tasks import RayTasks

def sleep(file):
    Path(file).touch()
    time.sleep(600)

executor = RayTasks()
executor._task = executor._ray.remote(max_retries=0)(sleep)
executor.submit(sys.argv[1], executor.needs)
time.sleep(600)
"""


def test_tasks_end_with_the_command_that_sent_them(nodes, tmp_path):
    began = tmp_path / "began"
    driver = subprocess.Popen([sys.executable, "-W", "ignore", "-c", SLEEPS, str(began)])
    while not began.exists() and driver.poll() is None:
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    assert began.exists()
    executor = open_executor("", "ray")
    free = 0.0
    for _ in range(1200):  # the task would hold the only place for ten minutes
        if free := executor._ray.available_resources().get("CPU", 0.0):
            break
        time.sleep(0.05)
    executor.close()
    assert free == 1.0


def test_a_file_whose_command_was_killed_goes_on_with_what_is_done(letters, letters_folder, nodes, tmp_path):
    rows, out = write_rows(tmp_path / "rows.csv", 1000), tmp_path / "out.jsonl"
    words = ["predict", letters_folder, rows, "--out", out, "--on", "ray", "--quiet"]
    driver = subprocess.Popen([sys.executable, "-W", "ignore", "-m", "rung", *map(str, words)])
    while len(list(parts_folder(out).glob("*/manifest.json"))) < 2 and driver.poll() is None:
        time.sleep(0.01)
    driver.kill()
    driver.wait()
    executor = open_executor("", "ray")
    made = predict_in_parts(
        letters, letters_folder, rows, out, executor, fingerprint=fingerprint(letters_folder), resume=True
    )  # fmt: skip
    assert made.rows == 1000
    assert 0 < made.answered < 1000
    assert [line["id"] for line in lines_of(out)] == [str(i) for i in range(1000)]


def test_a_task_is_ended_when_its_job_is_cancelled(nodes, tmp_path):
    executor = open_executor("", "ray")
    dispatcher = Dispatcher(executor, Storage(tmp_path / "jobs"))
    key = dispatcher.send(Job(kind="predict", out="", data=str(tmp_path / "nowhere")))
    dispatcher.cancel([key])
    assert not dispatcher.knows(key)
    failing = dispatcher.send(Job(kind="predict", out="", artifact=str(tmp_path), seed=1))
    dispatcher.wait([failing])
    dispatcher.close()
    with pytest.raises(ArtifactError, match="not an artifact"):
        dispatcher.result(failing)


def test_without_a_cluster_one_of_this_machine_is_started(nodes, letters, letters_folder, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS")
    rows, out = write_rows(tmp_path / "rows.csv", 100), tmp_path / "out.jsonl"
    executor = open_executor("1", "ray")
    made = predict_in_parts(letters, letters_folder, rows, out, executor, fingerprint=fingerprint(letters_folder))
    assert made == Predicted(100, 100)
    assert not parts_folder(out).exists()
