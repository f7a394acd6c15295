"""What works where the system has none of what only Linux and macOS have: Windows, played by taking it all away."""

import csv
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from engines.fault_server import FaultServer, Reply, completion
from rung import machine

# Runs first in a process of its own. Python's own modules are imported before their system is taken away.
TAKEN_AWAY = """
import asyncio, concurrent.futures, multiprocessing, os, pkgutil, random, signal, subprocess, sys, tempfile, threading
import types
for module in ("fcntl", "resource", "grp", "pwd", "termios"):
    sys.modules[module] = None
for name in (
    "chown", "fchown", "fork", "getegid", "geteuid", "getgid", "getpgid", "getuid", "killpg", "sched_getaffinity",
    "setsid", "sysconf",
):
    delattr(os, name)
for name in ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGALRM", "alarm", "setitimer", "pthread_sigmask"):
    delattr(signal, name)
sys.modules["msvcrt"] = types.SimpleNamespace(LK_NBLCK=2, locking=lambda handle, mode, size: None)
"""

IMPORTS = """
import importlib, rung
sys.modules["torch"] = None  # half of the time of everything else; its own wheels exist for these systems
left_out = []
for found in pkgutil.walk_packages(rung.__path__, "rung."):
    try:
        importlib.import_module(found.name)
    except ImportError as error:
        if "torch" not in str(error):
            raise
        left_out.append(found.name)
print(json.dumps(left_out))
"""

COMMANDS = """
from rung.cli.main import main
for command in json.loads(sys.argv[1]):
    sys.argv[1:] = command
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise
"""


def run(code, *arguments, folder, **variables):
    """Run the code in a process without what only POSIX systems have; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", f"import json\n{TAKEN_AWAY}\n{code}", *arguments], cwd=folder, capture_output=True,
        text=True, env={**os.environ, **variables}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_module_is_imported(tmp_path):
    left_out = json.loads(run(IMPORTS, folder=tmp_path))
    allowed = ("rung.training.", "rung.export.", "rung.engines.apart", "rung.engines.torch_", "rung.engines.tree_")
    assert all(name.startswith(allowed) for name in left_out), left_out


@pytest.fixture
def server():
    """An endpoint that answers right."""

    def answer(path, body):
        asked = body["messages"][-1]["content"]
        return Reply(completion(json.dumps({"answer": "card" if "my card" in asked else "money"})))

    server = FaultServer()
    server.answer = answer
    yield server
    server.close()


def test_a_climb_of_an_endpoint_and_of_cheap_rungs_and_predictions(tmp_path, server):
    rows = [{"text": f"{word} number {i}", "topic": topic}
            for i in range(40) for word, topic in (("my card", "card"), ("my loan", "money"))]  # fmt: skip
    with (tmp_path / "rows.csv").open("w", newline="") as out:
        table = csv.DictWriter(out, ["text", "topic"])
        table.writeheader()
        table.writerows(rows)
    run(
        COMMANDS, json.dumps([
            ["--help"],
            ["init", "rows.csv", "--output", "topic", "--model", server.reference],
            ["check", "task.yaml"],
            ["climb", "task.yaml", "--rungs", "majority,tfidf-head,ridge,nearest-row", "--quiet"],
            ["predict", "runs/rows", "rows.csv", "--out", "answers.jsonl", "--quiet"],
        ]), folder=tmp_path, RUNG_CACHE=str(tmp_path / "cache"),
    )  # fmt: skip
    report = json.loads((tmp_path / "runs" / "rows" / "report.json").read_text("utf-8"))
    measured = {rung["name"]: rung["score"] for rung in report["rungs"] if rung["score"] is not None}
    assert {"zero-shot", "tfidf-head"} <= set(measured)
    answers = (tmp_path / "answers.jsonl").read_text("utf-8").splitlines()
    assert len(answers) == len(rows)


def test_a_lock_waits_or_is_refused_as_windows_says(monkeypatch, tmp_path):
    held = [True, True]

    def locking(handle, mode, size):
        assert (os.lseek(handle, 0, os.SEEK_CUR), mode, size) == (machine.LOCKED_BYTE, 2, 1)
        if held:
            held.pop()
            raise OSError(36, "Resource deadlock avoided")

    monkeypatch.setattr(machine, "HAS_POSIX", False)
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(LK_NBLCK=2, locking=locking))
    with (tmp_path / "a").open("w+b") as file:
        file.write(b"12")
        file.flush()
        with pytest.raises(BlockingIOError):
            machine.lock_file(file.fileno(), wait=False)
        machine.lock_file(file.fileno())
        assert not held
        file.write(b"3")
    assert (tmp_path / "a").read_bytes() == b"123"
