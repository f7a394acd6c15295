"""Read rows: CSV, TSV, JSON, JSONL, Excel, Parquet and Arrow files, compressed or not, and data sets of the Hub.

Every row comes with its file and line. What a file does not say about itself (its encoding, the separator and the
quoting of a CSV) is found out by `detected`, and stated by `FileFormat.describe`.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal, get_args

from rung.data.frames import (
    MemoryRows,
    arrow_records,
    header_names,
    hub_records,
    parquet_records,
    sheet_of,
    sheet_records,
    shown_sheets,
)
from rung.data.rows import Record
from rung.errors import ConfigError, DataError, Location, needed_by
from rung.yamlfile import UnpackedFile, json_value, unique_keys

Quoting = Literal["auto", "double", "backslash", "none"]
HUB = "hf:"
AUTO = "auto"
_GAP = re.compile(r"[\s,]*")  # between the items of a JSON list
HOW = {
    **dict.fromkeys((".csv", ".tsv"), "write a header with the names of the columns, and at least one row"),
    **dict.fromkeys((".jsonl", ".ndjson"), 'write one JSON object per line, such as {"text": "...", "label": "..."}'),
    ".json": 'write a list of objects, such as [{"text": "...", "label": "..."}]',
}
# What to do with files of kinds that are not read.
OTHERWISE = {
    ".xls": "save it as .xlsx", ".ods": "save it as .xlsx", ".zip": "unpack it first",
    **dict.fromkeys(
        (".conll", ".conllu", ".iob", ".bio"),
        'write a JSON object for each sentence: {"text": "Ann of Kiel", "entities": [{"text": "Ann", "type": "PER"}]}',
    ),
}  # fmt: skip
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError)  # what reading a damaged compressed file raises
MAX_CELL = 10_000_000  # characters in one CSV field; the library's default of 131,072 is too small for long documents
SAMPLE = 1 << 20  # bytes or characters by which a format is recognized
# What a file is that is not what its ending says, by its first bytes.
MAGIC = {
    b"PAR1": "a Parquet file", b"ARROW1": "an Arrow file", b"PK\x03\x04": "a ZIP archive or an Excel file (.xlsx)",
    b"\xd0\xcf\x11\xe0": "an old or encrypted Office file", b"%PDF": "a PDF", b"SQLite format 3": "an SQLite database",
    b"\x1f\x8b": "compressed with gzip", b"BZh": "compressed with bzip2", b"\xfd7zXZ": "compressed with xz",
    b"\x28\xb5\x2f\xfd": "compressed with Zstandard", b"version https://git-lfs": "a pointer of Git LFS, not the file",
}  # fmt: skip
HTML = re.compile(r"<(!doctype\s+html|html|head|body)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class FileFormat:
    r"""How files of rows are written; `auto` finds it out for each file.

    Attributes:
        encoding: of text files: a name that Python knows. In Parquet and Arrow, a given encoding reads bytes as text.
        separator: of a CSV: one character, or `tab`.
        quoting: how a CSV writes a quote in a quoted field: `double` (""), `backslash` (\"), or `none`: quotes have no
            meaning.
        sheet: of an Excel file; the first if None.
    """

    encoding: str = AUTO
    separator: str = AUTO
    quoting: Quoting = "auto"
    sheet: str | None = None

    def __post_init__(self) -> None:
        if self.separator == "tab":
            object.__setattr__(self, "separator", "\t")
        for what, problem in (
            ("encoding", encoding_problem(self.encoding)), ("separator", separator_problem(self.separator)),
            ("quoting", "" if self.quoting in get_args(Quoting) else f"choose {', '.join(get_args(Quoting))}"),
        ):  # fmt: skip
            if problem:
                raise ConfigError("bad-value", f"{what} {getattr(self, what)!r}: {problem}")

    def describe(self) -> str:
        """Say in a few words what is unusual about a detected format; empty for UTF-8 and commas."""
        names = {"\t": "tabs", ";": "semicolons", "|": "bars"}
        quotes = {"backslash": "a backslash before quotes", "none": "quotes without meaning"}
        separated = names.get(self.separator, f"{self.separator!r} between fields")
        parts = [
            "" if self.encoding in (AUTO, "utf-8") else self.encoding,
            "" if self.separator in (AUTO, ",") else separated, quotes.get(self.quoting, ""),
            f"sheet {self.sheet!r}" if self.sheet else "",
        ]  # fmt: skip
        return ", ".join(part for part in parts if part)


def encoding_problem(name: str) -> str:
    """Say what is wrong with the name of an encoding; empty if nothing is."""
    try:
        "a".encode("utf-8" if name == AUTO else name)
    except (LookupError, UnicodeError):
        return f"no text encoding is named {name!r}"
    return ""


def separator_problem(separator: str) -> str:
    """Say what is wrong with a separator of CSV files; empty if nothing is."""
    usable = separator in (AUTO, "tab") or (len(separator) == 1 and separator not in '"\r\n\\ ')
    return "" if usable else "write one character, such as ;, or the word tab"


def kind_of(path: Path) -> str:
    """The ending that says how a file is read, without that of its compression: `.csv` for `rows.csv.gz`."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in COMPRESSED else suffix


def is_hub(source: str | Path) -> bool:
    """Say whether a source is a data set of the Hub, `hf:org/name`, not a file; a path may name one, too."""
    return str(source).startswith(HUB)


def read_rows(source: str | Path, how: FileFormat | None = None) -> Iterator[Record]:
    """Yield the rows of a file, or of a Hub data set written `hf:org/name[:config][#split]`.

    Raises:
        DataError: the file is missing, empty, of an unknown kind, not in the encoding, or has a broken row.
        MachineError: reading this kind needs a library that is not installed.
    """
    if is_hub(source):
        return hub_records(str(source))
    path = Path(source)
    return _reader(path)(path, how or FileFormat())


def opened(source: str | MemoryRows, folder: Path, how: FileFormat) -> tuple[Iterator[Record], str]:
    """Open a source of a task's rows, and say what is unusual about its format; paths are relative to `folder`."""
    if isinstance(source, MemoryRows):
        return source.records(), ""
    if is_hub(source):
        return read_rows(source), ""
    path = folder / Path(source).expanduser()
    found = detected(path, how)
    return read_rows(path, found), found.describe()


def _reader(path: Path) -> Callable[[Path, FileFormat], Iterator[Record]]:
    kind = kind_of(path)
    if kind not in READERS:
        hint = OTHERWISE.get(kind, "")
        problem = f"{path}: files of kind {kind or '(none)'} are not read"
        hint = hint or f"use one of {', '.join(READERS)}, also with {', '.join(COMPRESSED)}"
        raise DataError("unreadable-file", problem, hint=hint)
    if not path.is_file():
        raise DataError(
            "no-such-file", f"{path} does not exist", hint="check the path; those in a task file are relative to it"
        )
    return READERS[kind]


# ---- bytes and text


def open_bytes(path: Path) -> Any:
    """Open a file for reading, decompressed.

    Raises:
        DataError: the system refuses it.
        MachineError: .zst needs pyarrow.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".zst":
            with needed_by("a .zst file"):
                import pyarrow
            packed: Any = pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd")
        elif suffix in COMPRESSED:
            packed = (gzip if suffix == ".gz" else bz2 if suffix == ".bz2" else lzma).open(path)
        else:
            return path.open("rb")
        return io.BufferedReader(UnpackedFile(packed, path))
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    damaged = path.suffix.lower() in COMPRESSED and not getattr(error, "errno", None)
    hint = "the compressed file is damaged or cut off: copy it again" if damaged else ""
    return DataError("unreadable-file", f"{path} cannot be read: {reason}", hint=hint)


def _check_kind(path: Path, head: bytes) -> None:
    """Raise DataError `unreadable-file` for a file that is not the text that its ending promises."""
    what = next((what for magic, what in MAGIC.items() if head.startswith(magic)), "")
    start = head[:1000].decode("latin-1").removeprefix("ï»¿").lstrip()
    if not what and HTML.match(start):
        what = "an HTML page"
    if not what and kind_of(path) in SEPARATORS and start.startswith(('{"', "[{", '["')):
        what = "JSON"
    if not what and b"\0" in head and not wide(head):
        what = "binary"
    if what:
        hint = "download it again: this may be a page with an error or a login" if "HTML" in what else ""
        hint = hint or f"give it the ending that it needs; Rung reads {', '.join(READERS)}"
        raise DataError("unreadable-file", f"{path} is {what}, not {kind_of(path)}", hint=hint)


BOMS = {
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip


def wide(head: bytes) -> str:
    """Recognize two or four bytes a character by the mark at the beginning, or by the zeros of ASCII characters."""
    marked = next((name for bom, name in BOMS.items() if head.startswith(bom)), "")
    pairs = len(head) // 2
    even, odd = (head[: pairs * 2][first::2].count(0) for first in (0, 1))
    if marked or not pairs:
        return marked
    if max(odd, even) > pairs * 0.4:
        return "utf-16-le" if odd > even * 8 else "utf-16-be" if even > odd * 8 else ""
    # Of other scripts, spaces, digits and line ends have such a zero, and no text in one byte a character has any.
    ends = head.count(b"\n")
    if not odd and 2 * head.count(b"\0\n") > ends:
        return "utf-16-be"
    return "utf-16-le" if not even and 2 * head.count(b"\n\0") > ends else ""


UTF8_SEQUENCE = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
NOT_CP1252 = re.compile(  # many accents in a row; signs inside words and at their beginning
    rb"[\x80-\xff]{6}|[\xc0-\xff]{4}|[a-z][\x80\x82-\x84\x86-\x8c\x8e\x93-\x95\x98\x99\x9b\x9f][a-z]|[A-Za-z][\xa1-\xa9\xab\xac\xae-\xb6\xb8\xb9\xbb-\xbf][a-z]"
    rb"|[\xa2\xa4\xa6\xa8\xac\xae\xaf\xb1-\xb4\xb8\xb9\xbc-\xbe][a-z\xb1\xe0-\xff]"
)
UNDEFINED = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")  # no characters in cp1252
OTHERS = (
    "cp1250 (Polish, Czech), cp1251 (Russian), gb18030, big5 (Chinese), cp932 (Japanese), cp949, mac_roman or cp850"
)
CONTROLS = re.compile(rb"[\x80-\x9f]")


def detect_encoding(path: Path) -> str:
    """Find the encoding of a text file: UTF-8, UTF-16 or UTF-32, else Windows' Western European, cp1252.

    Every byte is looked at. Only text that looks like Western European is taken for cp1252: the letters of other
    alphabets in their own encodings give sequences that no Western language has.

    Raises:
        DataError: `bad-encoding`: it is none of them, or UTF-8 with damaged places.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    position, high = 0, b""
    with open_bytes(path) as file:
        try:
            head = file.read(SAMPLE)
            if name := wide(head[:4096]):
                return name
            chunk = head
            while chunk:
                decoder.decode(chunk)
                position += len(chunk)
                chunk = file.read(SAMPLE)
            decoder.decode(b"", final=True)
            return "utf-8"
        except UnicodeDecodeError:
            high = head + (chunk if position else b"") + file.read(SAMPLE)
        except DAMAGED as error:
            raise _unreadable(path, error) from error
    sequences = UTF8_SEQUENCE.findall(high)
    others = sum(byte > 127 for byte in high) - sum(map(len, sequences))
    suspicious = len(NOT_CP1252.findall(high))
    if len(sequences) * 20 > others or suspicious * 50 > others or UNDEFINED.search(high):
        read_text(path, "utf-8")  # raises the error with its line
    return "cp1252"


def _encoding(path: Path, encoding: str) -> str:
    """Detect an encoding, or check a given one: Latin-1 reads every byte, but some only as control characters."""
    if encoding == AUTO:
        return detect_encoding(path)
    if codecs.lookup(encoding).name == "iso8859-1":
        with open_bytes(path) as file:
            data = file.read()
        if found := CONTROLS.search(data):
            problem = f"byte {found.start()} (0x{data[found.start()]:02x}) is a control character in {encoding}"
            where = Location(str(path), data.count(b"\n", 0, found.start()) + 1)
            hint = "the file is probably cp1252, Windows' Latin-1, which has letters and signs there"
            raise DataError("bad-encoding", problem, where=where, hint=hint)
    return encoding


def _not_text(path: Path, data: bytes, error: UnicodeDecodeError, encoding: str) -> DataError:
    line = data.count(b"\n", 0, error.start) + 1
    western = not UNDEFINED.search(data) and len(NOT_CP1252.findall(data)) * 50 <= sum(byte > 127 for byte in data)
    name = wide(data[:4096]) or ("cp1252" if encoding != "cp1252" and western else "NAME")
    problem = f"byte {error.start} (0x{data[error.start]:02x}) is not {encoding}"
    if name == "NAME":
        hint = f"save the file as UTF-8, or name its encoding with --encoding or `encoding:`, such as {OTHERS}"
        return DataError("bad-encoding", problem, where=Location(str(path), line), hint=hint)
    hint = f"save the file as UTF-8, or name its encoding: `encoding: {name}` in the task file, or --encoding {name}"
    return DataError("bad-encoding", problem, where=Location(str(path), line), hint=hint)


def _lines(path: Path, encoding: str, newline: str) -> Iterator[str]:
    """Yield the lines of a file with their line ends, without a byte-order mark, one in memory at a time."""
    blank = True
    try:
        with open_bytes(path) as data:
            _check_kind(path, data.peek(4096)[:4096] if hasattr(data, "peek") else b"")
            with io.TextIOWrapper(data, encoding=encoding, newline=newline) as file:
                for number, line in enumerate(file):
                    text = line.removeprefix("\ufeff") if number == 0 else line
                    blank = blank and not text.strip()
                    yield text
    except UnicodeDecodeError:
        read_text(path, encoding)  # raises the same error with its line
        raise
    except DAMAGED as error:
        raise _unreadable(path, error) from error
    if blank:
        raise _empty(path)


def _empty(path: Path) -> DataError:
    hint = HOW.get(kind_of(path), "write something into it, or name another file")
    return DataError("too-few-rows", f"{path} is empty", hint=hint)


def read_text(path: Path, encoding: str) -> str:
    """Read the whole text of a file; the encoding `auto` is detected.

    Raises:
        DataError: the file cannot be read, is empty, or not in the encoding.
    """
    encoding = _encoding(path, encoding)
    try:
        with open_bytes(path) as file:
            data = file.read()
    except DAMAGED as error:
        raise _unreadable(path, error) from error
    try:
        text: str = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise _not_text(path, data, error, encoding) from None
    text = text.removeprefix("\ufeff")
    if not text.strip():
        raise _empty(path)
    return text


# ---- formats of CSV files

_SEP = re.compile(r'"?sep=(.)"?')
SEPARATORS = {".csv": ",;\t|", ".tsv": "\t,;|"}  # that of the ending first


def sheets_of(path: Path) -> list[str | None]:
    """List the sheets of an Excel file that a person sees; one None for a file of another kind."""
    with _whole(path) as file:
        return [*(shown_sheets(file, path) if kind_of(path) in EXCEL else ())] or [None]


def detected(path: Path, how: FileFormat) -> FileFormat:
    """Replace `auto` in a format by what a file has: its encoding, a CSV's separator and quoting, a sheet.

    A separator is recognized where it parts the records of the first megabyte into the same number of fields, two or
    more. The one with the most fields wins; the ending's own comes first among equals. If none does, the one that parts
    the header is taken, and reading says what is wrong where.

    Raises:
        DataError: the file is missing, of an unknown kind, or in no encoding that can be recognized.
    """
    if is_hub(path):
        return how
    _reader(path)
    kind = kind_of(path)
    if kind in EXCEL:
        with _whole(path) as file:
            return replace(how, sheet=sheet_of(file, path, how.sheet))
    if kind not in TEXT_KINDS:
        return how
    encoding = _encoding(path, how.encoding)
    if kind not in SEPARATORS or AUTO not in (how.separator, how.quoting):
        return replace(how, encoding=encoding)
    lines, size = [], 0
    for line in _lines(path, encoding, newline=""):
        lines.append(line)
        size += len(line)
        if size > SAMPLE:
            break
    if lines and (said := _SEP.fullmatch(lines[0].strip())):  # which Excel writes and reads
        lines, how = lines[1:], replace(how, separator=said[1]) if how.separator == AUTO else how
    separators = SEPARATORS[kind] if how.separator == AUTO else how.separator
    escaped = any('\\"' in line for line in lines)
    ways = ("double", *(["backslash"] if escaped else []), "none") if how.quoting == AUTO else (how.quoting,)
    best, most, records = (separators[0], ways[0]), 1, 0
    for separator in separators:
        for way in ways:
            if way == "none" != how.quoting and separator != "\t":
                continue  # elsewhere, a quote that never closes is more likely a damaged record
            fields, count = _shape(lines, separator, way, cut=size > SAMPLE)
            # With tabs, quotes that happened to close may have swallowed whole lines; then their number differs.
            if fields > most or (fields == most > 1 and separator == best[0] == "\t" and count > records):
                best, most, records = (separator, way), fields, count
    if most == 1:
        header = next((line for line in lines if line.strip()), "")
        best = (next((s for s in separators if len(next(_csv_rows(iter([header]), s, "none"))) > 1), best[0]), best[1])
    return replace(how, encoding=encoding, separator=best[0], quoting=best[1])  # type: ignore[arg-type]


def _shape(lines: Sequence[str], separator: str, quoting: str, *, cut: bool) -> tuple[int, int]:
    """Count the fields of every record, and the records; (0, 0) if the records differ or cannot be read.

    With `cut`, the last record of the sample may be incomplete.
    """
    fields, records = 0, 0
    rows = _csv_rows(iter(lines), separator, quoting)
    try:
        for row in rows:
            if any(cell.strip() for cell in row):
                if fields and len(row) != fields:
                    return (fields, records) if cut and rows.line_num == len(lines) else (0, 0)
                fields, records = len(row), records + 1
    except csv.Error:
        return (fields, records) if cut and rows.line_num == len(lines) else (0, 0)
    return fields, records


def _csv_rows(lines: Iterator[str], separator: str, quoting: str, *, spaced: bool = False) -> Any:
    csv.field_size_limit(MAX_CELL)
    how: dict[str, Any] = {"quoting": csv.QUOTE_NONE} if quoting == "none" else {}
    how |= {"doublequote": False, "escapechar": "\\"} if quoting == "backslash" else {}
    return csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=spaced, **how)


