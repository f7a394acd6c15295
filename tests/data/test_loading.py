"""Task and files to splits: what is kept, dropped, refused and reported."""

from __future__ import annotations

import csv
import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
import yaml

from rung.data.quality import detectable_difference
from rung.data.rows import Data, example_id
from rung.errors import ConfigError, DataError
from rung.evaluation.statistics import mcnemar_midp
from rung.task import Task

SHARED = Path(__file__).parents[3] / "shared" / "data"


def read(folder: Path, files: dict[str, Sequence[dict[str, Any]]], **settings: Any) -> Data:
    """Write rows and a task over them, and read it; `train.csv` is the training file unless `data` says otherwise."""
    for name, rows in files.items():
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            if name.endswith(".csv"):
                writer = csv.DictWriter(file, rows[0].keys())
                writer.writeheader()
                writer.writerows(rows)
            else:
                file.writelines(json.dumps(row) + "\n" for row in rows)
    task = {
        "name": "t",
        "instruction": "Do it.",
        "inputs": ["text"],
        "output": {"column": "label", "kind": "category"},
        **settings,
    }
    task["data"] = {"train": next(iter(files)), **settings.get("data", {})}
    (folder / "task.yaml").write_text(yaml.safe_dump(task, sort_keys=False))
    return Task.load(folder / "task.yaml").read()


