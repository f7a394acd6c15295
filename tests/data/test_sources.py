import json

import pytest

from rung.data.sources import read_rows
from rung.errors import DataError


def rows(path, **options):
    return [(record.values, record.source) for record in read_rows(path, **options)]


def test_csv_lines_are_those_of_an_editor(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text('text,label\n"two\nlines",a\nplain,b\n')
    assert rows(file) == [
        ({"text": "two\nlines", "label": "a"}, "a.csv:2"),
        ({"text": "plain", "label": "b"}, "a.csv:4"),
    ]


def test_the_same_rows_from_every_format(tmp_path):
    import pyarrow
    import pyarrow.parquet

    values = [{"text": "a, b", "label": "x"}, {"text": 'say "hi"\té', "label": "y"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(v) + "\n" for v in values))
    (tmp_path / "a.json").write_text(json.dumps(values))
    (tmp_path / "a.csv").write_text('text,label\n"a, b",x\n"say ""hi""\té",y\n')
    (tmp_path / "a.tsv").write_text('text\tlabel\na, b\tx\n"say ""hi""\té"\ty\n')
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(values), tmp_path / "a.parquet")
    for kind in ("jsonl", "json", "csv", "tsv", "parquet"):
        assert [v for v, _ in rows(tmp_path / f"a.{kind}")] == values, kind


@pytest.mark.parametrize(
    ("name", "content", "code", "line"),
    [
        ("a.csv", b"text,label\na,b\nc\n", "field-count", 3),
        ("a.csv", b"text,label\na,\xff\n", "bad-encoding", 2),
        ("a.csv", b"", "empty-file", None),
        ("a.csv", b"text,text\na,b\n", "duplicate-column", 1),
        ("a.csv", b'text,label\n"a,b\n', "bad-csv", 2),
        ("a.jsonl", b'{"a": 1}\n{"a": \n', "bad-json", 2),
        ("a.jsonl", b"[1]\n", "not-a-record", 1),
        ("a.json", b'{"a": 1}', "not-a-list", None),
        ("a.parquet", b"not parquet", "bad-parquet", None),
        ("a.xlsx", b"x", "unknown-file-kind", None),
    ],
)
def test_broken_files_say_where(tmp_path, name, content, code, line):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        rows(tmp_path / name)
    assert caught.value.code == code
    assert (caught.value.where.line if caught.value.where else None) == line


def test_deep_json_is_an_error_not_a_crash(tmp_path):
    (tmp_path / "a.jsonl").write_text("[" * 100_000)
    with pytest.raises(DataError, match="JSON"):
        rows(tmp_path / "a.jsonl")


def test_another_encoding_and_a_byte_order_mark(tmp_path):
    (tmp_path / "a.csv").write_bytes("text\ncafé\n".encode("latin-1"))
    assert rows(tmp_path / "a.csv", encoding="latin-1")[0][0] == {"text": "café"}
    (tmp_path / "b.csv").write_bytes("\ufefftext\nx\n".encode())
    assert rows(tmp_path / "b.csv")[0][0] == {"text": "x"}
