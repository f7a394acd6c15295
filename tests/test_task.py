import pytest

from rung.errors import ConfigError
from rung.task import Task

GOOD = """\
name: demo
instruction: Which kind is this?
inputs: [text]
output: {column: label, kind: category}
data: {train: train.csv}
"""


def load(tmp_path, text, **overrides):
    (tmp_path / "task.yaml").write_text(text)
    return Task.load(tmp_path / "task.yaml", overrides)


def test_defaults(tmp_path):
    task = load(tmp_path, GOOD)
    assert task.model == "embedded"
    assert task.data.split.validation == 0.2
    assert task.folder == tmp_path


@pytest.mark.parametrize(
    ("change", "code", "line", "column", "hint"),
    [
        (("instruction:", "instuction:"), "unknown-key", 2, 1, "did you mean 'instruction'?"),
        (("column: label", "colum: label"), "unknown-key", 4, 10, "did you mean 'column'?"),
        (("kind: category", "kind: categry"), "bad-value", 4, 25, ""),
        (("train: train.csv", "train: 007"), "bad-value", 5, 8, "quotes"),
        (("inputs: [text]", "inputs: []"), "bad-value", 3, 1, ""),
        (("name: demo", "name: demo\nname: again"), "duplicate-key", 2, 1, "keep one"),
        (("inputs: [text]", "inputs: [text, label]"), "output-is-input", 3, 1, ""),
        (("name: demo", "name: ../up"), "bad-value", 1, 1, ""),
        (("name: demo", "name: &a demo\nsystem: *a"), "bad-yaml", 2, 9, ""),
        (("inputs: [text]", "inputs: [text"), "bad-yaml", 4, 7, ""),
    ],
)
def test_errors_point_into_the_file(tmp_path, change, code, line, column, hint):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, GOOD.replace(*change))
    error = caught.value
    assert (error.code, error.where.line, error.where.column) == (code, line, column)
    assert hint in error.hint
    rendered = error.render().splitlines()
    caret = next(text for text in rendered if text.endswith("^"))
    assert len(caret) - len(rendered[rendered.index(caret) - 1].split(" | ")[0]) - 3 == column


def test_a_missing_key_is_named(tmp_path):
    with pytest.raises(ConfigError, match="`instruction` is missing"):
        load(tmp_path, GOOD.replace("instruction: Which kind is this?\n", ""))


def test_a_placeholder_that_is_no_input(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, GOOD + "template: 'Text: {txt}'\n")
    assert caught.value.code == "unknown-placeholder"
    assert caught.value.where.line == 6


def test_overrides(tmp_path):
    task = load(tmp_path, GOOD, **{"data.train_per_label": "5", "model": "other/model"})
    assert task.data.train_per_label == 5
    assert task.model == "other/model"
    assert task.fingerprint() != load(tmp_path, GOOD).fingerprint()
    with pytest.raises(ConfigError, match="train_per_labl"):
        load(tmp_path, GOOD, **{"data.train_per_labl": "5"})


def test_labels_that_yaml_would_change_stay_text_as_keys(tmp_path):
    text = GOOD.replace(
        "kind: category", 'kind: category, labels: ["no", "007"], descriptions: {no: never, 007: agent}'
    )
    assert load(tmp_path, text).output.descriptions == {"no": "never", "007": "agent"}


def test_a_schema_file_is_read(tmp_path):
    (tmp_path / "s.json").write_text('{"type": "object"}')
    task = load(tmp_path, GOOD.replace("kind: category", "kind: json, schema: s.json"))
    assert task.output.schema_text() == '{"type": "object"}'
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, GOOD.replace("kind: category", "kind: json, schema: none.json"))
    assert caught.value.code == "bad-schema-file"
