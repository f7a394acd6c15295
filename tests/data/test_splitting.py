"""Cuts: the same always, every label where it can be, whole groups, the latest rows last."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rung.data.rows import Data, Example, example_id, place_of, selection_rows
from rung.data.splitting import Place, cut, time_of
from rung.errors import ConfigError, DataError
from rung.task import Task

SHARES = (0.2, 0.2, 0.6)
FOLD_SHARES = (0.2,) * 5
NO_PLACE = Place()


def example(name: str, *labels: str) -> Example:
    output = json.dumps(sorted(labels)) if len(labels) != 1 else labels[0]
    return Example(example_id({"text": name}), {"text": name}, (output,), f"rows.csv:{name}")


def parts_of(
    rows: Sequence[Example], shares: Sequence[float] = SHARES, *, kind: str = "category", **options: Any
) -> dict[str, int]:
    places = options.pop("places", None) or [NO_PLACE] * len(rows)
    return dict(zip((row.id for row in rows), cut(rows, places, shares, kind=kind, seed=0, **options), strict=True))


def table(counts: Mapping[str, int]) -> list[Example]:
    return [example(f"{label} {i}", label) for label, count in counts.items() for i in range(count)]


def per_part(rows: Sequence[Example], parts: Mapping[str, int]) -> dict[str, Counter[int]]:
    result: dict[str, Counter[int]] = {}
    for row in rows:
        result.setdefault(row.outputs[0], Counter())[parts[row.id]] += 1
    return result


LABEL_COUNTS = st.dictionaries(st.sampled_from("abcdef"), st.integers(5, 80), min_size=1)


@given(counts=LABEL_COUNTS)
@settings(max_examples=60, deadline=None)
def test_every_label_has_about_its_share_in_every_split(counts: dict[str, int]) -> None:
    rows = table(counts)
    for label, own in per_part(rows, parts_of(rows)).items():
        for part, share in enumerate(SHARES):
            quota = share * counts[label]
            assert own[part] >= 1
            assert abs(own[part] - quota) <= max(1.0, 0.2 * quota) + 1  # training takes what is left


@given(counts=LABEL_COUNTS, more=st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 60)), seed=st.randoms())
@settings(max_examples=60, deadline=None)
def test_new_rows_of_a_label_move_no_row_of_another_and_the_order_does_not_matter(
    counts: dict[str, int], more: dict[str, int], seed: Any
) -> None:
    rows = table(counts)
    added = [
        example(f"new {label} {i}", label) for label, n in more.items() if label not in counts for i in range(5 + n)
    ]
    before = parts_of(rows)
    mixed = [*rows, *added]
    seed.shuffle(mixed)
    after = parts_of(mixed)
    assert all(after[row.id] == before[row.id] for row in rows)


@given(count=st.integers(50, 400), more=st.integers(1, 400))
@settings(max_examples=60, deadline=None)
def test_new_rows_of_the_same_label_move_few_rows(count: int, more: int) -> None:
    """A row moves only where the hash alone misses a label's share by more than a fifth."""
    rows = table({"a": count})
    after = parts_of([*rows, *table({"a": count + more})[count:]])
    before = parts_of(rows)
    assert sum(before[row.id] != after[row.id] for row in rows) <= 0.1 * count


def test_large_labels_are_cut_by_the_hash_alone() -> None:
    rows = table({"a": 3000, "b": 2000})
    parts = parts_of(rows)
    for row in rows:
        place = place_of(f"0/{row.id}")
        assert parts[row.id] == (0 if place < 0.2 else 1 if place < 0.4 else 2)


@pytest.mark.parametrize("rare", [3, 4, 5, 10])
def test_a_rare_label_has_a_row_in_every_split(rare: int) -> None:
    for start in range(20):
        rows = [*table({"ok": 990}), *(example(f"fraud {start} {i}", "fraud") for i in range(rare))]
        assert set(per_part(rows, parts_of(rows))["fraud"]) == {0, 1, 2}


