"""Capture: nothing lost or doubled, bounded, never in the way, and every drop counted."""

import threading

import pytest

from rung.errors import ConfigError, MachineError
from rung.feedback.capture import Capture, Redactor
from rung.feedback.store import FeedbackStore


class Held:
    """A store whose writer waits until it may go on, and that fails as often as told."""

    def __init__(self, failures=(), refused=()):
        self.go, self.rows, self.batches = threading.Event(), [], 0
        self.failures, self.refused = list(failures), set(refused)

    def record(self, rows):
        self.go.wait()
        if self.failures:
            raise self.failures.pop()
        if self.refused & {row.id for row in rows}:
            raise ValueError("no store takes this")
        self.rows += rows
        self.batches += 1


def test_everything_offered_by_many_threads_is_there_once(tmp_path, make):
    with FeedbackStore(tmp_path / "f.db") as store:
        with Capture(store) as capture:
            offers = [
                threading.Thread(target=lambda s=start: [capture.offer(make(s + i)) for i in range(200)])
                for start in range(0, 1600, 200)
            ]
            for thread in offers:
                thread.start()
            for thread in offers:
                thread.join()
            assert capture.flush()
            assert {case.interaction.id for case in store.cases()} == {f"r{i}" for i in range(1600)}
            capture.offer(make(1600, inputs={"text": "I am ann@mail.example"}))
        assert store.case("r1600").interaction.inputs == {"text": "I am [email]"}
        counts = capture.counts
        assert (counts.offered, counts.written, counts.waiting, counts.dropped) == (1601, 1601, 0, 0)


def test_a_full_queue_drops_and_counts_and_never_waits(make):
    store = Held()
    capture = Capture(store, max_waiting=10)
    for i in range(300):
        capture.offer(make(i))
    assert capture.counts.offered == 300
    store.go.set()
    counts = capture.close()
    assert counts.dropped + counts.written == 300
    assert 10 <= counts.written <= 10 + 10  # what waits, and what the writer had taken before
    assert [row.id for row in store.rows] == [f"r{i}" for i in range(counts.written)]
    capture.offer(make(301))
    assert capture.counts.dropped == counts.dropped + 1


def test_the_text_that_waits_is_bounded(make):
    store = Held()
    capture = Capture(store, max_characters=1000)
    for i in range(20):
        capture.offer(make(i, actual="x" * 300, inputs={"text": "y" * 100}))
    assert capture.counts.dropped >= 20 - 4  # two wait, and two may have been taken
    store.go.set()
    capture.close()


def test_a_store_that_fails_is_tried_again_and_a_row_it_refuses_is_counted(make, monkeypatch):
    monkeypatch.setattr("rung.feedback.capture.RETRY", 0.01)
    store = Held(failures=[MachineError("store-failed", "gone")] * 3, refused={"r3"})
    store.go.set()
    with Capture(store) as capture:
        for i in range(10):
            capture.offer(make(i))
        assert capture.flush()
        assert capture.counts.written == 9
        assert capture.counts.dropped == 1
    assert {row.id for row in store.rows} == {f"r{i}" for i in range(10)} - {"r3"}


def test_closing_gives_up_a_store_that_cannot_be_written(make, monkeypatch):
    monkeypatch.setattr("rung.feedback.capture.RETRY", 0.01)
    store = Held(failures=[MachineError("store-failed", "the disk is full")] * 1000)
    store.go.set()
    capture = Capture(store)
    capture.offer(make(1))
    counts = capture.close()
    assert (counts.dropped, counts.written, counts.waiting, counts.error) == (1, 0, 0, "the disk is full")


def test_a_sample_is_taken_by_the_id_and_off_takes_nothing(make):
    store = Held()
    store.go.set()
    with Capture(store, "sampled", 0.25, Redactor([])) as capture:
        for i in range(1000):
            capture.offer(make(i))
    assert 200 < len(store.rows) < 300
    assert capture.counts.left_out == 1000 - len(store.rows)
    with Capture(store, "off") as capture:
        capture.offer(make(1))
        assert capture.counts.left_out == 1
    for mode, rate in (("some", 1.0), ("sampled", 0.0), ("on", 0.5)):
        with pytest.raises(ConfigError) as raised:
            Capture(store, mode, rate)
        assert raised.value.code == "bad-option"
