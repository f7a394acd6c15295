"""Preferences as data: their forms, their columns, what is dropped, and that nothing about a test row is learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rung.data.preferences import figures
from rung.data.rows import Data, Preference
from rung.errors import ConfigError, DataError
from rung.task import Task

USER, GOOD, BAD = ({"role": r, "content": c} for r, c in (("user", "Hi"), ("assistant", "Hello"), ("assistant", "No")))
HH = "\n\nHuman: Hi\n\nAssistant: "
TEXT = {"inputs": ["q"], "output": {"kind": "text", "column": "a"}}
CHAT = {"inputs": ["messages"], "output": {"kind": "chat"}}
CATEGORY = {"inputs": ["q"], "output": {"kind": "category", "column": "a"}}


def task_of(preferences: Any, shape: dict[str, Any], rows: Any = None, **data: Any) -> Task:
    if rows is None and shape is CHAT:
        rows = [{"messages": [{**USER, "content": f"row {i}"}, GOOD]} for i in range(20)]
    rows = rows or [{"q": f"row {i}", "a": "ab"[i % 2]} for i in range(20)]
    return Task(name="t", instruction="Do it.", **shape, data={"train": rows, "preferences": preferences, **data})


def read(preferences: Any, shape: dict[str, Any] = TEXT, **data: Any) -> Data:
    return task_of(preferences, shape, **data).read()


def texts(preferences: tuple[Preference, ...]) -> list[tuple[str | None, str | None]]:
    return [
        (each.chosen and each.chosen.outputs[0], each.rejected and each.rejected.outputs[0]) for each in preferences
    ]


PAIRS = [
    {"q": "Hi", "chosen": "Hello", "rejected": "No"},
    {"q": [USER], "chosen": [GOOD], "rejected": [BAD]},
    {"q": "Hi", "first": "No", "second": "Hello", "preference": "second"},
    {"q": "Hi", "response1": "Hello", "response2": "No", "winner": "1"},
]
CONVERSATIONS = [
    {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
    {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    {"prompt": "Hi", "chosen": "Hello", "rejected": "No"},
    {"prompt": "Hi", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    {"messages": [USER], "chosen": GOOD, "rejected": BAD},
    {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    {"chosen": f"{HH}Hello", "rejected": f"{HH}No"},
]


@pytest.mark.parametrize(("row", "shape"), [*((row, TEXT) for row in PAIRS), *((row, CHAT) for row in CONVERSATIONS)])
def test_a_pair_has_two_examples_of_the_same_inputs(row: dict[str, Any], shape: dict[str, Any]) -> None:
    (found,) = (data := read([row], shape)).preferences
    assert texts(data.preferences) == [("Hello", "No")]
    assert found.pair is not None
    inputs = {"messages": [USER]} if shape is CHAT else {"q": "Hi"}
    assert [each.inputs for each in found.pair] == [inputs, inputs]
    assert found.pair[0].id == found.pair[1].id


def test_calls_of_tools_are_kept() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    (found,) = read([{"prompt": [USER], "chosen": [call], "rejected": [BAD]}], CHAT).preferences
    assert found.chosen is not None
    assert found.chosen.turn is not None
    assert found.chosen.turn["tool_calls"][0]["function"] == {"name": "f", "arguments": {}}


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [
        ([{"completion": "x", "label": True}, {"completion": "y", "label": "false"}], {}, [("x", None), (None, "y")]),
        ([{"a": "x", "thumbs_up": 1}, {"a": "y", "thumbs_up": 0.0}], {}, [("x", None), (None, "y")]),
        ([{"a": "x", "ok": "no"}], {"good": "ok"}, [(None, "x")]),
        ([{"a": "x", "n": 4}, {"a": "y", "n": "3.5"}], {"rating": "n", "good_from": 4}, [("x", None), (None, "y")]),
        ([{"a": "x", "rating": 4}, {"a": "y", "rating": 1}, {"a": "z", "rating": 5}], {}, [("z", "y")]),
        ([{"a": "x", "rating": 4}, {"a": "y", "rating": 3}], {"rating": "rating", "margin": 2}, []),
        ([{"a": "x", "rating": "NaN"}, {"a": "y", "rating": "5"}, {"a": "z", "rating": "nan"}], {}, []),
    ],
)
def test_verdicts_and_ratings(rows: list[Any], columns: dict[str, Any], expected: list[Any]) -> None:
    rows = [{"q": "Hi", **row} for row in rows]
    data = read({"files": rows, **columns})
    assert texts(data.preferences) == expected
    kept, dropped = (data.report.splits["preferences"].kept, data.report.splits["preferences"].dropped)
    assert kept == len(expected)
    used = sum(2 if None not in each else 1 for each in expected)
    assert sum(map(len, dropped.values())) == len(rows) - used


def test_a_verdict_on_a_whole_conversation() -> None:
    rows = [{"messages": [USER, GOOD], "label": True}, {"messages": [USER, BAD], "label": False}]
    assert texts(read(rows, CHAT).preferences) == [("Hello", None), (None, "No")]


def test_what_says_nothing_is_dropped_with_its_reason() -> None:
    rows = [
        {"q": "tie", "chosen": "same ", "rejected": "same"},
        {"q": "twice", "chosen": "x", "rejected": "y"},
        {"q": "Twice", "chosen": "x", "rejected": "y"},
        {"q": "torn", "chosen": "x", "rejected": "y"},
        {"q": "torn", "chosen": "y", "rejected": "x"},
        {"q": "", "chosen": "x", "rejected": "y"},
        {"q": "none", "chosen": None, "rejected": "y"},
    ]
    data = read(rows)
    assert texts(data.preferences) == [("x", "y")]
    assert data.report.splits["preferences"].dropped == {
        "both answers are equal": ["preference row 1"],
        "repeated preference": ["preference row 3"],
        "people disagree about it": ["preference row 4", "preference row 5"],
        "empty input": ["preference row 6"],
        "empty answer": ["preference row 7"],
    }
    assert "preferences: 2 of 7 rows dropped, people disagree about it" in " ".join(data.report.warnings)


def test_raters_vote_and_must_not_contradict_each_other() -> None:
    votes = [(1, 1, 0), (2, 2, 2), (1, 2, 1), (0, 0, 0)]
    rows = [
        {"q": f"q{i}", "one": "x", "two": "y", **dict(zip("abc", each, strict=True))} for i, each in enumerate(votes)
    ]
    data = read({"files": rows, "first": "one", "second": "two", "preferred": ["a", "b", "c"]})
    assert texts(data.preferences) == [("x", "y"), ("y", "x")]
    dropped = {reason: len(rows) for reason, rows in data.report.splits["preferences"].dropped.items()}
    assert dropped == {"people disagree about it": 1, "neither answer is better": 1}
    binary = [{"q": f"q{i}", "first": "x", "second": "y", "preference": i % 2} for i in range(4)]
    with pytest.raises(DataError, match="0 or 1 in every row"):
        read(binary)


@pytest.mark.parametrize(
    ("rows", "shape", "problem"),
    [
        ([{"q": "Hi", "x": 1}], TEXT, "no columns of preferences that are known by name; it has 'q', 'x'"),
        ([{"prompt": "Hi", "chosen": "x", "rejected": "y"}], TEXT, "has no column 'q'"),
        ([{"q": [USER, GOOD, USER], "chosen": "x", "rejected": "y"}], TEXT, "is a conversation, which kind text"),
        ([{"q": "Hi", "chosen": ["x", "z"], "rejected": "y"}], TEXT, "holds 2 answers"),
        ([{"q": "Hi", "chosen": "c", "rejected": "a"}], CATEGORY, "the label 'c' of the better answer"),
        ([{"q": "Hi", "completion": "c", "label": "spam"}], TEXT, "'label' is 'spam', not yes or no"),
        ([{"q": "Hi", "first": "c", "second": "b", "preference": "third"}], TEXT, "says of no answer"),
        ([{"prompt": "Other", "chosen": [USER, GOOD], "rejected": [USER, BAD]}], CHAT, "does not begin with 'prompt'"),
    ],
)
def test_rows_that_are_wrong(rows: list[Any], shape: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        read(rows, shape)


def test_a_worse_answer_need_not_be_one_of_the_kind() -> None:
    rows = [{"q": "r", "chosen": "a", "rejected": "Sure! It is a."}]
    assert texts(read(rows, CATEGORY).preferences) == [("a", "Sure! It is a.")]
    shape = {"inputs": ["q"], "output": {"kind": "json", "column": "a"}}
    rows, own = [{"q": "r", "chosen": '{"n":1}', "rejected": '{"n": 1'}], [{"q": f"{i}", "a": "{}"} for i in range(20)]
    assert texts(task_of(rows, shape, own).read().preferences) == [('{"n": 1}', '{"n": 1')]


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({"chosen": "a"}, "`chosen` has no effect without `rejected`"),
        ({"chosen": "a", "rejected": "b", "good": "c"}, "`good` do not go together"),
        ({"answer": "a"}, "`answer` has no effect without `good` or `rating`"),
        ({"good": "a", "margin": 1.0}, "`margin` has no effect without `rating`"),
        ({"rating": "a", "margin": 1.0, "good_from": 2.0}, "`good_from` and `margin` do not go together"),
        ({"choosen": "a"}, "unknown key 'choosen'"),
    ],
)
def test_sections_that_are_wrong(section: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        task_of({"files": "pairs.jsonl", **section}, TEXT)


def test_rankings_have_no_preferences() -> None:
    with pytest.raises(ConfigError, match="does not go with `kind: ranking`"):
        read(
            [{"q": "x", "chosen": "a", "rejected": "b"}],
            {"inputs": ["q"], "output": {"kind": "ranking", "column": "a"}},
        )


def pairs_of(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{"q": row["q"], "chosen": row["a"], "rejected": f"not {row['a']}"} for row in rows]


def test_preferences_about_validation_and_test_rows_are_not_learned() -> None:
    rows = [{"q": f"row {i}", "a": "ab"[i % 2]} for i in range(50)]
    data = read([*pairs_of(rows), {"q": "new", "chosen": "x", "rejected": "y"}], rows=rows, split={"method": "holdout"})
    held = {row.id for row in (*data.validation, *data.test)}
    assert {each.row.id for each in data.unseen_preferences} == held
    assert {each.row.id for each in data.preferences} - {row.id for row in data.train} == {data.preferences[-1].row.id}
    assert data.report.preferences == {"pairs": 51, "good": 0, "bad": 0, "unseen": len(held)}


def test_no_fold_learns_preferences_about_the_rows_that_it_answers() -> None:
    rows = [{"q": f"row {i}", "a": "ab"[i % 2]} for i in range(50)]
    data = read([*pairs_of(rows), {"q": "new", "chosen": "x", "rejected": "y"}], rows=rows)
    for index in range(5):
        part = data.fold(index)
        assert {each.row.id for each in part.unseen_preferences} == {row.id for row in part.test}
        assert len(part.preferences) == 51 - len(part.test)


def test_groups_stay_together() -> None:
    rows = [{"q": f"row {i}", "a": "ab"[i % 2], "g": f"g{i // 2 % 10}"} for i in range(60)]
    about = [{"q": f"other {i}", "chosen": "x", "rejected": "y", "g": f"g{i}"} for i in range(10)]
    data = read(about, rows=rows, split={"group": "g"})
    for index in range(5):
        answered = {rows[int(row.source.split()[-1]) - 1]["g"] for row in data.fold(index).test}
        unseen = {about[int(each.row.source.split()[-1]) - 1]["g"] for each in data.fold(index).unseen_preferences}
        assert unseen == answered


def test_preferences_about_the_user_s_own_test_file_are_refused_or_dropped() -> None:
    test = [{"q": f"test {i}", "a": "ab"[i % 2]} for i in range(10)]
    with pytest.raises(DataError, match=r"preference row 1 is about the row test row 1 \(test\) \(and 9 more"):
        read(pairs_of(test), test=test)
    data = read(pairs_of(test), test=test, duplicates="drop")
    assert (data.preferences, data.unseen_preferences) == ((), ())
    assert len(data.report.splits["preferences"].dropped["about a row of test"]) == 10


def test_the_data_s_fingerprint_covers_preferences() -> None:
    row = {"q": "Hi", "chosen": "x", "rejected": "y"}
    assert read([row]).fingerprint != read([{**row, "rejected": "z"}]).fingerprint


def test_the_report_says_how_pairs_differ(tmp_path: Path) -> None:
    rows = [{"q": f"q {i}", "chosen": "one two three four", "rejected": "one two three five"} for i in range(3)]
    rows += [{"q": f"long {i}", "chosen": "a b", "rejected": "c d e f g h i j k l m n o"} for i in range(2)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = list(figures(read(str(tmp_path / "p.jsonl")).preferences))
    assert said[0] == "pairs: 18 characters in the better answers and 18 in the worse (medians)"
    assert said[1] == "pairs: the worse answer is longer in 40%; 60% differ in the last word only"
    assert said[2] == "pairs: 25% / 25% / 100% of the words must be edited (quartiles)"


@pytest.mark.parametrize("rating", ["inf", float("-inf"), "N/A"])
def test_a_rating_that_is_no_number_is_refused(rating: Any) -> None:
    rows = [{"q": "Hi", "a": "x", "rating": 4}, {"q": "Hi", "a": "y", "rating": rating}]
    with pytest.raises(DataError, match=f"preference row 2: 'rating' is '{rating}', not a number"):
        read(rows)
