"""Files of rows: answered in pieces, in flat memory, resumed after a kill without a line lost or doubled."""

import csv
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rung.artifact.artifact import Artifact
from rung.artifact.files import fingerprint
from rung.artifact.labels import LabelScoring
from rung.artifact.parts import Signature
from rung.artifact.predict_file import BATCH, Predicted, origin_file, predict_file
from rung.cli.main import app
from rung.data.sources import read_rows
from rung.errors import ConfigError, DataError
from rung.progress import Quiet
from rung.prompts.prompt import Prompt


@pytest.fixture(scope="module")
def folder(tiny_tokenizer, tiny_model, tmp_path_factory):
    """A saved artifact on a random Llama of a few thousand weights."""
    model = tmp_path_factory.mktemp("model") / "tiny"
    tiny_model(tiny_tokenizer.vocabulary_size).save_pretrained(model)
    for file in tiny_tokenizer.folder.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    artifact = Artifact(
        signature=Signature("letters", ("text",), "category", "accuracy", ("x", "y", "z")),
        model=str(model),
        prompt=Prompt(instruction="", template="{text}"),
        decoder=LabelScoring(("x", "y", "z"), ("ab", "ba", "c")),
        path=("zero-shot",),
    )
    return artifact.save(tmp_path_factory.mktemp("artifact") / "letters")


@pytest.fixture(scope="module")
def artifact(folder):
    return Artifact.load(folder)


def write_rows(file: Path, count: int) -> Path:
    """Rows that all differ, in the tokenizer's letters."""
    with file.open("w") as out:
        out.write("id,text\n")
        for i in range(count):
            out.write(f"{i},{''.join('abc '[i >> 2 * bit & 3] for bit in range(7))}b\n")
    return file


def answer(artifact, rows, out, folder, **more):
    return predict_file(artifact, rows, out, fingerprint=fingerprint(folder), **more)


def lines(out):
    return [json.loads(line) for line in out.read_text().splitlines()]


class Memory(Quiet):
    """Notes the resident memory after 2,000 rows."""

    def __init__(self):
        self.total, self.done, self.early = 0, 0, 0

    def start(self, label, total=None):
        self.total = total if label == "answering" else self.total

    def advance(self, units=1, note=""):
        self.done += units
        if not self.early and self.done >= 2000:
            self.early = resident()


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_does_not_grow_with_the_rows(artifact, folder, tmp_path):
    rows, out, memory = write_rows(tmp_path / "rows.csv", 10_000), tmp_path / "out.jsonl", Memory()
    made = answer(artifact, rows, out, folder, progress=memory)
    grown = resident() - memory.early
    assert made == Predicted(rows=10_000, answered=10_000)
    assert memory.total == memory.done == 10_000  # so the time left is known from the first batch on
    assert [line["row"] for line in lines(out)] == [f"rows.csv:{i + 2}" for i in range(10_000)]
    assert grown < 16 * 2**20, f"{grown / 2**20:.1f} MiB more after 10,000 rows than after 2,000"