def refused(folder: Path, files: dict[str, Sequence[dict[str, Any]]], **settings: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        read(folder, files, **settings)
    return caught.value


def numbered(n: int, labels: str = "ab", start: int = 0) -> list[dict[str, Any]]:
    return [{"text": f"row {i}", "label": labels[i % len(labels)]} for i in range(start, start + n)]


def texts(rows: Sequence[Any]) -> list[str]:
    return [row.inputs["text"] for row in rows]


# ---- splits


def test_the_split_of_a_row_hardly_depends_on_other_rows(tmp_path: Path) -> None:
    rows = numbered(600)
    holdout = {"split": {"method": "holdout"}}
    whole = read(tmp_path, {"train.csv": rows}, data=holdout)
    shuffled = random.Random(0).sample(rows, 300)
    part = read(tmp_path, {"train.csv": shuffled}, data=holdout)
    kept = {row["text"] for row in shuffled}
    for name in ("train", "validation", "test"):
        assert set(texts(getattr(part, name))) == set(texts(getattr(whole, name))) & kept


def test_shares_are_about_as_asked_and_nothing_is_lost(tmp_path: Path) -> None:
    data = read(tmp_path, {"train.csv": numbered(3000)}, data={"split": {"validation": 0.1, "test": 0.3}})
    counts = [len(part) for part in (data.train, data.validation, data.test)]
    assert sum(counts) == 3000
    # Three standard deviations of a binomial count.
    assert abs(counts[1] - 300) < 50
    assert abs(counts[2] - 900) < 76
    assert {name: split.read for name, split in data.report.splits.items()} == dict(
        zip(("train", "validation", "test"), counts, strict=True)
    )


def test_only_what_is_not_given_is_cut(tmp_path: Path) -> None:
    files = {"train.csv": numbered(100), "test.csv": numbered(50, start=1000)}
    data = read(tmp_path, files, data={"test": "test.csv", "split": {"method": "holdout"}})
    assert len(data.test) == 50
    assert len(data.train) + len(data.validation) == 100
    assert 5 < len(data.validation) < 40


def test_equal_inputs_never_stand_on_both_sides(tmp_path: Path) -> None:
    rows = numbered(200)
    data = read(tmp_path, {"train.csv": rows + [{**row, "text": row["text"].upper()} for row in rows]})
    sides = [{row.id for row in part} for part in (data.train, data.validation, data.test)]
    assert len(set.union(*sides)) == sum(map(len, sides)) == 200


def test_another_seed_gives_another_split(tmp_path: Path) -> None:
    def cut(seed: int = 0) -> Data:
        return read(tmp_path, {"train.csv": numbered(100)}, data={"split": {"method": "holdout", "seed": seed}})

    first, again, other = cut(), cut(), cut(1)
    assert (first.fingerprint, texts(first.test)) == (again.fingerprint, texts(again.test))
    assert texts(first.test) != texts(other.test)
    assert first.fingerprint != other.fingerprint
    assert len(first.fingerprint) == 64


def test_groups_stay_together(tmp_path: Path) -> None:
    rows = [{**row, "company": f"c{i // 10}"} for i, row in enumerate(numbered(400))]
    data = read(tmp_path, {"train.csv": rows}, data={"split": {"group": "company", "method": "holdout"}})
    company = {row["text"]: row["company"] for row in rows}
    parts = [{company[text] for text in texts(part)} for part in (data.train, data.validation, data.test)]
    assert all(parts)
    assert sum(map(len, parts)) == len(set.union(*parts)) == 40


def test_several_training_files(tmp_path: Path) -> None:
    files = {"a.csv": numbered(50), "b.jsonl": numbered(50, start=50)}
    data = read(tmp_path, files, data={"train": ["a.csv", "b.jsonl"]})
    sources = {row.source for row in (*data.train, *data.validation, *data.test)}
    assert len(sources) == 100
    assert {"a.csv:2", "b.jsonl:1"} <= sources


# ---- limits


def test_limits_are_samples_that_grow_with_the_limit(tmp_path: Path) -> None:
    files = {"train.csv": numbered(300, "abc")}
    small = read(tmp_path, files, data={"train_per_label": 5, "validation_rows": 10, "test_rows": 20})
    large = read(tmp_path, files, data={"train_per_label": 9, "validation_rows": 11, "test_rows": 21})
    assert Counter(row.outputs[0] for row in small.train) == {"a": 5, "b": 5, "c": 5}
    assert (len(small.validation), len(small.test)) == (10, 20)
    for name in ("train", "validation", "test"):
        assert set(texts(getattr(small, name))) < set(texts(getattr(large, name)))
    full = read(tmp_path, files)
    assert texts(small.test) != texts(full.test)[:20]  # not the head of the file
    split = small.report.splits["train"]
    assert split.kept == 15
    assert len(split.dropped["over the limit"]) == split.read - 15


# ---- duplicates


def test_an_input_in_two_splits_is_an_error_with_both_lines(tmp_path: Path) -> None:
    files = {
        "train.csv": [*numbered(5), {"text": " ROW  1001", "label": "a"}],
        "test.csv": numbered(5, start=1000),
    }
    error = refused(tmp_path, files, data={"test": "test.csv"})
    assert error.code == "duplicate-across-splits"
    assert "train.csv:7" in error.message
    assert "test.csv:3" in error.message
    data = read(tmp_path, files, data={"test": "test.csv", "duplicates": "drop"})
    assert len(data.test) == 5
    dropped = [split.dropped["also in test"] for split in data.report.splits.values() if split.dropped]
    assert dropped == [["train.csv:7"]]


def test_repeated_rows_are_dropped_and_contradictions_reported(tmp_path: Path) -> None:
    files = {
        "train.csv": [*numbered(4), {"text": "Row 1", "label": "b"}, {"text": "row 2", "label": "b"}],
        "validation.csv": numbered(4, start=100),
        "test.csv": numbered(4, start=200),
    }
    data = read(tmp_path, files, data={"validation": "validation.csv", "test": "test.csv"})
    assert data.report.splits["train"].dropped == {"repeated row": ["train.csv:6"]}
    assert len(data.train) == 5
    assert any("train.csv:4 and train.csv:7" in warning for warning in data.report.warnings)


def test_ids_ignore_case_spaces_and_unicode_form() -> None:
    assert example_id({"a": "Café  x\n"}) == example_id({"a": "cafe\u0301 X"})
    assert example_id({"a": "x", "b": "y"}) != example_id({"a": "y", "b": "x"})
    chat = {"m": [{"role": "user", "content": "Hi "}]}
    assert example_id(chat) == example_id({"m": [{"role": "user", "content": "hi"}]})
    assert example_id(chat) != example_id({"m": [{"role": "system", "content": "hi"}]})


# ---- labels


def test_labels_that_differ_in_case_only_are_an_error(tmp_path: Path) -> None:
    error = refused(tmp_path, {"train.csv": [*numbered(4), {"text": "x", "label": "A "}]})
    assert error.code == "label-spelling"
    assert "'a'" in error.message
    assert "'A '" in error.message
    assert "train.csv:6" in error.message


@pytest.mark.parametrize("other", ["cafe\u0301", "café\u200b", "café\u00a0", "Café", "\ufeffcafé"])
def test_labels_that_look_alike_are_an_error(tmp_path: Path, other: str) -> None:
    rows = [{"text": f"{i}", "label": ("café", other, "thé")[i % 3]} for i in range(40)]
    error = refused(tmp_path, {"train.csv": rows})
    assert error.code == "label-spelling"
    assert ascii(other) in error.message or other == "Café"


def test_labels_outside_the_fixed_set(tmp_path: Path) -> None:
    output = {"column": "label", "kind": "category", "labels": ["spam", "ham", "eggs"]}
    rows = [{"text": f"{i}", "label": ("spam", "ham")[i % 2]} for i in range(40)]
    data = read(tmp_path, {"train.csv": rows}, output=output)
    assert data.labels == ("eggs", "ham", "spam")
    assert any("1 of 3 labels have no training row: 'eggs'" in text for text in data.report.warnings)
    error = refused(tmp_path, {"train.csv": [*rows, {"text": "x", "label": "spamm"}]}, output=output)
    assert (error.code, error.hint) == ("unknown-label", "did you mean 'spam'?")
    described = {"column": "label", "kind": "category", "descriptions": {"hem": "no advertising"}}
    assert refused(tmp_path, {"train.csv": rows}, output=described).code == "unknown-label"


def test_one_label_is_no_choice(tmp_path: Path) -> None:
    assert refused(tmp_path, {"train.csv": numbered(10, "a")}).code == "one-label"
    assert refused(tmp_path, {"train.csv": [{"text": "x", "label": ""}]}).code == "too-few-rows"


# ---- columns and values


def test_a_missing_column_is_named_with_a_suggestion(tmp_path: Path) -> None:
    error = refused(tmp_path, {"train.csv": [{"txt": "x", "label": "a"}]})
    assert (error.code, error.hint) == ("missing-column", "did you mean 'txt'?")
    assert "train.csv:2" in error.message
    typo = refused(tmp_path, {"t.jsonl": [{"text": "x", "label": "a"}, {"text": "y", "lable": "b"}]})
    assert (typo.message.startswith("t.jsonl:2 "), typo.hint) == (True, "did you mean 'lable'?")


def test_a_key_that_rows_of_json_lack_is_nothing_if_others_have_it(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"text": f"x {i}", "context": "why", "label": "ab"[i % 2]} for i in range(40)]
    del rows[0]["context"], rows[3]["label"]
    data = read(tmp_path, {"t.jsonl": rows}, inputs=["text", "context"])
    assert data.train[0].inputs == {"text": "x 0", "context": ""}
    assert [row.source for row in data.train[:4]] == ["t.jsonl:1", "t.jsonl:2", "t.jsonl:3", "t.jsonl:5"]
    assert data.report.splits["train"].dropped == {"empty output": ["t.jsonl:4"]}


