"""Files to rows: true line numbers, and each kind of damage named."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from rung.data.sources import read_rows
from rung.errors import DataError, MachineError


def rows(file: Path, text: str | bytes, encoding: str = "utf-8") -> list[tuple[dict[str, object], str]]:
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [(record.values, record.source) for record in read_rows(file, encoding=encoding)]


def refused(file: Path, text: str | bytes, encoding: str = "utf-8") -> DataError:
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
        (b"a,b\n1,2\n3,\xe9\n", "bad-encoding", 3),
    ],
)
def test_broken_csv_is_located(tmp_path: Path, text: str | bytes, code: str, line: int) -> None:
    error = refused(tmp_path / "a.csv", text)
    assert (error.code, error.where and error.where.line) == (code, line)


def test_a_bad_byte_is_named_and_another_encoding_reads_it(tmp_path: Path) -> None:
    assert "byte 4 (0xe9) is not utf-8" in refused(tmp_path / "a.csv", b"a\nno\xe9\n").message
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
    assert [record.values["x"] for record in read_rows(tmp_path / "a.csv", encoding=encoding)] == rows


def test_a_byte_that_is_not_text_is_located_in_a_long_file(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"x\n" + b"fine\n" * 5000 + b"caf\xe9\n")
    with pytest.raises(DataError) as caught:
        list(read_rows(tmp_path / "a.csv"))
    assert (caught.value.code, caught.value.where.line) == ("bad-encoding", 5002)