def test_many_rare_labels_do_not_make_the_test_split_larger_than_asked_for() -> None:
    rows = table({f"label {i}": 3 for i in range(150)})
    sizes = Counter(parts_of(rows).values())
    assert abs(sizes[0] - 90) <= 18
    assert abs(sizes[1] - 90) <= 18


GROUPS = st.lists(st.tuples(st.integers(0, 11), st.sampled_from("ab")), min_size=12, max_size=150)


@given(GROUPS, st.sampled_from(["hash", "folds", "time"]))
@settings(max_examples=80, deadline=None)
def test_no_group_is_in_two_parts(drawn: list[tuple[int, str]], method: Any) -> None:
    rows = [example(f"row {i}", label) for i, (_, label) in enumerate(drawn)]
    places = [Place(f"group {group}", float(i)) for i, (group, _) in enumerate(drawn)]
    shares = FOLD_SHARES if method == "folds" else SHARES
    parts = parts_of(rows, shares, places=places, method=method)
    owner: dict[str, set[int]] = {}
    for row, place in zip(rows, places, strict=True):
        owner.setdefault(place.group, set()).add(parts[row.id])
    assert all(len(own) == 1 for own in owner.values())


@given(counts=st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 40), min_size=1))
@settings(max_examples=60, deadline=None)
def test_folds_have_equally_many_rows_of_every_label(counts: dict[str, int]) -> None:
    rows = table(counts)
    parts = parts_of(rows, FOLD_SHARES, method="folds")
    for label, own in per_part(rows, parts).items():
        if counts[label] > 1:
            every = [own[fold] for fold in range(5)]
            assert max(every) - min(every) <= 1


@given(st.lists(st.sets(st.sampled_from("abcd"), max_size=3), min_size=40, max_size=150))
@settings(max_examples=40, deadline=None)
def test_rows_with_several_labels_are_stratified_too(drawn: list[set[str]]) -> None:
    rows = [
        Example(example_id({"t": str(i)}), {"t": str(i)}, (json.dumps(sorted(own)),), f"r:{i}")
        for i, own in enumerate(drawn)
    ]
    parts = parts_of(rows, kind="multilabel")
    for label in "abcd":
        own = Counter(parts[row.id] for row, labels in zip(rows, drawn, strict=True) if label in labels)
        if sum(own.values()) >= 20:
            assert own[0] >= 1
            assert own[1] >= 1
            assert own[2] >= 1


def test_answers_without_labels_are_cut_in_about_the_shares_asked_for() -> None:
    for count in (3, 10, 50, 400):
        rows = [example(f"{i}", f"answer {i}") for i in range(count)]
        sizes = Counter(parts_of(rows, kind="text").values())
        for part, share in enumerate(SHARES):
            assert sizes[part] >= 1
            assert abs(sizes[part] - share * count) <= max(1.0, 0.2 * share * count) + 1


@given(st.lists(st.integers(0, 30), min_size=5, max_size=120))
@settings(max_examples=60, deadline=None)
def test_by_time_nothing_is_trained_on_that_is_later_than_a_test_row(times: list[int]) -> None:
    rows = [example(f"row {i}", "ab"[i % 2]) for i in range(len(times))]
    places = [Place(time=float(time)) for time in times]
    parts = parts_of(rows, places=places, method="time")
    part_times = [[t for row, t in zip(rows, times, strict=True) if parts[row.id] == part] for part in range(3)]
    assert all(part_times)
    assert max(part_times[2]) <= min(part_times[1])
    assert max(part_times[1]) <= min(part_times[0])
    assert abs(len(part_times[0]) - 0.2 * len(times)) <= 1


