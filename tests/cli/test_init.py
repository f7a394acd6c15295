"""`rung init`: what it guesses from files of every kind, what it says, and what it asks; `rung check` takes each."""

from __future__ import annotations

import csv
import json
import os
import pty
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from openpyxl import Workbook
from test_tasks import run

from rung.cli.options import artifact_or_asking
from rung.data.columns import inferred_schema, look_at, separated
from rung.data.guess import DOCUMENTS, guess_task
from rung.data.rows import NOT_IN_DOCUMENTS
from rung.engines import opening
from rung.errors import ArtifactError, ConfigError, DataError, RungError
from rung.models import embedded
from rung.retrieval.documents import _READERS, list_sources
from rung.task import Task

USER, GOOD, BAD = ({"role": r, "content": c} for r, c in (("user", "Hi"), ("assistant", "Hello"), ("assistant", "No")))
CACHE = os.environ.get("RUNG_CACHE")
CALL = {"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
GENRES = ("drama", "action", "comedy")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUNG_CACHE", str(tmp_path / "cache"))


def lines(name: str, *rows: Any, count: int = 240) -> str:
    """Write rows as JSON lines, each of them in turn, with `{i}` as the number of the row."""
    texts = [json.dumps(rows[i % len(rows)]).replace("{i}", str(i)) for i in range(count)]
    Path(name).write_text("\n".join(texts))
    return name


def table(name: str, header: str, rows: list[list[Any]]) -> str:
    with Path(name).open("w", newline="") as file:
        csv.writer(file).writerows([header.split(","), *rows])
    return name


def tickets(columns: str = "ticket_id,created,channel,priority,subject_and_body,queue") -> str:
    values = {
        "ticket_id": lambda i: f"T{i}", "created": lambda i: f"2026-01-{1 + i % 28:02d}",
        "channel": lambda i: ("email", "chat", "phone")[i % 3], "priority": lambda i: ("a", "b", "c")[i // 3 % 3],
        "subject_and_body": lambda i: f"message number {i} about topic {i % 12}", "queue": lambda i: f"queue_{i % 12}",
    }  # fmt: skip
    return table("tickets.csv", columns, [[values[name](i) for name in columns.split(",")] for i in range(240)])


def genres(i: int) -> list[str]:
    return [genre for bit, genre in enumerate(GENRES) if (i + 1) >> bit & 1] or ["drama"]


def task_of(data: str, *options: str) -> tuple[Task, str]:
    """Run init and check, and load the task."""
    result = run("init", data, *options)
    if result.exception is not None:
        raise result.exception
    checked = run("check", "task.yaml", "--json")
    assert checked.exit_code in (0, 2), checked.exception
    problems = json.loads(checked.stdout).get("problems", [])
    assert [problem for problem in problems if "every row expects the same answer" not in problem] == []  # for brevity
    return Task.load("task.yaml"), result.stdout


def test_a_folder_is_read_again_without_what_init_wrote() -> None:
    Path("t").mkdir()
    Path(tickets()).rename("t/tickets.csv")
    for _ in range(2):
        result = run("init", "t", "--out", "t/task.yaml", "--force")
        assert result.exception is None
    assert "tickets.csv" in Path("t/task.yaml").read_text()


# ---- which column, and which kind


def test_the_answer_is_the_usual_name_and_all_else_is_said() -> None:
    task, said = task_of(tickets())
    assert (task.output.column, task.output.kind, task.inputs) == ("queue", "category", ["subject_and_body"])
    assert "could be it  channel (3 values), priority (3 values)    change it: --output COLUMN" in said
    assert "editors      task.schema.json beside it" in said
    assert "left out     ticket_id (ids), created (dates), channel (3 values), priority (3 values)" in said


def test_without_a_usual_name_the_last_column_of_labels_is_the_answer() -> None:
    task, said = task_of(tickets("ticket_id,channel,priority,subject_and_body"))
    assert task.output.column == "priority"
    assert "could be it  channel (3 values)" in said
    task, _ = task_of(
        table("sms.csv", "v1,v2", [["ham" if i % 3 else "spam", f"some text {i}"] for i in range(90)]), "--force"
    )
    assert (task.output.column, task.inputs) == ("v1", ["v2"])


def test_options_decide() -> None:
    options = ("--output", "priority", "--inputs", "subject_and_body, channel", "--kind", "text")
    task, _ = task_of(tickets(), *options)
    assert (task.output.column, task.output.kind) == ("priority", "text")
    assert task.inputs == ["subject_and_body", "channel"]


@pytest.mark.parametrize(
    ("options", "code", "part"),
    [
        (("--output", "qeue"), "missing-column", "has no column 'qeue'"),
        (("--inputs", "subject"), "missing-column", "has no column 'subject'"),
        (("--kind", "categry"), "unknown-name", "unknown --kind 'categry'"),
        (("--kind", "json"), "bad-option", "'queue' of tickets.csv holds 12 values"),
        (("--kind", "chat"), "bad-option", "no column of tickets.csv holds conversations"),
    ],
)
def test_options_that_cannot_be(options: tuple[str, ...], code: str, part: str) -> None:
    with pytest.raises(RungError) as caught:
        task_of(tickets(), *options)
    assert caught.value.code == code
    assert part in caught.value.message
    assert not Path("task.yaml").exists()


@pytest.mark.parametrize("odd", [None, float("nan"), 7, "", "x" * 200])
@pytest.mark.parametrize("labels", [("billing", "tech"), (0.0, 1.0), (0, 1), (True, False), ("0", "1")])
def test_an_odd_value_does_not_change_the_kind(labels: tuple[Any, Any], odd: Any) -> None:
    cells = [odd if i == 5 else labels[i % 2] for i in range(200)]
    assert look_at("label", cells).holds == "category"


def test_a_null_among_labels_is_left_out_and_said() -> None:
    Path("n.jsonl").write_text(
        "\n".join(json.dumps({"text": f"a ticket {i}", "label": None if i == 5 else "ab"[i % 2]}) for i in range(200))
    )
    task, said = task_of("n.jsonl")
    assert task.output.kind == "category"
    assert "note: rows without an answer are left out: 1 of 200 rows looked at" in said


@pytest.mark.parametrize(
    ("cells", "holds"),
    [
        ([f"T{i}" for i in range(30)], "ids"),
        (list(range(30)), "ids"),
        ([f"2026-01-{1 + i % 28:02d}T10:00:00Z" for i in range(30)], "dates"),
        (["3/4/2026"] * 9 + ["4/4/2026"], "dates"),
        (["same"] * 30, "constant"),
        ([None, ""], "nothing"),
        ([i * 1.7 for i in range(30)], "numbers"),
        ([f"{i},{i}" for i in range(30)], "numbers"),
        ([i % 5 for i in range(30)], "category"),
        ([f"今天天气很好{i}" for i in range(30)], "text"),
        ([f"a sentence {i}" for i in range(30)], "text"),
        ([["One.", f"Two {i}."] for i in range(30)], "text"),
        ([f"{city}, France" for city in ("Paris", "Lyon", "Nice")] * 10, "category"),
        (["Food, drink", "#hash", "a;b", "x"] * 10, "category"),
        ([{"a": 1}] * 9, "json"),
        (['{"a": 1}'] * 9, "json"),
        ([[{"start": 0}]] * 8 + [[]], "json"),
        ([[1], 2.5, {"x": 1}, "a", None] * 9, "mixed"),
        ([1, 2.5, {"x": 1}, "a", "b"] * 9, "mixed"),
        ([b"x"] * 9, "unreadable"),
        (["a", "b"] * 20 + [b"x"], "category"),
    ],
)
def test_what_a_column_holds(cells: list[Any], holds: str) -> None:
    assert look_at("c", cells).holds == holds


def test_cells_of_excel_without_a_text_are_told_as_what_they_are() -> None:
    book = Workbook()
    book.active.append(["text", "label", "sum"])
    for i in range(60):
        book.active.append([f"note number {i}", "#N/A" if i == 4 else "ab"[i % 2], f"=A{i + 2}*2"])
    book.save("a.xlsx")
    said = run("init", "a.xlsx").stdout
    task = Task.load("task.yaml")
    assert (task.inputs, task.output.column, task.output.kind) == (["text"], "label", "category")
    assert "'label' holds in B6 the error #N/A: `rung check` names all such rows" in said
    assert "sum (holds in C2 a formula without its value: open the file in Excel and save it)" in said


def test_an_id_is_known_by_its_name() -> None:
    assert look_at("user_id", [f"u{i % 7}" for i in range(40)]).holds == "ids"
    assert look_at("orderId", [i * 31 % 97 for i in range(40)]).holds == "ids"
    assert look_at("valid", ["yes", "no"] * 20).holds == "category"


# ---- several labels


@pytest.mark.parametrize("separator", [";", "|", ", ", ","])
def test_several_labels_in_a_cell_name_their_separator(separator: str) -> None:
    rows = [[f"film {i} was long", separator.join(genres(i))] for i in range(150)]
    task, said = task_of(table("films.csv", "title,genres", rows))
    assert (task.output.kind, task.output.separator) == ("multilabel", separator.strip())
    assert task.read().labels == tuple(sorted(GENRES))
    assert (f"separator: {separator.strip()}" in said) == (separator != ";")


@pytest.mark.parametrize(
    "write",
    [lambda each: each, json.dumps, str, lambda each: {"choices": each}, lambda each: json.dumps({"choices": each})],
)
def test_lists_in_cells_are_several_labels(write: Any) -> None:
    Path("films.jsonl").write_text(
        "\n".join(json.dumps({"title": f"film {i} was long", "tags": write(genres(i))}) for i in range(60))
    )
    task, _ = task_of("films.jsonl")
    assert task.output.kind == "multilabel"
    assert task.read().labels == tuple(sorted(GENRES))


def test_lists_beside_texts_with_separators() -> None:
    cells = ['["drama"]', '["drama", "action"]', "action|drama"]
    task, _ = task_of(table("m.csv", "text,tags", [[f"film {i} was long", cells[i % 3]] for i in range(150)]))
    assert (task.output.kind, task.output.separator) == ("multilabel", "|")
    assert task.read().labels == ("action", "drama")


def test_labels_that_share_no_part_are_not_split() -> None:
    assert separated(["a;b", "c;d"] * 9, ";") is None
    assert separated(["a;b", "b;c", "a"] * 9, ";") == 3


def test_a_column_for_each_label_is_read() -> None:
    rows = [[f"{i:x}f", f"comment {i} is here", i % 2, i // 2 % 2, int(i % 5 == 0)] for i in range(120)]
    task, said = task_of(table("toxic.csv", "id,comment_text,toxic,obscene,threat", rows))
    assert (task.output.kind, task.output.columns) == ("multilabel", ["toxic", "obscene", "threat"])
    assert "'toxic', 'obscene', 'threat' say 0 or 1" in said
    named = table(
        "named.csv",
        "text,toxic,obscene,threat,label",
        [[f"comment {i} is", *row[2:], "ab"[i % 2]] for i, row in enumerate(rows)],
    )
    task, said = task_of(named, "--force")
    assert task.output.column == "label"
    assert "if each is a label, add `--output toxic,obscene,threat`" in said
    task, _ = task_of(named, "--force", "--output", "toxic,threat")
    assert task.output.columns == ["toxic", "threat"]


# ---- instructions, questions, preferences, conversations


def test_instruction_data_with_optional_columns() -> None:
    task, said = task_of(lines(
        "dolly.jsonl",
        {"instruction": "Tell me of {i}", "context": "", "response": "It is about {i}.", "category": "open"},
        {"instruction": "Tell me of {i}", "context": "The place {i}.", "response": "It is {i}.", "category": "closed"},
    ))  # fmt: skip
    assert (task.output.column, task.output.kind) == ("response", "text")
    assert task.inputs == ["instruction", "context"]
    assert "left out     category (2 values)" in said
    task, said = task_of(lines("alpaca.jsonl", {
        "instruction": "Tell of {i}", "input": "in {i} words", "output": "It is about {i} and more.",
        "text": "Below is. ### Instruction: Tell of {i} ### Response: It is about {i} and more.",
    }), "--force")  # fmt: skip
    assert (task.output.column, task.inputs) == ("output", ["instruction", "input"])
    assert "text (contains the answer)" in said


def test_an_instruction_that_never_changes_is_the_task_s() -> None:
    task, _ = task_of(
        lines("t.jsonl", {"instruction": "Put it in French.", "input": "word number {i}", "output": "mot {i}"})
    )
    assert (task.instruction, task.inputs) == ("Put it in French.", ["input"])


def test_questions_on_a_text() -> None:
    row = {"id": "5733{i}", "title": "Super_Bowl", "context": "Ann of Kiel wrote {i}.", "question": "Who wrote {i}?"}
    answers = ({"text": ["Ann of Kiel"], "answer_start": [0]}, {"text": [], "answer_start": []})
    task, said = task_of(lines("squad.jsonl", *({**row, "answers": each} for each in answers)))
    assert (task.output.column, task.output.kind, task.inputs) == ("answers.text", "text", ["context", "question"])
    assert "rows without an answer are left out: 120 of 240" in said


HH = "\n\nHuman: {i}?\n\nAssistant: "
TEXT = [{"type": "text", "text": "{i}"}]
ASK = {**USER, "content": TEXT}
PAIRS = [
    ({"prompt": "question {i} ?", "chosen": "good {i}", "rejected": "bad {i}"}, ["prompt"], "text", "chosen"),
    ({"question": "{i}?", "system": "", "chosen": "yes", "rejected": "no"}, ["question"], "text", "chosen"),
    ({"prompt": [USER, {**USER, "content": "{i}"}], "chosen": [GOOD], "rejected": [BAD]}, ["prompt"], "chat", "chosen"),
    ({"prompt": "{i}", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, ["chosen"], "chat", None),
    ({"chosen": f"{HH}yes", "rejected": f"{HH}no"}, ["chosen"], "chat", None),
]  # fmt: skip


@pytest.mark.parametrize(("row", "inputs", "kind", "column"), PAIRS)
def test_preference_pairs_learn_the_chosen_answer(row: Any, inputs: list[str], kind: str, column: str | None) -> None:
    task, said = task_of(lines("pairs.jsonl", row))
    assert (task.inputs, task.output.kind, task.output.column) == (inputs, kind, column)
    assert task.data.preferences is not None
    assert (task.data.preferences.chosen, task.data.preferences.rejected) == ("chosen", "rejected")
    assert "'rejected' is kept in `data.preferences`, for preference training" in said
    data = task.read()
    assert data.report.preferences["pairs"] == 240
    assert {each.row.id for each in (*data.preferences, *data.unseen_preferences)} == {
        row.id for row in (*data.train, *data.validation, *data.test)
    }


@pytest.mark.parametrize("names", [("first", "second"), ("response1", "response2")])
@pytest.mark.parametrize("votes", [{"preference": "first"}, {"rater1": 1, "rater2": 2}, {"winner": "tie"}])
def test_two_answers_and_who_is_better_are_no_rows(names: tuple[str, str], votes: dict[str, Any]) -> None:
    rows = [{"instruction": f"say {i} to me", names[0]: f"{i} is said", names[1]: f"I say {i}", **votes}
            for i in range(60)]  # fmt: skip
    rows[7] |= dict.fromkeys(votes, "second" if "rater1" not in votes else 2)
    lines("pairs.jsonl", *rows, count=60)
    error = run("init", "pairs.jsonl").exception
    assert (error.code, "says which of two answers is better" in str(error)) == ("bad-row", True)
    shown = "[rater1, rater2]" if len(votes) == 2 else next(iter(votes))
    keys = f"files: pairs.jsonl, first: {names[0]}, second: {names[1]}, preferred: {shown}"
    assert f"preferences: {{{keys}}}" in error.hint
    assert task_of("pairs.jsonl", "--output", names[0], "--inputs", "instruction")[0].output.kind == "text"


def test_pairs_without_a_prompt_say_so() -> None:
    with pytest.raises(DataError, match="has preference pairs, but no prompt"):
        task_of(lines("pairs.jsonl", {"chosen": "good {i} one", "rejected": "bad {i} one"}))


def test_verdicts_and_ratings_leave_bad_answers_out() -> None:
    row = {"prompt": "question {i} is", "completion": "answer number {i}"}
    task, said = task_of(lines("kto.jsonl", {**row, "label": True}, {**row, "label": False}))
    assert (task.output.column, task.output.approved) == ("completion", "label")
    assert "only rows whose 'label' is true are learned" in said
    task, _ = task_of(lines("rated.jsonl", *({**row, "rating": rating} for rating in range(1, 6))), "--force")
    assert (task.output.approved, task.output.approved_from) == ("rating", 4)
    chats = {"prompt": [{**USER, "content": "{i}"}], "completion": [GOOD]}
    task, _ = task_of(lines("chats.jsonl", {**chats, "label": True}, {**chats, "label": False}), "--force")
    assert (task.output.kind, task.output.column, task.output.approved) == ("chat", "completion", "label")


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "system", "content": "Be kind."}, {**USER, "content": "what is {i}?"}, GOOD]},
        {"id": "x{i}", "conversations": [{"from": "human", "value": "what is {i}?"}, {"from": "gpt", "value": "Hi"}]},
        {"messages": [{"role": "developer", "content": "x"}, {"role": "user", "content": TEXT}, GOOD]},
        {"messages": [{**USER, "content": "{i}"}, {"role": "assistant", "content": None, "tool_calls": [CALL]}],
         "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]},
        {"id": "{i}", "messages": json.dumps([{**USER, "content": "hi {i}"}, GOOD])},
    ],
)  # fmt: skip
def test_conversations_of_every_format(row: dict[str, Any]) -> None:
    task, _ = task_of(lines("chats.jsonl", row))
    assert (task.output.kind, task.output.column, task.instruction) == ("chat", None, "")
    assert task.inputs == [next(name for name in row if name in ("messages", "conversations"))]


# ---- records and spans


def test_the_schema_of_records_is_inferred() -> None:
    record = {"total": 1.5, "vendor": "Kim", "when": None, "items": [{"n": 1, "name": "x{i}"}]}
    task, said = task_of(lines(
        "receipts.jsonl", {"note": "Paid {i} on Monday", "record": record},
        {"note": "Paid {i} on Tuesday", "record": {**record, "total": 2, "vendor": "Ann", "when": "{i}", "tip": True}},
    ))  # fmt: skip
    assert task.output.kind == "json"
    assert "schema       receipts.answer.schema.json, inferred from the records" in said
    schema = json.loads(Path("receipts.answer.schema.json").read_text())
    assert schema["properties"] == {
        "total": {"type": "number"}, "vendor": {"type": "string", "enum": ["Kim", "Ann"]},
        "when": {"type": ["string", "null"]},
        "items": {"type": "array", "items": {
            "type": "object", "properties": {"n": {"type": "integer"}, "name": {"type": "string"}},
            "required": ["n", "name"], "additionalProperties": False,
        }},
        "tip": {"type": "boolean"},
    }  # fmt: skip
    assert schema["required"] == ["total", "vendor", "when", "items"]
    with pytest.raises(ConfigError) as caught:
        task_of("receipts.jsonl", "--out", "other.yaml")
    assert caught.value.code == "file-exists"


@pytest.mark.parametrize(
    "values",
    [
        [1, "a", None, 2.5, True],
        [{"a": {"b": None}}, {"a": None}, {}],
        [[], [[1]], [["x"]]],
        [{f"word{i}": i} for i in range(100)],
        ["a", "b"] * 30 + [None],
        [{"x": [1]}, [2], "three"],
    ],
)
def test_every_value_fits_the_inferred_schema(values: list[Any]) -> None:
    schema = inferred_schema(values)
    for value in values:
        jsonschema.validate(value, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"other": object()}, schema)