def _separated(path: Path, how: FileFormat) -> Iterator[Record]:
    how = detected(path, how)
    line = 1  # where the record begins; `rows.line_num` is where it ends
    try:
        for spaced in (False, True):  # a space before every other name in the header follows every separator
            rows = _csv_rows(_lines(path, how.encoding, newline=""), how.separator, how.quoting, spaced=spaced)
            header = next((row for row in rows if any(map(str.strip, row)) and not _says_separator(row, how)), None)
            if not header or not header[1:] or not all(name.startswith(" ") for name in header[1:]):
                break
        if header is None:
            raise _empty(path)
        header = header_names(header, Location(str(path), rows.line_num))
        line = rows.line_num + 1
        for row in rows:
            if row and len(row) != len(header):
                problem = f"{len(row)} fields where the header has {len(header)}"
                hint = 'put a field that contains the separator or a line break in quotes: "a, b"'
                if other := next((s for s in ";\t|" if s != how.separator and s in "".join(header)), None):
                    hint = f"or name the separator: --separator '{'tab' if other == chr(9) else other}'; " + hint
                raise DataError("bad-csv", problem, where=Location(str(path), line), hint=hint)
            if row:
                yield Record(dict(zip(header, row, strict=True)), f"{path.name}:{line}")
            line = rows.line_num + 1
    except csv.Error as error:
        problem = f"the record that begins here cannot be read: {error}"
        hint = (
            'close every quote; a quote inside a quoted field is written twice: "say ""hi"""; '
            "or name another way: `data.quoting: backslash`, or `none` where quotes have no meaning"
        )
        raise DataError("bad-csv", problem, where=Location(str(path), line), hint=hint) from error