def test_empty_inputs_and_outputs_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = [*numbered(40), {"text": " ", "label": "a"}, {"text": "x", "label": ""}]
    data = read(tmp_path, {"train.csv": rows})
    assert data.report.splits["train"].dropped == {"empty input": ["train.csv:42"], "empty output": ["train.csv:43"]}
    assert data.report.splits["train"].read + sum(len(p) for p in (data.validation, data.test)) == 42


@pytest.mark.parametrize("missing", [float("nan"), None, "", " "])
def test_a_missing_answer_or_input_is_dropped_whatever_stands_for_it(tmp_path: Path, missing: Any) -> None:
    rows = [{"text": f"message {i}", "label": [missing, "spam", "ham"][i % 3]} for i in range(120)]
    data = read(tmp_path, {"t.jsonl": rows})
    assert data.labels == ("ham", "spam")
    dropped = [source for part in data.report.splits.values() for source in part.dropped.get("empty output", ())]
    assert len(dropped) == 40
    rows = [{"text": f"message {i}", "score": [missing, 0.5][i % 2], "label": "ab"[i % 2]} for i in range(120)]
    data = read(tmp_path, {"t.jsonl": rows}, inputs=["text", "score"])
    shown = {row.inputs["score"].strip() for row in (*data.train, *data.validation, *data.test)}
    assert shown == {"", "0.5"}
    rows = [{"text": missing if i % 4 == 0 else f"message {i}", "label": "ab"[i % 2]} for i in range(120)]
    data = read(tmp_path, {"t.jsonl": rows})
    assert data.report.splits["train"].dropped == {"empty input": [f"t.jsonl:{i + 1}" for i in range(0, 120, 4)]}