@pytest.mark.parametrize(
    "row",
    [
        {"text": "Ann of Kiel wrote {i}", "annotations": [{"start": 0, "end": 3, "label": "PER"}]},
        {"id": 1, "text": "Ann of Kiel wrote {i}", "label": [[0, 3, "PER"], [7, 11, "LOC"]]},
        {"text": "Ann of Kiel wrote {i}", "entities": [[0, 3, "PER"]]},
        {"text": "Ann of Kiel wrote {i}", "label": '[{"start": 0, "end": 3, "labels": ["PER"]}]'},
    ],
)
def test_spans_are_records(row: dict[str, Any]) -> None:
    task, said = task_of(lines("spans.jsonl", row))
    assert (task.output.kind, task.inputs) == ("json", ["text"])
    assert len(task.read().train) > 0
    assert isinstance(row.get("label"), str) or "models count characters badly" in said


@pytest.mark.parametrize(
    ("text", "problem", "hint"),
    [
        ('[["Ann", {"entities": [[0, 3, "PER"]]}]]', "expected an object, found list", '"entities"'),
        ('[{"data": {"text": "Ann"}, "annotations": [{"result": [{"value": {}}]}]}]', "Label Studio", "JSON-MIN"),
        ('[{"text": "hello you"}, {"text": "and you"}]', "has only the column text (text)", "--output"),
    ],
)
def test_what_cannot_be_read_has_a_remedy(text: str, problem: str, hint: str) -> None:
    Path("export.json").write_text(text)
    with pytest.raises(DataError) as caught:
        guess_task(Path("export.json"))
    assert problem in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("cells", "output", "first"),
    [
        (["0,05", "1,5", "12,75"], {"decimal": ","}, "0.05"),
        (["1.234,50 EUR", "7,25 EUR", "980 EUR"], {"unit": "EUR", "decimal": ","}, "1234.5"),
        (["$1,234.50", "$7.25", "$980"], {"unit": "$"}, "1234.5"),
        (["1.5%", "7.25%", "98%"], {"unit": "%"}, "1.5"),
        (["1 234", "7", "98.5"], {}, "1234"),
        (["-0.0", "0.5", "2.5"], {}, "0"),
    ],
)
def test_numbers_as_people_write_them(cells: list[str], output: dict[str, str], first: str) -> None:
    task, said = task_of(table("n.csv", "text,price", [[f"note number {i} is", cells[i % 3]] for i in range(60)]))
    given = {name: getattr(task.output, name) for name in task.output.model_fields_set - {"kind", "column"}}
    assert (task.output.kind, given) == ("number", output)
    rows = [row for row in task.read().train if row.source == "n.csv:2"]
    assert [row.outputs for row in rows] == [(first,)]
    assert "decimal mark" not in said


