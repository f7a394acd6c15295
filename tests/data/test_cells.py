"""Values of every type, from every kind of table, as JSON values and text."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from rung.data.cells import CellError, json_text, missing, plain, text_of
from rung.data.examples import column
from rung.data.frames import MemoryRows, memory_rows
from rung.data.rows import Record
from rung.data.sources import FileFormat, detected, read_rows
from rung.errors import DataError, RungError
from rung.task import Task

DAY, NOON = dt.date(2024, 1, 31), dt.datetime(2024, 1, 31, 12, tzinfo=dt.UTC)
BERLIN = dt.timezone(dt.timedelta(hours=1))
TEXTS: list[tuple[Any, str]] = [
    ("1.0", "1.0"), (" a\n", " a\n"), (1, "1"), (1.0, "1.0"), (0.1, "0.1"), (1e300, "1e+300"), (10**30, "1" + "0" * 30),
    (True, "true"), (None, ""), (float("nan"), ""), (float("inf"), "Infinity"), (Decimal("12.50"), "12.50"),
    (Decimal("1E+3"), "1000"), (Decimal("0.1234567890123456789012345"), "0.1234567890123456789012345"),
    (Decimal("NaN"), ""), (dt.date(2024, 1, 31), "2024-01-31"), (dt.time(9, 30), "09:30:00"),
    (dt.datetime(2024, 1, 31, 9, 30, tzinfo=BERLIN), "2024-01-31T09:30:00+01:00"),
    (dt.timedelta(days=1, hours=2), "P1DT2H"), (dt.timedelta(seconds=-1.5), "-PT1.5S"), (dt.timedelta(0), "PT0S"),
    (uuid.UUID(int=7), "00000000-0000-0000-0000-000000000007"), (["One.", "Two."], "One. Two."), ([], ""),
    ([1, None, float("nan")], "[1, null, null]"), ({"a": DAY, 2: Decimal("0.5")}, '{"a": "2024-01-31", "2": 0.5}'),
    ([Decimal("12.50"), Decimal(3), Decimal("0.12345678901234567890")], '[12.5, 3, "0.12345678901234567890"]'),
    ((1, 2), "[1, 2]"), ({"b", "a"}, "a b"), ({"é": "€"}, '{"é": "€"}'),
    (np.float32(0.1), "0.1"), (np.int64(3), "3"), (np.bool_(False), "false"), (np.str_("x"), "x"),
    (np.float64("nan"), ""),
    (np.datetime64("2024-01-01"), "2024-01-01"), (np.datetime64("NaT"), ""),
    (np.array([0.1, 2], "float32"), "[0.1, 2.0]"),
    (np.timedelta64(90, "s"), "PT1M30S"), (pd.NaT, ""), (pd.NA, ""), (pd.Timedelta(1, "ns"), "PT0.000000001S"),
    (pd.Period("2024-01"), "2024-01"), (pd.Interval(0, 5), "(0, 5]"),
    (pd.Timestamp("2024-01-01 00:00:00.123456789", tz="UTC"), "2024-01-01T00:00:00.123456789+00:00"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "text"), TEXTS, ids=list(map(str, range(len(TEXTS)))))
def test_every_value_has_one_text(value: Any, text: str) -> None:
    assert text_of(value) == text
    assert missing(value) == (text == "" and not isinstance(value, list))
    assert text_of(plain(value)) == text  # turning a value into JSON values first changes nothing
    json.loads(json_text(value), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.mark.parametrize("value", [b"x", bytearray(b"x"), object(), [b"x"], {"a": object()}])
def test_what_is_no_text_is_refused_where_it_is_read(value: Any) -> None:
    with pytest.raises(CellError, match="holds"):
        text_of(value)
    record = Record({"a": value, "b": 1}, "x.parquet:3")
    assert column(record, "b") == 1
    with pytest.raises(DataError, match=r"x\.parquet:3: the column 'a' holds"):
        column(record, "a")


# ---- the same table from every source

TABLE = {
    "text": ["a", None], "whole": [1, 2**60], "number": [1.0, float("nan")], "sum": [Decimal("1.50"), None],
    "day": [DAY, None], "at": [NOON, None], "flag": [True, None], "list": [["x", "y"], []],
    "took": [dt.timedelta(1), None],
    "nested": [{"n": [1, None]}, {"n": []}],
}  # fmt: skip
AS_TEXT = [
    ["a", "1", "1.0", "1.50", "2024-01-31", "2024-01-31T12:00:00+00:00", "true", "x y", "P1D", '{"n": [1, null]}'],
    ["", str(2**60), "", "", "", "", "", "", "", '{"n": []}'],
]


def texts(rows: Any) -> list[list[str]]:
    return [[text_of(column(row, name)) for name in TABLE] for row in rows]


def arrow_table() -> pa.Table:
    return pa.table({**TABLE, "number": pa.array([1.0, float("nan")])})


def test_arrow_tables_and_files(tmp_path: Path) -> None:
    table = arrow_table()
    assert texts(MemoryRows.of(table).records()) == AS_TEXT
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    pyarrow.feather.write_feather(table, tmp_path / "a.feather")
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    for name in ("a.parquet", "a.feather", "a.arrow"):
        read = list(read_rows(tmp_path / name))
        assert texts(read) == AS_TEXT
        assert [record.source for record in read] == [f"{name}:1", f"{name}:2"]


def test_a_lazy_frame_is_collected() -> None:
    frame = pl.LazyFrame({"text": ["a b", "c d"], "label": ["x", "y"]})
    assert list(MemoryRows.of(frame).rows) == frame.collect().to_dicts()
    shape = {"inputs": ["text"], "output": {"column": "label", "kind": "category"}}
    for data in (frame, {"train": frame}):
        assert isinstance(Task(name="t", instruction="x", **shape, data=data).data.train, MemoryRows)


def test_frames_of_pandas_and_polars_and_data_sets() -> None:
    frame = pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in TABLE.items()})
    assert texts(MemoryRows.of(frame).records()) == AS_TEXT
    typed = frame.astype({"text": "string", "whole": "Int64", "flag": "boolean", "number": "float64"})
    typed = typed.assign(day=typed.day, at=pd.to_datetime(typed["at"]), took=pd.to_timedelta(typed.took))
    assert texts(MemoryRows.of(typed).records()) == AS_TEXT
    assert texts(MemoryRows.of(pd.DataFrame(arrow_table().to_pandas(types_mapper=pd.ArrowDtype))).records()) == AS_TEXT
    assert texts(MemoryRows.of(pl.DataFrame(TABLE)).records()) == AS_TEXT
    assert texts(MemoryRows.of(Dataset(arrow_table())).records()) == AS_TEXT
    rows = [dict(zip(TABLE, values, strict=True)) for values in zip(*TABLE.values(), strict=True)]
    assert texts(MemoryRows.of(rows).records()) == AS_TEXT
    assert texts(MemoryRows.of(row for row in rows).records()) == AS_TEXT


def test_a_dict_of_columns_is_rows_and_another_dict_is_refused() -> None:
    fields = {"name": "t", "instruction": "i", "inputs": ["text"], "output": {"column": "label", "kind": "category"}}
    task = Task(**fields, data={"train": {"text": ["a", "b"] * 30, "label": ["x", "y"] * 30}})
    rows = Task(**fields, data={"train": [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}] * 30})
    assert task.data.train.sha256 == rows.data.train.sha256
    whole = Task(**fields, data={"text": ["a", "b"] * 30, "label": ["x", "y"] * 30})
    assert whole.data.train.sha256 == rows.data.train.sha256
    with pytest.raises(RungError, match="these are no rows, but one mapping"):
        Task(**fields, data={"train": {"text": ["a", "b"], "label": ["x"]}})


def test_a_hash_of_the_content_is_that_of_every_kind_of_frame() -> None:
    rows = [{"text": "a", "n": 1}, {"text": "b", "n": 2}]
    kinds = [rows, pd.DataFrame(rows), pl.DataFrame(rows), pa.Table.from_pylist(rows), Dataset.from_list(rows)]
    assert len({MemoryRows.of(kind).sha256 for kind in kinds}) == 1
    assert MemoryRows.of(rows[::-1]).sha256 != MemoryRows.of(rows).sha256


def test_categoricals_small_numbers_nanoseconds_and_classes(tmp_path: Path) -> None:
    nanoseconds = pa.array([1, 1_000], pa.timestamp("ns", "Europe/Berlin"))
    table = pa.table(
        {
            "label": pa.array(["x", "y"]).dictionary_encode(), "small": pa.array([0.1, 2.5], pa.float32()),
            "half": pa.array(np.array([0.1, 2.5], np.float16)),
            "at": nanoseconds, "time": pa.array([1, 1_000], pa.time64("ns")),
            "far": pa.array([2**42, 0], pa.timestamp("s")),
            "map": pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int8())),
        }
    )  # fmt: skip
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    first, second = read_rows(tmp_path / "a.parquet")
    assert [text_of(column(first, name)) for name in ("label", "small", "half", "at", "time", "map")] == [
        "x", "0.1", "0.1", "1970-01-01T01:00:00.000000001+01:00", "00:00:00.000000001", '{"k": 1}',
    ]  # fmt: skip
    assert text_of(column(second, "time")) == "00:00:00.000001"
    assert text_of(column(second, "at")) == "1970-01-01T01:00:00.000001+01:00"
    assert text_of(column(second, "far")) == "1970-01-01T00:00:00"
    with pytest.raises(DataError, match=r"a\.parquet:1: the column 'far' holds a timestamp\[.*\] that cannot be read"):
        column(first, "far")
    frame = pd.DataFrame({"label": pd.Categorical(["x", None])})
    assert [text_of(row["label"]) for row in memory_rows(frame)] == ["x", ""]
    classes = Features({"text": Value("string"), "label": ClassLabel(names=["ham", "spam"])})
    rows = Dataset.from_list([{"text": "a", "label": 1}, {"text": "b", "label": -1}], classes)
    assert [row["label"] for row in memory_rows(rows)] == ["spam", None]


def test_bytes_are_text_only_where_their_encoding_is_named(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pa.table({"a": ["é".encode(), b"\xff", None], "b": [1, 2, 3]}), tmp_path / "a.parquet")
    records = list(read_rows(tmp_path / "a.parquet"))
    assert column(records[0], "b") == 1
    with pytest.raises(DataError, match=r"a\.parquet:1: the column 'a' holds bytes, not text") as caught:
        column(records[0], "a")
    assert "--encoding utf-8" in caught.value.hint
    named = list(read_rows(tmp_path / "a.parquet", FileFormat("utf-8")))
    assert (column(named[0], "a"), column(named[2], "a")) == ("é", None)
    with pytest.raises(DataError, match=r"a\.parquet:2: the column 'a' holds bytes that are not utf-8: byte 0 is 0xff"):
        column(named[1], "a")


# ---- Excel


def test_excel_sheets_as_people_make_them(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    book.active.title = "Notes"
    sheet = book.create_sheet("Tickets")
    for row in [
        [], ["team", " text ", None, "sum", "day", "at", "code", "bad"],
        ["North", "a_x000D_b", "kept", 0.1 + 0.2, dt.datetime(2024, 1, 31), dt.datetime(2024, 1, 31, 9), "007", "#N/A"],
        [], [None, "=1+1", None, 2, None, None, None, 1.0],
    ]:  # fmt: skip
        sheet.append(row)
    sheet.merge_cells("A3:A5")
    sheet["E3"].number_format = "dd.mm.yyyy"
    sheet["F3"].number_format = "dd.mm.yyyy hh:mm"
    sheet["H3"].data_type = "e"
    sheet["B5"].data_type = "f"
    book.save(tmp_path / "a.xlsx")
    first, second = read_rows(tmp_path / "a.xlsx")
    assert (first.source, second.source) == ("a.xlsx:3", "a.xlsx:5")
    names = ["team", "text", "column 3", "sum", "day", "at", "code"]
    assert [text_of(column(first, name)) for name in names] == [
        "North", "a\rb", "kept", "0.3", "2024-01-31", "2024-01-31T09:00:00", "007",
    ]  # fmt: skip
    assert [text_of(column(second, name)) for name in ("team", "sum", "day", "bad")] == ["North", "2", "", "1"]
    with pytest.raises(DataError, match=r"a\.xlsx:3: the column 'bad' holds in H3 the error #N/A"):
        column(first, "bad")
    with pytest.raises(DataError, match=r"a\.xlsx:5: the column 'text' holds in B5 a formula without its value"):
        column(second, "text")
    assert detected(tmp_path / "a.xlsx", FileFormat()).describe() == "sheet 'Tickets'"
    with pytest.raises(DataError, match="no sheet 'Tickest'") as caught:
        list(read_rows(tmp_path / "a.xlsx", FileFormat(sheet="Tickest")))
    assert caught.value.hint == "did you mean 'Tickets'?"
    openpyxl.Workbook().save(tmp_path / "b.xlsx")
    with pytest.raises(DataError, match="no cells"):
        list(read_rows(tmp_path / "b.xlsx"))
    (tmp_path / "c.xlsx").write_bytes(b"\xd0\xcf\x11\xe0")
    with pytest.raises(DataError, match="no readable Excel file"):
        list(read_rows(tmp_path / "c.xlsx"))


def test_excel_numbers_are_read_as_the_sheet_shows_them(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    cells = [
        (0.5, "0%", "50%"), (0.1234, "0%", "12.34%"), (0.07, "0.00\\ %", "7%"), (0, "0%", "0%"),
        (-1, "0%;-0%", "-100%"), (501, "00000", "00501"), (123456, "00000", "123456"),
        (21551234, "00000-0000", "02155-1234"),
        (1.5, "00", "1.5"), (-7, "000", "-7"), (7, "0", "7"), (7, "0.00", "7"), (7, "#,##0", "7"),
    ]  # fmt: skip
    book.active.append([f"c{number}" for number in range(len(cells))])
    book.active.append([value for value, _, _ in cells])
    for number, (_, form, _) in enumerate(cells, start=1):
        book.active.cell(2, number).number_format = form
    book.save(tmp_path / "a.xlsx")
    (row,) = read_rows(tmp_path / "a.xlsx")
    assert [text_of(column(row, name)) for name in row.values] == [shown for _, _, shown in cells]


def test_a_hidden_sheet_is_read_only_by_its_name(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    book.active.title, book.active.sheet_state = "old", "hidden"
    book.active.append(["text"])
    book.active.append(["stale"])
    shown = book.create_sheet("Data")
    book.save(tmp_path / "a.xlsx")
    with pytest.raises(DataError, match="that it shows have no cells") as refused:
        list(read_rows(tmp_path / "a.xlsx"))
    assert "'old'" in refused.value.hint
    shown.append(["text"])
    shown.append(["fresh"])
    book.active = 1
    book.save(tmp_path / "a.xlsx")
    assert [row.values["text"] for row in read_rows(tmp_path / "a.xlsx")] == ["fresh"]
    assert [row.values["text"] for row in read_rows(tmp_path / "a.xlsx", FileFormat(sheet="old"))] == ["stale"]
    assert detected(tmp_path / "a.xlsx", FileFormat()).describe() == "sheet 'Data'"


# ---- rows in memory that are none


@pytest.mark.parametrize("rows", [{"text": ["a"]}, "text", 5, [1], [{"a": 1}, "b"], pd.Series(["a"])])
def test_what_is_no_table(rows: Any) -> None:
    with pytest.raises(DataError) as caught:
        MemoryRows.of(rows)
    assert caught.value.code == "bad-row"
    assert "list of dicts" in caught.value.hint


def test_columns_with_one_name_and_a_named_index() -> None:
    with pytest.raises(DataError, match="two columns are named 'a'"):
        MemoryRows.of(pd.DataFrame([[1, 2]], columns=["a", "a"]))
    frame = pd.DataFrame({"text": ["a"]}, index=pd.Index([7], name="id"))
    assert list(memory_rows(frame)) == [{"id": 7, "text": "a"}]
    assert list(memory_rows(pd.DataFrame([["a"]]))) == [{"0": "a"}]


def test_frames_are_recognized_without_their_libraries() -> None:
    code = (
        "import sys, rung.data.frames as f; list(f.memory_rows([{'a': 1}])); "
        "print([name for name in ('pandas', 'polars', 'pyarrow', 'datasets', 'openpyxl') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
