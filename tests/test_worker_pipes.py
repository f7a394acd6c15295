"""Worker processes: results, errors and what ends them, over one JSON line each way."""

from pathlib import Path

import pytest

from rung.errors import ConfigError
from rung.worker_pipes import WorkerEndedError, WorkerError, WorkerProcess, WorkerTimeoutError

TOOLS = Path(__file__).parent / "agents"


@pytest.fixture
def worker():
    worker = WorkerProcess("rung.agents.process")
    yield worker
    worker.close()


def test_a_result_and_the_errors_of_both_kinds(worker):
    with pytest.raises(WorkerError, match="KeyError: 'nothing'"):
        worker.call("nothing")
    with pytest.raises(ConfigError) as caught:
        worker.call("load", str(TOOLS), ["mytools:nowhere"])
    assert caught.value.code == "function-not-found"
    assert caught.value.hint
    assert worker.call("load", str(TOOLS), ["mytools:count"]) is None
    assert worker.call("run", "mytools:count", {}, seconds=60) == ["result", "1"]


def test_a_call_that_takes_too_long_ends_the_process(worker):
    worker.call("load", str(TOOLS), ["mytools:loops"])
    with pytest.raises(WorkerTimeoutError, match=r"longer than 0\.2 seconds"):
        worker.call("run", "mytools:loops", {}, seconds=0.2)
    assert worker.process.returncode is not None


def test_a_process_that_ends_gives_its_exit_code(worker):
    worker.call("load", str(TOOLS), ["mytools:leaves"])
    with pytest.raises(WorkerEndedError) as caught:
        worker.call("run", "mytools:leaves", {})
    assert caught.value.code == 7


def test_it_ends_by_itself_when_its_input_ends(worker):
    worker.call("load", str(TOOLS), [])
    worker.close(grace=30)
    assert worker.process.returncode == 0
