"""Rows that are not text files: Parquet, Arrow and Excel files, Hub data sets, and rows in memory.

Libraries are imported when such rows are read. Rows in memory are recognized by what they can do, so nothing imports
pandas or polars. Cells keep their types; `rung.data.cells` turns them into text.
"""

from __future__ import annotations

import os
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, time
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from rung.data.cells import CellError, Unreadable, json_text
from rung.data.rows import Record, hash_of
from rung.errors import DataError, Location, needed_by, suggest
from rung.models.cache import offline

# ---- Parquet and Arrow


def parquet_records(file: IO[bytes], path: Path, bytes_as: str | None) -> Iterator[Record]:
    """Yield the rows of a Parquet file; with `bytes_as`, bytes become text of this encoding."""
    with needed_by("a Parquet file"):
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    try:
        yield from _numbered(ParquetFile(file).iter_batches(), path, bytes_as)
    except (ArrowException, OSError) as error:
        raise DataError("unreadable-file", f"{path}: {error}") from error


def arrow_records(file: IO[bytes], path: Path, bytes_as: str | None) -> Iterator[Record]:
    """Yield the rows of an Arrow IPC file (also called Feather) or stream."""
    with needed_by("an Arrow file"):
        from pyarrow import ArrowException, ipc
    try:
        magic = file.read(6)
        file.seek(0)
        if magic == b"ARROW1":
            reader = ipc.open_file(file)
            batches = map(reader.get_batch, range(reader.num_record_batches))
        else:
            batches = iter(ipc.open_stream(file))
        yield from _numbered(batches, path, bytes_as)
    except (ArrowException, OSError) as error:
        raise DataError("unreadable-file", f"{path}: {error}") from error


def _numbered(batches: Iterable[Any], path: Path, bytes_as: str | None) -> Iterator[Record]:
    for number, values in enumerate(batch_rows(batches, bytes_as), start=1):
        yield Record(values, f"{path.name}:{number}")