def test_a_file_with_a_header_only(tmp_path: Path) -> None:
    (tmp_path / "none.csv").write_text("text,label\n")
    error = refused(tmp_path, {"train.csv": numbered(4)}, data={"train": "none.csv"})
    assert error.code == "too-few-rows"


def test_lists_are_sentences_of_an_input_and_references_of_an_output(tmp_path: Path) -> None:
    rows = [{"doc": {"body": ["One.", f"{i}."]}, "target": ["short ", "", "also short"]} for i in range(30)]
    output = {"column": "target", "kind": "text"}
    data = read(tmp_path, {"t.jsonl": rows}, inputs=["doc.body"], output=output)
    assert data.train[0].inputs["doc.body"].startswith("One. ")
    assert data.train[0].outputs == ("short", "also short")
    assert data.labels == ()


def test_json_answers_are_canonical_and_checked(tmp_path: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"total": {"type": "number"}, "date": {"type": ["string", "null"]}},
        "required": ["total"],
        "additionalProperties": False,
    }
    output = {"column": "fields", "kind": "json", "schema": schema}
    rows: list[dict[str, Any]] = [{"text": f"{i}", "fields": {"date": None, "total": i}} for i in range(30)]
    rows.append({"text": "as text", "fields": '{"date": "é", "total": 2.5}'})
    data = read(tmp_path, {"t.jsonl": rows}, output=output)
    answers = {row.inputs["text"]: row.outputs for row in (*data.train, *data.validation, *data.test)}
    assert answers["3"] == ('{"total": 3, "date": null}',)  # in the schema's order
    assert answers["as text"] == ('{"total": 2.5, "date": "é"}',)
    plain = read(tmp_path, {"t.jsonl": rows}, output={"column": "fields", "kind": "json"})
    assert {row.outputs for row in plain.train} & {('{"date": null, "total": 3}',), ('{"date": null, "total": 4}',)}
    for wrong, code, part in (
        ({"date": "x"}, "bad-reference", "'total'"),
        ({"total": "3"}, "bad-reference", "$.total: '3' is not of type 'number'"),
        ({"total": 3, "tax": 1}, "bad-reference", "'tax'"),
        ("{", "bad-json", "t.jsonl:32"),
        ({"total": float("nan")}, "bad-json", "NaN"),
    ):
        error = refused(tmp_path, {"t.jsonl": [*rows, {"text": "w", "fields": wrong}]}, output=output)
        assert error.code == code
        assert part in error.message
        assert "t.jsonl:32" in error.message


def test_a_structure_is_no_label(tmp_path: Path) -> None:
    assert refused(tmp_path, {"t.jsonl": [{"text": "x", "label": {"a": 1}}]}).code == "bad-row"


def test_chat_takes_the_last_assistant_turn_as_the_answer(tmp_path: Path) -> None:
    def turns(i: int, *roles: str) -> dict[str, Any]:
        return {"messages": [{"role": role, "content": f"{role} {i}"} for role in roles]}

    rows = [turns(i, "system", "user", "assistant") for i in range(30)]
    settings = {"inputs": ["messages"], "output": {"kind": "chat"}}
    data = read(tmp_path, {"t.jsonl": [*rows, turns(99, "user")]}, **settings)
    first = data.train[0]
    assert [turn["role"] for turn in first.inputs["messages"]] == ["system", "user"]
    assert first.outputs[0].startswith("assistant ")
    assert data.report.splits["train"].dropped == {"no assistant turn at the end": ["t.jsonl:31"]}
    assert refused(tmp_path, {"t.jsonl": [turns(1, "user", "robot")]}, **settings).code == "bad-row"
    assert refused(tmp_path, {"t.jsonl": [{"messages": "hi"}]}, **settings).code == "bad-row"


# ---- the report


