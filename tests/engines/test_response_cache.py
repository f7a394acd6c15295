import multiprocessing

import numpy as np
import pytest

from rung.engines.base import EngineInfo, GenerateRequest, Generation, Sampling, Scored, ScoreRequest
from rung.engines.response_cache import CachedEngine, ResponseStore
from rung.errors import MachineError

PROMPT = ({"role": "user", "content": "hello"},)


class Counting:
    """An engine that counts what it is asked: the mechanics of remembering need no model."""

    def __init__(self, fingerprint="f"):
        self.info = EngineInfo("test", "m", "cpu", "float32", 1, 100, fingerprint)
        self.asked = 0

    def generate(self, requests, *, progress=None, cancelled=None):
        self.asked += len(requests)
        return [Generation(f"text {self.asked}", 3, 2, "stop", 0.1, (-1.0, -2.0)) for _ in requests]

    def score(self, requests, *, progress=None):
        self.asked += len(requests)
        return [Scored(np.array([-1.0, -np.inf if r.best else -2.0], np.float32), 3, 0.1) for r in requests]


@pytest.fixture
def store(tmp_path):
    return ResponseStore(tmp_path / "r.sqlite")


def test_the_same_request_runs_once(store):
    engine = CachedEngine(Counting(), store)
    first = engine.generate([GenerateRequest(PROMPT)])
    assert engine.generate([GenerateRequest(PROMPT)]) == first
    assert engine.engine.asked == 1


def test_another_model_or_sampling_is_another_request(store):
    one, other = CachedEngine(Counting("f"), store), CachedEngine(Counting("g"), store)
    one.generate([GenerateRequest(PROMPT)])
    other.generate([GenerateRequest(PROMPT)])
    one.generate([GenerateRequest(PROMPT, Sampling(max_tokens=1))])
    assert (one.engine.asked, other.engine.asked) == (2, 1)


def test_random_text_is_remembered_only_with_a_seed(store):
    engine = CachedEngine(Counting(), store)
    for _ in range(2):
        engine.generate([GenerateRequest(PROMPT, Sampling(temperature=1.0))])
    assert engine.engine.asked == 2
    for _ in range(2):
        engine.generate([GenerateRequest(PROMPT, Sampling(temperature=1.0, seed=1))])
    assert engine.engine.asked == 3


def test_full_scores_answer_a_search_for_the_best(store):
    engine = CachedEngine(Counting(), store)
    full = engine.score([ScoreRequest(PROMPT, ((1,), (2,)))])[0]
    best = engine.score([ScoreRequest(PROMPT, ((1,), (2,)), best=True, bias=(0.0, 1.0))])[0]
    np.testing.assert_array_equal(full.logprobs, best.logprobs)
    assert engine.engine.asked == 1


def test_a_search_does_not_answer_for_all_labels(store):
    engine = CachedEngine(Counting(), store)
    engine.score([ScoreRequest(PROMPT, ((1,), (2,)), best=True)])
    assert np.isfinite(engine.score([ScoreRequest(PROMPT, ((1,), (2,)))])[0].logprobs).all()
    assert engine.engine.asked == 2


def test_size_stays_bounded_and_the_least_used_goes(tmp_path):
    store = ResponseStore(tmp_path / "r.sqlite", max_bytes=10_000)
    for i in range(40):
        store.put([(bytes([i]) * 32, b"x" * 500)])
        store.get([bytes([0]) * 32])  # the first stays in use
    held = sum(len(v) + 64 for v in store.get([bytes([i]) * 32 for i in range(40)]).values())
    assert held <= 10_000
    assert store.get([bytes([0]) * 32])
    assert not store.get([bytes([1]) * 32])
    store.clear()
    assert store.size()[0] == 0


def _fill(path, number):
    store = ResponseStore(path)
    for i in range(50):
        store.put([(f"{number}/{i}".encode(), b"v" * 100)])


def test_many_processes_write_at_once(tmp_path):
    path = tmp_path / "r.sqlite"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_fill, args=(path, n)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert ResponseStore(path).size()[0] == 150


@pytest.mark.parametrize("damage", [b"\x00" * 5000, b"SQLite format 3\x00" + b"\xff" * 8000, b"not a database"])
def test_a_damaged_store_is_left_out_and_cleared(tmp_path, capsys, damage):
    path = tmp_path / "r.sqlite"
    path.write_bytes(damage)
    engine = CachedEngine(Counting(), store := ResponseStore(path))
    assert [engine.generate([GenerateRequest(PROMPT)])[0].text for _ in range(2)] == ["text 1", "text 2"]
    assert len(engine.score([ScoreRequest(PROMPT, ((1,), (2,)))])) == 1
    told = capsys.readouterr().err
    assert told.count("answers are not remembered") == 1
    assert "rung cache clear" in told
    with pytest.raises(MachineError, match="cannot be read"):
        store.size()
    store.clear()
    again = engine.generate([GenerateRequest(PROMPT)])
    assert engine.generate([GenerateRequest(PROMPT)]) == again
    assert store.size()[0] == 1


def test_a_store_that_is_damaged_at_work_stops_nothing(store, capsys):
    engine = CachedEngine(Counting(), store)
    engine.generate([GenerateRequest(PROMPT)])
    for file in store.path.parent.iterdir():
        file.write_bytes(b"\xff" * 9000)
    assert engine.generate([GenerateRequest(PROMPT)])[0].text == "text 2"
    assert "answers are not remembered" in capsys.readouterr().err


def test_a_store_without_a_place_is_left_out(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    store = ResponseStore(tmp_path / "file" / "r.sqlite")
    assert CachedEngine(Counting(), store).generate([GenerateRequest(PROMPT)])[0].text == "text 1"
    assert "answers are not remembered" in capsys.readouterr().err