def test_times_are_dates_or_numbers() -> None:
    days = ["2024-01-31", date(2024, 2, 1), "2024-02-01T12:00:00+02:00", datetime(2024, 2, 1, 23), "2024-02-02 00:00"]
    values = [time_of(day, "day", "r:1") for day in days]
    assert values == sorted(values)
    assert len(set(values)) == 5
    assert [time_of(value, "day", "r:1") for value in (2023, "2024", "-1.5")] == [2023.0, 2024.0, -1.5]
    for wrong in ("", None, "yesterday", float("nan"), [1], True, "31.01.2024"):
        with pytest.raises(DataError, match="r:1: 'day' is no time") as caught:
            time_of(wrong, "day", "r:1")
        assert caught.value.code == "bad-row"


# ---- the task file


def read(folder: Path, rows: Sequence[Mapping[str, Any]], **data: Any) -> Data:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = data.pop("output", {"column": "label", "kind": "category"})
    values = {
        "name": "t", "instruction": "Do it.", "inputs": ["text"], "output": output,
        "data": {"train": "rows.jsonl", **data},
    }  # fmt: skip
    (folder / "task.yaml").write_text(yaml.safe_dump(values))
    return Task.load(folder / "task.yaml").read()


def numbered(n: int, start: int = 0, **columns: Any) -> list[dict[str, Any]]:
    return [{"text": f"row {i}", "label": "abc"[i % 3], **columns} for i in range(start, start + n)]


FOLDS = {"split": {"method": "folds"}}


def test_every_row_is_in_one_fold_and_never_among_those_that_the_fold_is_fitted_on(tmp_path: Path) -> None:
    data = read(tmp_path, numbered(61), **FOLDS)
    assert (len(data.train), data.validation, data.test, len(data.folds)) == (61, (), (), 5)
    assert sorted(row.id for fold in data.folds for row in fold) == sorted(row.id for row in data.train)
    assert data.report.folds == [len(fold) for fold in data.folds]
    assert data.report.method == "folds"
    assert set(data.report.splits) == {"train"}
    for index, rows in enumerate(data.folds):
        fold = data.fold(index)
        assert (fold.test, fold.validation, fold.folds, fold.labels) == (rows, (), (), data.labels)
        assert {row.id for row in fold.train} == {row.id for row in data.train} - {row.id for row in rows}
        assert fold.fingerprint not in (data.fingerprint, data.fold(index - 1).fingerprint)


def test_an_input_of_a_fold_is_not_fitted_on_with_another_answer(tmp_path: Path) -> None:
    rows = [*numbered(30, who="x"), {"text": "ROW 3", "label": "b", "who": "y"}]
    rows = [{**row, "who": f"{row['who']}{i}"} for i, row in enumerate(rows)]  # every row is its own group
    data = read(tmp_path, rows, split={"method": "folds", "group": "who"})
    for index in range(len(data.folds)):
        fold = data.fold(index)
        assert not {row.id for row in fold.train} & {row.id for row in fold.test}


def test_a_test_file_stays_the_test_of_folds(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in numbered(9, 500)))
    data = read(tmp_path, numbered(40), test="test.jsonl", **FOLDS)
    assert (len(data.train), len(data.validation), len(data.test)) == (40, 0, 9)
    assert {row.id for fold in data.folds for row in fold} == {row.id for row in data.train}


def test_groups_are_whole_in_folds(tmp_path: Path) -> None:
    rows = [{**row, "company": f"c{i % 12}"} for i, row in enumerate(numbered(120))]
    company = {row["text"]: row["company"] for row in rows}
    data = read(tmp_path, rows, split={"method": "folds", "group": "company"})
    owners = [{company[row.inputs["text"]] for row in fold} for fold in data.folds]
    assert sum(map(len, owners)) == len(set().union(*owners)) == 12


def test_rows_without_a_group_are_groups_of_their_own(tmp_path: Path) -> None:
    rows = [{**row, "company": None} for row in numbered(300)]
    data = read(tmp_path, rows, split={"method": "holdout", "group": "company"})
    assert min(len(data.train), len(data.validation), len(data.test)) > 40