def _says_separator(row: Sequence[str], how: FileFormat) -> bool:
    return bool(_SEP.fullmatch(how.separator.join(row)))


# ---- JSON


def _jsonl(path: Path, how: FileFormat) -> Iterator[Record]:
    encoding = detected(path, how).encoding
    for number, line in enumerate(_lines(path, encoding, newline="\n"), start=1):
        if line.strip():
            if number == 1 and line.lstrip().startswith("["):
                problem, hint = "the file is one JSON list, not an object a line", "give it the ending .json"
                raise DataError("bad-json", problem, where=Location(str(path), number), hint=hint)
            yield _record(_parsed(line.rstrip(), path, number), path, number)


def _parsed(text: str, path: Path, line: int) -> Any:
    """Parse JSON text that begins in `line`."""
    try:
        value = json_value(text, unique_keys)
        if "\\ud" in text.lower():  # half of a surrogate pair parses, but cannot be encoded
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        where, hint = Location(str(path), line + error.lineno - 1, error.colno), HOW.get(kind_of(path), "")
        if kind_of(path) == ".json" and error.msg == "Extra data":
            hint = "if the file has one object a line, give it the ending .jsonl; " + hint
        raise DataError("bad-json", f"not valid JSON: {error.msg}", where=where, hint=hint) from None
    except ValueError as error:
        problem = "half of a surrogate pair (\\ud800...)" if isinstance(error, UnicodeEncodeError) else str(error)
        if "digits" in problem:
            problem = "a number has too many digits"
        raise DataError("bad-json", f"not usable JSON: {problem}", where=Location(str(path), line)) from None
    return value


