"""Write answers as a table: the JSON lines of `predict_file` become CSV or Parquet, with one column per field.

A record's keys become columns in the order of the JSON Schema, then as they appear; other answers go to the column
`output`. A list or an object in a cell is written as JSON. In Parquet, a column of only integers, numbers or booleans
has that type; any other is text.
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
_KEPT = ("row", "confidence")  # the first and the last column of every table


def lines_file(out: Path) -> Path:
    """Name the file that collects the answers of a table until all are written."""
    return out.with_name(out.name + ".jsonl")


def write_table(lines: Path, out: Path, *, records: bool, schema: str | None = None) -> None:
    """Turn answered JSON lines into the table `out`, which appears only when it is complete.

    Args:
        lines: the file that `rung.artifact.predict_file.predict_file` wrote.
        out: a .csv or .parquet file.
        records: whether the answers are JSON objects.
        schema: their JSON Schema (JSON text), if there is one.

    Raises:
        MachineError: pyarrow, which Parquet needs, is not installed.
    """
    properties = json.loads(schema).get("properties") if schema else None
    types: dict[str, str] = dict.fromkeys(properties if isinstance(properties, Mapping) else (), "")
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


def _rows(lines: Path, *, records: bool) -> Iterator[dict[str, Any]]:
    with lines.open(encoding="utf-8") as file:
        for line in file:
            answer = json.loads(line)
            row = {name: answer[name] for name in _KEPT}
            record = _record(answer["output"]) if records else None
            # A record's field `row` must not replace the source of the row.
            fields = {"output": answer["output"]} if record is None else record
            yield {**{f"{name}_" if name in _KEPT else name: value for name, value in fields.items()}, **row}


def _record(text: str) -> dict[str, Any] | None:
    """Parse a record; None for an answer that is incomplete or not an object, which goes to `output`."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _common(known: str, value: Any) -> str:
    """Widen the type of a column, "", bool, int, float or text, to include a value."""
    if value is None:
        return known
    new = type(value).__name__ if isinstance(value, bool | int | float) else "text"
    if known in ("", new):
        return new
    return "float" if {known, new} == {"int", "float"} else "text"


def _cell(value: Any) -> Any:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


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
