"""Places that the system refuses, in real processes: exit code, error and hint, and never a traceback."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rung.cli import main

ROWS = "text,label\n" + "".join(f"about {word} number {i},{word}\n" for i in range(20) for word in ("alpha", "beta"))


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "data.csv"
    file.write_text(ROWS)
    return file


def rung(*arguments, cwd, limit=None, **options):
    """Run the command; with `limit`, no file may become longer, as on a disk that is full."""
    command = [sys.executable, "-m", "rung", *map(os.fsencode, arguments)]
    if limit is not None:
        command = ["sh", "-c", f'ulimit -f {limit}; trap "" XFSZ; exec "$@"', "sh", *command]
    return subprocess.run(command, capture_output=True, cwd=cwd, timeout=60, check=False, **options)


@pytest.fixture
def here(tmp_path, monkeypatch, capfdbinary):
    """Return a function that runs the command in this process."""

    def run(*arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["rung", *map(os.fsdecode, arguments)])
        with pytest.raises(SystemExit) as ended:
            main.main()
        out, err = capfdbinary.readouterr()
        return subprocess.CompletedProcess(arguments, ended.value.code, out, err)

    return run


def fails(done, exit_code, code, *words):
    printed = done.stderr.decode()
    assert "Traceback" not in printed
    assert (done.returncode, f"error[{code}]" in printed) == (exit_code, True), printed
    assert "hint: " in printed
    for word in words:
        assert word in printed


def test_a_full_disk_leaves_no_half_task_file(data, tmp_path):
    fails(rung("init", "data.csv", "--yes", cwd=tmp_path, limit=0), 3, "write-failed", str(tmp_path))
    assert [file.name for file in tmp_path.iterdir()] == ["data.csv"]
    assert rung("init", "data.csv", "--yes", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "exit_code", "code", "word"),
    [
        (["keys", "create", "--key-file", "data.csv/keys.jsonl"], 3, "system-error", "data.csv"),
        (["show", "x" * 300], 3, "system-error", "File name too long"),
        (["check", b"caf\xe9.yaml"], 2, "bad-option", "UTF-8"),
        (["init", "data.csv", "--yes", "--out", "data.csv/task.yaml"], 3, "write-failed", "data.csv"),
    ],
)
def test_a_place_that_cannot_be_is_named(data, here, arguments, exit_code, code, word):
    fails(here(*arguments), exit_code, code, word)


def test_output_that_cannot_be_written_is_an_error_and_a_reader_that_left_is_none(tmp_path):
    command = [sys.executable, "-m", "rung", "rungs", "--json"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=60, check=False)
    fails(done, 3, "write-failed", "No space left")
    read, write = os.pipe()
    os.close(read)
    left = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(write)
    assert (left.returncode, left.stderr) == (0, b"")


def test_a_locale_of_ascii_reads_and_writes_every_text(data, tmp_path):
    data.rename(tmp_path / "größe 漢字.csv")
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = rung("init", "größe 漢字.csv", "--yes", cwd=tmp_path, env=plain)
    assert done.returncode == 0, done.stderr
    assert "größe 漢字.csv" in (tmp_path / "task.yaml").read_text("utf-8")


def test_a_port_in_use_is_an_error_before_models_are_loaded(here):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        fails(here("serve", "nothing", "--port", port), 3, "system-error", f"127.0.0.1:{port}", "--port")


def test_an_interrupt_while_the_program_starts_ends_it_as_later(tmp_path):
    script = (
        "import importlib.abc, os, signal, sys\n"
        "class Interrupt(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'typer':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "sys.meta_path.insert(0, Interrupt())\n"
        "from rung.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (128 + signal.SIGINT, b"interrupted\n")


def test_a_fault_of_the_program_keeps_its_traceback_in_a_file(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(main, "app", lambda **_: 1 / 0)
    monkeypatch.setattr(main.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["rung"])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 3
    (file,) = tmp_path.iterdir()
    assert "ZeroDivisionError" in file.read_text()
    printed = capsys.readouterr().err
    assert "error[internal-error]: ZeroDivisionError: division by zero" in printed
    assert str(file) in printed
