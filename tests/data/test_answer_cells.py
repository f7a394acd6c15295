"""What cells of answers may hold: several labels, columns of labels, ratings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rung.data.examples import cell_labels
from rung.data.rows import Data, Example
from rung.errors import ConfigError, DataError
from rung.task import Task


def read(folder: Path, rows: list[dict[str, Any]], output: dict[str, Any], inputs: str = "text") -> Data:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "name": "t", "instruction": "Do it.", "inputs": [inputs], "output": output,
        "data": {"train": "rows.jsonl", "split": {"method": "holdout"}},
    }  # fmt: skip
    (folder / "task.yaml").write_text(json.dumps(values))
    return Task.load(folder / "task.yaml").read()


def all_rows(data: Data) -> list[Example]:
    rows = [*data.train, *data.validation, *data.test]
    return sorted(rows, key=lambda row: int(row.source.split(":")[1]))


@pytest.mark.parametrize(
    ("cell", "labels"),
    [
        (["a", "b"], ["a", "b"]),
        ('["a", "b"]', ["a", "b"]),
        ("['a', 'b']", ["a", "b"]),
        ("('a', \"b's\")", ["('a'", '"b\'s")']),  # a text in parentheses is no list
        ({"choices": ["a", "b"]}, ["a", "b"]),
        ('{"choices": ["a"]}', ["a"]),
        ({"choices": "a"}, ["a"]),
        ("a", ["a"]),
        ("a, b", ["a", "b"]),
        (" a ,, b,", ["a", "b"]),
        ([1, 2], ["1", "2"]),
        ("", []),
        (None, []),
        (float("nan"), []),
        ("[]", []),
        ([{"start": 0}], None),
        ([" "], None),
        ("[a, b", None),
        ('{"other": []}', None),
        (5, None),
    ],
)
def test_labels_of_a_cell(cell: Any, labels: list[str] | None) -> None:
    assert cell_labels(cell, ",") == labels


def test_a_column_for_each_label(tmp_path: Path) -> None:
    cells = [(1, 0), (0, 1.0), (True, "yes"), ("0", ""), (None, "1")] * 8
    rows = [{"text": f"note {i}", "toxic": a, "threat": b} for i, (a, b) in enumerate(cells)]
    data = read(tmp_path, rows, {"kind": "multilabel", "columns": ["toxic", "threat"]})
    assert data.labels == ("threat", "toxic")
    expected = ['["toxic"]', '["threat"]', '["threat", "toxic"]', "[]", '["threat"]']
    assert [row.outputs[0] for row in all_rows(data)] == expected * 8
    with pytest.raises(DataError, match=r"rows\.jsonl:1: 'toxic' is '3', not yes or no"):
        read(tmp_path, [{"text": "x", "toxic": 3, "threat": 0}], {"kind": "multilabel", "columns": ["toxic", "threat"]})


def test_answers_that_are_not_approved_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [{"text": f"q {i}", "answer": "yes", "label": i % 2 == 0, "rating": i % 5 + 1} for i in range(20)]
    data = read(tmp_path, rows, {"kind": "text", "column": "answer", "approved": "label"})
    assert len(all_rows(data)) == 10
    assert len(data.report.splits["train"].dropped["not approved"]) == 10
    data = read(tmp_path, rows, {"kind": "text", "column": "answer", "approved": "rating", "approved_from": 4})
    assert [int(row.source.split(":")[1]) % 5 for row in all_rows(data)] == [4, 0] * 4
    with pytest.raises(DataError, match="'rating' is '2', not yes or no"):
        read(tmp_path, rows, {"kind": "text", "column": "answer", "approved": "rating"})


def test_a_list_of_objects_is_no_text(tmp_path: Path) -> None:
    spans = [{"start": 0, "end": 3, "label": "PER"}]
    with pytest.raises(DataError, match=r"rows\.jsonl:1: 'spans' is a list, not a text") as caught:
        read(tmp_path, [{"text": "Ann of Kiel", "spans": spans}], {"kind": "text", "column": "spans"})
    assert "kind: json" in caught.value.hint
    (example,) = all_rows(read(tmp_path, [{"text": "Ann", "spans": spans}], {"kind": "json", "column": "spans"}))
    assert json.loads(example.outputs[0]) == spans


def test_rows_without_an_input_are_not_blamed_on_the_label(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no row can be used \(empty input: 20 rows, ") as caught:
        read(
            tmp_path, [{"text": " ", "label": "ab"[i % 2]} for i in range(20)], {"kind": "category", "column": "label"}
        )
    assert caught.value.code == "too-few-rows"


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        ({"kind": "multilabel", "column": "a", "columns": ["b", "c"]}, "do not go together"),
        ({"kind": "category", "columns": ["b", "c"]}, "`columns` belongs to kind multilabel"),
        ({"kind": "multilabel", "columns": ["text", "c"]}, "both input and output"),
        ({"kind": "text", "column": "a", "approved_from": 3}, "`approved_from` has no effect without `approved`"),
        ({"kind": "multilabel"}, "`column` is needed"),
        ({"kind": "preference", "column": "chosen"}, "write `kind: text` or `chat`, and the file of pairs"),
    ],
)
def test_keys_that_do_not_fit(tmp_path: Path, output: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        read(tmp_path, [], output)


def test_a_task_needs_rows_or_a_corpus(tmp_path: Path) -> None:
    values = {"name": "t", "instruction": "x", "inputs": ["q"], "output": {"kind": "text", "column": "a"}}
    (tmp_path / "task.yaml").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="the key `data` is missing"):
        Task.load(tmp_path / "task.yaml")
    (tmp_path / "task.yaml").write_text(json.dumps({**values, "corpus": {"files": "docs/"}}))
    with pytest.raises(DataError, match=r"the task t has no rows: `data\.train` is missing"):
        Task.load(tmp_path / "task.yaml").read()
