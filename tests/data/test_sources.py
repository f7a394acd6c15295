"""Files to rows: true line numbers, and each kind of damage named."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from rung.data.sources import FileFormat, detected, read_rows
from rung.errors import ConfigError, DataError, MachineError


def rows(file: Path, text: str | bytes, encoding: str = "auto") -> list[tuple[dict[str, object], str]]:
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [(record.values, record.source) for record in read_rows(file, FileFormat(encoding))]


def refused(file: Path, text: str | bytes, encoding: str = "auto") -> DataError:
    with pytest.raises(DataError) as caught:
        rows(file, text, encoding)
    return caught.value


def test_csv_rows_carry_the_line_where_they_begin(tmp_path: Path) -> None:
    found = rows(tmp_path / "a.csv", 'text,label\r\n"two\r\nlines",x\r\n\r\n"a, ""b""",y\r\n')
    assert found == [
        ({"text": "two\r\nlines", "label": "x"}, "a.csv:2"),
        ({"text": 'a, "b"', "label": "y"}, "a.csv:5"),
    ]


def test_tsv_byte_order_mark_and_blank_first_lines(tmp_path: Path) -> None:
    assert rows(tmp_path / "a.tsv", "\ufeff\ntext\tlabel\nein, zwei\tx\n") == [
        ({"text": "ein, zwei", "label": "x"}, "a.tsv:3")
    ]


@pytest.mark.parametrize(
    ("text", "code", "line"),
    [
        ("a,b\n1,2\n3\n", "bad-csv", 3),
        ('a,b\n1,2\n"3\n,4\n5,6\n', "bad-csv", 3),
        ('a,b\n"x"y,2\n', "bad-csv", 2),
        ("a,b,a\n1,2,3\n", "duplicate-name", 1),
        (b"a,b\n1,2\n3,\x81\n", "bad-encoding", 3),
    ],
)
def test_broken_csv_is_located(tmp_path: Path, text: str | bytes, code: str, line: int) -> None:
    error = refused(tmp_path / "a.csv", text)
    assert (error.code, error.where and error.where.line) == (code, line)


def test_a_bad_byte_is_named_and_another_encoding_reads_it(tmp_path: Path) -> None:
    assert "byte 4 (0xe9) is not utf-8" in refused(tmp_path / "a.csv", b"a\nno\xe9\n", "utf-8").message
    assert rows(tmp_path / "a.csv", b"a\nno\xe9l\n", "latin-1") == [({"a": "noél"}, "a.csv:2")]


def test_a_long_cell_is_read(tmp_path: Path) -> None:
    assert rows(tmp_path / "a.csv", "a\n" + "x" * 200_000)[0][0] == {"a": "x" * 200_000}


def test_jsonl_keeps_types_and_line_numbers(tmp_path: Path) -> None:
    text = '{"a": 1, "b": ["x"]}\n\n{"a": "line\u2028separator", "b": []}\r\n'
    assert rows(tmp_path / "a.jsonl", text) == [
        ({"a": 1, "b": ["x"]}, "a.jsonl:1"),
        ({"a": "line\u2028separator", "b": []}, "a.jsonl:3"),
    ]


def test_json_items_carry_the_line_where_they_begin(tmp_path: Path) -> None:
    values = [{"a": "x, ] ["}, {"a": {"b": [1, 2]}}, {}]
    found = rows(tmp_path / "a.json", "\n" + json.dumps(values, indent=2))
    assert [value for value, _ in found] == values
    assert [source for _, source in found] == ["a.json:3", "a.json:6", "a.json:14"]
    assert rows(tmp_path / "a.json", " [ ] ") == []


@pytest.mark.parametrize(
    ("name", "text", "code", "line"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": }\n', "bad-json", 2),
        ("a.jsonl", '{"a": 1}\n[1]\n', "bad-json", 2),
        ("a.jsonl", '{"a": "\\ud800"}\n', "bad-json", 1),
        ("a.jsonl", "[" * 100_000, "bad-json", 1),
        ("a.json", '[\n{"a": 1},\n{"a": 2,}\n]', "bad-json", 3),
        ("a.json", '[\n{"a": 1},\n7]', "bad-json", 3),
        ("a.jsonl", '{"a": 1}\n{"a": {"b": 1, "b": 2}}\n', "bad-json", 2),
    ],
)
def test_broken_json_is_located(tmp_path: Path, name: str, text: str, code: str, line: int) -> None:
    error = refused(tmp_path / name, text)
    assert (error.code, error.where and error.where.line) == (code, line)


