"""Files of rows: answered in pieces, in flat memory, resumed after a kill without a line lost or doubled."""

import csv
import datetime
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from decimal import Decimal
from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from typer.testing import CliRunner

import rung
from rung.artifact.artifact import Artifact
from rung.artifact.files import fingerprint
from rung.artifact.predict_file import BATCH, Predicted, origin_file, predict_file
from rung.cli.main import app
from rung.data.sources import read_rows
from rung.errors import ArtifactError, ConfigError, DataError
from rung.feedback.registry import Registry
from rung.feedback.store import FeedbackStore
from rung.progress import Quiet
from rung.prompts.prompt import Prompt
from rung.serving.served import Served
from rung.yamlfile import sealed


@pytest.fixture(scope="module")
def folder(letters_folder):
    return letters_folder


@pytest.fixture(scope="module")
def artifact(letters):
    return letters


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
    asked, real = [], Artifact.answer
    monkeypatch.setattr(Artifact, "answer", lambda self, batch: (asked.append(len(batch)), real(self, batch))[1])
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


# ---- the user's table


def command(*words):
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def table_rows(file):
    if file.suffix == ".csv":
        with file.open(newline="", encoding="utf-8") as text:
            return list(csv.DictReader(text))
    return [record.values for record in read_rows(file)]


@pytest.fixture
def tickets(tmp_path):
    """A table as people have it: semicolons, Windows' encoding, a label, and a column that is called `confidence`."""
    rows = [["id", "text", "label", "confidence"], ["T1", "abab", "x", "hoch"], ["T2", "ba c", "", "für 5 €"]]
    with (tmp_path / "tickets.csv").open("w", encoding="cp1252", newline="") as file:
        csv.writer(file, delimiter=";").writerows(rows)
    return tmp_path / "tickets.csv"


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".xlsx", ".jsonl"])
def test_the_user_s_table_comes_back_with_its_answers(artifact, folder, tickets, tmp_path, ending):
    out = tmp_path / f"out{ending}"
    said = command("predict", folder, tickets, "--out", out, "--top-k", 2)
    assert "tickets.csv is read as: cp1252, semicolons" in said.stderr
    rows = table_rows(out)
    expected = artifact.predict([{"text": "abab"}, {"text": "ba c"}])
    assert [row["row"] for row in rows] == ["tickets.csv:2", "tickets.csv:3"]
    assert [[row[name] or "" for name in ("id", "text", "label", "confidence")] for row in rows] == [
        ["T1", "abab", "x", "hoch"], ["T2", "ba c", "", "für 5 €"],
    ]  # fmt: skip
    assert [row["output"] for row in rows] == [answer.text for answer in expected]
    assert [float(row["predicted_confidence"]) for row in rows] == pytest.approx([a.confidence for a in expected])
    for row, answer in zip(rows, expected, strict=True):
        ranked = sorted(zip("xyz", answer.probabilities, strict=True), key=lambda pair: -pair[1])[:2]
        if ending == ".jsonl":
            assert [(each["label"], each["probability"]) for each in row["top"]] == ranked
        else:
            assert (row["top_1"], row["top_2"]) == (ranked[0][0], ranked[1][0])
            assert float(row["top_2_probability"]) == pytest.approx(ranked[1][1])


def test_columns_to_keep(folder, tickets, artifact):
    plain = command("predict", folder, tickets, "--keep", "none", "--quiet").stdout.splitlines()
    assert [list(json.loads(line)) for line in plain] == [["row", "output", "confidence"]] * 2
    one = json.loads(command("predict", folder, tickets, "--keep", "label, id", "--quiet").stdout.splitlines()[0])
    assert list(one) == ["row", "label", "id", "output", "confidence"]
    with pytest.raises(DataError, match="has no column 'idd'") as caught:
        command("predict", folder, tickets, "--keep", "idd", "--quiet")
    assert caught.value.hint == "did you mean 'id'?"
    whole = json.loads(command("predict", folder, tickets, "--json", "--quiet").stdout)
    assert [row["id"] for row in whole] == ["T1", "T2"]
    assert [{**row, "row": ""} for row in rung.predict(artifact, [r.values for r in read_rows(tickets)])] == [
        {**row, "row": ""} for row in whole
    ]


