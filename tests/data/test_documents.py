"""Plain text beside the rows: what is read, and what of the rows it holds."""

import json
from pathlib import Path

import pytest

from rung.data.loading import found_in
from rung.data.rows import Document, Example
from rung.errors import ConfigError, DataError
from rung.task import Task

ROWS = "text,label\n" + "".join(f"message number {i} about a lost card,{'ab'[i % 2]}\n" for i in range(60))


def task(folder: Path, **data: object) -> Task:
    (folder / "train.csv").write_text(ROWS)
    values = {
        "name": "t", "instruction": "Do it.", "inputs": ["text"], "output": {"column": "label", "kind": "category"},
        "data": {"train": "train.csv", **data},
    }  # fmt: skip
    (folder / "task.yaml").write_text(json.dumps(values))
    return Task.load(folder / "task.yaml")


def test_a_text_file_is_one_document_and_a_table_has_one_a_row(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("\ufeffOne\n\ntwo\n", encoding="utf-8")
    lines = [{"text": "three"}, {"text": None}, {"text": "three"}, {"text": "four"}]
    (tmp_path / "more.jsonl").write_text("\n".join(map(json.dumps, lines)))
    data = task(tmp_path, text=["corpus.txt", "more.jsonl"]).read()
    assert data.text == (
        Document("One\n\ntwo\n", "corpus.txt"), Document("three", "more.jsonl:1"), Document("four", "more.jsonl:4"),
    )  # fmt: skip
    report = data.report.as_dict()
    assert report["splits"]["text"] == {
        "read": 5, "kept": 3, "dropped": {"empty document": 1, "repeated document": 1},
        "dropped_at": {"empty document": ["more.jsonl:2"], "repeated document": ["more.jsonl:3"]},
    }  # fmt: skip
    assert report["lengths"]["text input"]["max"] == 9
    assert not [warning for warning in report["warnings"] if "data.text" in warning]


def test_the_text_is_part_of_the_data_s_fingerprint_and_its_absence_is_not(tmp_path: Path) -> None:
    plain = task(tmp_path).read()
    prints = []
    for text in ("One", "Two"):
        (tmp_path / "corpus.txt").write_text(text)
        prints.append(task(tmp_path, text="corpus.txt").read().fingerprint)
    assert len({plain.fingerprint, *prints}) == 3
    assert plain.text == ()
    assert "text" not in plain.report.splits


def test_a_column_of_another_name(tmp_path: Path) -> None:
    (tmp_path / "more.jsonl").write_text('{"meta": {"body": "three"}}')
    assert task(tmp_path, text="more.jsonl", text_column="meta.body").read().text[0].text == "three"
    with pytest.raises(DataError) as caught:
        task(tmp_path, text="more.jsonl").read()
    assert caught.value.code == "missing-column"


def test_settings_without_effect_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`text_column` has no effect without `text`"):
        task(tmp_path, text_column="body")
    with pytest.raises(ConfigError, match="`text` names no file"):
        task(tmp_path, text=[])
    with pytest.raises(DataError) as caught:
        task(tmp_path, text="none.md").read()
    assert caught.value.code == "no-such-file"
    (tmp_path / "empty.jsonl").write_text('{"text": " "}')
    with pytest.raises(DataError) as caught:
        task(tmp_path, text="empty.jsonl").read()
    assert caught.value.code == "too-few-rows"


def test_rows_that_stand_in_the_text_are_warned_of(tmp_path: Path) -> None:
    rows = task(tmp_path, split={"method": "holdout"}).read()
    inside = [row.inputs["text"] for row in rows.test[:2]]
    (tmp_path / "corpus.txt").write_text(f"He wrote:  {inside[0].upper()} \n and {inside[1]} yesterday")
    data = task(tmp_path, text="corpus.txt", split={"method": "holdout"}).read()
    (warning,) = [text for text in data.report.warnings if "data.text" in text]
    assert warning == (
        f"2 of {len(rows.test)} test rows occur in the text of `data.text`, such as {rows.test[0].source} in "
        "corpus.txt: a model adapted to it has read them"
    )


def test_long_rows_are_found_by_thirteen_words_and_short_ones_whole() -> None:
    words = [f"w{i}" for i in range(40)]

    def row(text: str, output: str = "x", inputs: object = None) -> Example:
        return Example(text, {"text": text} if inputs is None else {"text": inputs}, (output,), "t.csv:2")  # type: ignore[dict-item]

    long, short = row(" ".join(words)), row("a b c d e")
    chat = row("c", inputs=[{"role": "user", "content": " ".join(words)}])
    answer = row("q", output="a b c d e")

    def found(text: str, *rows: Example) -> list[Example]:
        return [one for one, _ in found_in([Document("filler", "1.txt"), Document(text, "2.txt")], rows)]

    assert found(" ".join(["x", *words[20:33], "y"]), long, short, chat) == [long, chat]
    assert found(" ".join(["x", *words[20:32], "y"]), long, short, chat) == []
    assert found("z A  B\nc d E f", short, answer) == [short, answer]
    assert found("a b c d", short, answer) == []
    assert found("a b c d", row("a b c d")) == []  # so few words are no copy
    assert found_in([Document("a b c d e", "1.txt"), Document("a b c d e", "2.txt")], [short])[0][1].source == "1.txt"