def _record(value: Any, path: Path, number: int) -> Record:
    if not isinstance(value, dict):
        raise DataError(
            "bad-json", f"expected an object, found {type(value).__name__}", where=Location(str(path), number),
            hint='every row is an object: {"column": value, ...}',
        )  # fmt: skip
    return Record(value, f"{path.name}:{number}")


def _json(path: Path, how: FileFormat) -> Iterator[Record]:
    with open_bytes(path) as file:
        _check_kind(path, file.read(4096))
    text = read_text(path, how.encoding)
    value = _parsed(text, path, 1)
    if not isinstance(value, list):
        hint = "or use JSON lines (.jsonl)"
        if isinstance(value, dict) and value:
            lists = [name for name, inner in value.items() if isinstance(inner, list)]
            if lists and any(isinstance(item, dict) for item in value[lists[0]]):
                hint = f"write the list under {lists[0]!r} into a file of its own"
            elif lists or all(isinstance(inner, dict) for inner in value.values()):
                hint = 'write an object for each row, as pandas does with to_json(orient="records")'
            hint = f"this one is an object with the keys {', '.join(map(repr, islice(value, 10)))}; {hint}"
        raise DataError("bad-json", f"{path}: a JSON file of rows is a list of objects", hint=hint)
    # The text is a valid list: decode it again item by item to find the line of each.
    decoder = json.JSONDecoder()
    position, line = text.index("[") + 1, text.count("\n", 0, text.index("[")) + 1
    while (begin := _GAP.match(text, position).end()) and text[begin] != "]":  # type: ignore[union-attr]
        line += text.count("\n", position, begin)
        item, position = decoder.raw_decode(text, begin)
        yield _record(item, path, line)
        line += text.count("\n", begin, position)