def test_a_summary_as_json_and_a_resumed_run_with_other_columns(folder, tickets, tmp_path):
    out = tmp_path / "out.jsonl"
    done = json.loads(command("predict", folder, tickets, "--out", out, "--json", "--quiet").stdout)
    assert (done["rows"], done["answered"], done["format"], done["answer_column"]) == (
        2,
        2,
        "cp1252, semicolons",
        "output",
    )
    with pytest.raises(ConfigError, match="other contents of --keep or --top-k"):
        command("predict", folder, tickets, "--out", out, "--resume", "--keep", "id")
    assert command("predict", folder, tickets, "--out", out, "--resume", "--quiet").exit_code == 0


def test_a_file_in_an_encoding_that_is_named(folder, tmp_path):
    (tmp_path / "a.csv").write_bytes("text^note\nab^привет\n".encode("cp1251"))
    with pytest.raises(DataError, match="not utf-8"):
        command("predict", folder, tmp_path / "a.csv", "--quiet")
    row = json.loads(
        command("predict", folder, tmp_path / "a.csv", "--encoding", "cp1251", "--separator", "^", "--quiet").stdout
    )
    assert row["note"] == "привет"


def test_parquet_keeps_its_types(folder, tmp_path):
    table = pyarrow.table(
        {
            "text": ["ab"] * 2500, "day": [datetime.date(2024, 1, 31)] * 2500, "sum": [Decimal("1.50")] * 2500,
            "kind": pyarrow.array(["k"] * 2500).dictionary_encode(), "list": [[{"n": 1}]] * 2500, "raw": [b"x"] * 2500,
        }
    )  # fmt: skip
    pyarrow.parquet.write_table(table, tmp_path / "in.parquet", row_group_size=700)
    out = tmp_path / "out.parquet"
    command("predict", folder, tmp_path / "in.parquet", "--keep", "day,sum,kind,list", "--out", out, "--quiet")
    back = pyarrow.parquet.read_table(out)
    for name in ("day", "sum", "kind", "list"):
        assert back.schema.field(name).type == table.schema.field(name).type
        assert back.column(name).to_pylist() == table.column(name).to_pylist()
    with pytest.raises(DataError, match=r"in\.parquet:1: the column 'raw' holds bytes"):
        command("predict", folder, tmp_path / "in.parquet", "--quiet")
    lines = command("predict", folder, tmp_path / "in.parquet", "--keep", "day,sum,list", "--quiet").stdout.splitlines()
    assert {name: json.loads(lines[0])[name] for name in ("day", "sum", "list")} == {
        "day": "2024-01-31", "sum": "1.50", "list": [{"n": 1}],
    }  # fmt: skip


def test_labels_without_probabilities_have_no_top_k(artifact, tickets):
    class Silent(Artifact):
        def answer(self, examples, **how):
            return [replace(answer, probabilities=None) for answer in super().answer(examples, **how)]

    silent = Silent(**{f.name: getattr(artifact, f.name) for f in fields(artifact)})
    with pytest.raises(ConfigError, match="gives no probabilities"):
        rung.predict(silent, [{"text": "a"}], top_k=2)


# ---- rows in memory, and a run folder in place of an artifact