def test_a_whole_surrogate_pair_is_text(tmp_path: Path) -> None:
    assert rows(tmp_path / "a.jsonl", '{"a": "\\ud83d\\ude00"}')[0][0] == {"a": "😀"}


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.json", "a.jsonl"])
def test_empty_files(tmp_path: Path, name: str) -> None:
    assert refused(tmp_path / name, " \n\n").code == "too-few-rows"


def test_files_that_are_not_there_or_of_no_known_kind(tmp_path: Path) -> None:
    assert refused(tmp_path / "a.xls", "x").code == "unreadable-file"
    assert refused(tmp_path / "a.json", "{}").code == "bad-json"
    with pytest.raises(DataError) as caught:
        list(read_rows(tmp_path / "none.csv"))
    assert caught.value.code == "no-such-file"


def test_the_same_rows_from_every_format(tmp_path: Path) -> None:
    values = [{"text": "a, b", "label": "x"}, {"text": 'say "hi"\té', "label": "y"}]
    for name, text in (
        ("a.jsonl", "".join(json.dumps(value) + "\n" for value in values)),
        ("a.json", json.dumps(values)),
        ("a.csv", 'text,label\n"a, b",x\n"say ""hi""\té",y\n'),
        ("a.tsv", 'text\tlabel\na, b\tx\n"say ""hi""\té"\ty\n'),
    ):
        assert [value for value, _ in rows(tmp_path / name, text)] == values


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    values = [{"text": "a", "n": 1}, {"text": "b", "n": 2}]
    parquet.write_table(pyarrow.Table.from_pylist(values), tmp_path / "a.parquet")
    assert [record.values for record in read_rows(tmp_path / "a.parquet")] == values
    assert refused(tmp_path / "b.parquet", "no parquet").code == "unreadable-file"


def test_what_needs_a_library_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    for source in ("hf:org/name", tmp_path / "a.parquet"):
        with pytest.raises(MachineError) as caught:
            list(read_rows(source))
        assert caught.value.code == "missing-extra"


@pytest.mark.parametrize(
    ("name", "good", "broken"), [("a.csv", "x\n1\n2\n", "3,4\n"), ("a.jsonl", '{"x": "1"}\n{"x": "2"}\n', "{\n")]
)
def test_rows_are_read_one_at_a_time(tmp_path, name, good, broken):
    """Those before a broken one are yielded before it is looked at."""
    file = tmp_path / name
    file.write_text(good + broken)
    rows = read_rows(file)
    assert [next(rows).values["x"], next(rows).values["x"]] == ["1", "2"]
    with pytest.raises(DataError):
        next(rows)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "cp1252"])
def test_streamed_text_is_decoded_as_a_whole(tmp_path, encoding):
    rows = [f"é{i}" for i in range(5000)]  # more than one read of the decoder
    (tmp_path / "a.csv").write_bytes(("x\r\n" + "\r\n".join(rows) + "\r\n").encode(encoding))
    assert [record.values["x"] for record in read_rows(tmp_path / "a.csv", FileFormat(encoding))] == rows


def test_a_byte_that_is_not_text_is_located_in_a_long_file(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"x\n" + b"fine\n" * 5000 + b"caf\xe9\n")
    with pytest.raises(DataError) as caught:
        list(read_rows(tmp_path / "a.csv", FileFormat("utf-8")))
    assert (caught.value.code, caught.value.where.line) == ("bad-encoding", 5002)


# ---- formats that a file does not state


def read(file: Path, content: bytes, **how: Any) -> tuple[list[dict[str, Any]], str]:
    """The rows of a file, and what is said about its format."""
    file.write_bytes(content)
    return [record.values for record in read_rows(file, FileFormat(**how))], detected(
        file, FileFormat(**how)
    ).describe()


