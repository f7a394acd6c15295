from pathlib import Path

import pytest

from rung.errors import DataError
from rung.task import Task

SHARED = Path(__file__).parents[3] / "shared" / "data"
TASK = "name: t\ninstruction: i\ninputs: [text]\noutput: {column: label, kind: category}\n"


def read(tmp_path, rows, data="train: a.csv", **files):
    for name, lines in {"a": rows, **files}.items():
        (tmp_path / f"{name}.csv").write_text("text,label\n" + "".join(f"{line}\n" for line in lines))
    (tmp_path / "task.yaml").write_text(TASK + f"data: {{{data}}}\n")
    return Task.load(tmp_path / "task.yaml").read()


def many(count=400):
    return [f"text number {i},{'ab'[i % 2]}" for i in range(count)]


def test_splits_are_cut_by_hash_and_do_not_move(tmp_path):
    data = read(tmp_path, many())
    assert sum(map(len, (data.train, data.validation, data.test))) == 400
    assert 50 < len(data.test) < 110
    assert 50 < len(data.validation) < 110
    more = read(tmp_path, many(500))
    assert {e.id for e in data.test} <= {e.id for e in more.test}
    assert read(tmp_path, list(reversed(many()))).fingerprint != data.fingerprint


def test_equal_inputs_never_stand_on_both_sides(tmp_path):
    lines = many(200)
    data = read(tmp_path, lines + [line.upper().replace(",A", ",a").replace(",B", ",b") for line in lines])
    sides = [{e.id for e in split} for split in (data.train, data.validation, data.test)]
    assert len(set.union(*sides)) == sum(map(len, sides))
    assert sum(map(len, (data.train, data.validation, data.test))) == 200


def test_groups_stay_together(tmp_path):
    (tmp_path / "a.csv").write_text(
        "text,label,shop\n" + "".join(f"t{i},{'ab'[i % 2]},s{i // 10}\n" for i in range(300))
    )
    (tmp_path / "task.yaml").write_text(TASK + "data: {train: a.csv, split: {group: shop}}\n")
    data = Task.load(tmp_path / "task.yaml").read()
    shops = [{int(e.inputs["text"][1:]) // 10 for e in split} for split in (data.train, data.validation, data.test)]
    assert len(set.union(*shops)) == sum(map(len, shops))


def test_duplicates_across_given_files_are_an_error_or_leave_the_training_side(tmp_path):
    files = {"b": ["Text  NUMBER 3,b", "other,a"]}
    with pytest.raises(DataError, match=r"a\.csv:5.*b\.csv:2") as caught:
        read(tmp_path, many(), "train: a.csv, test: b.csv", **files)
    assert caught.value.code == "duplicate-across-splits"
    data = read(tmp_path, many(), "train: a.csv, test: b.csv, duplicates: drop", **files)
    assert len(data.test) == 2
    assert sum(len(s.dropped.get("also in test", [])) for s in data.report.splits.values()) == 1


def test_what_is_dropped_is_counted(tmp_path):
    data = read(tmp_path, [*many(), " ,a", "empty answer,", "text number 0,a"])
    dropped = {reason: len(rows) for split in data.report.splits.values() for reason, rows in split.dropped.items()}
    assert dropped == {"empty input": 1, "empty output": 1, "repeated row": 1}
    assert data.report.splits["train"].dropped["empty output"] == ["a.csv:403"]


@pytest.mark.parametrize(
    ("rows", "data", "code"),
    [
        (["x,a", "y,A", "z,b"], "train: a.csv", "label-spelling"),
        (["x,a", "y,a"], "train: a.csv", "one-label"),
        ([], "train: a.csv", "empty-file"),
        (["x,a", "y,b"], "train: none.csv", "no-such-file"),
    ],
)
def test_wrong_rows(tmp_path, rows, data, code):
    with pytest.raises(DataError) as caught:
        read(tmp_path, rows, data)
    assert caught.value.code == code


def test_a_wrong_column_gets_a_suggestion(tmp_path):
    (tmp_path / "a.csv").write_text("txt,label\nx,a\n")
    (tmp_path / "task.yaml").write_text(TASK + "data: {train: a.csv}\n")
    with pytest.raises(DataError) as caught:
        Task.load(tmp_path / "task.yaml").read()
    assert caught.value.hint == "did you mean 'txt'?"


def test_limits_choose_by_hash_not_the_head(tmp_path):
    data = read(tmp_path, many(), "train: a.csv, train_per_label: 5")
    assert len(data.train) == 10
    assert [e.outputs[0] for e in data.train].count("a") == 5
    assert max(int(e.inputs["text"].split()[-1]) for e in data.train) > 100


@pytest.mark.skipif(not SHARED.exists(), reason="the full data sets are not beside the repository")
def test_banking77_in_full(tmp_path):
    (tmp_path / "task.yaml").write_text(
        "name: t\ninstruction: i\ninputs: [text]\noutput: {column: category, kind: category}\n"
        f"data: {{train: {SHARED}/banking77/train.csv, test: {SHARED}/banking77/test.csv, duplicates: drop}}\n"
    )
    data = Task.load(tmp_path / "task.yaml").read()
    assert len(data.labels) == 77
    assert len(data.test) == 3079  # one row stands twice
    assert not {e.id for e in data.test} & {e.id for e in (*data.train, *data.validation)}