def test_rows_of_every_kind_are_answered_alike(artifact, tmp_path):
    rows = [{"text": "abab", "n": 1}, {"text": "ba c", "n": 2}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [row["text"] for row in rows]
    expected = artifact.predict(rows)
    kinds = [pd.DataFrame(rows), pl.DataFrame(rows), pyarrow.Table.from_pylist(rows), Dataset.from_list(rows), texts]
    for kind in [*kinds, tuple(texts), pd.Series(texts), pl.Series(texts), iter(rows), tmp_path / "rows.jsonl"]:
        assert [a.text for a in artifact.predict(kind)] == [a.text for a in expected]
        assert [a.probabilities for a in artifact.predict(texts)] == [a.probabilities for a in expected]
    assert artifact.predict("abab")[0].messages == expected[0].messages
    assert artifact.predict(pd.DataFrame(rows)[:0]) == []


def test_a_key_that_only_other_rows_have_is_nothing(folder, artifact, tmp_path):
    nested = replace(artifact, signature=replace(artifact.signature, inputs=("text", "more.c")),
                     prompt=Prompt(instruction="", template="{text}{more.c}"))  # fmt: skip
    rows = [{"text": "ab"}, {"text": "ba", "more": {"c": "b"}}, {"more": None, "text": "c"}, {"more": {}, "text": "a"}]
    whole = [{"text": row["text"], "more": {"c": (row.get("more") or {}).get("c")}} for row in rows]
    assert [a.probabilities for a in nested.predict(rows)] == [a.probabilities for a in nested.predict(whole)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    done = nested.save(tmp_path / "nested")
    answers = [json.loads(line) for line in command("predict", done, tmp_path / "rows.jsonl", "-q").stdout.splitlines()]
    assert [answer["confidence"] for answer in answers] == [a.confidence for a in nested.predict(whole)]
    assert [list(answer) for answer in answers] == [["row", "text", "more", "output", "confidence"]] * 4
    assert command("show", done, "--prompt", "--data", tmp_path / "rows.jsonl").stdout.count("ab") == 1
    with pytest.raises(DataError, match=r"row 2 has no column 'text'"):
        artifact.predict([{"text": "ab"}, {"txt": "ba"}])


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"text": "a"}, "one mapping"), ([{"text": "a"}, 5], "row 2 is no mapping"), (5, "an object of type int"),
        ([{"text": "a"}, {"txt": "b"}], "row 2 has no column 'text'"),
        ([{"text": b"x"}], "row 1: the column 'text' holds"), ([{"text": "a"}, {}], "row 2: empty input"),
        (pd.DataFrame({"text": ["a", None]}), "row 2: empty input"), (["a", " \n"], "row 2: empty input"),
    ],
)  # fmt: skip
def test_what_is_no_row_is_named(artifact, rows, said):
    for answering in (artifact.predict, lambda given: rung.predict(artifact, given)):
        with pytest.raises(DataError, match=said):
            answering(rows)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.jsonl", '{"text": "ab"}\n{"message": "ba"}\n{"text": null}\n{"text": ""}\n{"text": "  "}\n'),
        ("rows.csv", 'n,text\n1,ab\n2,\n3," "\n4,""\n5,\n'),
    ],
)
def test_a_row_without_an_input_has_an_error_and_no_answer(folder, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    done = command("predict", folder, tmp_path / name)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer.get("error") for answer in answers] == [None] + ["empty input [bad-row]"] * 4
    assert [answer["output"] is None for answer in answers] == [False] + [True] * 4
    assert (done.exit_code, "4 rows could not be answered" in done.stderr) == (1, True)


def test_a_text_for_several_columns_is_refused(artifact):
    two = replace(artifact, signature=replace(artifact.signature, inputs=("title", "text")))
    with pytest.raises(DataError, match="row 1 is a text, but the task reads title, text"):
        two.predict(["a"])


@pytest.fixture
def run(folder, tmp_path):
    """The run folder of a climb that recommends the artifact."""
    run = tmp_path / "runs" / "letters"
    shutil.copytree(folder, run / "rungs" / "few-shot" / "artifact")
    (run / "climb.json").write_text("{}")
    (run / "report.json").write_text(sealed({"recommended": "few-shot"}))
    return run


def test_a_run_folder_stands_for_its_recommended_artifact(artifact, folder, run):
    assert Artifact.load(run).signature == artifact.signature
    assert fingerprint(run) == fingerprint(folder)
    (run / "report.json").write_text(sealed({"recommended": "zero", "rungs": [{"name": "zero", "score": None}]}))
    for told in ("run", "ab"), ("predict", "rows.csv"), ("serve",):
        with pytest.raises(ArtifactError, match="recommends nothing: it did not measure zero"):
            command(told[0], run, *told[1:])
    (run / "report.json").unlink()
    with pytest.raises(ArtifactError, match="recommends nothing yet"):
        Artifact.load(run)


TRIED = [
    ("run", "ARTIFACT", "ab", "--json"), ("predict", "ARTIFACT", "rows.csv", "--quiet"), ("show", "ARTIFACT", "--json"),
    ("show", "ARTIFACT", "--prompt", "--data", "rows.csv"), ("export", "ARTIFACT", "--data", "rows.csv"),
    ("eval", "ARTIFACT", "task.yaml", "--json", "-q"), ("confidence", "ARTIFACT", "task.yaml", "--json", "-q"),
    ("failures", "check", "ARTIFACT", "--store", "store.db", "--json", "--quiet"),
]  # fmt: skip