def test_a_group_is_one_however_it_is_spelled_and_rows_without_one_are_counted(tmp_path: Path) -> None:
    lines = "".join(f"more {i},{'abc'[i % 3]},{i % 10}\n" for i in range(60))
    (tmp_path / "more.csv").write_text(f"text,label,g\n{lines}")
    rows = [{**row, "g": float(i % 10)} for i, row in enumerate(numbered(60))]
    owner = {f"more {i}": i % 10 for i in range(60)} | {row["text"]: int(row["g"]) for row in rows}
    data = read(tmp_path, rows, train=["rows.jsonl", "more.csv"], split={"method": "folds", "group": "g"})
    owners = [{owner[row.inputs["text"]] for row in fold} for fold in data.folds]
    assert sum(map(len, owners)) == len(set().union(*owners)) == 10
    assert [text for text in data.report.warnings if "'g'" in text] == []
    rows = [{**row, "g": ("P1", "p1", "p2", "p3", "p4", None)[i % 6]} for i, row in enumerate(numbered(300))]
    name = {row["text"]: str(row["g"]).lower() for row in rows}
    data = read(tmp_path, rows, split={"method": "folds", "group": "g"})
    assert sum(any(name[row.inputs["text"]] == "p1" for row in fold) for fold in data.folds) == 1
    assert [text for text in data.report.warnings if "'g'" in text] == [
        "1 groups of 'g' are spelled differently, and taken for one each: 'P1' (rows.jsonl:1) and 'p1' (rows.jsonl:2)",
        "50 of 300 rows have no group in 'g': rows.jsonl:6, rows.jsonl:12, rows.jsonl:18, rows.jsonl:24, rows.jsonl:30 "
        "and 45 more. Each is a group of its own, so rows that belong together may be in two splits",
    ]


@pytest.mark.parametrize("odd", ["2021", 2021, "20240312"])
def test_dates_and_numbers_have_no_common_order(tmp_path: Path, odd: Any) -> None:
    rows = [{**row, "day": f"2024-01-{1 + i % 28:02}"} for i, row in enumerate(numbered(60))]
    rows[40]["day"] = odd
    with pytest.raises(DataError) as caught:
        read(tmp_path, rows, split={"time": "day"})
    assert caught.value.code == "bad-row"
    assert caught.value.message == (
        "'day' mixes dates and numbers, which have no order: rows.jsonl:1 has the date 2024-01-01 00:00 and "
        f"rows.jsonl:41 has the number {odd}"
    )


def test_a_cut_by_time_that_says_little_is_warned_of(tmp_path: Path) -> None:
    rows = numbered(60, day=2021)
    told = read(tmp_path, rows, split={"time": "day"}).report.warnings
    assert "all rows have the time 2021 in 'day', so the cut is by a hash of the input" in told
    rows = [{**row, "day": f"2024-01-{1 + i % 20:02}"} for i, row in enumerate(numbered(60))]
    for start, later in (("2024-01-31", 0), ("2024-01-18", 6)):
        lines = "".join(json.dumps({**row, "day": start}) + "\n" for row in numbered(9, 500))
        (tmp_path / "test.jsonl").write_text(lines)
        told = read(tmp_path, rows, test="test.jsonl", split={"time": "day"}).report.warnings
        found = [text for text in told if "later in 'day' than 2024-01-18 00:00, the first of `data.test`: " in text]
        assert [text.startswith("6 of 60 rows of `data.train` are later") for text in found] == [True] * bool(later)