UNQUOTED = "quotes without meaning"
RECORDS = [["text", "label"], ['für 5 € – „ja“, nein; "so"', "x"], ["zwei\nZeilen\tund | mehr", "y"]]
ROWS = [dict(zip(RECORDS[0], row, strict=True)) for row in RECORDS[1:]]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_every_dialect_is_recognized_and_stated(tmp_path: Path, encoding: str, separator: str, ending: str) -> None:
    out = io.StringIO()
    csv.writer(out, delimiter=separator).writerows(RECORDS)
    found, said = read(tmp_path / f"a{ending}", out.getvalue().encode(encoding))
    assert found == ROWS
    names = {",": "", ";": "semicolons", "\t": "tabs", "|": "bars"}
    stated = {"utf-8": "", "utf-8-sig": ""}.get(encoding, encoding)
    assert said == ", ".join(part for part in (stated, names[separator]) if part)
    same, _ = read(tmp_path / f"b{ending}", out.getvalue().encode(encoding), encoding=encoding, separator=separator)
    assert same == ROWS


def test_a_space_after_every_separator_is_part_of_no_cell(tmp_path: Path) -> None:
    found, _ = read(tmp_path / "a.csv", b'text, label\none, "a, b"\n two,  c\n')
    assert found == [{"text": "one", "label": "a, b"}, {"text": "two", "label": "c"}]
    kept, _ = read(tmp_path / "b.csv", b"text,label\n one, c\n")
    assert kept == [{"text": " one", "label": " c"}]


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz", "zst"])
def test_compressed_files(tmp_path: Path, ending: str) -> None:
    pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zst}[ending]
    assert read(tmp_path / f"a.csv.{ending}", pack("text;label\né;x\n".encode("cp1252")))[0] == [
        {"text": "é", "label": "x"}
    ]
    assert read(tmp_path / f"a.json.{ending}", pack(b'[{"a": 1}]'))[0] == [{"a": 1}]
    parquet = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), parquet)
    assert read(tmp_path / f"b.parquet.{ending}", pack(parquet.read_bytes()))[0] == [{"a": 1}]
    whole = pack(b"text,label\n" + b"".join(b"row %d,x\n" % (i * 7919 % 10007) for i in range(9999)))
    error = refused(tmp_path / f"c.csv.{ending}", whole[: len(whole) // 2])
    assert (error.code, "c.csv" in error.message) == ("unreadable-file", True)


def zst(data: bytes) -> bytes:
    out = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(out, "zstd") as stream:
        stream.write(data)
    return out.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("name", "content", "rows", "said"),
    [
        ("a.csv", 'a,b\n"say \\"hi\\", you",x\n', [{"a": 'say "hi", you', "b": "x"}], "a backslash before quotes"),
        ("a.tsv", 'a\tb\n"hi" he said\tx\n', [{"a": '"hi" he said', "b": "x"}], "tabs, " + UNQUOTED),
        ("a.tsv", 'a\tb\n"1\tx\n2"\ty\n', [{"a": '"1', "b": "x"}, {"a": '2"', "b": "y"}], "tabs, " + UNQUOTED),
        ("a.csv", 'a,b\n"1, x\n2",y\n', [{"a": "1, x\n2", "b": "y"}], ""),
        ("a.csv", "a;b\n1,5;x\n2,5;y\n", [{"a": "1,5", "b": "x"}, {"a": "2,5", "b": "y"}], "semicolons"),
        ("a.csv", "a\nx y\n", [{"a": "x y"}], ""),
        ("a.csv", " a , b,\n 1 ,2,\n", [{"a": " 1 ", "b": "2", "column 3": ""}], ""),
        ("a.csv", ",text\n0,x\n", [{"column 1": "0", "text": "x"}], ""),
        ("a.csv", "sep=;\na;b\n1,5;x\n", [{"a": "1,5", "b": "x"}], "semicolons"),
        ("a.csv", '"sep=,"\na,b\n1;5,x\n', [{"a": "1;5", "b": "x"}], ""),
    ],
)  # fmt: skip
def test_quotes_and_headers(tmp_path: Path, name: str, content: str, rows: list[Any], said: str) -> None:
    assert read(tmp_path / name, content.encode()) == (rows, said)


def test_a_title_is_no_header(tmp_path: Path) -> None:
    error = refused(tmp_path / "a.csv", "Export of 2024,\ntext,label\nx,y\n")
    assert (error.code, "may be a title" in error.message) == ("bad-csv", True)


def test_a_format_that_is_named_is_used(tmp_path: Path) -> None:
    assert read(tmp_path / "a.csv", b'a^b\n"x"^y\n', separator="^")[0] == [{"a": "x", "b": "y"}]
    assert read(tmp_path / "a.csv", b'a^b\n"x"^y\n', separator="^", quoting="none")[0] == [{"a": '"x"', "b": "y"}]
    assert read(tmp_path / "a.csv", "a\nñ\n".encode("latin-1"), encoding="latin-1")[0] == [{"a": "ñ"}]


@pytest.mark.parametrize(
    ("text", "encodings"),
    [
        ("Привет мир", "cp1251 koi8-r"),
        ("今日は天気がいい", "shift-jis euc-jp gb18030"),
        ("łąka żółwi", "latin2"),
        ("für den café née", "mac_roman cp850"),
    ],
)
def test_encodings_of_other_alphabets_are_never_guessed(tmp_path: Path, text: str, encodings: str) -> None:
    for encoding in encodings.split():
        data = ("text,label\n" + f"{text},x\n" * 9).encode(encoding)
        error = refused(tmp_path / "a.csv", data)
        assert (error.code, "--encoding" in error.hint) == ("bad-encoding", True)
        assert "cp1252" not in error.hint
        assert rows(tmp_path / "a.csv", data, encoding)[0][0] == {"text": text, "label": "x"}


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", ["заметка тут", "今天天气很好", "ملاحظة هنا"])
def test_two_bytes_a_character_need_no_mark_in_any_script(tmp_path: Path, text: str, encoding: str) -> None:
    data = ("text,label\n" + f"{text},ж\n" * 9).replace("text,label", "текст,класс").encode(encoding)
    found, said = read(tmp_path / "a.csv", data)
    assert (found[0], said) == ({"текст": text, "класс": "ж"}, encoding)
    assert refused(tmp_path / "b.csv", b"text,label\nno\0te,a\n").code == "unreadable-file"


@pytest.mark.parametrize(
    ("content", "encoding", "said"),
    [
        ("größer\n".encode() * 50 + "é".encode("latin-1"), "auto", "is not utf-8"),  # damaged UTF-8, not cp1252
        ("5 €".encode("cp1252"), "latin-1", "(0x80) is a control character in latin-1"),
        ("a\n5 €".encode("cp1252"), "utf-8", "is not utf-8"),
    ],
)
def test_what_would_be_read_wrongly_is_refused(tmp_path: Path, content: bytes, encoding: str, said: str) -> None:
    error = refused(tmp_path / "a.csv", b"text,label\n" + content, encoding)
    assert (error.code, said in error.message) == ("bad-encoding", True)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"<!DOCTYPE html><html>", "an HTML page"),
        ("a.jsonl", b"\n <html lang=en>", "an HTML page"),
        ("a.json", b"<html>", "an HTML page"),
        ("a.csv", b'{"a": 1}\n', "JSON"),
        ("a.csv", b"PK\x03\x04rest", "Excel"),
        ("a.jsonl", b"PAR1", "Parquet"),
        ("a.csv", b"\x1f\x8brest", "gzip"),
        ("a.csv", b"a,b\n\0\0\0,1\n", "binary"),
        ("a.csv", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        ("a.csv", b"\xd0\xcf\x11\xe0", "Office"),
    ],
)
def test_a_file_that_is_not_what_its_ending_says_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    error = refused(tmp_path / name, content)
    assert (error.code, said in error.message) == ("unreadable-file", True)


def test_json_that_is_not_as_its_ending_says(tmp_path: Path) -> None:
    assert ".json" in refused(tmp_path / "a.jsonl", '[\n{"a": 1}\n]').hint
    assert ".jsonl" in refused(tmp_path / "a.json", '{"a": 1}\n{"a": 2}').hint
    assert "'val', 'train'" in refused(tmp_path / "a.json", '{"val": [[1]], "train": [[2]]}').hint
    assert ".xlsx" in refused(tmp_path / "a.xls", "x").hint


def test_a_wrong_number_of_fields_names_the_other_separator(tmp_path: Path) -> None:
    error = refused(tmp_path / "a.csv", "a;b\n1;2\n3\n")
    assert (error.message, error.where and error.where.line) == ("1 fields where the header has 2", 3)


@pytest.mark.parametrize("values", [{"encoding": "utf-9"}, {"separator": ""}, {"separator": '"'}, {"quoting": "no"}])
def test_a_format_that_cannot_be(values: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as caught:
        FileFormat(**values)  # type: ignore[arg-type]
    assert caught.value.code == "bad-value"