def test_a_decimal_mark_that_may_be_another_is_said() -> None:
    task, said = task_of(table("n.csv", "text,price", [[f"note number {i} is", f"{i + 1}.{i:03d}"] for i in range(60)]))
    assert task.output.decimal == "."
    assert "1.000 is read with the decimal mark `.`; if that is wrong, add `decimal: ','`" in " ".join(said.split())


@pytest.mark.parametrize(
    ("row", "inputs"),
    [
        ({"question": "what is {i} and 1?", "choices": ["{i}", "no", "yes"], "answer": 1}, ["question", "choices"]),
        ({"question": "what is {i} and 1?", "A": "{i}", "B": "yes", "answer": "A"}, ["question", "A", "B"]),
    ],
)
def test_the_choices_of_a_question_are_read(row: dict[str, Any], inputs: list[str]) -> None:
    other = {**row, "answer": {1: 2, "A": "B"}[row["answer"]]}
    task, _ = task_of(lines("mc.jsonl", row, other))
    assert (task.output.kind, task.output.column, task.inputs) == ("category", "answer", inputs)


def test_tags_of_words_are_no_labels_of_the_row() -> None:
    file = lines("ner.jsonl", {"tokens": ["Ann", "of", "Kiel", "{i}"], "ner_tags": [1, 0, 2, 0]})
    with pytest.raises(DataError, match="'ner_tags' has a tag for each of the 'tokens'"):
        guess_task(Path(file))


