"""Rows of the kinds with several labels, with refusals, and with columns that only the metric reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from rung.climbing.check import validate_task
from rung.data.guess import guess_task
from rung.errors import ConfigError, DataError
from rung.task import Task


def task_on(folder: Path, rows: Sequence[dict[str, Any]], output: dict[str, Any], **settings: Any) -> Task:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "name": "t", "instruction": "Do it.", "inputs": ["text"], "output": {"column": "y", **output},
        "data": {"train": "rows.jsonl"}, **settings,
    }  # fmt: skip
    (folder / "task.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return Task.load(folder / "task.yaml")


def outputs(task: Task) -> list[tuple[str, ...]]:
    data = task.read()
    rows = {row.inputs["text"]: row.outputs for row in (*data.train, *data.validation, *data.test)}
    return [rows[text] for text in sorted(rows)]


MULTI = {"kind": "multilabel"}


def test_lists_of_labels_from_lists_json_and_text(tmp_path: Path) -> None:
    values = [["b", "a", "a"], '["a"]', "b; a", " a ", [], "", None, "[]"]
    task = task_on(tmp_path, [{"text": f"{i}", "y": value} for i, value in enumerate(values)], MULTI)
    assert outputs(task) == [('["a", "b"]',), ('["a"]',), ('["a", "b"]',), ('["a"]',), *[("[]",)] * 4]
    data = task.read()
    assert data.labels == ("a", "b")
    counts = {label: sum(part.get(label, 0) for part in data.report.labels.values()) for label in "ab"}
    assert counts == {"a": 4, "b": 2}


def test_another_separator(tmp_path: Path) -> None:
    task = task_on(tmp_path, [{"text": "0", "y": "x; y|z"}, {"text": "1", "y": "z"}], {**MULTI, "separator": "|"})
    assert outputs(task) == [('["x; y", "z"]',), ('["z"]',)]


@pytest.mark.parametrize(
    ("value", "code"),
    [([1], "unknown-label"), ([{}], "bad-row"),
     ({"a": 1}, "bad-row"), ([""], "bad-row"), (3, "bad-row"), ('["a"', "bad-row"),
     (["c"], "unknown-label"), (["A"], "label-spelling"), (["a  "], None)],
)  # fmt: skip
def test_what_is_no_list_of_the_labels(tmp_path: Path, value: Any, code: str | None) -> None:
    rows = [{"text": "0", "y": ["a", "b"]}, {"text": "1", "y": value}]
    task = task_on(tmp_path, rows, {**MULTI, "labels": ["a", "b"]} if code != "label-spelling" else MULTI)
    if code is None:
        assert outputs(task)[1] == ('["a"]',)
        return
    with pytest.raises(DataError) as caught:
        task.read()
    assert caught.value.code == code
    assert "rows.jsonl:2" in caught.value.message


def test_rows_without_an_answer_expect_the_refusal(tmp_path: Path) -> None:
    rows = [{"text": "0", "y": ""}, {"text": "1", "y": None}, {"text": "2", "y": []}, {"text": "3", "y": "x"}]
    task = task_on(tmp_path, rows, {"kind": "text", "refusal": "unknown"})
    assert outputs(task) == [("unknown",), ("unknown",), ("unknown",), ("x",)]


def test_columns_of_the_metric_are_read_and_no_input(tmp_path: Path) -> None:
    rows = [{"text": f"{i}", "y": "x", "tests": ["assert True"]} for i in range(3)]
    metric = {"name": "code", "allow_execution": True, "tests": "tests"}
    data = task_on(tmp_path, rows, {"kind": "text"}, metric=metric).read()
    row = (*data.train, *data.validation, *data.test)[0]
    assert row.extra == {"tests": ["assert True"]}
    assert "tests" not in row.inputs
    task = task_on(tmp_path, rows, {"kind": "text"}, metric={**metric, "tests": "test"})
    with pytest.raises(DataError) as caught:
        task.read()
    assert caught.value.code == "missing-column"


@pytest.mark.parametrize(
    ("metric", "code"),
    [
        ({"model": "embedded"}, "bad-value"),
        ({"name": "code"}, "execution-not-allowed"),
        ({"name": "sql_execution"}, "bad-setting"),
        ({"name": "rougeL", "beta": 2}, "bad-setting"),
        ("labels_f1", "bad-value"),
        ("judge", "bad-setting"),
        ("sqlexecution", "unknown-name"),
    ],
)
def test_a_metric_that_cannot_be_is_an_error_in_the_task_file(tmp_path: Path, metric: Any, code: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate_task(task_on(tmp_path, [], {"kind": "text"}, metric=metric))
    assert caught.value.code == code
    assert caught.value.where is not None
    assert caught.value.where.file.endswith("task.yaml")


@pytest.mark.parametrize(
    ("output", "part"),
    [
        ({"kind": "category", "separator": "|"}, "`separator` belongs to kind multilabel"),
        ({"kind": "json", "refusal": "x"}, "`refusal` belongs to kind text"),
    ],
)
def test_settings_of_another_kind_are_refused(tmp_path: Path, output: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        task_on(tmp_path, [], output)


def test_init_sees_lists_of_labels(tmp_path: Path) -> None:
    rows = [{"text": f"message {i}", "tags": [["red"], ["red", "blue"], []][i % 3]} for i in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    guess = guess_task(tmp_path / "rows.jsonl", "tags")
    assert (guess.kind, guess.output) == ("multilabel", {"column": "tags"})