@pytest.mark.parametrize("words", TRIED, ids=lambda words: " ".join(words[:3]))
def test_commands_take_a_run_folder_as_its_artifact(folder, run, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    rows = [{"text": f"{'abc'[i % 3]}{'abc '[i // 3 % 4]}{'ab' * (i % 7)}c{i // 7 * 'a'}", "label": "xyz"[i % 3]}
            for i in range(60)]  # fmt: skip
    Path("rows.csv").write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows))
    Path("task.yaml").write_text(
        "name: letters\ninstruction: Which?\ninputs: [text]\noutput: {column: label, kind: category}\n"
        "data: {train: rows.csv, split: {method: holdout}, duplicates: drop}\n"
    )
    FeedbackStore("store.db").close()

    def said(place):
        text = command(*(place if word == "ARTIFACT" else word for word in words)).stdout
        return re.sub(r'"seconds[^,}]*', "", text)

    assert said(run) == said(folder) != ""


def test_a_run_folder_is_served_promoted_and_tried(folder, run, tmp_path):
    served = Served().load(run)
    assert (served.name, served.fingerprint) == ("letters", fingerprint(folder))
    registry = Registry(tmp_path / "registry", "letters")
    mark, copy = registry.adopt(run)
    assert mark == fingerprint(folder) == fingerprint(registry.folder / copy)
    place = ("--registry", tmp_path / "registry", "--store", tmp_path / "store.db")
    command("promote", run, *place, "--reason", "first")
    assert registry.current().artifact == mark
    with pytest.raises(ConfigError, match="is served already"):  # it was found
        command("trial", "start", "letters", run, *place[:2])


# ---- data sets of the Hub


@pytest.fixture
def hub(monkeypatch):
    """A data set of the Hub with one split, `test`, and class labels; nothing is downloaded."""
    builder = type("Csv", (), {"__module__": "datasets.packaged_modules.csv.csv"})
    kinds = Features({"input": Value("string"), "actual response": Value("string"), "text": Value("string"),
                      "label": ClassLabel(names=["x", "y"])})  # fmt: skip
    texts = ["abab", "ba c", "cab"]
    held = [texts, ["x", "y", "x"], texts, [0, 1, -1]]

    def load(name, config, split):
        assert (name, config, split) == ("org/letters", None, "test")
        return Dataset.from_dict(dict(zip(kinds, held, strict=True)), features=kinds)

    monkeypatch.setattr("datasets.load_dataset_builder", lambda name, config: builder())
    monkeypatch.setattr("datasets.load_dataset", load)
    return held


def test_rows_of_the_hub_are_read_wherever_a_table_is(hub, folder, artifact, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "hf:org/letters#test"
    command("predict", folder, name, "--out", "out.csv", "--keep", "text,label", "--quiet")
    rows = table_rows(tmp_path / "out.csv")
    assert [(row["row"], row["text"], row["label"]) for row in rows] == [
        (f"{name}:1", "abab", "x"), (f"{name}:2", "ba c", "y"), (f"{name}:3", "cab", ""),
    ]  # fmt: skip
    assert [row["output"] for row in rows] == [answer.text for answer in artifact.predict(Path(name))]
    assert command("show", folder, "--prompt", "--data", name, "--row", 2).stdout.count("ba c") == 1
    command("init", name, "--inputs", "text", "--output", "label", "--kind", "category")
    task = rung.Task.load("task.yaml")
    assert (task.data.train, task.output.kind) == (name, "category")
    done = json.loads(command("failures", "import", name, "task.yaml", "--store", "store.db", "--json").stdout)
    assert (done["cases"], done["ignored"]) == (3, ["text", "label"])


def test_a_prediction_of_hub_rows_is_resumed_only_with_the_same_rows(hub, folder, tmp_path):
    out = tmp_path / "out.jsonl"
    words = ("predict", folder, "hf:org/letters#test", "--out", out, "--quiet")
    command(*words)
    whole = out.read_text()
    out.write_text(whole[: len(whole) // 2])
    command(*words, "--resume")
    assert out.read_text() == whole
    hub[0][2] = "bc"
    with pytest.raises(ConfigError, match="other contents of the rows"):
        command(*words, "--resume")


def test_stdin_is_read_for_a_dash(folder):
    piped = CliRunner().invoke(app, ["run", str(folder), "-"], input="ab\n")
    assert piped.stdout == command("run", folder, "ab").stdout
    empty = CliRunner().invoke(app, ["run", str(folder), "-"], input="")
    assert "stdin is empty" in str(empty.exception)