def test_a_pair_in_one_column_says_how_to_name_its_parts() -> None:
    file = lines("tr.jsonl", {"translation": {"en": "the cat {i} sits", "de": "die Katze {i} sitzt"}})
    with pytest.raises(DataError) as caught:
        guess_task(Path(file))
    assert "--inputs translation.en --output translation.de" in caught.value.hint
    guess = guess_task(Path(file), "translation.de", inputs=["translation.en"])
    assert (guess.kind, guess.inputs, guess.output["column"]) == ("text", ("translation.en",), "translation.de")


@pytest.mark.parametrize("header", ["", "text,label\n"])
def test_a_header_that_is_a_row_or_a_row_that_is_a_header_is_said(header: str) -> None:
    rows = "".join(f"note number {i} is here,{'ab'[i % 2]}\n" for i in range(60))
    Path("rows.csv").write_text(header + rows + header)
    task, said = task_of("rows.csv")
    name = "label" if header else "a"
    assert f"{name!r} is the column's name and one of its values" in " ".join(said.split())
    assert any(
        text.startswith(f"{name!r} is the name of the column and one of") for text in task.read().report.warnings
    )


def test_a_header_alone_is_said_plainly() -> None:
    Path("empty.csv").write_text("text,label\n")
    with pytest.raises(DataError, match=r"empty\.csv has no rows, only a header"):
        guess_task(Path("empty.csv"))


