"""Answers as tables: columns of the schema, types, and what is no record."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow.parquet
import pytest

from rung.data.tables import write_table

SCHEMA = json.dumps({"type": "object", "properties": {name: {} for name in ("shop", "total", "lines", "paid", "row")}})
ANSWERS = [
    {"shop": "Müller, \"Öl\"", "total": 4, "lines": [{"n": 1}], "paid": True, "row": "x"},
    {"shop": "=1+1", "total": 2.5, "lines": [], "paid": None, "extra": "late"},
]  # fmt: skip


def answered(folder: Path, outputs: list[str]) -> Path:
    file = folder / "out.jsonl"
    rows = [{"row": f"in.csv:{i + 2}", "output": text, "confidence": None} for i, text in enumerate(outputs)]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def test_csv_holds_the_fields_in_the_schema_s_order(tmp_path: Path) -> None:
    lines = answered(tmp_path, [*(json.dumps(a) for a in ANSWERS), '{"shop": "cu'])
    write_table(lines, tmp_path / "out.csv", records=True, schema=SCHEMA)
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["row", "shop", "total", "lines", "paid", "row_", "extra", "output", "confidence"]
    assert rows == [
        ["in.csv:2", 'Müller, "Öl"', "4", '[{"n": 1}]', "true", "x", "", "", ""],
        ["in.csv:3", "=1+1", "2.5", "[]", "", "", "late", "", ""],
        ["in.csv:4", "", "", "", "", "", "", '{"shop": "cu', ""],  # cut: kept as it is, in a column of its own
    ]
    assert sorted(f.name for f in tmp_path.iterdir()) == ["out.csv", "out.jsonl"]


def test_a_row_that_failed_has_no_fields_and_its_error(tmp_path: Path) -> None:
    lines = answered(tmp_path, [json.dumps({"shop": "a"})])
    failed = {"row": "in.csv:3", "output": None, "confidence": None, "error": "too long [context-overflow]"}
    lines.write_text(lines.read_text("utf-8") + json.dumps(failed) + "\n", "utf-8")
    write_table(lines, tmp_path / "out.csv", records=True)
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [
            ["row", "shop", "confidence", "error"],
            ["in.csv:2", "a", "", ""],
            ["in.csv:3", "", "", "too long [context-overflow]"],
        ]


def test_parquet_has_types(tmp_path: Path) -> None:
    write_table(
        answered(tmp_path, [json.dumps(a) for a in ANSWERS]), tmp_path / "o.parquet", records=True, schema=SCHEMA
    )
    table = pyarrow.parquet.read_table(tmp_path / "o.parquet")
    assert {f.name: str(f.type) for f in table.schema} == {
        "row": "string", "shop": "string", "total": "double", "lines": "string", "paid": "bool", "row_": "string",
        "extra": "string", "confidence": "string",
    }  # fmt: skip
    assert table.column("total").to_pylist() == [4.0, 2.5]
    assert table.column("lines").to_pylist() == ['[{"n": 1}]', "[]"]
    assert table.column("paid").to_pylist() == [True, None]


@pytest.mark.parametrize("outputs", [["a", "b, c"], []])
def test_other_answers_stand_in_one_column(tmp_path: Path, outputs: list[str]) -> None:
    write_table(answered(tmp_path, outputs), tmp_path / "out.csv", records=False)
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["output"] for row in rows] == outputs


def test_more_rows_than_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rung.data.tables.BATCH", 4)
    write_table(answered(tmp_path, [str(i) for i in range(9)]), tmp_path / "o.parquet", records=False)
    assert pyarrow.parquet.read_table(tmp_path / "o.parquet").column("output").to_pylist() == list(map(str, range(9)))
