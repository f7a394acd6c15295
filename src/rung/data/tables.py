"""Write answers as a table: the JSON lines of `predict_file` become CSV, Excel or Parquet.

The columns are: which row it is, the user's columns, the answer (a record's keys become columns in the order of the
JSON Schema, then as they appear; other answers go to the column `output`), its confidence, the most probable labels
(`top_1`, `top_1_probability`, ...), and what else the answers have. A list or an object in a cell is written as JSON.
In Parquet, a column of only integers, numbers or booleans has that type, and any other is text; the user's columns of a
Parquet file keep their types.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rung.data.cells import json_text
from rung.errors import DataError, needed_by
from rung.models.files import replacing
from rung.yamlfile import json_value

TABLES = (".csv", ".parquet", ".xlsx")
BATCH = 1000  # rows written to Parquet together
MAX_EXCEL_CELL = 32_767  # characters


def lines_file(out: Path) -> Path:
    """Name the file that collects the answers of a table until all are written."""
    return out.with_name(out.name + ".jsonl")


def write_table(
    lines: Path, out: Path, *, kept: Sequence[str] = (), name: Callable[[str], str] = str, records: bool,
    schema: str | None = None, source: Path | None = None,
) -> None:  # fmt: skip
    """Turn answered JSON lines into the table `out`, which appears only when it is complete.

    Args:
        lines: the file that `rung.artifact.predict_file.predict_file` wrote.
        out: a .csv, .parquet or .xlsx file.
        kept: the user's columns in the lines.
        name: gives an answer's column a name that no column of the user has.
        records: whether the answers are JSON objects.
        schema: their JSON Schema (JSON text), if there is one.
        source: the Parquet file that the rows are from; its columns keep their types.

    Raises:
        MachineError: a library that the kind of file needs is not installed.
        DataError: a cell is longer than Excel allows.
    """

    def rows() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        with lines.open(encoding="utf-8") as file:
            for line in file:
                yield _flat(json.loads(line), kept, name, records=records)

    properties = json.loads(schema).get("properties") if schema else None
    fields = properties if records and isinstance(properties, Mapping) else ()
    first: dict[str, str] = dict.fromkeys((name("row"), *kept, *(_field(each, name) for each in fields)), "")
    last: dict[str, str] = {}
    for row in rows():
        for types, values in zip((first, last), row, strict=True):
            for column, value in values.items():
                types[column] = _common(types.get(column, ""), value)
    types = {**first, **last}
    whole = ({**head, **tail} for head, tail in rows())
    with replacing(out, private=True) as scratch:
        if out.suffix.lower() == ".parquet":
            _write_parquet(scratch, types, whole, kept, source)
        elif out.suffix.lower() == ".xlsx":
            _write_excel(scratch, list(types), whole)
        else:
            with scratch.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(types)
                writer.writerows([_cell(row.get(column)) for column in types] for row in whole)


def _flat(
    values: Mapping[str, Any], kept: Sequence[str], name: Callable[[str], str], *, records: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split an answered row into its source, the user's columns and the answer; and what stands behind them."""
    head = {column: values[column] for column in (name("row"), *kept)}
    output = values[name("output")]
    rest = {column: value for column, value in values.items() if column not in (*head, name("output"))}
    for number, each in enumerate(rest.pop(name("top"), []), start=1):
        rest[name(f"top_{number}")], rest[name(f"top_{number}_probability")] = each["label"], each["probability"]
    record = {} if records and output is None else _record(output) if records else None  # None: a row that failed
    fields = {name("output"): output} if record is None else {_field(key, name): each for key, each in record.items()}
    return {**head, **fields}, rest


def _field(key: str, name: Callable[[str], str]) -> str:
    """The column of a record's field, which must replace neither the user's columns nor those of every answer."""
    return f"{key}_" if key in ("row", "confidence") else name(key)


def _record(text: str) -> dict[str, Any] | None:
    """Parse a record; None for an answer that is incomplete or not an object, which goes to `output`."""
    try:
        value = json_value(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _common(known: str, value: Any) -> str:
    """Widen the type of a column, "", bool, int, float or text, to include a value."""
    if value is None:
        return known
    new = type(value).__name__ if isinstance(value, bool | int | float) else "text"
    if isinstance(value, int) and abs(value) >= 2**63:
        new = "text"
    if known in ("", new):
        return new
    return "float" if {known, new} == {"int", "float"} else "text"


def _cell(value: Any) -> Any:
    return value if value is None or isinstance(value, str) else json_text(value)


def _write_parquet(
    file: Path, types: Mapping[str, str], rows: Iterator[dict[str, Any]], kept: Sequence[str], source: Path | None
) -> None:
    with needed_by("a Parquet file"):
        import pyarrow
        import pyarrow.parquet
    arrow = {"bool": pyarrow.bool_(), "int": pyarrow.int64(), "float": pyarrow.float64()}
    schema = pyarrow.schema([(name, arrow.get(kind, pyarrow.string())) for name, kind in types.items()])
    own: list[str] = []
    if source is not None:
        read = pyarrow.parquet.ParquetFile(source)
        own = [name for name in kept if name in read.schema_arrow.names]
        given, pending = read.iter_batches(BATCH, columns=own), read.schema_arrow.empty_table().select(own)
        for name in own:
            schema = schema.set(schema.get_field_index(name), read.schema_arrow.field(name))

    def value(name: str, row: Mapping[str, Any]) -> Any:
        return row.get(name) if types[name] in arrow else _cell(row.get(name))

    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        while batch := list(islice(rows, BATCH)):
            columns = {name: [value(name, row) for row in batch] for name in types}
            if own:
                while pending.num_rows < len(batch):  # batches end with the row groups of the file
                    pending = pyarrow.concat_tables([pending, pyarrow.Table.from_batches([next(given)])])
                columns |= {name: pending.column(name)[: len(batch)] for name in own}
                pending = pending.slice(len(batch))
            writer.write_table(pyarrow.table(columns, schema=schema))


def _write_excel(file: Path, names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    with needed_by("an Excel file", extra="excel"):
        from openpyxl import Workbook
        from openpyxl.cell import WriteOnlyCell
        from openpyxl.utils.escape import escape
    book = Workbook(write_only=True)
    sheet = book.create_sheet("answers")

    def cell(value: Any) -> Any:
        if value is None or isinstance(value, bool | int | float):
            return value
        text = _cell(value)
        if len(text) > MAX_EXCEL_CELL:
            problem = f"a cell has {len(text):,} characters, and Excel keeps {MAX_EXCEL_CELL:,}"
            raise DataError("write-failed", problem, hint="write .csv or .parquet")
        filled = WriteOnlyCell(sheet, escape(text))
        filled.data_type = "s"  # text that begins with = is no formula
        return filled

    sheet.append([cell(name) for name in names])
    for row in rows:
        sheet.append([cell(row.get(name)) for name in names])
    book.save(file)