def test_an_input_that_says_the_answer_is_named() -> None:
    rows = [["AB"[i % 2], f"{'AB'[i % 2]} > sub {i % 6}", f"some text {i}"] for i in range(90)]
    _, said = task_of(table("cats.csv", "label,path,text", rows))
    assert "left out     path (6 values)" in said
    _, said = task_of("cats.csv", "--force", "--inputs", "text,path")
    assert "note: 'path' says the answer in every row" in said
    rows = [["AB"[i % 2], f"{'AB'[i % 2]} > sub {i % 6}"] for i in range(90)]
    said = run("init", table("cats.csv", "label,path", rows), "--force").stdout
    assert "note: 'path' says the answer in every row" in said


# ---- files beside it, folders


def test_files_beside_the_training_file_are_used_and_named() -> None:
    for name in ("train", "dev", "test"):
        table(f"{name}.csv", "text,label", [[f"{name} text {i}", "ab"[i % 2]] for i in range(60)])
    task, said = task_of("train.csv")
    assert (task.data.validation, task.data.test) == ("dev.csv", "test.csv")
    assert "files        validation: dev.csv, test: test.csv" in said
    task, _ = task_of(".", "--force")
    assert (task.name, task.data.train) == ("train", "train.csv")


def test_inputs_in_two_of_the_files_leave_the_training_side() -> None:
    table("train.csv", "text,label", [[f"text number {i}", "ab"[i % 2]] for i in range(90)])
    table("test.csv", "text,label", [[f"Text  number {i}", "ab"[i % 2]] for i in range(87, 150)])
    task, said = task_of("train.csv")
    assert task.data.duplicates == "drop"
    assert "note: 3 inputs are in two of the files" in said