def test_the_latest_rows_are_the_test(tmp_path: Path) -> None:
    rows = [{**row, "day": f"2024-{1 + i % 12:02}-{1 + i % 28:02}"} for i, row in enumerate(numbered(500))]
    day = {row["text"]: row["day"] for row in rows}
    data = read(tmp_path, rows, split={"time": "day"})
    days = [[day[row.inputs["text"]] for row in part] for part in (data.train, data.validation, data.test)]
    assert [len(part) for part in days] == [300, 100, 100]
    assert max(days[0]) <= min(days[1])
    assert max(days[1]) <= min(days[2])
    assert data.report.method == "holdout"


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({"split": {"method": "folds", "time": "day"}}, "`method: folds` does not go with `time`"),
        ({"split": {"method": "folds", "test": 0.3}}, "`test` has no effect with `method: folds`"),
        ({"split": {"time": "day", "seed": 3}}, "`seed` has no effect with `time`"),
        ({"validation": "rows.jsonl", **FOLDS}, "`validation` has no effect with `split.method: folds`"),
        ({"test_rows": 10, **FOLDS}, "`test_rows` has no effect with `split.method: folds`"),
        ({"validation": "a.csv", "test": "b.csv", "split": {"method": "holdout"}}, "`split` has no effect"),
    ],
)
def test_settings_of_a_cut_that_is_not_made_are_errors(tmp_path: Path, data: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=r"has no effect|does not go") as caught:
        read(tmp_path, numbered(30), **data)
    assert problem in caught.value.message


def test_auto_means_folds_for_small_files_only(tmp_path: Path) -> None:
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in numbered(9, 1900)))
    written = {"column": "label", "kind": "text"}
    assert len(read(tmp_path, numbered(999)).folds) == len(read(tmp_path, numbered(399), output=written).folds) == 5
    assert len(read(tmp_path, numbered(60), test="more.jsonl").folds) == 5
    assert len(read(tmp_path, numbered(399), train_rows=50, split={"seed": 1}).folds) == 5
    assert read(tmp_path, numbered(1000)).folds == read(tmp_path, numbered(400), output=written).folds == ()
    for data in (
        {"split": {"test": 0.3}}, {"split": {"method": "holdout"}}, {"validation": "more.jsonl"}, {"test_rows": 20},
        {"split": {"time": "text"}},
    ):  # fmt: skip
        rows = [{**row, "text": f"{i}"} for i, row in enumerate(numbered(60))]
        whole = read(tmp_path, rows, **data)
        assert (whole.folds, bool(whole.validation), bool(whole.test)) == ((), True, True)


# ---- rows to choose settings on


def test_selection_rows_are_training_rows_with_the_labels_of_the_whole(tmp_path: Path) -> None:
    rows = [{"text": f"row {i}", "label": "a" if i % 5 else "b"} for i in range(500)]
    data = read(tmp_path, rows)
    chosen, others = selection_rows(data, 50)
    assert len(chosen) == 50
    assert {row.id for row in (*chosen, *others)} == {row.id for row in data.train}
    assert len(chosen) + len(others) == len(data.train)
    assert abs(Counter(row.outputs[0] for row in chosen)["b"] - 10) <= 1
    assert abs(Counter(row.outputs[0] for row in chosen[:20])["b"] - 4) <= 1  # a beginning, too
    assert selection_rows(data, 20)[0] == chosen[:20]


def test_selection_leaves_half_of_the_rows(tmp_path: Path) -> None:
    data = read(tmp_path, numbered(11), **FOLDS)
    assert len(selection_rows(data, 64)[0]) == 5
    assert selection_rows(data.fold(0), 0) == ((), data.fold(0).train)


def test_the_rows_of_a_split_that_has_none_are_an_error_with_the_way_on(tmp_path: Path) -> None:
    folds = read(tmp_path, numbered(60), **FOLDS)
    with pytest.raises(DataError, match="there are no test rows: all rows of the task may be trained on") as caught:
        folds.rows_of("test")
    assert (caught.value.code, "give new rows as `data.test`" in caught.value.hint) == ("too-few-rows", True)
    with pytest.raises(DataError, match="there are no validation rows") as caught:
        folds.rows_of("validation")
    assert "`data.split.method: holdout`" in caught.value.hint
    assert folds.rows_of("train") == folds.train
    with pytest.raises(DataError, match="the validation split has no rows") as caught:
        read(tmp_path, numbered(2), split={"method": "holdout"}).rows_of("validation")
    assert caught.value.hint == "give `data.validation`, or more rows to split off"
