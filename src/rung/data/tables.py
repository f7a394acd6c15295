"""Answers as a table: the JSON lines that `predict_file` writes become CSV or Parquet, one column a field.

A record's keys become columns in the order of the JSON Schema, then as they appear; other answers stand in `output`.
A value inside a cell that is no single value (a list, an object) is written as JSON. In Parquet a column whose values
are all whole numbers, all numbers or all true and false is of that type, any other is text.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rung.errors import needed_by

TABLES = (".csv", ".parquet")
BATCH = 1000  # rows written to Parquet together
_KEPT = ("row", "confidence")  # columns of every table, around those of the answer


def lines_file(out: Path) -> Path:
    """Return where the answers of a table are gathered until all are there."""
    return out.with_name(out.name + ".jsonl")


def write_table(lines: Path, out: Path, *, records: bool, schema: str | None = None) -> None:
    """Turn answered JSON lines into the table `out`, which appears only when it is whole.

    Args:
        lines: what `rung.artifact.predict_file.predict_file` wrote.
        out: a .csv or .parquet file.
        records: the answers are JSON objects.
        schema: their JSON Schema (JSON text), if there is one.

    Raises:
        MachineError: Parquet is asked for, and pyarrow is not installed.
    """
    types: dict[str, str] = dict.fromkeys(_properties(schema), "")
    for row in _rows(lines, records=records):
        for name, value in row.items():
            types[name] = _common(types.get(name, ""), value)
    names = ["row", *(name for name in types if name not in _KEPT), "confidence"]
    scratch = out.with_name(out.name + ".tmp")
    rows = _rows(lines, records=records)
    if out.suffix.lower() == ".parquet":
        _write_parquet(scratch, names, types, rows)
    else:
        with scratch.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(names)
            writer.writerows([_cell(row.get(name)) for name in names] for row in rows)
            file.flush()
            os.fsync(file.fileno())
    os.replace(scratch, out)  # noqa: PTH105


def _properties(schema: str | None) -> list[str]:
    properties = json.loads(schema).get("properties") if schema else None
    return list(properties) if isinstance(properties, Mapping) else []


def _rows(lines: Path, *, records: bool) -> Iterator[dict[str, Any]]:
    with lines.open(encoding="utf-8") as file:
        for line in file:
            answer = json.loads(line)
            row = {name: answer[name] for name in _KEPT}
            record = _record(answer["output"]) if records else None
            # A record's own `row` must not hide where the row came from.
            fields = {"output": answer["output"]} if record is None else record
            yield {**{f"{name}_" if name in _KEPT else name: value for name, value in fields.items()}, **row}


def _record(text: str) -> dict[str, Any] | None:
    """Return a record; None for an answer that was cut before it ended, or is none. It then stands in `output`."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _common(known: str, value: Any) -> str:
    """Return the type of a column whose values so far are of type `known`: "", bool, int, float or text."""
    if value is None:
        return known
    own = type(value).__name__ if isinstance(value, bool | int | float) else "text"
    if known in ("", own):
        return own
    return "float" if {known, own} == {"int", "float"} else "text"


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _write_parquet(file: Path, names: list[str], types: Mapping[str, str], rows: Iterator[dict[str, Any]]) -> None:
    with needed_by("a Parquet file"):
        import pyarrow
        import pyarrow.parquet
    arrow = {"bool": pyarrow.bool_(), "int": pyarrow.int64(), "float": pyarrow.float64()}
    schema = pyarrow.schema([(name, arrow.get(types[name], pyarrow.string())) for name in names])

    def value(name: str, row: Mapping[str, Any]) -> Any:
        return row.get(name) if types[name] in arrow else _cell(row.get(name))

    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        batch: list[dict[str, Any]] = []
        for row in rows:
            batch.append({name: value(name, row) for name in names})
            if len(batch) == BATCH:
                writer.write_table(pyarrow.Table.from_pylist(batch, schema))
                batch.clear()
        writer.write_table(pyarrow.Table.from_pylist(batch, schema))
