"""Wrong inputs, as a user meets them: an error that names the place and says how to go on, or a row that scores 0."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rung.artifact.artifact import Artifact
from rung.cli.main import main
from rung.engines import opening
from rung.engines.base import EngineInfo, Generation
from rung.errors import EngineError
from rung.evaluation.metrics.judge import open_judge
from rung.evaluation.scoring import evaluate, notes, summarize
from rung.task import Task

CATEGORY = "output: {column: label, kind: category}"
SCHEMA = (
    "{type: object, required: [lines], properties: {lines: {type: array, items: {type: object, required: [n, p]}}}}"
)


MULTILABEL = "output: {column: label, kind: multilabel}"
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
SQL = '{"text": "how many", "label": "SELECT 1"}\n'
SQL_TASK = {
    "output": "output: {column: label, kind: text}", "name": "rows.jsonl",
    "more": "metric: {name: sql_execution, database: tables.sql, seconds: 0.1}\n", "script": "CREATE TABLE t (x);",
}  # fmt: skip


def task_file(
    folder: Path, data: str | bytes, output: str = CATEGORY, name: str = "rows.csv", more: str = "",
    inputs: str = "[text]", script: str | None = None,
) -> Path:  # fmt: skip
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    if script is not None:
        (folder / "tables.sql").write_text(script)
    file = folder / "task.yaml"
    file.write_text(f"name: t\ninstruction: Do it.\ninputs: {inputs}\n{output}\ndata: {{train: {name}}}\n{more}")
    return file


WRONG: list[tuple[str, str | bytes, dict[str, Any], str]] = [
    (
        "too-few-rows",
        "",
        {},
        "rows.csv is empty\nhint: write a header with the names of the columns, and at least one row",
    ),
    ("too-few-rows", "  \n \n", {}, "rows.csv is empty"),
    ("too-few-rows", " ,\n ,\n", {}, "rows.csv is empty"),
    ("too-few-rows", "text,label\n", {}, "rows.csv has no rows"),
    ("too-few-rows", "\n\n", {"name": "rows.jsonl"}, "rows.jsonl is empty\nhint: write one JSON object per line"),
    ("too-few-rows", "", {"name": "rows.json"}, "rows.json is empty\nhint: write a list of objects"),
    ("one-label", "text,label\na,x\nb,x\n", {}, "rows.csv:2: every row's label is 'x'"),
    ("one-label", '{"text": "a", "label": []}\n', {"output": MULTILABEL, "name": "rows.jsonl"}, "no row has a label"),
    ("label-spelling", "text,label\na,Yes\nb,yes\n", {}, "rows.csv:3"),
    ("label-spelling", "text,label\na,no  way\nb,no way\n", {}, "rows.csv:3"),
    ("missing-column", "txt,label\na,x\nb,y\n", {}, "'text'"),
    ("missing-column", "text,lable\na,x\nb,y\n", {}, "'label'"),
    ("missing-column", '{"text": "a"}\n{"text": "b"}\n', {"name": "rows.jsonl"}, "rows.jsonl:1"),
    (
        "missing-column",
        '{"text": "a", "label": "x"}\n{"text": "b", "lable": "x"}\n',
        {"name": "rows.jsonl"},
        "rows.jsonl:2 has no column 'label'\nhint: did you mean 'lable'?",
    ),
    (
        "missing-column",
        '{"text": {"body": "a"}, "label": "x"}\n{"text": {"boby": "b"}, "label": "y"}\n',
        {"name": "rows.jsonl", "inputs": "[text.body]"},
        "rows.jsonl:2 has no column 'text.body': its 'text' has no 'body'\nhint: did you mean 'boby'?",
    ),
    (
        "missing-column",
        '{"text": {"body": "a"}, "label": "x"}\n{"text": "b", "label": "y"}\n',
        {"name": "rows.jsonl", "inputs": "[text.body]"},
        "rows.jsonl:2 has no column 'text.body': its 'text' is a str, not an object\n"
        "hint: correct the row, or read 'text' itself",
    ),
    ("bad-encoding", b"text,label\nna\x81ve,x\nb,y\n", {}, "byte 13 (0x81) is not utf-8\n  --> {folder}/rows.csv:2"),
    ("bad-csv", "text,label\na,b,x\n", {}, "3 fields"),
    (
        "bad-reference",
        '{"text": "a", "label": {"lines": [{"n": "x", "p": 1}, {"n": "y"}]}}\n',
        {"output": f"output: {{column: label, kind: json, schema: {SCHEMA}}}", "name": "rows.jsonl"},
        "$.lines[1]: 'p' is a required property",
    ),
    (
        "bad-json",
        '{"text": "a", "label": "{\\"lines\\": ["}\n',
        {"output": "output: {column: label, kind: json}", "name": "rows.jsonl"},
        "rows.jsonl:1",
    ),
    (
        "bad-json",
        '{"text": "a", "label": {"lines": [\n',
        {"output": "output: {column: label, kind: json}", "name": "rows.jsonl"},
        "rows.jsonl:1:35\nhint: write one JSON object per line",
    ),
    (
        "bad-reference",
        SQL + SQL.replace("SELECT 1", ENDLESS),
        SQL_TASK,
        "rows.jsonl:2: the expected query fails: st",
    ),
    (
        "bad-reference",
        SQL.replace("SELECT 1", "SELECT y FROM t"),
        SQL_TASK,
        "rows.jsonl:1: the expected query fails: no",
    ),
    ("bad-setting", SQL, SQL_TASK | {"script": "CREATE TABEL t (x);"}, "TABEL"),
    ("bad-setting", SQL, SQL_TASK | {"script": None}, "No such file"),
]


@pytest.mark.parametrize("command", [["check"], ["climb", "--plan"]], ids=["check", "plan"])
@pytest.mark.parametrize(("code", "data", "more", "part"), WRONG)
def test_check_says_what_is_wrong_and_where(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    data: str | bytes,
    more: dict[str, Any],
    part: str,
    command: list[str],
) -> None:
    file = task_file(tmp_path, data, **more)
    before = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.setattr("sys.argv", ["rung", *command, str(file)])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert printed.out == ""
    assert f"error[{code}]" in printed.err
    assert part.replace("{folder}", str(tmp_path)) in printed.err
    assert "hint: " in printed.err
    assert "Traceback" not in printed.err
    assert sorted(path.name for path in tmp_path.iterdir()) == before  # nothing was begun


class Speaker:
    """An engine that says one text, or scores labels by their place."""

    end_token = None

    def __init__(self, say: Callable[[Any], str]) -> None:
        self.say = say
        self.info = EngineInfo("fake", "fake", "cpu", "none", 0, 4096, "fake", {})

    def generate(self, requests: Any, **_: Any) -> list[Generation]:
        return [Generation(self.say(r), 1, 1, "stop", 0.0) for r in requests]

    def score(self, requests: Any, **_: Any) -> list[Any]:
        from rung.engines.base import Scored

        return [Scored(np.linspace(-9, -1, len(r.continuations), dtype=np.float32), 1, 0.0) for r in requests]

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(text.encode())

    def count(self, prompt: Any) -> int:
        return 1

    def text(self, prompt: Any) -> str:
        return prompt[-1]["content"]


def test_500_labels_are_scored_and_not_listed_in_the_prompt(tmp_path: Path) -> None:
    rows = "".join(f"message number {i},label {i % 500:03d}\n" for i in range(2000))
    task = Task.load(task_file(tmp_path, "text,label\n" + rows))
    data = task.read()
    assert len(data.labels) == 500
    zero = Artifact.zero_shot(task, data.labels)
    answer = zero.with_engine(Speaker(lambda r: "")).predict([{"text": "hello"}])[0]  # type: ignore[arg-type]
    assert answer.text == "label 499"
    assert answer.probabilities is not None
    assert len(answer.probabilities) == 500
    assert sum(answer.probabilities) == pytest.approx(1, abs=1e-5)
    assert "label 042" not in zero.prompt.head()


def test_500_labels_of_which_several_are_right(tmp_path: Path) -> None:
    rows = [{"text": f"row {i}", "label": [f"l{i % 500:03d}", f"l{(7 * i) % 500:03d}"]} for i in range(1500)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    task = Task.load(task_file(tmp_path, text, "output: {column: label, kind: multilabel}", "rows.jsonl"))
    data = task.read()
    zero = Artifact.zero_shot(task, data.labels)
    engine = Speaker(lambda r: data.test[0].outputs[0])
    found = summarize(zero.with_engine(engine), data.test[:1], "test")  # type: ignore[arg-type]
    assert found["metrics"]["labels_exact"]["score"] == 1.0
    assert found["whole"]["micro_f1"] == 1.0


def test_sql_that_never_ends_scores_nothing_and_is_counted(tmp_path: Path) -> None:
    rows = "".join(f'{{"text": "how many {i}", "label": "SELECT {i}"}}\n' for i in range(8))
    (tmp_path / "empty.sql").write_text("CREATE TABLE t (x);")
    metric = "metric: {name: sql_execution, database: empty.sql, seconds: 0.1}\n"
    task = Task.load(task_file(tmp_path, rows, "output: {column: label, kind: text}", "rows.jsonl", metric))
    zero = Artifact.zero_shot(task).with_engine(Speaker(lambda r: ENDLESS))  # type: ignore[arg-type]
    rows_of = task.read().train[:2]
    found = evaluate(zero, rows_of, "test", folder=task.folder)
    assert [(row.score, row.note) for row in found] == [(0.0, "the query fails: stopped after 0.1 s")] * 2
    assert notes(found) == {"the query fails": 2}


def test_a_judge_that_answers_nonsense_is_an_error_with_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "".join(f"row {i},fine {i}\n" for i in range(9))
    metric = "metric: {name: judge, model: some/judge}\n"
    task = Task.load(task_file(tmp_path, "text,label\n" + rows, "output: {column: label, kind: text}", more=metric))
    engine = Speaker(lambda r: "As a language model I like both.")
    open_judge.cache_clear()
    monkeypatch.setattr(opening, "open_engine", lambda model, *_: engine)
    with pytest.raises(EngineError, match="As a language model") as caught:
        evaluate(Artifact.zero_shot(task).with_engine(engine), task.read().train, "test")  # type: ignore[arg-type]
    open_judge.cache_clear()
    assert caught.value.code == "reply-unreadable"


def test_a_predicted_record_that_misses_a_nested_field_loses_that_field_only(tmp_path: Path) -> None:
    gold = {"lines": [{"n": "x", "p": 1}, {"n": "y", "p": 2}]}
    output = f"output: {{column: label, kind: json, schema: {SCHEMA}}}"
    rows = "".join(json.dumps({"text": f"{i}", "label": gold}) + "\n" for i in range(9))
    task = Task.load(task_file(tmp_path, rows, output, "rows.jsonl"))
    said = json.dumps({"lines": [{"n": "y"}, {"n": "x", "p": 1}]})
    found = summarize(Artifact.zero_shot(task).with_engine(Speaker(lambda r: said)), task.read().train, "test")  # type: ignore
    scores = {name: value["score"] for name, value in found["metrics"].items()}
    assert scores == {
        "json_field_f1": pytest.approx(6 / 7), "json_exact": 0.0, "json_field_precision": 1.0,
        "json_field_recall": 0.75,
    }  # fmt: skip