def test_the_report_is_plain_and_true(tmp_path: Path) -> None:
    rows = [{"text": "x" * (i + 1), "label": "ab"[i > 37]} for i in range(40)]
    files = {"train.csv": rows, "v.csv": numbered(200, start=100), "test.csv": numbered(3, start=500)}
    data = read(tmp_path, files, data={"validation": "v.csv", "test": "test.csv"})
    report = data.report
    assert json.loads(json.dumps(report.as_dict())) == report.as_dict()
    assert report.labels["train"] == {"a": 38, "b": 2}
    assert report.rare() == ["b (2)"]
    assert report.lengths["train input"] == {"min": 1, "median": 20.5, "p95": 38, "max": 40}
    assert report.problems == ["3 test rows can never show a difference: a gain of 10 points needs about 190"]
    assert [warning.split(":")[0] for warning in report.warnings] == [
        "2 of 2 labels have fewer than 5 test rows, too few to say how well they are answered"
    ]
    assert 0.05 < (report.detectable["validation"] or 0) < 0.15
    assert report.detectable["test"] is None
    report.measure("train", data.train, kind="category", count=lambda text: len(text) * 10)
    assert report.lengths["train input"]["max"] == 400


def test_banking77_as_published(tmp_path: Path) -> None:
    folder = SHARED / "banking77"
    if not folder.is_dir():
        pytest.skip("the data set is not beside the repository")
    source = {"train": str(folder / "train.csv"), "test": str(folder / "test.csv")}
    settings = {"inputs": ["text"], "output": {"column": "category", "kind": "category"}}
    error = refused(tmp_path, {"unused.csv": numbered(2)}, data=source, **settings)
    assert error.code == "duplicate-across-splits"
    data = read(tmp_path, {"unused.csv": numbered(2)}, data={**source, "duplicates": "drop"}, **settings)
    report = data.report.splits
    assert report["train"].read + report["validation"].read == 10_003
    assert (report["test"].read, len(data.test), len(data.labels)) == (3080, 3079, 77)
    assert {row.id for row in data.train}.isdisjoint({row.id for row in (*data.validation, *data.test)})


def test_scitldr_as_published(tmp_path: Path) -> None:
    folder = SHARED / "scitldr"
    if not folder.is_dir():
        pytest.skip("the data set is not beside the repository")
    source = {"train": str(folder / "train.jsonl"), "validation": str(folder / "dev.jsonl")}
    source["test"] = str(folder / "test.jsonl")
    settings = {"inputs": ["source"], "output": {"column": "target", "kind": "text"}}
    data = read(tmp_path, {"unused.csv": numbered(2)}, data={**source, "duplicates": "drop"}, **settings)
    assert sum(split.read for split in data.report.splits.values()) == 3229
    assert max(len(row.outputs) for row in data.test) > 1


def test_detectable_difference_solves_connors_equation() -> None:
    z_alpha, z_power = scipy.stats.norm.ppf([0.95, 0.8])
    for n, discordance in [(50, 0.5), (300, 0.2), (600, 0.1), (5000, 0.05)]:
        d = detectable_difference(n, discordance)
        needed = (z_alpha * math.sqrt(discordance) + z_power * math.sqrt(discordance - d * d)) ** 2 / d**2
        assert needed == pytest.approx(n, rel=1e-9)


def test_detectable_difference_is_found_with_about_the_power_asked_for() -> None:
    """Exact power of the test that decides."""
    n, discordance = 400, 0.2
    d = detectable_difference(n, discordance)
    share = (discordance + d) / (2 * discordance)
    power = sum(
        scipy.stats.binom.pmf(m, n, discordance)
        * sum(scipy.stats.binom.pmf(k, m, share) for k in range(m + 1) if mcnemar_midp(k, m - k) < 0.05)
        for m in range(50, 115)
    )
    assert 0.77 < power < 0.83


def test_no_detectable_difference_exceeds_the_discordance() -> None:
    assert detectable_difference(3, 0.5) is None
    assert detectable_difference(40, 0.05) is None


def weighted(*weights: object) -> Data:
    rows = [{"text": f"note {i} is", "label": "ab"[i % 2], "w": weights[i % len(weights)]} for i in range(20)]
    shape = {"inputs": ["text"], "output": {"column": "label", "kind": "category"}}
    return Task(name="t", instruction="x", **shape, data={"train": rows, "weight": "w"}).read()


