"""`rung check` as a gate: what makes a climb meaningless ends with exit code 2, and no loss goes unsaid."""

from __future__ import annotations

import csv
import gzip
import json
import random
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from rung.errors import ConfigError, DataError, ModelError, RungError
from templates import published, with_template

HOLDOUT = {"split": {"method": "holdout"}}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def table(name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    with Path(name).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def texts(n: int, start: int = 0) -> list[str]:
    """Different sentences, none of which is like another."""
    rng = random.Random(start)
    letters = "abcdefghijklmnoprstuvwz"
    return [" ".join("".join(rng.choices(letters, k=6)) for _ in range(6)) for _ in range(n)]


def labelled(n: int, labels: str = "ab", start: int = 0) -> list[dict[str, Any]]:
    return [{"text": text, "label": labels[i % len(labels)]} for i, text in enumerate(texts(n, start))]


def task(data: Mapping[str, Any], **settings: Any) -> None:
    values = {
        "name": "t", "instruction": "Which one?", "inputs": ["text"], "output": {"column": "label", "kind": "category"},
        "data": data, **settings,
    }  # fmt: skip
    Path("task.yaml").write_text(yaml.safe_dump(values, sort_keys=False))


def check(*options: str) -> Any:
    # Typer still imports names that click announces to move; other warnings stay errors.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*will be removed in Click 9", DeprecationWarning)
        from typer.testing import CliRunner

        from rung.cli.main import app
    return CliRunner().invoke(app, ["check", "task.yaml", *options])


def found(*options: str) -> tuple[list[str], list[str]]:
    """The problems and warnings, which the text shows as well, and the verdict and exit code that belong to them."""
    result, shown = check("--json", *options), check(*options)
    report = json.loads(result.stdout)
    problems, told = report["problems"], report["warnings"]
    assert result.exit_code == shown.exit_code == (2 if problems else 0)
    lines = shown.stdout.splitlines()
    assert [line for line in lines if line.startswith("problem: ")] == [f"problem: {text}" for text in problems]
    assert [line for line in lines if line.startswith("warning: ")] == [f"warning: {text}" for text in told]
    if not problems:
        assert lines.pop().startswith("Next: rung climb ")
    assert lines[-1] == f"{report['verdict']}."
    assert (report["verdict"] == "fine") == (not problems and not told)
    return problems, told


def refused() -> RungError:
    error = check().exception
    assert isinstance(error, RungError)
    assert error.exit_code == 2
    return error


def only(told: Sequence[str], part: str) -> str:
    (one,) = [text for text in told if part in text]
    return one


# ---- what makes a climb meaningless


def test_rows_that_are_good_are_fine() -> None:
    table("a.csv", labelled(400))
    task({"train": "a.csv", **HOLDOUT})
    assert found() == ([], [])
    assert check().stdout.splitlines()[-2:] == ["fine.", "Next: rung climb task.yaml --plan"]


def test_a_split_without_rows_is_a_problem() -> None:
    table("a.csv", labelled(2))
    task({"train": "a.csv", **HOLDOUT})
    problems, _ = found()
    assert "validation has no rows: give `data.validation`, or more rows to split off" in problems
    assert check().stdout.splitlines()[-1].startswith("2 problems")


def test_a_split_whose_rows_are_all_dropped_says_why() -> None:
    table("a.csv", labelled(400))
    table("b.csv", [{"text": "", "label": "a"}] * 7)
    task({"train": "a.csv", "test": "b.csv", **HOLDOUT})
    problems, told = found()
    assert problems == ["test has no rows (7 dropped, empty input)"]
    assert only(told, "dropped") == (
        "test: 7 of 7 rows dropped, empty input: b.csv:2, b.csv:3, b.csv:4, b.csv:5, b.csv:6 and 2 more"
    )


@pytest.mark.parametrize("output", [{"column": "label", "kind": "category"}, {"column": "label", "kind": "text"}])
def test_no_row_at_all_is_an_error_that_names_what_is_empty(output: dict[str, Any]) -> None:
    table("a.csv", [{"text": " ", "label": "ab"[i % 2]} for i in range(20)])
    task({"train": "a.csv"}, output=output)
    error = refused()
    assert error.code == "too-few-rows"
    assert "no row can be used (empty input: 20 rows, a.csv:2" in error.message


def test_one_label_is_an_error() -> None:
    table("a.csv", labelled(60, "a"))
    task({"train": "a.csv"})
    assert refused().code == "one-label"


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ({"kind": "text"}, "Done"), ({"kind": "json"}, {"x": 1}), ({"kind": "multilabel"}, ["x", "y"]),
        ({"kind": "number", "minimum": 1, "maximum": 5}, 3), ({"kind": "text", "refusal": "unknown"}, ""),
        ({"kind": "chat"}, [{"role": "assistant", "content": "Done"}]),
    ],
)  # fmt: skip
def test_one_answer_is_a_problem_in_every_kind(output: dict[str, Any], answer: Any) -> None:
    chat = output["kind"] == "chat"
    rows = [{"text": [{"role": "user", "content": text}] if chat else text, "label": answer} for text in texts(60)]
    Path("a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task({"train": "a.jsonl"}, output={"column": "label", **output})
    assert "so whatever always gives it is right" in only(found()[0], "every row expects the same answer, ")


@pytest.mark.parametrize(("rows", "enough"), [(4, False), (5, False), (8, True)])
def test_few_test_rows_can_never_show_a_difference(rows: int, enough: bool) -> None:
    table("a.csv", labelled(300))
    table("b.csv", labelled(rows, start=1))
    table("c.csv", labelled(60, start=2))
    task({"train": "a.csv", "test": "b.csv", "validation": "c.csv"})
    problems, told = found()
    text = f"{rows} test rows can never show a difference: a gain of 10 points needs about 190"
    assert problems == ([] if enough else [text])
    if enough:
        hard = "with 8 test rows, gains below 8"
        assert only(told, hard).endswith("points are hard to tell from chance: a gain of 10 points needs about 190")


def test_few_rows_are_too_few_for_free_text_as_well() -> None:
    rows = [{"text": text, "label": " ".join(text.split()[:2])} for text in texts(30)]
    table("a.csv", rows)
    task({"train": "a.csv", **HOLDOUT}, output={"column": "label", "kind": "text"}, metric="token_f1")
    report = json.loads(check("--json").stdout)
    test = report["splits"]["test"]["kept"]
    assert 4 <= test <= 8
    told = only([*report["problems"], *report["warnings"]], f"{test} test rows")
    assert told.startswith(
        f"{test} test rows can never" if test < 6 else f"with {test} test rows, differences are hard"
    )
    task({"train": "a.csv", "split": {"method": "folds"}}, output={"column": "label", "kind": "text"})
    assert found() == ([], [])


def test_the_difference_that_can_be_shown_is_that_of_the_gate() -> None:
    """At the level that four candidates share, in four of five simulated climbs."""
    import numpy as np

    from rung.data.quality import smallest_difference
    from rung.evaluation.statistics import mcnemar_midp

    rng = np.random.default_rng(0)
    for n in (60, 200, 600):
        gain = smallest_difference(n)
        assert gain is not None
        fixed = (max(0.2, gain) + gain) / 2
        shown = 0
        for _ in range(800):
            won, lost, _ = rng.multinomial(n, [fixed, fixed - gain, 1 - 2 * fixed + gain])
            shown += won > lost and mcnemar_midp(int(won), int(lost)) / 2 <= 0.05 / 4
        assert 0.74 < shown / 800 < (0.9 if n >= 200 else 1)  # the formula is careful where rows are few


def test_all_rows_in_one_group_cannot_be_answered_out_of_fold() -> None:
    table("a.csv", [{**row, "who": "me"} for row in labelled(40)])
    task({"train": "a.csv", "split": {"method": "folds", "group": "who"}})
    problems, _ = found()
    assert problems == ["all rows are in one fold, so none could be fitted on: give more rows, or more groups"]


@pytest.mark.parametrize("key", ["rungs", "exclude"])
def test_an_unknown_rung_in_the_constraints_is_an_error_at_its_place(key: str) -> None:
    table("a.csv", labelled(40))
    task({"train": "a.csv"}, constraints={key: ["zero-shot", "lora", "feature"]})
    error = refused()
    assert isinstance(error, ConfigError)
    assert (error.code, error.hint) == ("unknown-name", "did you mean 'features'?")
    assert error.where is not None
    assert "feature" in Path("task.yaml").read_text().splitlines()[(error.where.line or 0) - 1]


@pytest.mark.parametrize(("settings", "line"), [({"rank": 8, "alpha": -3}, "alpha: -3"), ({"rnk": 8}, "rnk: 8")])
def test_a_wrong_setting_of_a_rung_is_an_error_at_its_line(settings: dict[str, Any], line: str) -> None:
    table("a.csv", labelled(40))
    task({"train": "a.csv"}, rungs={"features": {"encoder": "embedded-encoder"}, "lora": settings})
    error = refused()
    assert error.where is not None
    assert Path("task.yaml").read_text().splitlines()[(error.where.line or 0) - 1].strip() == line


# ---- what would mislead


def test_a_rare_label_is_in_every_split_and_named() -> None:
    rows = [{"text": text, "label": "fraud" if i % 100 == 7 else "ok"} for i, text in enumerate(texts(1000))]
    table("a.csv", rows)
    task({"train": "a.csv"})
    report = json.loads(check("--json").stdout)
    assert all(report["labels"][split]["fraud"] >= 1 for split in ("train", "validation", "test"))
    told = report["warnings"]
    assert only(told, "fewer than 5").endswith(f"'fraud' ({report['labels']['test']['fraud']})")
    assert only(told, "always answering 'ok' is right in 9").endswith("accuracy says little about the other labels")
    task({"train": "a.csv"}, metric="exact_match")
    assert not [text for text in found()[1] if "accuracy" in text]


def test_labels_that_a_split_lacks_are_named() -> None:
    table("a.csv", labelled(300, "abc"))
    table("b.csv", labelled(60, "ab", 1))
    table("c.csv", labelled(60, "abcd", 2))
    task({"train": "a.csv", "validation": "c.csv", "test": "b.csv"})
    told = found()[1]
    assert (
        only(told, "no training row") == "1 of 4 labels have no training row: 'd': only prompting can answer with them"
    )
    assert only(told, "no test row").startswith("2 of 4 labels have no test row: 'c', 'd'")
    assert not [text for text in told if "no validation row" in text]


@pytest.mark.parametrize("given", [("test",), ("validation",), ("validation", "test")])
def test_groups_in_two_given_files_are_counted_and_named(given: tuple[str, ...]) -> None:
    def rows(start: int) -> list[dict[str, Any]]:
        return [{**row, "patient": f"p{i % 10}"} for i, row in enumerate(labelled(150, start=start))]

    table("train.csv", rows(0))
    for number, name in enumerate(given, start=1):
        table(f"{name}.csv", rows(number))
    data = {"train": "train.csv", **{name: f"{name}.csv" for name in given}, "split": {"group": "patient"}}
    task(data)
    told = [text for text in found()[1] if "groups of 'patient'" in text]
    assert len(told) == (3 if len(given) == 2 else 1)
    assert told[0].startswith(f"10 groups of 'patient' are in both train and {given[0]}: 'p0', 'p1', 'p2'")
    assert f"such as train.csv:2 and {given[0]}.csv:2" in told[0]
    if given == ("test",):
        table(
            "train.csv", [*rows(0), *({**row, "patient": f"q{i % 12}"} for i, row in enumerate(labelled(240, start=5)))]
        )
        task({**data, "duplicates": "drop"})
        told = found()[1]
        assert not [text for text in told if "groups of" in text]
        assert only(told, "dropped").startswith("train: 150 of ")
        assert "its group is also in test" in only(told, "dropped")


def test_what_is_dropped_repeated_or_contradictory_is_never_fine() -> None:
    rows = labelled(400)
    table("a.csv", [*rows, rows[0], {**rows[1], "label": "a"}, {"text": "x", "label": ""}])
    task({"train": "a.csv", **HOLDOUT})
    problems, told = found()
    assert problems == []
    assert any("1 of" in text and "repeated row: a.csv:402" in text for text in told)
    assert any("empty output: a.csv:404" in text for text in told)
    assert "1 rows repeat an input with another expected answer: a.csv:3 and a.csv:403" in told


def test_rows_left_out_by_a_limit_are_no_warning() -> None:
    table("a.csv", labelled(400))
    task({"train": "a.csv", "train_rows": 50, **HOLDOUT})
    assert found() == ([], [])
    assert "left out, over the limit" in check().stdout


def test_listed_labels_may_differ_in_case_only() -> None:
    rows = [{"text": text, "label": ("US", "us")[i % 2]} for i, text in enumerate(texts(400))]
    table("a.csv", rows)
    task({"train": "a.csv", **HOLDOUT})
    error = refused()
    assert (error.code, error.hint) == ("label-spelling", "write both the same way, or list both in `output.labels`")
    task({"train": "a.csv", **HOLDOUT}, output={"column": "label", "kind": "category", "labels": ["US", "us"]})
    assert found() == ([], [])
    table("a.csv", [*rows, {"text": "new", "label": "Us"}])
    error = refused()
    assert error.code == "label-spelling"
    assert "'us' (a.csv:3) and 'Us' (a.csv:402)" in error.message


@pytest.mark.parametrize(
    ("labels", "same"),
    [
        (("caf\u00e9", "cafe\u0301"), True), (("ok", "ok\u200b"), True), (("ok", "o\u00adk"), True),
        (("1", "1.0"), True), (("cafe", "caf\u00e9"), False),
    ],
)  # fmt: skip
def test_labels_that_differ_in_what_cannot_be_seen(labels: tuple[str, str], same: bool) -> None:
    table("a.csv", [{"text": text, "label": labels[i % 2]} for i, text in enumerate(texts(400))])
    task({"train": "a.csv", **HOLDOUT})
    if same:
        assert refused().code == "label-spelling"
    else:
        assert found() == ([], [])


CATEGORIES = ("Electronics", "Books", "Toys")


@pytest.mark.parametrize(
    ("column", "part"),
    [
        (lambda i, label: f"{label} > {('Phones', 'Cables')[i % 2]}", "contains the answer in 400 of 400 rows"),
        (
            lambda i, label: f"shelf {CATEGORIES.index(label)}",
            "determines the answer: all rows with one of its 3 values",
        ),
        (lambda i, label: f"bought on day {i % 7}", None),
    ],
)
def test_an_input_that_gives_the_answer_away_is_named(column: Any, part: str | None) -> None:
    rows = [{"text": text, "label": CATEGORIES[i % 3]} for i, text in enumerate(texts(400))]
    table("a.csv", [{**row, "other": column(i, row["label"])} for i, row in enumerate(rows)])
    task({"train": "a.csv", **HOLDOUT}, inputs=["text", "other"])
    told = found()[1]
    assert [("'other'" in text, part is not None and part in text) for text in told] == [(True, True)] * bool(part)


@pytest.mark.parametrize(
    ("output", "given"),
    [
        ({"kind": "multilabel"}, lambda i: (["red", f"size {i % 5}"], f"Size {i % 5}; red")),
        ({"kind": "multilabel"}, lambda i: (["red", f"size {i % 5}"], ["red", f"size {i % 5}"])),
        ({"kind": "number"}, lambda i: (f"{i}.5", f"{i}.50")),
        ({"kind": "json"}, lambda i: ({"x": i, "n": "a"}, {"n": "A", "x": i})),
        ({"kind": "ranking"}, lambda i: (f"topic {i % 5}", f"it is topic {i % 5}")),
    ],
)
def test_the_answer_in_another_form_is_given_away_in_every_kind(output: dict[str, Any], given: Any) -> None:
    rows = [{"text": text, "label": given(i)[0], "other": given(i)[1]} for i, text in enumerate(texts(400))]
    Path("a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task({"train": "a.jsonl", **HOLDOUT}, inputs=["text", "other"], output={"column": "label", **output})
    assert " the answer in 400 of 400 rows" in only(found()[1], "the input 'other' ")
    for i, row in enumerate(rows):
        row["other"] = given(i + 1 + i % 3)[1]
    Path("a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [text for text in found()[1] if "'other'" in text] == []


@pytest.mark.parametrize(
    ("system", "given"),
    [("The answer is yes {i}.", True), ("Say yes 0 to yes 399.", False), ("A note that has yes {i} in it", False)],
)
def test_an_answer_in_the_system_turn_is_named(system: str, given: bool) -> None:
    rows = []
    for i, text in enumerate(texts(400)):
        said = system.format(i=i) + (f" {text}" if "note" in system else "")
        turns = [("system", said), ("user", text), ("assistant", f"yes {i}")]
        rows.append({"text": [{"role": role, "content": content} for role, content in turns]})
    Path("a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task({"train": "a.jsonl", **HOLDOUT}, output={"kind": "chat"})
    told = ["the system text of 'text' contains the answer in 400 of 400 rows: is it known beforehand?"]
    assert [text for text in found()[1] if "answer in" in text] == told * given


def test_answers_that_are_quotes_of_the_input_give_nothing_away() -> None:
    rows = [{"text": text, "label": " ".join(text.split()[1:3])} for text in texts(400)]
    table("a.csv", rows)
    task({"train": "a.csv", **HOLDOUT}, output={"column": "label", "kind": "text"})
    assert found() == ([], [])
    table("a.csv", [{"text": row["text"], "label": row["text"].upper()} for row in rows])
    assert only(found()[1], "'text' is the answer in 400 of 400 rows")


def test_an_answer_that_the_pattern_does_not_allow_is_an_error() -> None:
    rows = [{"text": text, "label": f"20{i % 100:02}"} for i, text in enumerate(texts(400))]
    output = {"column": "label", "kind": "text", "regex": r"\d{4}"}
    task({"train": "a.csv", **HOLDOUT}, output=output)
    table("a.csv", rows)
    assert found() == ([], [])
    table("a.csv", [*rows, {"text": "new", "label": "in 2021"}, {"text": "newer", "label": "202"}])
    error = refused()
    assert error.code == "bad-reference"
    assert error.message == (
        r"a.csv:402: the expected answer 'in 2021' does not fit `output.regex`, '\\d{4}': it may not begin with "
        "`in 2021` (1 more row has wrong values: 403)"
    )
    task({"train": "a.csv"}, output={**output, "regex": "[0-9"})
    error = refused()
    assert (error.code, error.where is not None) == ("bad-constraint", True)


def test_expected_answers_that_are_longer_than_what_may_be_written() -> None:
    rows = [{"text": text, "label": text if i % 100 == 3 else "short"} for i, text in enumerate(texts(400))]
    table("a.csv", rows)
    task({"train": "a.csv", **HOLDOUT}, output={"column": "label", "kind": "text", "max_tokens": 6})
    told = only(found()[1], "expected answers")
    assert told.startswith("4 of 400 expected answers have more tokens than `output.max_tokens`, 6, so no answer")
    assert {"a.csv:5", "a.csv:105", "a.csv:205", "a.csv:305"} == set(told.split(": ")[1].split(". ")[0].split(", "))
    task({"train": "a.csv", **HOLDOUT}, output={"column": "label", "kind": "text", "max_tokens": 60})
    assert found() == ([], [])


def test_thoughts_that_nothing_learns_are_counted() -> None:
    rows = []
    for i, text in enumerate(texts(400)):
        thought = {"reasoning_content": "It is short."} if i % 4 == 0 else {}
        turns = [{"role": "user", "content": text}, {"role": "assistant", "content": f"done {i}", **thought}]
        rows.append(json.dumps({"messages": turns}))
    Path("a.jsonl").write_text("\n".join(rows))
    task({"train": "a.jsonl", "split": {"method": "folds"}}, inputs=["messages"], output={"kind": "chat"})
    assert found() == (
        [],
        [
            "100 of 400 training answers have thoughts, and nothing learns them: with a model that thinks, "
            "set `thinking: on`"
        ],
    )


@pytest.mark.parametrize("bare", [0, 1, 400])
def test_answers_without_a_thought_are_counted_where_the_model_is_to_think(
    bare: int, tiny_folder: Path, tmp_path: Path
) -> None:
    model = with_template(tiny_folder, tmp_path / "model", published("qwen3"))
    rows = []
    for i, text in enumerate(texts(400)):
        thought = {"reasoning_content": "It is short."} if i >= bare else {}
        turns = [{"role": "user", "content": text}, {"role": "assistant", "content": f"done {i}", **thought}]
        rows.append(json.dumps({"messages": turns}))
    Path("a.jsonl").write_text("\n".join(rows))
    task(
        {"train": "a.jsonl", "split": {"method": "folds"}}, inputs=["messages"], output={"kind": "chat"},
        model=str(model), thinking="on",
    )  # fmt: skip
    warning = (
        f"{bare} of 400 training answers have no thought: what is trained on them answers without thinking, although "
        "the task says `thinking: on`. Give every answer its `reasoning_content`, or leave `thinking` out"
    )
    assert found() == ([], [warning] if bare else [])


def test_inputs_that_are_longer_than_what_reads_them_are_counted() -> None:
    rows = labelled(400)
    rows[0]["text"] += " so" * 300
    rows[1]["text"] += " ".join(str(number) for number in range(9000))
    table("a.csv", rows)
    task({"train": "a.csv", **HOLDOUT})
    told = found()[1]
    (note,) = json.loads(check("--json").stdout)["notes"]
    assert note.startswith("2 of 400 inputs have more than the 254 tokens that embedded-encoder reads: ")
    assert note.endswith("It reads them in windows")
    assert note in check().stdout
    assert len(told) == 1
    assert only(told, "do not fit the 8,192 tokens").startswith("1 of 400 rows do not fit")
    assert "a.csv:3. A climb stops at them" in only(told, "do not fit the 8,192 tokens")


PAIRS = [
    ("What do I do if my card is lost?", "What do I do if my card is lost ?"),
    ("How old do you have to be to open an account?", "How old do you have to be to open an account"),
    ("Where can I see the exchange rate of today?", "where can I see todays exchange rate?"),
]


@pytest.mark.parametrize("method", ["files", "folds"])
def test_near_duplicates_of_test_rows_are_counted(method: str) -> None:
    train, test = labelled(60), labelled(60, start=1)
    for i, (one, other) in enumerate(PAIRS):
        train[2 * i]["text"], test[2 * i]["text"] = one, other
    table("a.csv", train)
    table("b.csv", test)
    data: dict[str, Any] = {"train": "a.csv", "validation": "c.csv", "test": "b.csv"}
    table("c.csv", labelled(60, start=2))
    task(data if method == "files" else {"train": ["a.csv", "b.csv"], "split": {"method": "folds", "seed": 1}})
    told = only(found()[1], "near-duplicate")
    if method == "files":
        assert told.startswith(
            "3 of 60 test rows (5.0%) have a near-duplicate among the training rows (cosine from 0.95"
        )
        assert "b.csv:2 and a.csv:2" in told
    else:
        assert " of 120 labelled rows" in told
        assert "in another fold" in told


def test_near_duplicates_are_counted_without_an_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNG_CACHE", str(tmp_path / "empty"))
    train, test = labelled(60), labelled(60, start=1)
    train[4]["text"], test[4]["text"] = PAIRS[0]
    table("a.csv", train)
    table("b.csv", test)
    table("c.csv", labelled(60, start=2))
    task({"train": "a.csv", "validation": "c.csv", "test": "b.csv"})
    told = only(found()[1], "near-duplicate")
    assert told.startswith("1 of 60 test rows (1.7%)")
    assert "TF-IDF vectors of characters" in told


def test_a_value_of_set_is_text_where_the_key_takes_text() -> None:
    table("a.csv", labelled(400))
    task({"train": "a.csv", **HOLDOUT})
    assert found("--set", "instruction=Answer: yes or no", "--set", "name=2024") == ([], [])
    assert json.loads(check("--json", "--set", "name=2024").stdout)["task"] == "2024"


def test_inputs_that_are_no_list_have_a_remedy() -> None:
    table("a.csv", labelled(40))
    task({"train": "a.csv"}, inputs="text")
    assert refused().hint == "write a list: [text]"


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (["a|b", "a", "b|c"], r"labels hold '|': 'a|b', 'b|c'. If these are several, set `output.separator: '|'`"),
        (['["a", "b"]', "a|b", "c"], r"labels hold '|': 'a|b'. If these are several"),
        (["a, b", "a", "b"], "labels hold ',': 'a, b'. If these are several"),
        (["a", "b", "c"], "no row has two labels: if a cell holds several, set `output.separator`, which is ';'"),
        (["a;b", "food, drink", "c"], ""),
        (["a;b", "b", "c/d"], ""),
    ],
)
def test_several_labels_with_another_separator_are_named(cells: list[str], said: str) -> None:
    rows = [{"text": text, "tags": cells[i % len(cells)]} for i, text in enumerate(texts(300))]
    table("t.csv", rows)
    task({"train": "t.csv"}, output={"column": "tags", "kind": "multilabel"})
    _, warnings = found()
    assert [warning.partition(said)[1] for warning in warnings if "separator" in warning] == ([said] if said else [])


def test_an_error_of_a_row_is_an_error_of_the_check() -> None:
    table("a.csv", labelled(40))
    task({"train": "a.csv"}, inputs=["txt"])
    error = refused()
    assert isinstance(error, DataError)
    assert error.code == "missing-column"


def test_a_test_file_beside_folds_is_judged_too() -> None:
    table("a.csv", labelled(300))
    table("b.csv", labelled(4, start=1))
    task({"train": "a.csv", "test": "b.csv", "split": {"method": "folds"}})
    problems, _ = found()
    assert problems == ["4 test rows can never show a difference: a gain of 10 points needs about 190"]


JUDGE = {"name": "judge", "model": "damaged"}
DAMAGED: list[tuple[dict[str, Any], str]] = [
    ({"model": "damaged"}, "model: damaged"),
    ({"model": ["embedded", "damaged"]}, "- damaged"),
    ({"rungs": {"prompt-search": {"writer": "damaged"}}}, "writer: damaged"),
    ({"rungs": {"label-descriptions": {"writer": "damaged"}}}, "writer: damaged"),
    ({"rungs": {"gepa": {"reflection": "damaged"}}}, "reflection: damaged"),
    ({"rungs": {"rl": {"judge_model": "damaged"}}}, "judge_model: damaged"),
    ({"rungs": {"retrieval": {"reranker": "damaged"}}}, "reranker: damaged"),
    ({"rungs": {"features": {"encoder": "damaged"}}}, "encoder: damaged"),
    ({"metric": JUDGE, "output": {"column": "label", "kind": "text"}}, "model: damaged"),
]


@pytest.mark.parametrize(("settings", "line"), DAMAGED, ids=[str(settings) for settings, _ in DAMAGED])
def test_every_model_that_the_task_names_is_verified(
    settings: dict[str, Any], line: str, tmp_path: Path, tiny_folder: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "damaged"
    shutil.copytree(tiny_folder, folder)
    tensors = {k: t for k, t in load_file(folder / "model.safetensors").items() if "layers.0." not in k}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    table("train.csv", labelled(60))
    task({"train": "train.csv"}, **settings)
    raised = check().exception
    assert isinstance(raised, ModelError)
    assert (raised.code, "tensors are missing, such as" in str(raised)) == ("model-damaged", True)
    assert raised.where is not None
    assert (raised.where.text or "").strip() == line


def test_a_model_that_is_nowhere_is_found_and_one_to_download_is_not_fetched() -> None:
    table("train.csv", labelled(60))
    task({"train": "train.csv"}, rungs={"prompt-search": {"writer": "org/to-download"}})
    assert check().exception is None
    task({"train": "train.csv"}, rungs={"prompt-search": {"writer": "./nowhere"}})
    raised = check().exception
    assert isinstance(raised, ModelError)
    assert raised.code == "unknown-model"


def asked(corpus: Any, **data: Any) -> None:
    """Questions about the documents in `docs`; questions.csv lies among them."""
    Path("docs").mkdir(exist_ok=True)
    Path("docs/leave.md").write_text("# Leave\n\nLeave is 30 days a year.\n")
    Path("docs/photo.xyz").write_text("?")
    table("docs/questions.csv", [{"text": text, "label": text[::-1]} for text in texts(60)])
    task(data, output={"column": "label", "kind": "text"}, corpus={"files": corpus})


def test_documents_that_are_left_out_are_warned_of() -> None:
    asked("docs/*.md", train="docs/questions.csv")
    assert found() == ([], [])
    Path("docs/empty.md").touch()
    assert found()[1] == ["left out of the documents: docs/empty.md: is empty"]
    asked(["docs/*.md", "docs/photo.xyz"], train="docs/questions.csv")
    warned = "docs/empty.md: is empty; docs/photo.xyz: files of kind .xyz are not read"
    assert found()[1] == [f"left out of the documents: {warned}"]


@pytest.mark.parametrize("corpus", ["docs/", "docs/*", "docs/questions.csv", ["docs/leave.md", "./docs/../docs/*.csv"]])
def test_rows_that_are_measured_are_no_documents(corpus: Any) -> None:
    asked(corpus, train="docs/questions.csv")
    error = refused()
    assert error.code == "rows-in-corpus"
    assert "the documents hold docs/questions.csv, the rows of `data.train`" in str(error)
    assert "task.yaml:" in str(error)


def test_training_rows_may_be_documents_where_the_measured_rows_are_elsewhere() -> None:
    files = {"validation": "validation.csv", "test": "test.csv"}
    for place, name in enumerate(files.values()):
        table(name, [{"text": text, "label": text[::-1]} for text in texts(30, start=place + 1)])
    asked("docs/questions.csv", train="docs/questions.csv", **files)
    assert found()[0] == []
    asked(["docs/questions.csv", "test.csv"], train="docs/questions.csv", **files)
    assert "the documents hold test.csv, the rows of `data.test`" in str(refused())


@pytest.mark.parametrize(
    ("corpus", "code"),
    [("nowhere/", "no-such-file"), ("docs/*.txt", "no-such-file"), ("docs/photo.xyz", "no-documents")],
)
def test_documents_that_are_not_there_are_found(corpus: str, code: str) -> None:
    asked(corpus, train="docs/questions.csv")
    assert refused().code == code


@pytest.mark.parametrize("form", ["faq", "copy", "zipped", "chinese", "answers", "questions"])
def test_measured_rows_that_stand_in_a_document_are_counted(form: str) -> None:
    asked("docs/*.md", train="questions.csv")
    rows = [{"text": f"What is the limit of {text}?", "label": f"{i} euros"} for i, text in enumerate(texts(60))]
    if form == "chinese":
        rows = [{"text": f"套餐{i}的限额是多少?", "label": f"{i}欧元"} for i in range(60)]
    table("questions.csv", rows)
    task({"train": "questions.csv"}, output={"column": "label", "kind": "text"}, corpus={"files": "docs/"})
    Path("docs/questions.csv").unlink()
    Path("docs/photo.xyz").unlink()
    if form == "copy":
        shutil.copy("questions.csv", "docs/other.csv")
    elif form == "zipped":
        text = "\n".join(json.dumps({"q": row["text"], "a": row["label"]}) for row in rows)
        Path("docs/x.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    else:
        lines = {"questions": "**{text}**\nSee page {label!s:.0}", "answers": "It is {label}."}
        form_of = lines.get(form, "**{text}**\n\nIt is {label}.\n")
        Path("docs/faq.md").write_text("\n".join(form_of.format(**row) for row in rows))
    told = [text for text in found()[1] if "word for word" in text]
    if form in ("answers", "questions"):
        assert told == []
    else:
        assert told[0].startswith("60 of 60 measured rows (100.0%) have their input and expected answer word for word")


def test_preferences_are_no_documents() -> None:
    table("questions.csv", [{"text": text, "label": text[::-1]} for text in texts(60)])
    asked("docs/", train="questions.csv", preferences="docs/pairs.csv")
    Path("docs/questions.csv").unlink()
    table("docs/pairs.csv", [{"text": text, "chosen": "yes", "rejected": "no"} for text in texts(60)])
    assert "the documents hold docs/pairs.csv, the rows of `data.preferences`" in str(refused())
