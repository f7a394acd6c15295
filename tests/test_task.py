"""Task files: what is read, and how each mistake is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict

from rung.climbing.check import validate_task
from rung.errors import ConfigError
from rung.task import Task

FILE = """\
name: cards
instruction: Which intent is this?
inputs: [text]
output: {column: label, kind: category}
data:
  train: train.csv
"""


def load(folder: Path, text: str, **overrides: str) -> Task:
    (folder / "task.yaml").write_text(text, encoding="utf-8")
    task = Task.load(folder / "task.yaml", {key.replace("__", "."): value for key, value in overrides.items()})
    validate_task(task)
    return task


def refused(folder: Path, text: str, **overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, **overrides)
    return caught.value


def test_a_minimal_file_has_documented_defaults(tmp_path: Path) -> None:
    task = load(tmp_path, FILE)
    assert (task.name, task.inputs, task.model, task.metric, task.system) == ("cards", ["text"], "embedded", None, None)
    assert (task.data.split.validation, task.data.split.test, task.data.duplicates) == (0.2, 0.2, "error")
    assert task.folder == tmp_path.resolve()


def test_overrides_replace_values_and_are_yaml(tmp_path: Path) -> None:
    task = load(tmp_path, FILE, data__train_per_label="5", data__split__seed="3", instruction="Which: one: two?")
    assert task.data.train_per_label == 5
    assert task.data.split.seed == 3
    assert task.instruction == "Which: one: two?"  # no YAML: text as it is


def test_an_override_is_where_its_error_is(tmp_path: Path) -> None:
    error = refused(tmp_path, FILE, data__train_rows="many")
    assert error.code == "bad-value"
    assert str(error.where) == "--set data.train_rows=many"
    assert str(refused(tmp_path, FILE, metric="acuracy").where) == "--set metric=acuracy"
    assert str(refused(tmp_path, FILE, dta__x="1").where) == "--set dta.x=1"
    assert refused(tmp_path, FILE, name__x="1").code == "bad-option"


def test_an_unknown_key_is_shown_with_a_caret_and_a_suggestion(tmp_path: Path) -> None:
    error = refused(tmp_path, FILE + "  tain_rows: 5\n")
    file = tmp_path / "task.yaml"
    assert error.render() == (
        f"error[unknown-key]: unknown key 'tain_rows'\n  --> {file}:7:3\n   7 |   tain_rows: 5\n     |   ^\n"
        "hint: did you mean 'train_rows'?"
    )


def test_all_problems_are_shown_the_misspelled_key_first(tmp_path: Path) -> None:
    error = refused(tmp_path, FILE.replace("instruction", "instructions").replace("category", "categry"))
    assert (error.code, error.where and error.where.line) == ("unknown-key", 2)
    assert error.hint.startswith("did you mean 'instruction'?")
    assert ":4:25: `output.kind`: should be 'text', 'category', 'multilabel', 'json', " in error.hint
    assert "'chat' or 'ranking', found 'categry'" in error.hint


@pytest.mark.parametrize("value", ["007", "no", "2024-01-01", "1.5", "on"])
def test_what_yaml_takes_for_something_else_is_an_error_with_advice(tmp_path: Path, value: str) -> None:
    error = refused(tmp_path, FILE.replace("name: cards", f"name: {value}"))
    assert error.code == "bad-value"
    assert "quotes" in error.hint
    assert (error.where and error.where.line) == 1


def test_labels_as_keys_stay_text(tmp_path: Path) -> None:
    text = FILE.replace("kind: category", 'kind: category, labels: ["no", "007"], descriptions: {no: never, 007: Bond}')
    assert load(tmp_path, text).output.descriptions == {"no": "never", "007": "Bond"}


@pytest.mark.parametrize(
    ("text", "line", "column", "part"),
    [
        (FILE + "name: again\n", 7, 1, "duplicate key"),
        (FILE + "x: &a [1]\ny: *a\n", 8, 4, "aliases"),
        (FILE + "x: " + "[" * 3000 + "\n", 7, 35, "nested deeper than 32"),
        (FILE + "x: {" + "\n", 8, 1, "not valid YAML"),
        (FILE + "? [a]\n: b\n", 7, 3, "a key must be a plain word"),
        (FILE + "x: \x07\n", 7, None, "U+0007"),
        (FILE.replace("Which intent is this?", "2024-13-45"), 2, 14, "quotes"),
        (FILE.replace("Which intent is this?", "!!python/object:os.system {}"), 2, 14, ""),
        ("- a\n", 1, None, "mapping"),
        ("", 1, None, "mapping"),
    ],
)
def test_broken_yaml_is_located(tmp_path: Path, text: str, line: int, column: int | None, part: str) -> None:
    error = refused(tmp_path, text)
    assert error.where is not None
    assert part in error.message
    if "python/object" not in text:
        assert (error.where.line, error.where.column) == (line, column)
    assert error.code in ("bad-yaml", "bad-yaml", "bad-value")


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("kind: category", "kind: text, labels: [a, b]", "belong to the kinds category"),
        ("kind: category", "kind: category, schema: {}", "belongs to kind json"),
        ("kind: category", "kind: category, labels: [a]", "two labels"),
        ("kind: category", "kind: category, labels: [a, b, a]", "'a' twice"),
        ("kind: category", "kind: category, labels: [a, 'b ']", "spaces at its ends"),
        ("kind: category", "kind: category, labels: [a, b], descriptions: {c: x}", "'c'"),
        ("column: label, kind: category", "kind: category", "`column` is needed"),
        ("column: label, kind: category", "kind: chat}\ntemplate: '{text}'\nconstraints: {", "no effect on kind chat"),
        ("[text]", "[text, text]", "twice"),
        ("[text]", "[]", "at least 1"),
        ("kind: category", "kind: text", "use `data.train_rows`"),
        ("train: train.csv", "train: t.csv\n  validation: v.csv\n  test: s.csv\n  split: {seed: 1}", "no effect"),
        ("train: train.csv", "train: t.csv\n  split: {validation: 0.5, test: 0.5}", "leave no row"),
        ("train: train.csv", "train: t.csv\n  encoding: utf-9", "'utf-9'"),
        ("train: train.csv", "train: []", "names no file"),
        ("train: train.csv", "train: t.csv\n  train_rows: 0", "greater than or equal to 1"),
        ("train: train.csv", "train: t.csv\n  train_rows: '5'", "valid integer"),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path: Path, old: str, new: str, part: str) -> None:
    text = FILE.replace(old, new)
    if "data.train_rows" in part:
        text += "  train_per_label: 3\n"
    error = refused(tmp_path, text)
    assert error.code == "bad-value"
    assert part in error.message


def test_templates_and_metrics_are_checked_where_they_stand(tmp_path: Path) -> None:
    for line, code in (
        ("template: 'a {txt}'", "bad-template"),
        ("template: no column", "bad-template"),
        ("template: 'a {text'", "bad-template"),
        ("metric: acuracy", "unknown-name"),
    ):
        error = refused(tmp_path, FILE + line + "\n")
        assert (error.code, error.where and error.where.line) == (code, 7)
    assert refused(tmp_path, FILE.replace("[text]", "[label]")).code == "bad-value"


def test_a_schema_may_lie_in_a_file(tmp_path: Path) -> None:
    text = FILE.replace("kind: category", "kind: json, schema: schema.json")
    error = refused(tmp_path, text)
    assert (error.code, error.where and error.where.line) == ("bad-constraint", 4)
    (tmp_path / "schema.json").write_text("[]")
    assert refused(tmp_path, text).code == "bad-constraint"
    (tmp_path / "schema.json").write_text('{"type": "object"}')
    assert json.loads(load(tmp_path, text).output.schema_text() or "") == {"type": "object"}


def test_files_that_cannot_be_a_task(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Task.load(tmp_path / "none.yaml")
    assert caught.value.code == "no-such-file"
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(ConfigError) as caught:
        Task.load(tmp_path / "latin.yaml")
    assert caught.value.code == "unreadable-file"
    (tmp_path / "big.yaml").write_bytes(b"x" * 1_000_001)
    with pytest.raises(ConfigError) as caught:
        Task.load(tmp_path / "big.yaml")
    assert caught.value.code == "unreadable-file"


def test_rows_in_the_place_of_a_task_are_told_so(tmp_path: Path) -> None:
    """As when the two arguments of a command are exchanged: the columns of a CSV looked like broken YAML."""
    for name in ("rows.csv", "rows.jsonl", "rows.csv.gz"):
        file = tmp_path / name
        file.write_text("text,label\nText: {text},a\n")
        with pytest.raises(ConfigError, match=f"{name} holds rows, and is no task file") as caught:
            Task.load(file)
        assert f"`rung init {file}`" in str(caught.value.hint)


def test_a_byte_order_mark_does_not_shift_columns(tmp_path: Path) -> None:
    assert load(tmp_path, "\ufeff" + FILE).name == "cards"
    error = refused(tmp_path, "\ufeffnam: x\n" + FILE)
    assert (error.where and error.where.line, error.where and error.where.column) == (1, 1)


def test_the_fingerprint_changes_with_every_setting(tmp_path: Path) -> None:
    first = load(tmp_path, FILE).fingerprint()
    assert first == load(tmp_path, FILE + "# a comment\n").fingerprint()
    assert first != load(tmp_path, FILE, data__split__seed="1").fingerprint()


def test_every_field_has_a_description_in_the_schema() -> None:
    schema = Task.model_json_schema(by_alias=True)
    for model in (schema, *schema["$defs"].values()):
        assert model["additionalProperties"] is False
        assert all("description" in field for field in model["properties"].values())
    assert "schema" in schema["$defs"]["Output"]["properties"]


def test_a_task_made_in_python_is_checked_as_well() -> None:
    parts = {"name": "a", "instruction": "b", "inputs": ["text"], "output": {"kind": "category", "column": "label"}}
    data = {"train": "train.csv"}
    with pytest.raises(ConfigError) as caught:
        Task(**parts, data=data, template="{nope}")
    assert caught.value.code == "bad-template"
    for wrong in ({"metric": "nonsense"}, {"rungs": {"loora": {}}}):
        with pytest.raises(ConfigError) as caught:
            validate_task(Task(**parts, data=data, **wrong))
        assert caught.value.code == "unknown-name"


# ---- rows in memory

ROWS = [{"text": f"note {i} from desk {i % 7}", "label": "xy"[i % 2]} for i in range(60)]
FIELDS: dict[str, Any] = {
    "name": "t", "instruction": "Which?", "inputs": ["text"], "output": {"column": "label", "kind": "category"},
}  # fmt: skip


def of_memory(**values: Any) -> Task:
    return Task(**{**FIELDS, "data": ROWS, **values})


def test_rows_of_every_kind_make_the_same_task() -> None:
    kinds = [ROWS, pd.DataFrame(ROWS), pl.DataFrame(ROWS), pa.Table.from_pylist(ROWS), Dataset.from_list(ROWS)]
    for kind in [*kinds, iter(ROWS), DatasetDict(train=Dataset.from_list(ROWS)), {"train": pd.DataFrame(ROWS)}]:
        task = of_memory(data=kind)
        assert task.fingerprint() == of_memory().fingerprint()
        assert task.read().fingerprint == of_memory().read().fingerprint
    for column in (list, tuple, np.array, pd.Series, pl.Series):
        columns = {name: column([row[name] for row in ROWS]) for name in ("text", "label")}
        assert of_memory(data=columns).read().fingerprint == of_memory().read().fingerprint
    assert of_memory(data=ROWS[1:]).fingerprint() != of_memory().fingerprint()
    assert of_memory().read().train[0].source.startswith("train row ")


def test_splits_and_paths_in_memory(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    test = [{"text": "held out", "label": "x"}]
    data = of_memory(data={"train": tmp_path / "train.jsonl", "test": pd.DataFrame(test)}).read()
    assert [row.source for row in data.test] == ["test row 1"]
    assert len(data.train) + len(data.validation) == 60
    assert of_memory(data=tmp_path / "train.jsonl").read().fingerprint == of_memory().read().fingerprint
    assert of_memory(data="none.csv").read(ROWS).fingerprint == of_memory().read().fingerprint


@pytest.mark.parametrize(
    ("values", "code", "said"),
    [
        ({"data": [*ROWS, 5]}, "bad-row", "row 61 is no mapping"),
        ({"data": {"train": ROWS, "tset": ROWS}}, "unknown-key", "unknown key 'tset'"),
        ({"data": 5}, "bad-value", "`data.train`"),
        ({"data": pd.DataFrame()}, "bad-value", "`train` names no file, and holds no row"),
        ({"data": {"train": ROWS, "test": []}}, "bad-value", "`test` names no file, and holds no row"),
        ({"data": {"text": ["a", "b"], "label": ["x"]}}, "bad-value", "differ in length: text 2, label 1"),
        ({"output": {"kind": "categry", "column": "label"}}, "bad-value", "`output.kind`"),
        ({"inputs": "text"}, "bad-value", "`inputs`"),
        ({"nam": "x"}, "unknown-key", "unknown key 'nam'"),
        ({"template": "{txt}"}, "bad-template", "{txt}"),
    ],
)
def test_what_is_wrong_in_python_is_an_error_of_rung(values: dict[str, Any], code: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        of_memory(**values)
    assert (caught.value.code, said in caught.value.message) == (code, True)
    assert "MemoryRows" not in caught.value.render()


def test_a_wrong_row_is_named() -> None:
    with pytest.raises(ConfigError, match="train row 2 has no column 'label'"):
        of_memory(data=[ROWS[0], {"text": "a", "lable": "x"}]).read()
    with pytest.raises(ConfigError, match="train row 1: the column 'text' holds bytes"):
        of_memory(data=[{"text": b"x", "label": "x"}]).read()