def test_a_long_file_that_is_sorted_by_label_shows_all_labels() -> None:
    rows = [[f"text number {i}", f"label {i // 100}"] for i in range(9000)]
    guess = guess_task(Path(table("long.csv", "text,label", rows)))
    assert guess.reason == "'label' holds 90 short values that repeat"


def test_files_beside_it_that_do_not_fit_are_not_used_and_named() -> None:
    table("mails_train.csv", "text,label", [[f"text number {i}", "ab"[i % 2]] for i in range(60)])
    table("mails_test.csv", "text", [[f"new text {i}"] for i in range(9)])
    table("mails_val.csv", "text,label", [[f"other text {i}", ""] for i in range(9)])
    task, said = task_of("mails_train.csv")
    assert (task.data.validation, task.data.test) == (None, None)
    assert "mails_test.csv beside it is not used: it has no column 'label'" in said
    assert "mails_val.csv beside it is not used: its 'label' is empty" in said


def test_the_splits_of_a_data_set_of_the_hub_are_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    files = {}
    for number, split in enumerate(("train", "dev", "test", "unsupervised")):
        rows = [{"text": f"a text {number} {{i}}", "label": label} for label in "ab"]
        files[split] = str(Path(lines(f"{split}.jsonl", *rows, count=60)).resolve())
    for of_hub in ("load_dataset_builder", "load_dataset"):  # the library's own, on these files
        read = partial(getattr(datasets, of_hub), "json", data_files=files, cache_dir=str(Path("hub").resolve()))
        monkeypatch.setattr(datasets, of_hub, lambda name, config, read=read, **split: read(**split))
    task, said = task_of("hf:org/mails")
    assert (task.data.train, task.data.validation, task.data.test) == (
        "hf:org/mails", "hf:org/mails#dev", "hf:org/mails#test",
    )  # fmt: skip
    assert "validation: mails#dev, test: mails#test" in said
    task, said = task_of("hf:org/mails#test", "--force")
    assert (task.data.train, task.data.validation, task.data.test) == ("hf:org/mails#test", None, None)
    lines("dev.jsonl", {"text": "another text {i}", "label": ""}, count=9)
    task, said = task_of("hf:org/mails", "--force")
    assert (task.data.validation, task.data.test) == (None, "hf:org/mails#test")
    assert "mails#dev beside it is not used: its 'label' is empty" in said