# ---- formats of libraries


def _whole(path: Path) -> Any:
    """A file that a library may seek in: a compressed one in memory."""
    if path.suffix.lower() not in COMPRESSED:
        return open_bytes(path)
    try:
        with open_bytes(path) as file:
            return io.BytesIO(file.read())
    except DAMAGED as error:
        raise _unreadable(path, error) from error


def _with(records: Callable[[IO[bytes], Path, FileFormat], Iterator[Record]]) -> Callable[..., Iterator[Record]]:
    def read(path: Path, how: FileFormat) -> Iterator[Record]:
        with _whole(path) as file:
            yield from records(file, path, how)

    return read


EXCEL = (".xlsx", ".xlsm")
TEXT_KINDS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")
READERS: dict[str, Callable[[Path, FileFormat], Iterator[Record]]] = {
    ".csv": _separated,
    ".tsv": _separated,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".parquet": _with(lambda file, path, how: parquet_records(file, path, _bytes_as(how))),
    ".arrow": _with(lambda file, path, how: arrow_records(file, path, _bytes_as(how))),
    ".feather": _with(lambda file, path, how: arrow_records(file, path, _bytes_as(how))),
    **dict.fromkeys(EXCEL, _with(lambda file, path, how: sheet_records(file, path, how.sheet))),
}


def _bytes_as(how: FileFormat) -> str | None:
    return None if how.encoding == AUTO else how.encoding