def test_weights_of_rows() -> None:
    data = weighted(1, "2.5", 0)
    assert [row.weight for row in data.train] == [1, 2.5] * 7
    assert len(data.report.splits["train"].dropped["weight 0"]) == 6
    assert data.fingerprint != weighted(1, 3, 0).fingerprint


@pytest.mark.parametrize("wrong", [None, -1, "much", float("inf"), True])
def test_a_weight_that_is_none_is_refused(wrong: object) -> None:
    with pytest.raises(DataError, match=r"'w' is '.*', which is no weight"):
        weighted(1, wrong)


def test_a_key_that_an_expected_record_has_twice_is_an_error_in_a_cell_too(tmp_path: Path) -> None:
    rows = [{"text": f"row {i}", "label": f'{{"x": {i}, "x": 2}}'} for i in range(20)]
    error = refused(tmp_path, {"train.csv": rows}, output={"column": "label", "kind": "json"})
    assert error.code == "bad-json"
    assert "train.csv:2: the expected answer is not valid JSON: an object has the key 'x' twice" in error.message


@pytest.mark.parametrize(("shared", "problems", "told"), [(0, 1, 0), (7, 0, 1), (10, 0, 0)])
def test_a_ranking_whose_rows_have_nothing_right_to_find(tmp_path: Path, shared: int, problems: int, told: int) -> None:
    train = [{"text": f"row {i}", "label": f"group {i}"} for i in range(60)]
    held = {name: [{"text": f"{name} {i}", "label": f"group {i if i < shared else 100 + i}"} for i in range(10)]
            for name in ("validation", "test")}  # fmt: skip
    files = {"train.csv": train, **{f"{name}.csv": rows for name, rows in held.items()}}
    given = {"data": {name: f"{name}.csv" for name in held}, "output": {"column": "label", "kind": "ranking"}}
    report = read(tmp_path, files, **given).report
    start = f"{10 - shared} of 10 test rows ({10 - shared}0.0%) have an answer that no training row has, so nothing "
    assert sum(text.startswith(start) for text in report.problems) == problems
    assert sum(text.startswith(start) for text in report.warnings) == told


def test_a_column_of_a_label_that_no_row_has_is_an_answer_all_the_same(tmp_path: Path) -> None:
    rows = [{"text": f"row {i}", "rude": i % 2, "toxic": i % 3 // 2, "threat": 0} for i in range(60)]
    output = {"columns": ["rude", "toxic", "threat"], "kind": "multilabel"}
    data = read(tmp_path, {"train.csv": rows}, output=output)
    assert data.labels == ("rude", "threat", "toxic")
    (told,) = [text for text in data.report.warnings if "no training row" in text]
    assert told == "1 of 3 labels have no training row: 'threat': only prompting can answer with them"


@pytest.mark.parametrize(("filled", "told"), [(0, True), (2, True), (10, False)])
def test_an_input_that_says_nothing_is_named(tmp_path: Path, filled: int, told: bool) -> None:
    rows = [{**row, "title": f"title {i}" if i < filled else " "} for i, row in enumerate(numbered(60))]
    report = read(tmp_path, {"train.csv": rows}, inputs=["text", "title"]).report
    start = f"the input 'title' is empty in {60 - filled} of 60 rows: train.csv:{filled + 2}, "
    assert [text.startswith(start) for text in report.warnings if "'title'" in text] == [True] * told
    report = read(tmp_path, {"train.csv": rows}, inputs=["text", "title"], template="Say {text}").report
    left_out = "`template` leaves out the input 'title', so no prompt shows it: add {title}, or drop it"
    assert left_out in report.warnings
    assert not [text for text in report.warnings if "`template` leaves out the input 'text'" in text]


def test_a_rung_that_is_tried_and_never_tried_is_refused(tmp_path: Path) -> None:
    constraints = {"rungs": ["features", "lora"], "exclude": ["lora"]}
    with pytest.raises(ConfigError, match="'lora' is in both `rungs` and `exclude`"):
        read(tmp_path, {"train.csv": numbered(60)}, constraints=constraints)