def test_killed_it_resumes_to_the_same_file(artifact, folder, tmp_path):
    rows, whole = write_rows(tmp_path / "rows.csv", 3000), tmp_path / "whole.jsonl"
    answer(artifact, rows, whole, folder)
    out = tmp_path / "out.jsonl"
    environment = {**os.environ, "RUNG_CACHE": str(tmp_path / "cache")}
    run = subprocess.Popen(
        [sys.executable, "-m", "rung", "predict", folder, rows, "--out", out, "--quiet"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while run.poll() is None and not (out.exists() and out.stat().st_size > 0):
        time.sleep(0.005)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    done = out.read_bytes().count(b"\n")
    assert 0 < done < 3000
    with out.open("ab") as torn:  # what a kill in the middle of a write leaves
        torn.write(b'{"row": "rows.csv:9')
    made = answer(artifact, rows, out, folder, resume=True)
    assert made == Predicted(rows=3000, answered=3000 - done)
    assert out.read_bytes() == whole.read_bytes()
    assert str(made) == f"{3000 - done} of 3000 rows answered, {done} were already answered"
    assert answer(artifact, rows, out, folder, resume=True).answered == 0
    assert out.read_bytes() == whole.read_bytes()


@pytest.fixture
def begun(artifact, folder, tmp_path):
    rows, out = write_rows(tmp_path / "rows.csv", 10), tmp_path / "out.jsonl"
    answer(artifact, rows, out, folder)
    return rows, out


def other_rows(rows, out):
    rows.write_text(rows.read_text().replace("9,", "90,"))


def no_origin(rows, out):
    origin_file(out).unlink()


def more_lines(rows, out):
    with out.open("a") as more:
        more.write("{}\n")


@pytest.mark.parametrize("change", [other_rows, no_origin, more_lines])
def test_what_does_not_belong_together_is_not_resumed(artifact, folder, begun, change):
    rows, out = begun
    change(rows, out)
    before = out.read_bytes()
    with pytest.raises(ConfigError) as caught:
        answer(artifact, rows, out, folder, resume=True)
    assert caught.value.code == "resume-mismatch"
    assert out.read_bytes() == before


def test_another_artifact_does_not_go_on(artifact, begun):
    rows, out = begun
    with pytest.raises(ConfigError, match="other contents of the artifact"):
        predict_file(artifact, rows, out, fingerprint="another", resume=True)


def test_without_resume_nothing_is_touched(artifact, folder, begun):
    rows, out = begun
    before = out.read_bytes()
    with pytest.raises(ConfigError) as caught:
        answer(artifact, rows, out, folder)
    assert (caught.value.code, out.read_bytes()) == ("file-exists", before)


def test_one_process_writes_at_a_time(artifact, folder, begun):
    rows, out = begun
    with out.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ConfigError) as caught:
            answer(artifact, rows, out, folder, resume=True)
    assert caught.value.code == "file-in-use"


def test_rows_of_a_batch_that_was_cut_off_are_answered_together_again(artifact, folder, tmp_path, monkeypatch):
    rows = write_rows(tmp_path / "rows.csv", BATCH + 10)
    asked, real = [], Artifact.predict
    monkeypatch.setattr(Artifact, "predict", lambda self, batch: (asked.append(len(batch)), real(self, batch))[1])
    whole = tmp_path / "whole.jsonl"
    assert answer(artifact, rows, whole, folder).answered == BATCH + 10
    for there, batches in ((3, [BATCH, 10]), (BATCH, [10]), (BATCH + 4, [10]), (BATCH + 10, [])):
        cut = tmp_path / f"{there}.jsonl"
        cut.write_text("".join(whole.read_text().splitlines(keepends=True)[:there]) + '{"torn"')
        origin_file(cut).write_text(origin_file(whole).read_text())
        asked.clear()
        assert answer(artifact, rows, cut, folder, resume=True).answered == BATCH + 10 - there
        assert asked == batches
        assert cut.read_text() == whole.read_text()


def test_a_broken_row_is_an_error_before_the_first_answer(artifact, folder, tmp_path):
    rows, out = write_rows(tmp_path / "rows.csv", 3 * BATCH), tmp_path / "out.jsonl"
    with rows.open("a") as more:
        more.write("1,2,3\n")
    with pytest.raises(DataError) as caught:
        answer(artifact, rows, out, folder)
    assert caught.value.code == "bad-csv"
    assert not out.exists()


def test_the_summary_names_what_was_left_out():
    text = str(Predicted(rows=10, answered=10, overflow_rows=3, dropped_demonstrations=7))
    assert "3 prompts were longer than the model reads: 7 demonstrations were left out of them" in text


def test_a_table_appears_when_it_is_whole_and_leaves_nothing_beside_it(artifact, folder, tmp_path):
    rows, out = write_rows(tmp_path / "rows.csv", 5), tmp_path / "answers.csv"
    command = ["predict", str(folder), str(rows), "--out", str(out), "--quiet"]
    assert CliRunner().invoke(app, command).exit_code == 0
    with out.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["output"] for row in table] == [a.text for a in artifact.predict([r.values for r in read_rows(rows)])]
    assert [row["row"] for row in table] == [f"rows.csv:{i}" for i in range(2, 7)]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["answers.csv", "rows.csv"]
    again = CliRunner().invoke(app, command)
    assert again.exception.code == "file-exists"