def test_a_folder_of_documents_has_a_corpus() -> None:
    Path("handbook").mkdir()
    for i in range(3):
        Path(f"handbook/page{i}.md").write_text(f"# Page {i}\n\nText {i}.")
    task, said = task_of("handbook")
    assert task.corpus is not None
    assert (task.corpus.files, task.inputs, task.data.train) == ("handbook", ["question"], None)
    assert "there are no questions with answers yet" in said
    table("handbook/faq.csv", "question,answer", [[f"What is {i}?", f"It is {i}."] for i in range(60)])
    Path("handbook/more").mkdir()
    Path("handbook/more/page.html").write_text("<p>Text</p>")
    task, said = task_of("handbook", "--force")
    assert task.data.train == "handbook/faq.csv"
    assert task.corpus is not None
    found = [source.id for source in list_sources(task.corpus, task.folder).sources]
    assert sorted(found) == [  # a document with the answers to the questions would be found for each
        "handbook/more/page.html", "handbook/page0.md", "handbook/page1.md", "handbook/page2.md",
    ]  # fmt: skip
    assert "questions    handbook/faq.csv" in said
    assert "documents    handbook, without tables" in said
    assert set(DOCUMENTS) == set(_READERS)


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of documents, with the built-in models at hand."""
    if CACHE is None:  # where the built-in models are
        monkeypatch.delenv("RUNG_CACHE")
    else:
        monkeypatch.setenv("RUNG_CACHE", CACHE)
    Path("house").mkdir()
    Path("house/heating.md").write_text("# Heating\n\nThe boiler is in the cellar. It is serviced every May.")
    Path("house/garden.md").write_text("# Garden\n\nThe apple tree stands behind the shed.")
    return Path("house")


def test_a_folder_of_documents_answers_at_once_with_citations(house: Path) -> None:
    result = run("chat", str(house), text="Where is the boiler?\nWho won the world cup 1990?\n\n")
    assert result.exception is None, result.exception
    answer, sources, refused = (
        "The boiler is in the cellar.",
        "[1] house/heating.md, characters 11 to 39",
        NOT_IN_DOCUMENTS,
    )
    assert result.stdout == f"{answer}\n\nSources:\n  {sources}\n{refused}\n"
    assert "rung init house --model MODEL" in result.stderr
    task_of("house")
    assert json.loads(run("run", "task.yaml", "Where is the boiler?", "--json").stdout)["output"] == answer
    Path("house/config.json").write_text("{}")  # a model's folder, with its README
    error = run("chat", "house").exception
    assert isinstance(error, ArtifactError)
    assert error.code == "wrong-folder"


def test_a_model_that_a_task_names_writes_from_the_documents(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "known", lambda *_: opening.Choice("torch", "a folder's engine was never measured"))
    task_of("house")
    settled = Path("task.yaml").read_text().replace('"answer"', '"answer"\n  max_tokens: 4')
    model = embedded.folder_of(embedded.LANGUAGE_MODEL)
    Path("task.yaml").write_text(settled.replace("model: embedded", f"model: {model}"))
    result = run("run", "task.yaml", "Where is the boiler?", "--json")
    assert result.exception is None, result.exception
    artifact = artifact_or_asking(Path("task.yaml"))
    prompt = artifact.text(artifact.messages({"question": "Where is the boiler?"}))
    assert "The boiler is in the cellar." in prompt
    assert prompt.index("cellar") > prompt.index("apple")  # the best passage is next to the question
    assert json.loads(result.stdout)["output"] == artifact.predict([{"question": "Where is the boiler?"}])[0].text
    other = artifact.predict([{"question": "Who won the world cup 1990?"}])[0]
    assert (other.refused, other.text, other.citations) == (True, "The documents do not say.", ())
    table("q.csv", "question,answer", [[f"{i}?", f"{i}."] for i in range(9)])
    Path("task.yaml").write_text(
        Path("task.yaml").read_text().replace("# data: {train: questions.csv}", "data: {train: q.csv}")
    )
    error = run("run", "task.yaml", "Where?").exception
    assert isinstance(error, ConfigError)
    assert "rung climb TASK" in error.hint


def test_a_conversation_in_a_cell_of_a_csv_is_one() -> None:
    rows = [[i, json.dumps([{**USER, "content": f"Hi {i}"}, GOOD])] for i in range(60)]
    task, said = task_of(table("c.csv", "id,messages", rows))
    assert (task.inputs, task.output.kind) == (["messages"], "chat")
    assert "left out     id (ids)" in said


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [("t.jsonl", "separator", ";"), ("t.jsonl", "sheet", "x"), ("hf:org/name", "encoding", "cp1252")],
)
def test_an_option_without_effect_is_refused(name: str, option: str, value: str) -> None:
    lines("t.jsonl", {"text": "a {i}", "label": "x"}, {"text": "b {i}", "label": "y"})
    error = run("init", name, f"--{option}", value).exception
    assert (error.code, str(error)) == ("bad-option", f"--{option} has no effect on {name}")


def test_a_table_beside_a_readme_is_the_task() -> None:
    Path("data").mkdir()
    lines("data/rows.jsonl", *[{"text": f"a b {i}", "label": "ab"[i % 2]} for i in range(60)], count=60)
    Path("data/README.md").write_text("# About these rows")
    assert task_of("data")[0].output.kind == "category"


def test_a_label_alone_in_a_record_is_the_answer() -> None:
    rows = [{"data": {"text": f"a b c {i}"}, "annotation": {"label": "ab"[i % 2]}} for i in range(60)]
    task, _ = task_of(lines("nested.jsonl", *rows, count=60))
    assert (task.inputs, task.output.column, task.output.kind) == (["data.text"], "annotation.label", "category")


@pytest.mark.parametrize("mark", [":", "^", "~", "\x01"])
def test_a_separator_that_is_not_recognized_is_named(mark: str) -> None:
    Path("t.csv").write_text(f"text{mark}label\n" + "".join(f"a b {i}{mark}{'xy'[i % 2]}\n" for i in range(60)))
    error = run("init", "t.csv").exception
    assert (error.code, error.hint) == ("bad-csv", f"name the separator: --separator '{mark}'")
    assert task_of("t.csv", "--separator", mark)[0].output.kind == "category"


def test_a_folder_of_several_tables_asks_for_one() -> None:
    Path("d").mkdir()
    for name in ("a", "b"):
        table(f"d/{name}.csv", "text,label", [["x", "y"]])
    with pytest.raises(DataError, match=r"several tables: a\.csv, b\.csv"):
        guess_task(Path("d"))


# ---- the dialogue


def dialogue(*arguments: str, answers: str) -> str:
    """Run `rung init` on a terminal, and type the answers."""
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-m", "rung", "init", *arguments])
    os.write(terminal, answers.encode())
    said = b""
    try:
        while piece := os.read(terminal, 65536):
            said += piece
    except OSError:  # the program has ended
        pass
    assert os.waitpid(child, 0)[1] == 0, said.decode()
    return said.decode()


def test_a_terminal_is_asked_and_return_takes_the_guess() -> None:
    said = dialogue(tickets(), answers="\n\n\n")
    assert "Which column is the answer? It could also be channel (3 values), priority (3 values). [queue]" in said
    assert "What kind of answer is it? (text, category," in said
    assert "[subject_and_body]" in said
    task = Task.load("task.yaml")
    assert (task.output.column, task.output.kind, task.inputs) == ("queue", "category", ["subject_and_body"])


def test_a_wrong_answer_is_asked_again() -> None:
    said = dialogue(tickets(), answers="qeue\npriority\n\nsubject_and_body,channel\n")
    assert "has no column 'qeue'" in said
    task = Task.load("task.yaml")
    assert (task.output.column, task.inputs) == ("priority", ["subject_and_body", "channel"])


def test_yes_and_options_ask_nothing() -> None:
    assert "Which column" not in dialogue(tickets(), "--yes", answers="")
    said = dialogue("tickets.csv", "--force", "--output", "priority", "--kind", "category", answers="\n")
    assert "Which column is" not in said
    assert "What kind" not in said
    assert Task.load("task.yaml").output.column == "priority"


# ---- records in several columns


def test_columns_that_a_text_quotes_are_the_fields_of_one_record() -> None:
    rows = [[f"R{i}", f"Shop {i % 7} / {1 + i % 28:02}-03-2026 / tax 1.00 / total {i}.50 thank you for your visit",
             f"Shop {i % 7}", f"{1 + i % 28:02}-03-2026", f"{i}.50" if i else ""] for i in range(60)]  # fmt: skip
    task, said = task_of(table("receipts.csv", "id,text,company,date,total", rows))
    assert (task.output.kind, task.output.columns, task.inputs) == ("json", ["company", "date", "total"], ["text"])
    assert "json, because 'company', 'date', 'total' make one record of a row" in said
    data = task.read()
    answers = {row.source: row.outputs for row in (*data.train, *data.validation, *data.test)}
    assert answers["receipts.csv:3"] == ('{"company": "Shop 1", "date": "02-03-2026", "total": "1.50"}',)
    assert answers["receipts.csv:2"] == ('{"company": "Shop 0", "date": "01-03-2026", "total": null}',)  # an empty cell
    task, _ = task_of("receipts.csv", "--output", "date,company", "--force")
    assert (task.output.kind, task.output.columns) == ("json", ["date", "company"])


def test_named_columns_of_zeros_and_ones_are_labels() -> None:
    rows = [[f"a text number {i}", int(i % 2 == 0), int(i % 3 == 0)] for i in range(60)]
    task, said = task_of(table("toxic.csv", "text,toxic,threat", rows), "--output", "toxic,threat")
    assert (task.output.kind, task.output.columns) == ("multilabel", ["toxic", "threat"])
    assert "say 0 or 1" in said


def test_a_missing_file_is_not_said_to_be_one_of_a_task_file() -> None:
    result = run("init", "none.csv")
    assert "none.csv does not exist" in str(result.exception)
    assert "check the path" in result.exception.hint
