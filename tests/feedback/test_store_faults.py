"""The store under several processes, kill -9, a full disk, and a PostgreSQL server that crashes in mid-traffic."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest
from postgres_server import new_database

from rung.errors import MachineError
from rung.feedback.store import FeedbackStore


def _open_and_write(location, start, make, begin):
    begin.wait()
    with FeedbackStore(location) as store:
        for number in range(start, start + 40):
            store.record([make(number)])
            store.correct(f"r{number}", "card_arrival", "Ann")
        store.correct(f"r{start}", "lost_card", "Bob")


def test_processes_open_a_new_store_at_once_and_write_side_by_side(location, make):
    context = multiprocessing.get_context("fork")
    begin = context.Event()
    workers = [context.Process(target=_open_and_write, args=(location, s, make, begin)) for s in (1, 101, 201)]
    for worker in workers:
        worker.start()
    begin.set()
    for worker in workers:
        worker.join()
    with FeedbackStore(location) as store:
        assert [w.exitcode for w in workers] == [0, 0, 0]
        assert len(store.cases()) == 120
        assert [entry.reviewer for entry in store.history("r1")] == ["Ann", "Bob"]


WRITER = """
import sys, json
from dataclasses import replace
from datetime import UTC, datetime
from rung.feedback.records import Interaction
from rung.feedback.capture import Capture
from rung.feedback.store import FeedbackStore

store = FeedbackStore(sys.argv[1])
capture = Capture(store)
for n in range(10**6):
    row = Interaction(f"r{n}", datetime.now(UTC), "t", "a", "m", "", "{text}", "v", {"text": f"{n} " * 50}, "p",
                      f"answer {n} " * 50, None, 1, 1, 0.1, None, "stop", "train")
    capture.offer(row)
    if n % 20 == 0:
        capture.flush()
        print(n, store.correct(row.id, f"expected {n}", "Ann"), flush=True)
"""


def test_kill_9_of_a_writer_leaves_whole_rows_and_every_acknowledged_correction(location):
    with FeedbackStore(location):
        pass
    writer = subprocess.Popen([sys.executable, "-c", WRITER, location], stdout=subprocess.PIPE, text=True)
    lines = [writer.stdout.readline()]
    time.sleep(0.4)
    os.kill(writer.pid, signal.SIGKILL)
    lines += writer.stdout.read().splitlines()
    writer.wait()
    writer.stdout.close()
    acknowledged = dict(map(int, line.split()) for line in lines if len(line.split()) == 2)
    assert acknowledged
    with FeedbackStore(location) as store:
        for n, number in acknowledged.items():
            assert [(h.number, h.expected) for h in store.history(f"r{n}")] == [(number, f"expected {n}")]
        rows = store.cases()
        assert len(rows) >= max(acknowledged) + 1
        for case in rows:
            n = int(case.interaction.id[1:])
            assert case.interaction.inputs == {"text": f"{n} " * 50}
            assert case.interaction.actual == f"answer {n} " * 50
        if location.endswith(".db"):
            check = store.run("read", lambda c: c.exec_driver_sql("PRAGMA integrity_check").scalar())
            assert check == "ok"
        assert store.correct("r0", "still writable", "Ann") > 0


FULL = """
import resource, sys
from datetime import UTC, datetime
from rung.errors import MachineError
from rung.feedback.records import Interaction
from rung.feedback.store import FeedbackStore
import signal

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = FeedbackStore(sys.argv[1])
row = Interaction("r1", datetime.now(UTC), "t", "a", "m", "", "{text}", "v", {"text": "x"}, "p", "y", None, 1, 1, 0.1,
                  None, "stop", "train")
store.record([row])
number = store.correct("r1", "kept", "Ann")
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
try:
    for n in range(1000):
        store.correct("r1", "z" * 5000, "Ann")
except MachineError as error:
    print(error.code, n)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    store.correct("r1", "room again", "Ann")
    print(len(store.history("r1")))
"""


def test_a_full_disk_is_a_clear_error_and_nothing_acknowledged_is_lost(tmp_path):
    file = str(tmp_path / "f.db")
    done = subprocess.run([sys.executable, "-c", FULL, file], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, entries = done.stdout.splitlines()
    code, acknowledged = first.split()
    assert code == "store-failed"
    assert int(acknowledged) >= 1
    assert int(entries) == 1 + int(acknowledged) + 1
    with FeedbackStore(file) as store:
        assert store.case("r1").expected == "room again"


def test_a_store_on_a_full_disk_can_still_be_read(tmp_path, make):
    """A real file system of 600 kB, where this test may mount one."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        with FeedbackStore(tmp_path / "f.db") as store:
            store.record([make(1), make(2)])
        with suppress(OSError), (tmp_path / "filler").open("wb") as filler:
            while True:
                filler.write(b"x" * 4096)
                filler.flush()
        with FeedbackStore(tmp_path / "f.db") as store:
            assert len(store.cases()) == 2
            with pytest.raises(MachineError) as failed:
                store.correct("r1", "x" * 100_000, "Ann")
            assert failed.value.code == "store-failed"
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_postgresql_restarted_mid_traffic_loses_nothing_acknowledged(postgres, make):
    url = new_database(postgres)
    acknowledged, failures, stop = [], [], threading.Event()

    def write():
        n = 0
        try:
            with FeedbackStore(url) as store:
                while not stop.is_set():
                    store.record([make(n)])
                    acknowledged.append((n, store.correct(f"r{n}", f"expected {n}", "Ann")))
                    n += 1
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    for _ in range(2):
        _wait_for_more(acknowledged, 30)
        postgres.stop()
        time.sleep(0.2)
        postgres.start()
    _wait_for_more(acknowledged, 30)
    stop.set()
    thread.join()
    assert failures == []
    with FeedbackStore(url) as store:
        for n, number in acknowledged:
            assert [(h.number, h.expected) for h in store.history(f"r{n}")] == [(number, f"expected {n}")]
        assert len(store.cases()) == len(acknowledged)


def _wait_for_more(things, count):
    until, end = len(things) + count, time.monotonic() + 60
    while len(things) < until and time.monotonic() < end:
        time.sleep(0.01)
    assert len(things) >= until