def batch_rows(batches: Iterable[Any], bytes_as: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of Arrow record batches as Python values."""
    for batch in batches:
        names = batch.schema.names
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError("duplicate-name", f"two columns are named {twice!r}", hint="rename one of them")
        columns = [_column(batch.column(i), bytes_as) for i in range(len(names))]
        for cells in zip(*columns, strict=True):
            yield dict(zip(names, cells, strict=True))


def _column(column: Any, bytes_as: str | None) -> list[Any]:
    """An Arrow column as Python values, without what Arrow's own conversion loses or refuses."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind):
        return _column(column.dictionary_decode(), bytes_as)
    if pa.types.is_float16(kind):
        import numpy as np

        return [None if value is None else float(str(np.float16(value))) for value in column.to_pylist()]
    if pa.types.is_float32(kind):  # 0.1 stays 0.1, not 0.10000000149011612
        shortest = column.cast(pa.string()).to_pylist()
        return [None if text is None else float(text) for text in shortest]
    if (pa.types.is_timestamp(kind) or pa.types.is_time64(kind)) and kind.unit == "ns":
        return _nanoseconds(column, pa)
    if bytes_as is not None and (
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
    ):
        return [value if value is None else _decoded(value, bytes_as) for value in column.to_pylist()]
    try:
        values: list[Any] = column.to_pylist(maps_as_pydicts="strict")
    except (ValueError, OverflowError, KeyError, ImportError):  # a value that Python cannot hold: the year 12000, ...
        return [_scalar(scalar) for scalar in column]
    return values


def _scalar(scalar: Any) -> Any:
    try:
        return scalar.as_py(maps_as_pydicts="strict")
    except (ValueError, OverflowError, KeyError, ImportError) as error:
        return Unreadable(f"holds a {scalar.type} that cannot be read: {error}")


def _decoded(value: bytes, encoding: str) -> Any:
    try:
        return value.decode(encoding)
    except UnicodeDecodeError as error:
        return Unreadable(f"holds bytes that are not {encoding}: byte {error.start} is 0x{value[error.start]:02x}")


def _nanoseconds(column: Any, pa: Any) -> list[Any]:
    """Times in nanoseconds, which Python does not have: text in ISO 8601 where the last three digits matter."""
    coarser = pa.time64("us") if pa.types.is_time64(column.type) else pa.timestamp("us", column.type.tz)
    values = column.cast(coarser, safe=False).to_pylist()
    rests = [None if n is None else n % 1000 for n in column.cast(pa.int64()).to_pylist()]
    return [_finer(value, rest) if rest else value for value, rest in zip(values, rests, strict=True)]


def _finer(value: datetime | time, rest: int) -> str:
    text = value.isoformat(timespec="microseconds")
    end = text.index(".") + 7
    return f"{text[:end]}{rest:03d}{text[end:]}"


# ---- Excel

MAX_UNPACKED = 400_000_000  # bytes of an Excel file's parts together: a small file may unpack to anything
MAX_CELLS = 50_000_000  # up to the last row and column of a sheet, and in merged areas: openpyxl makes each of them


def header_names(cells: Sequence[str], where: Location) -> list[str]:
    """The names of the columns: without spaces around them, and `column 3` for a third one without a name.

    Raises:
        DataError: `duplicate-name`: two columns have one name; `bad-csv`: it is a title.
    """
    names = [cell.strip() or f"column {number}" for number, cell in enumerate(cells, start=1)]
    if len(cells) > 1 and cells[0].strip() and not any(cell.strip() for cell in cells[1:]):
        problem = f"the first row names one of {len(cells)} columns: {names[0][:80]!r} may be a title"
        raise DataError("bad-csv", problem, where=where, hint="remove what is above the names, or name every column")
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise DataError("duplicate-name", f"the column {twice!r} is in the header twice", where=where)
    return names


def _workbook(file: IO[bytes], path: Path, *, formulas: bool = False) -> Any:
    with needed_by("an Excel file", extra="excel"):
        import openpyxl
    try:
        with zipfile.ZipFile(file) as parts:
            unpacked = sum(part.file_size for part in parts.infolist())
        if unpacked > MAX_UNPACKED:
            hint = "save it as CSV or Parquet"
            raise DataError("unreadable-file", f"{path} unpacks to {unpacked / 1e6:,.0f} MB", hint=hint)
        with zipfile.ZipFile(file) as parts:
            cells = max((_cells(parts, name) for name in parts.namelist()), default=0)
        if cells > MAX_CELLS:
            problem = f"{path} has a sheet of {cells:,} cells, counted to its last row and column"
            raise DataError("unreadable-file", problem, hint="save it as CSV or Parquet")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of extensions, such as lists to choose from, that it leaves out
            return openpyxl.load_workbook(file, data_only=not formulas, keep_links=False)
    except DataError:
        raise
    except Exception as error:  # the library raises any error on a broken file
        hint = "open it in Excel and save it again as .xlsx, without a password"
        reason = str(error) or type(error).__name__
        raise DataError("unreadable-file", f"{path} is no readable Excel file: {reason}", hint=hint) from error


def _cells(parts: zipfile.ZipFile, name: str) -> int:
    """How many cells openpyxl makes of a part; 0 where it is no sheet."""
    from openpyxl.utils.cell import range_boundaries
    from openpyxl.xml.functions import iterparse

    rows = columns = merged = 0
    with parts.open(name) as xml, suppress(SyntaxError):  # what is no XML, such as an image
        for _, element in iterparse(xml):
            tag, place = str(element.tag).rpartition("}")[2], element.get("ref") or element.get("r") or ""
            if tag in ("c", "mergeCell") and place:
                left, top, right, bottom = range_boundaries(place)
                rows, columns = max(rows, bottom), max(columns, right)
                merged += (bottom - top + 1) * (right - left + 1) if tag == "mergeCell" else 0
            elif tag == "row" and place.isdigit():
                rows = max(rows, int(place[:9]))
            element.clear()
    return max(rows * columns, merged)


def _sheet(book: Any, path: Path, name: str | None) -> Any:
    """The sheet of this name, or the first one with cells that a person sees."""
    sheets = {sheet.title: sheet for sheet in book.worksheets}
    if name is not None and name not in sheets:
        raise DataError("unknown-name", f"{path} has no sheet {name!r}", hint=suggest(name, list(sheets)))
    if name is not None:
        return sheets[name]
    filled = [sheet for sheet in sheets.values() if any(cell is not None for row in sheet.values for cell in row)]
    if not filled:
        raise DataError("too-few-rows", f"{path} has no cells", hint="write a header and at least one row")
    shown = [sheet for sheet in filled if sheet.sheet_state == "visible"]
    if not shown:
        hint = f"name a hidden one: {', '.join(repr(sheet.title) for sheet in filled)}"
        raise DataError("too-few-rows", f"the sheets of {path} that it shows have no cells", hint=hint)
    return shown[0]


def shown_sheets(file: IO[bytes], path: Path) -> list[str]:
    """List the sheets of an Excel file that it shows and that have cells."""
    sheets = [sheet for sheet in _workbook(file, path).worksheets if sheet.sheet_state == "visible"]
    return [sheet.title for sheet in sheets if any(cell is not None for row in sheet.values for cell in row)]


def sheet_of(file: IO[bytes], path: Path, name: str | None) -> str | None:
    """Name the sheet that is read where an Excel file has several; None where it has one."""
    book = _workbook(file, path)
    title: str = _sheet(book, path, name).title
    return title if len(book.worksheets) > 1 else name


def sheet_records(file: IO[bytes], path: Path, name: str | None) -> Iterator[Record]:
    """Yield the rows of a sheet of an Excel file, with their numbers in the sheet; wholly blank rows are none.

    The first row with a cell is the header. Cells that are merged below it all have the value that they show. A date
    without a time is a date, and numbers have the 15 digits that Excel keeps. A share shown in percent is `50%`, and a
    number shown as a code is `00501`. An error (#N/A), and a formula whose value is not stored, are errors if their
    column is read.
    """
    sheet = _sheet(_workbook(file, path), path, name)
    # The same cells, with formulas instead of their values.
    plan = _workbook(file, path, formulas=True)[sheet.title] if _has_formulas(file) else sheet
    merged = {
        (row, column): (area.min_row, area.min_col)
        for area in sheet.merged_cells.ranges
        for row in range(area.min_row, area.max_row + 1)
        for column in range(area.min_col, area.max_col + 1)
    }
    filled = [any(value is not None for value in column) for column in sheet.iter_cols(values_only=True)]
    width = max((number for number, some in enumerate(filled, start=1) if some), default=0)
    header: list[str] = []
    rows = zip(sheet.iter_rows(), plan.iter_rows(), strict=True)
    for number, (cells, planned) in enumerate(rows, start=1):
        if not any(cell.value is not None for cell in planned):
            continue
        if not header:
            texts = [str(_excel(cell, cell) or "") for cell in cells[:width]]
            header = header_names(texts, Location(str(path), number))
            continue
        values = []
        for cell, formula in zip(cells[: len(header)], planned, strict=False):
            place = merged.get((number, cell.column))
            shown = (sheet.cell(*place), plan.cell(*place)) if place else (cell, formula)
            values.append(_excel(*shown))
        yield Record(dict(zip(header, values, strict=True)), f"{path.name}:{number}")


def _has_formulas(file: IO[bytes]) -> bool:
    with zipfile.ZipFile(file) as parts:
        sheets = [name for name in parts.namelist() if name.startswith("xl/worksheets/")]
        return any(re.search(rb"<f[ />]", parts.read(name)) for name in sheets)


def _excel(cell: Any, planned: Any) -> Any:
    """The value of a cell, and the cell with its formula if it has one."""
    from openpyxl.styles.numbers import is_datetime
    from openpyxl.utils.escape import unescape

    value = cell.value
    if planned.data_type == "f" and value is None:
        return Unreadable(f"holds in {cell.coordinate} a formula without its value: open the file in Excel and save it")
    if cell.data_type == "e":
        return Unreadable(f"holds in {cell.coordinate} the error {value}")
    if isinstance(value, str):
        return unescape(value) if "_x" in value else value
    if isinstance(value, datetime) and is_datetime(cell.number_format) == "date":
        return value.date()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _shown(float(f"{value:.15g}") if isinstance(value, float) else value, str(cell.number_format))
    return value


def _shown(number: int | float, form: str) -> int | float | str:
    """A number as the sheet shows it where that is another one, or a code: all digits of `12.34%`, zeros of `00501`."""
    form = re.sub(r'\\(.)|"([^"]*)"', r"\1\2", form)
    if "%" in form:
        return f"{(Decimal(str(number)) * 100).normalize():f}%"
    zeros = form.count("0")
    if zeros < 2 or re.fullmatch(r"0[0 -]*", form) is None or number < 0 or number != int(number):
        return number
    digits = str(int(number)).zfill(zeros)
    more = len(digits) - zeros
    return form.replace("0", "{}").format(digits[: more + 1], *digits[more + 1 :])


# ---- data sets of the Hub


HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# What reads a data set's files, by the library's module: tables and text only. Others unpickle files or run code.
# `cache` reads what one of these prepared earlier.
HUB_READERS = {"csv", "json", "parquet", "text", "arrow", "cache"}


def hub_records(source: str) -> Iterator[Record]:
    """Yield the rows of a data set `hf:org/name[:config][#split]`; classes have their names.

    Raises:
        DataError: the name is not one of the Hub, the data set cannot be loaded, or reading it needs more than tables.
    """
    with _of_hub(source) as (name, config, split):
        from datasets import load_dataset

        _hub_builder(source, name, config)
        rows = load_dataset(name, config, split=split or "train")
    for number, values in enumerate(_dataset_rows(rows), start=1):
        yield Record(values, f"{source}:{number}")


def hub_splits(source: str) -> tuple[str, ...]:
    """List the splits of a data set `hf:org/name[:config]`.

    Raises:
        DataError: as `hub_records`.
    """
    with _of_hub(source) as (name, config, _):
        builder = _hub_builder(source, name, config)
        return tuple(map(str, builder.info.splits or builder.config.data_files or ()))


@contextmanager
def _of_hub(source: str) -> Iterator[tuple[str, str | None, str]]:
    """Take the name of a data set apart: name, configuration and split; name what fails in the block."""
    name, _, split = source.removeprefix("hf:").partition("#")
    name, _, config = name.partition(":")
    if HUB_NAME.fullmatch(name) is None or Path(name).exists():
        # Other names mean a file format or a folder here to the library, and some formats are pickles.
        hint = "write hf:org/name; name a file of this machine by its path, without hf:"
        raise DataError("bad-value", f"{source} does not name a data set of the Hub", hint=hint)
    if offline():
        os.environ["HF_HUB_OFFLINE"] = "1"  # which the library reads when it is imported
    with needed_by("a Hub data set"):
        from datasets import exceptions
    try:
        yield name, config or None, split
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, exceptions.DatasetsError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        hint = "the form is hf:org/name:config#split; private data needs a token in HF_TOKEN"
        raise DataError("download-failed", f"{source} cannot be loaded: {reason}", hint=hint) from error


def _hub_builder(source: str, name: str, config: str | None) -> Any:
    """What the library reads a data set with, if that is of tables."""
    from datasets import load_dataset_builder

    builder = load_dataset_builder(name, config)
    reader = type(builder).__module__
    if not reader.startswith("datasets.packaged_modules.") or reader.split(".")[2] not in HUB_READERS:
        hint = "load it with the library `datasets`, and save it with `to_parquet`"
        raise DataError("unreadable-file", f"{source} is not CSV, JSON, Parquet, text or Arrow", hint=hint)
    return builder


def _dataset_rows(rows: Any) -> Iterator[dict[str, Any]]:
    """The rows of a `datasets.Dataset`; a class is its name, not its number."""
    classes = {name: kind.int2str for name, kind in (rows.features or {}).items() if hasattr(kind, "int2str")}
    for row in rows:
        yield {
            name: (None if value < 0 else classes[name](value)) if name in classes and isinstance(value, int) else value
            for name, value in row.items()
        }


# ---- rows in memory

WANTED = "give a list of dicts, a pandas or polars frame, an Arrow table, a datasets.Dataset, or the path of a file"


def is_table(rows: Any) -> bool:
    """Say whether an object has columns: a frame, an Arrow table or reader, a `datasets.Dataset`."""
    return is_lazy(rows) or any(hasattr(rows, name) for name in ("columns", "column_names", "schema"))


def is_lazy(rows: Any) -> bool:
    """Say whether an object is a LazyFrame of polars, which is collected."""
    return type(rows).__name__ == "LazyFrame" and hasattr(rows, "collect")


def memory_rows(rows: Any) -> Iterator[dict[str, Any]]:
    """Yield rows in memory as dicts with Python values.

    A list (or another iterable) of mappings, a pandas or polars frame, an Arrow table or whatever exports one
    (`__arrow_c_stream__`), a `datasets.Dataset`. A named index of a pandas frame counts as columns.

    Raises:
        DataError: `bad-row` with the number of the row that is none, or `duplicate-name`.
        MachineError: an Arrow object is given, and pyarrow is not installed.
    """
    rows = rows.collect() if is_lazy(rows) else rows
    if hasattr(rows, "to_dict") and hasattr(rows, "itertuples"):  # pandas
        names = [str(name) for name in rows.columns]
        if any(name is not None for name in rows.index.names):
            rows = rows.reset_index()
            names = [str(name) for name in rows.columns]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError("duplicate-name", f"two columns are named {twice!r}", hint="rename one of them")
        columns = [rows.iloc[:, i].tolist() for i in range(len(names))]
        return (dict(zip(names, cells, strict=True)) for cells in zip(*columns, strict=True))
    if hasattr(rows, "iter_rows"):  # polars
        return iter(rows.iter_rows(named=True))
    if hasattr(rows, "features") and hasattr(rows, "column_names"):  # datasets
        return _dataset_rows(rows)
    if hasattr(rows, "__arrow_c_stream__"):
        with needed_by("an Arrow table"):
            import pyarrow
        try:
            return batch_rows(pyarrow.RecordBatchReader.from_stream(rows))
        except pyarrow.ArrowInvalid:  # a single column
            raise DataError("bad-row", f"a {type(rows).__name__} is no table", hint=WANTED) from None
    if isinstance(rows, (str, bytes, Mapping)) or not isinstance(rows, Iterable):
        found = "one mapping" if isinstance(rows, Mapping) else f"an object of type {type(rows).__name__}"
        raise DataError("bad-row", f"these are no rows, but {found}", hint=WANTED)
    return _mappings(rows)


def _mappings(rows: Iterable[Any]) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise DataError("bad-row", f"row {number} is no mapping, but of type {type(row).__name__}", hint=WANTED)
        yield {str(name): value for name, value in row.items()}


@dataclass(frozen=True)
class MemoryRows:
    """Rows in memory as a source of data, in place of a file.

    Attributes:
        rows: one dict per row, by column.
        name: what errors and reports call them: `train row 3`.
    """

    rows: tuple[Mapping[str, Any], ...] = field(repr=False)
    name: str = ""

    @classmethod
    def of(cls, rows: Any, name: str = "") -> MemoryRows:
        """Take rows of any kind that `memory_rows` reads."""
        return cls(tuple(memory_rows(rows)), name)

    def records(self) -> Iterator[Record]:
        """Yield the rows with their numbers."""
        for number, row in enumerate(self.rows, start=1):
            yield Record(dict(row), f"{self.name} row {number}".lstrip())

    @cached_property
    def sha256(self) -> str:
        """A hash of the content, by which a climb from memory is continued."""
        return hash_of([[[name, _hashable(value)] for name, value in row.items()] for row in self.rows], digits=64)

    def __str__(self) -> str:
        return f"the {len(self.rows):,} {self.name or 'given'} rows in memory"


def _hashable(value: Any) -> str:
    try:
        return json_text(value)
    except CellError:  # bytes and objects, which no column that is read holds
        return value.hex() if isinstance(value, bytes) else type(value).__qualname__
