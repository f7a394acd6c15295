"""Batch prediction in parts: the file of one process, every row once, whatever ends the workers and the driver."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from letters import lines_of, write_rows
from rung.artifact.artifact import Artifact
from rung.artifact.files import fingerprint
from rung.artifact.predict_file import BATCH, Predicted, only_writer, parts_folder, predict_file
from rung.cli.main import app
from rung.cluster import parts
from rung.cluster.job import Job, Storage
from rung.cluster.parts import predict_in_parts, sizes
from rung.cluster.processes import Inline, Processes
from rung.errors import ConfigError, EngineError, MachineError, RungError
from rung.progress import QUIET
from rung.worker_pipes import WorkerError


def in_parts(artifact, folder, rows, out, executor, **more):
    return predict_in_parts(artifact, folder, rows, out, executor, fingerprint=fingerprint(folder), **more)


class Stops(Inline):
    """Runs so many parts; then the command ends."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def submit(self, uri, resources):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        super().submit(uri, resources)


def rung(*words: object) -> list[str]:
    return [sys.executable, "-W", "ignore", "-m", "rung", *map(str, words)]


def children(pid: int) -> list[int]:
    """The processes that a process has started and that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def test_two_processes_write_the_file_that_one_writes(letters, letters_folder, tmp_path):
    # whole batches: answers are cached, and those of another batch size would differ in their last digits
    rows, out = write_rows(tmp_path / "rows.csv", 704), tmp_path / "out.jsonl"
    alone = predict_file(letters, rows, tmp_path / "alone.jsonl", fingerprint=fingerprint(letters_folder), top_k=2)
    made = in_parts(letters, letters_folder, rows, out, Processes(2), top_k=2)
    assert made == alone == Predicted(704, 704)
    assert out.read_bytes() == (tmp_path / "alone.jsonl").read_bytes()
    assert not parts_folder(out).exists()


@pytest.mark.parametrize(("total", "size"), [(1, 64), (700, 128), (3000, 384), (1_000_000, 157 * 64)])
def test_parts_are_whole_batches_and_small_at_the_end(total, size):
    rows = list(sizes(total, size))
    assert sum(rows) == total
    assert {each % BATCH for each in rows[:-1]} <= {0}
    assert max(rows) <= size
    last = [each for number, each in enumerate(rows) if sum(rows[number:]) <= size]
    assert max(last) <= max(BATCH, size / 4)


def test_a_row_that_cannot_be_answered_is_an_error_record_however_the_file_is_answered(
    letters, letters_folder, tmp_path
):
    rows, out = write_rows(tmp_path / "rows.csv", 300, poisoned=(5, 70, 71, 299)), tmp_path / "out.jsonl"
    alone = predict_file(letters, rows, tmp_path / "alone.jsonl", fingerprint=fingerprint(letters_folder))
    made = in_parts(letters, letters_folder, rows, out, Inline())
    assert made == alone == Predicted(300, 300, error_rows=4)
    assert made.first_errors == alone.first_errors == ("rows.csv:7", "rows.csv:72", "rows.csv:73")
    assert "4 rows could not be answered (rows.csv:7, rows.csv:72, rows.csv:73 and 1 more)" in str(made)
    assert out.read_bytes() == (tmp_path / "alone.jsonl").read_bytes()
    answered = lines_of(out)
    assert [line["id"] for line in answered] == [str(i) for i in range(300)]
    failed = [line for line in answered if "error" in line]
    assert [line["id"] for line in failed] == ["5", "70", "71", "299"]
    assert all(line["output"] is None and "[context-overflow]" in line["error"] for line in failed)


@pytest.mark.parametrize("where", ["alone", "in parts"])
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyError("nobody"), "KeyError: 'nobody'"),
        (RuntimeError("no such place"), "RuntimeError: no such place"),
        (EngineError("endpoint-refused", "it refuses the request"), "it refuses the request [endpoint-refused]"),
        (EngineError("endpoint-unreachable", "nobody answers"), None),
        (MachineError("not-trusted", "this would run code"), None),
        (MemoryError("too much"), None),
        (ModuleNotFoundError("no library"), None),
        (torch.OutOfMemoryError("too much"), None),
    ],
)
def test_a_row_is_to_blame_for_some_errors_and_the_machine_for_others(
    letters, letters_folder, tmp_path, monkeypatch, where, error, said
):
    def fails(self, examples, **how):
        if any(example.inputs["text"] == "abab" for example in examples):
            raise error
        return answers(self, examples, **how)

    answers = Artifact.answer
    monkeypatch.setattr(Artifact, "answer", fails)
    rows, out = tmp_path / "rows.csv", tmp_path / "out.jsonl"
    rows.write_text("text\nba\nabab\nc\n")

    def run():
        if where == "in parts":
            return in_parts(letters, letters_folder, rows, out, Inline())
        return predict_file(letters, rows, out, fingerprint=fingerprint(letters_folder))

    if said is None:
        with pytest.raises((type(error), WorkerError), match=str(error)):
            run()
        return
    assert run() == Predicted(3, 3, error_rows=1)
    assert [line.get("error") for line in lines_of(out)] == [None, said, None]


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_the_exit_code_and_the_last_line_tell_of_rows_without_an_answer(letters_folder, tmp_path, ending):
    rows = write_rows(tmp_path / "rows.csv", 3, poisoned=(1,))
    command = ["predict", str(letters_folder), str(rows), "--quiet"]
    for words in ([], ["--out", "alone"], ["--out", "parts", "--workers", "1"], ["--out", "json", "--json"]):
        given = [*words[:1], *(str(tmp_path / f"{word}{ending}") for word in words[1:2]), *words[2:]]
        ended = CliRunner().invoke(app, [*command, *given])
        assert ended.exit_code == 1, words
        assert "1 row could not be answered (rows.csv:3): the column `error` says why" in ended.stderr
    assert json.loads(ended.stdout)["first_errors"] == ["rows.csv:3"]
    assert (tmp_path / f"alone{ending}").read_bytes() == (tmp_path / f"parts{ending}").read_bytes()
    if ending == ".csv":
        with (tmp_path / "alone.csv").open(newline="") as file:
            table = list(csv.DictReader(file))
        assert [bool(row["error"]) for row in table] == [False, True, False]
        assert table[1]["output"] == ""


def test_a_run_that_goes_on_still_counts_the_rows_that_failed_before(letters, letters_folder, tmp_path):
    rows = write_rows(tmp_path / "rows.csv", 10, poisoned=(1,))
    for out, executor in ((tmp_path / "alone.jsonl", None), (tmp_path / "parts.jsonl", Inline())):
        origin = fingerprint(letters_folder)
        for done in (10, 0):
            if executor is None:
                made = predict_file(letters, rows, out, fingerprint=origin, resume=not done)
            else:
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(parts, "_clean_up", lambda *_: None)  # as if it had been killed there
                    made = in_parts(letters, letters_folder, rows, out, executor, resume=not done)
            assert (made, made.first_errors) == (Predicted(10, done, error_rows=1), ("rows.csv:3",))


def test_where_all_rows_of_a_batch_fail_the_model_is_to_blame_and_what_is_done_stays(letters, letters_folder, tmp_path):
    rows, out = write_rows(tmp_path / "rows.csv", 640, poisoned=tuple(range(512, 576))), tmp_path / "out.jsonl"
    with pytest.raises(RungError, match=r"fit|long|context|tokens"):
        predict_file(letters, rows, tmp_path / "alone.jsonl", fingerprint=fingerprint(letters_folder))
    assert len(lines_of(tmp_path / "alone.jsonl")) == 512
    with pytest.raises(RungError, match=r"fit|long|context|tokens"):
        in_parts(letters, letters_folder, rows, out, Inline())
    assert not out.exists()
    assert len(list(parts_folder(out).glob("*/manifest.json"))) >= 2
    with pytest.raises(ConfigError) as caught:
        in_parts(letters, letters_folder, rows, out, Inline())
    assert caught.value.code == "file-exists"


def test_another_executor_finishes_what_one_began_and_no_part_runs_twice(letters, letters_folder, tmp_path):
    rows, out = write_rows(tmp_path / "rows.csv", 1000), tmp_path / "out.jsonl"

    with pytest.raises(KeyboardInterrupt):
        in_parts(letters, letters_folder, rows, out, Stops(3))
    done = {file: file.stat().st_mtime_ns for file in parts_folder(out).glob("*/manifest.json")}
    assert len(done) == 3
    seen = {}

    class Looks(Processes):
        def close(self):
            seen.update({file: file.stat().st_mtime_ns for file in parts_folder(out).glob("*/manifest.json")})
            super().close()

    made = in_parts(letters, letters_folder, rows, out, Looks(2), resume=True)
    assert made.rows == 1000
    assert 0 < made.answered < 1000
    assert seen.items() > done.items()
    predict_file(letters, rows, tmp_path / "alone.jsonl", fingerprint=fingerprint(letters_folder))
    assert out.read_bytes() == (tmp_path / "alone.jsonl").read_bytes()


def test_other_rows_or_columns_do_not_continue_a_run(letters, letters_folder, tmp_path):
    rows, out = write_rows(tmp_path / "rows.csv", 200, poisoned=tuple(range(64, 128))), tmp_path / "out.jsonl"
    with pytest.raises(RungError):
        in_parts(letters, letters_folder, rows, out, Inline())
    with pytest.raises(ConfigError) as caught:
        in_parts(letters, letters_folder, rows, out, Inline(), keep="none", resume=True)
    assert caught.value.code == "resume-mismatch"
    write_rows(rows, 201)
    with pytest.raises(ConfigError, match="other contents of the rows"):
        in_parts(letters, letters_folder, rows, out, Inline(), resume=True)


def test_files_with_one_folder_for_jobs_do_not_get_the_answers_of_others(letters, letters_folder, tmp_path):
    files = [write_rows(tmp_path / "a.csv", 200), tmp_path / "b.csv"]
    head, *lines = files[0].read_text().splitlines()
    texts = [line.split(",")[1] for line in lines]
    files[1].write_text("\n".join([head, *(f"{i},{text}" for i, text in enumerate(reversed(texts)))]) + "\n")
    alone = []
    for file in files:
        predict_file(letters, file, tmp_path / f"{file.stem}.alone", fingerprint=fingerprint(letters_folder))
        alone.append((tmp_path / f"{file.stem}.alone").read_bytes())
    assert alone[0] != alone[1]
    a, b, jobs = tmp_path / "a.jsonl", tmp_path / "b.jsonl", str(tmp_path / "jobs")
    with pytest.raises(KeyboardInterrupt):
        in_parts(letters, letters_folder, files[0], a, Stops(2), jobs=jobs)
    assert in_parts(letters, letters_folder, files[1], b, Inline(), jobs=jobs).answered == 200
    assert b.read_bytes() == alone[1]
    resumed = in_parts(letters, letters_folder, files[0], a, Inline(), jobs=jobs, resume=True)
    assert 0 < resumed.answered < 200
    assert a.read_bytes() == alone[0]
    assert list((tmp_path / "jobs").iterdir()) == []
    # the same OUT, begun anew with other rows
    for file in (a, b):
        file.unlink()
    with pytest.raises(KeyboardInterrupt):
        in_parts(letters, letters_folder, files[0], a, Stops(2), jobs=jobs)
    shutil.rmtree(parts_folder(a))
    assert in_parts(letters, letters_folder, files[1], a, Inline(), jobs=jobs).answered == 200
    assert a.read_bytes() == alone[1]


def test_a_worker_refuses_other_rows_than_those_of_the_job(letters, letters_folder, tmp_path):
    class Changes(Inline):
        def submit(self, uri, resources):
            rows = Path(Job.read(uri).data)
            rows.write_text(rows.read_text().replace("rows.csv:1", "rows.csv:7"))
            super().submit(uri, resources)

    rows, out = write_rows(tmp_path / "rows.csv", 10), tmp_path / "out.jsonl"
    with pytest.raises(RungError, match="has other rows than when the job was made") as caught:
        in_parts(letters, letters_folder, rows, out, Changes())
    assert caught.value.code == "storage-refused"


def test_a_command_that_was_killed_in_its_clean_up_goes_on_with_it(letters, letters_folder, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    rows, out = write_rows(tmp_path / "rows.csv", 100), tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "remove_or_say", killed)
        with pytest.raises(KeyboardInterrupt):
            in_parts(letters, letters_folder, rows, out, Inline())
    answers = out.read_bytes()
    with pytest.raises(ConfigError) as caught:
        in_parts(letters, letters_folder, rows, out, Inline(), keep="none", resume=True)
    assert caught.value.code == "resume-mismatch"
    assert in_parts(letters, letters_folder, rows, out, Inline(), resume=True) == Predicted(100, 0)
    assert out.read_bytes() == answers
    assert not parts_folder(out).exists()
    with pytest.raises(ConfigError, match="exists"):
        in_parts(letters, letters_folder, rows, out, Inline(), resume=True)


def test_parts_that_cannot_be_removed_do_not_lose_the_answers(letters, letters_folder, tmp_path, monkeypatch):
    from fsspec.implementations.local import LocalFileSystem

    removes = LocalFileSystem.rm

    def refuse_folders(self, path, recursive=False):
        if Path(path).is_dir():
            raise PermissionError(path)
        removes(self, path, recursive)

    said = list[str]()
    monkeypatch.setattr(type(QUIET), "say", lambda _, text: said.append(text))
    rows, out = write_rows(tmp_path / "rows.csv", 10), tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(LocalFileSystem, "rm", refuse_folders)
        made = in_parts(letters, letters_folder, rows, out, Inline())
    assert made == Predicted(10, 10)
    assert len(lines_of(out)) == 10
    assert any("cannot be removed" in text and str(parts_folder(out)) in text for text in said)


def test_two_commands_do_not_answer_the_same_file(letters, letters_folder, tmp_path):
    rows, out = write_rows(tmp_path / "rows.csv", 200), tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        in_parts(letters, letters_folder, rows, out, Stops(1))
    with only_writer(parts_folder(out) / "lock"), pytest.raises(ConfigError) as caught:
        in_parts(letters, letters_folder, rows, out, Inline(), resume=True)
    assert caught.value.code == "file-in-use"
    assert in_parts(letters, letters_folder, rows, out, Inline(), resume=True).rows == 200


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--workers", "2"], "bad-option"),  # without --out
        (["--out", "out.jsonl", "--workers", "none"], "bad-option"),
        (["--out", "out.jsonl", "--on", "srun rung worker", "--workers", "2"], "bad-option"),
        (["--out", "out.jsonl", "--on", "srun rung worker {job}"], "bad-option"),
        (["--out", "out.jsonl", "--jobs", "jobs"], "bad-option"),
        (["--out", "out.jsonl", "--workers", "1", "--jobs", "ftp://me:secret@host/x"], "bad-option"),
        (["--out", "out.jsonl", "--workers", "\u00b2"], "bad-option"),  # a digit, and no number
    ],
)
def test_options_that_make_no_sense_are_refused(letters_folder, tmp_path, monkeypatch, words, code):
    monkeypatch.chdir(tmp_path)
    rows = write_rows(tmp_path / "rows.csv", 3)
    failed = CliRunner().invoke(app, ["predict", str(letters_folder), str(rows), *words])
    assert isinstance(failed.exception, RungError)
    assert failed.exception.code == code
    assert failed.exception.hint
    assert "secret" not in f"{failed.exception} {failed.exception.hint}"
    assert [file.name for file in tmp_path.iterdir()] == ["rows.csv"]


def test_a_command_for_each_part_gives_the_same_file(letters, letters_folder, tmp_path):
    rows = write_rows(tmp_path / "rows.csv", 130)
    command = f"{sys.executable} -W ignore -m rung worker {{job}}"
    subprocess.run(
        rung("predict", letters_folder, rows, "--out", tmp_path / "out.csv", "--on", command, "--workers", 2, "-q"),
        check=True,
    )
    subprocess.run(rung("predict", letters_folder, rows, "--out", tmp_path / "alone.csv", "-q"), check=True)
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["alone.csv", "out.csv", "rows.csv"]


@pytest.mark.slow
def test_every_row_is_answered_once_through_kills_of_workers_and_driver(letters_folder, tmp_path):
    count, poisoned = 50_000, (7, 20_000, 49_999)
    rows, out = write_rows(tmp_path / "rows.csv", count, poisoned), tmp_path / "out.jsonl"
    environment = {**os.environ, "RUNG_CACHE": str(tmp_path / "cache")}
    command = rung("predict", letters_folder, rows, "--out", out, "--workers", 2, "--quiet")
    dice = random.Random(0)
    for kill in ("worker", "driver", "worker", "driver", ""):
        run = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
        finished = len(list(parts_folder(out).glob("*/manifest.json")))
        while kill and run.poll() is None and len(list(parts_folder(out).glob("*/manifest.json"))) == finished:
            time.sleep(0.01)
        time.sleep(dice.uniform(0, 0.5) if kill else 0)
        if kill == "worker":
            for pid in children(run.pid)[:1]:
                os.kill(pid, signal.SIGKILL)
        elif kill == "driver":
            run.send_signal(signal.SIGKILL)
            run.wait()
            command = [*command, *(["--resume"] if "--resume" not in command else [])]
            continue
        if kill:
            run.send_signal(signal.SIGKILL) if dice.random() < 0.5 else None
        said = run.communicate()[1].decode()
        if run.returncode == 1:  # it is done, and some rows have no answer
            break
        assert run.returncode == -signal.SIGKILL, said
        command = [*command, *(["--resume"] if "--resume" not in command else [])]
    answered = lines_of(out)
    assert [line["id"] for line in answered] == [str(i) for i in range(count)]
    assert [int(line["id"]) for line in answered if "error" in line] == list(poisoned)
    assert not parts_folder(out).exists()
    shutil.rmtree(tmp_path / "cache")
