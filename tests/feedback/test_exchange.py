"""Exports and imports: exact lines, formulas guarded, and what is written is what is read back."""

import csv
import io
import json

import pytest

from rung.data.sources import FileFormat
from rung.errors import DataError
from rung.feedback.exchange import Imported, guarded, own_template, read, unguarded, write
from rung.feedback.records import CaseFilter
from rung.feedback.store import FeedbackStore
from rung.task import Task


@pytest.fixture
def store(tmp_path):
    with FeedbackStore(tmp_path / "f.db") as opened:
        yield opened


def lines(store, form, **which):
    out = io.StringIO()
    write(store.cases(CaseFilter(**which)), form, out)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_exact_lines_for_tuning_tools(store, make):
    store.record(
        [
            make(1, inputs={"text": "Where is it?"}),
            make(2, inputs={"text": "How old?"}, template="Message: {text} {{x}}", system=""),
            make(3),
            make(
                4, inputs={"turns": [{"role": "user", "content": "Hi"}]}, template="", system="Be kind.", actual="Go."
            ),
        ]
    )
    store.correct("r1", "card_arrival", "Ann")
    store.correct("r2", "age_limit", "Ann")  # it was right
    store.correct("r4", "Hello!", "Ann")
    system = {"role": "system", "content": "Which intent?"}
    first = [system, {"role": "user", "content": "Where is it?"}]
    second = [{"role": "user", "content": "Message: How old? {x}"}]
    fourth = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]

    def said(text):
        return {"role": "assistant", "content": text}

    assert lines(store, "chat") == [
        {"messages": [*fourth, said("Hello!")]},
        {"messages": [*second, said("age_limit")]},
        {"messages": [*first, said("card_arrival")]},
    ]
    assert lines(store, "completion")[2] == {"prompt": "Which intent?\n\nWhere is it?", "completion": "card_arrival"}
    assert lines(store, "preference") == [
        {"prompt": fourth, "chosen": [said("Hello!")], "rejected": [said("Go.")]},
        {"prompt": first, "chosen": [said("card_arrival")], "rejected": [said("age_limit")]},
    ]


CELLS = ["=1+1", "+x", "-2", "@sum", "\tx", "\rx", "'=1", "''=1", "'plain", "plain", "", "'", "＝1", 'a "b", c\nd', "-"]


def test_no_cell_is_a_formula_and_each_is_read_back():
    for cell in CELLS:
        assert unguarded(guarded(cell)) == cell
        assert not guarded(cell)[:1] or guarded(cell)[0] not in "=+-@\t\r＝"
    assert [guarded(c) for c in ("=1+1", "'=1", "plain", "'plain")] == ["'=1+1", "''=1", "plain", "'plain"]


def test_the_four_columns_and_back(store, make, task, tmp_path):
    task = task.model_copy(update={"output": task.output.model_copy(update={"kind": "text"})})
    rows = [make(i, inputs={"text": cell or "empty"}, actual=cell, system="Braces {}") for i, cell in enumerate(CELLS)]
    store.record(rows)
    for i, cell in enumerate(CELLS):
        if cell.strip():
            store.correct(f"r{i}", f"={cell}", "Ann")
    file = tmp_path / "out.csv"
    with file.open("w", newline="") as out:
        assert write(store.cases(), "csv", out) == len(CELLS)
    with file.open(newline="") as text:
        table = list(csv.reader(text))
    assert table[0] == ["prompt template", "input", "actual response", "expected response"]
    assert table[-1] == ["Braces {{}}\n\n{text}", "'=1+1", "'=1+1", "'==1+1"]
    with FeedbackStore(tmp_path / "other.db") as other:
        assert read(file, task, other, "Bob") == Imported(len(CELLS), sum(bool(c.strip()) for c in CELLS))
        back = {(c.interaction.inputs["text"], c.interaction.actual, c.expected) for c in other.cases()}
        assert back == {(c or "empty", c, f"={c}" if c.strip() else None) for c in CELLS}
        assert read(file, task, other, "Bob") == Imported(len(CELLS), 0)  # a second time, nothing is new
        assert {c.reviewer for c in other.cases(CaseFilter(reviewed=True))} == {"Bob"}
        assert lines(other, "chat")[0]["messages"][0]["content"].startswith("Braces {}\n\n")


def test_several_inputs_are_json_in_their_cell(store, make, tmp_path):
    (tmp_path / "task.yaml").write_text(
        "name: qa\ninstruction: Answer.\ninputs: [question, context]\noutput: {column: answer, kind: text}\n"
        "data: {train: none.csv}\n"
    )
    task = Task.load(tmp_path / "task.yaml")
    store.record([make(1, task="qa", inputs={"question": "Who?", "context": 'é "x"'}, template="{question} {context}")])
    file = tmp_path / "out.csv"
    with file.open("w", newline="") as out:
        write(store.cases(), "csv", out)
    with FeedbackStore(tmp_path / "other.db") as other:
        read(file, task, other, "Bob")
        assert other.cases()[0].interaction.inputs == {"question": "Who?", "context": 'é "x"'}
        for row, code in (
            ('{question},"{""question"": 1}",a,b', "missing-column"),
            ("{question},no json,a,b", "bad-json"),
            ("{other},{},a,b", "missing-column"),
            ('{other},"{""question"": ""q"", ""context"": ""c""}",a,b', "bad-template"),
        ):
            file.write_text(f"prompt template,input,actual response,expected response\n{row}\n")
            with pytest.raises(DataError) as raised:
                read(file, task, other, "Bob")
            assert raised.value.code == code
            assert "out.csv:2" in str(raised.value)
        file.write_text("a,b\n1,2\n")
        with pytest.raises(DataError, match="has no column 'input'"):
            read(file, task, other, "Bob")


def test_jsonl_is_read_back_whole(store, make, task, tmp_path):
    rows = [make(1, split="test", key=None), make(2, confidence=None)]
    store.record(rows)
    store.correct("r1", "card_arrival", "Ann")
    file = tmp_path / "out.jsonl"
    with file.open("w") as out:
        write(store.cases(), "jsonl", out)
    with FeedbackStore(tmp_path / "other.db") as other:
        assert read(file, task, other, "Bob") == Imported(2, 1)
        assert other.case("r1").interaction == rows[0]
        assert other.case("r1").expected == "card_arrival"
        assert other.case("r2").interaction.input_id == rows[1].input_id


HEADERS = [
    "prompt template,input,actual response,expected response",
    "Prompt Template,Input,Actual Response,Expected Response",
    "prompt_template,INPUT,actual-response,expected_response",
    "prompt,input,actual,expected",
    "prompt template ,input, actual response,expected response",
    "promptTemplate,input,actualResponse,expectedResponse",
    "Prompt template:,Input:,Actual response:,Expected response:",
    "Prompt Template,Input,Model Response,Correct Response",
    "prompt,input,output,expectedOutput",
    "prompt,input,output,ground_truth",
]


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("written", [(",", "utf-8"), (";", "cp1252"), ("\t", "utf-16"), (",", "utf-8-sig")])
def test_the_four_columns_as_people_write_them(store, task, tmp_path, header, written):
    separator, encoding = written
    file = tmp_path / "cases.csv"
    rows = [header.split(","), ["Text: {text}", "Où est-elle ?", "atm_support", "card_arrival"], [""] * 4]
    with file.open("w", encoding=encoding, newline="") as out:
        csv.writer(out, delimiter=separator).writerows(rows)
    done = read(file, task, store, "Bob")
    assert (done.cases, done.corrections, done.blank, done.ignored) == (1, 1, 1, ())
    assert done.format.startswith({"cp1252": "cp1252", "utf-16": "utf-16"}.get(encoding, ""))
    case = store.cases()[0]
    assert (case.interaction.inputs["text"], case.interaction.template) == ("Où est-elle ?", "Text: {text}")
    assert (case.interaction.actual, case.expected) == ("atm_support", "card_arrival")


def test_other_columns_are_named_and_a_missing_template_is_none(store, task, tmp_path):
    file = tmp_path / "cases.csv"
    file.write_text("#,input,actual response,expected response,notes,\n1,How old?,age_limit,,n,\n")
    assert str(read(file, task, store, "Bob")) == (
        "1 cases read, 0 corrections made; columns not read: #, notes, column 6"
    )
    assert store.cases()[0].interaction.template == ""
    file.write_text("Question,Response\nHow old?,age_limit\n")
    with pytest.raises(DataError, match="has no column 'input'") as raised:
        read(file, task, store, "Bob")
    assert "it has 'Question', 'Response'; a table needs 'prompt template', 'input'" in raised.value.hint
    file.write_text("input,output\nHow old?,age_limit\n")  # the actual response, or the expected one?
    with pytest.raises(DataError, match="has no column 'actual response'"):
        read(file, task, store, "Bob")


def test_a_named_encoding_is_heeded(store, task, tmp_path):
    file = tmp_path / "cases.csv"
    file.write_bytes("input,actual,expected\nпривет,age_limit,\n".encode("cp1251"))
    with pytest.raises(DataError, match="not utf-8"):
        read(file, task, store, "Bob")
    assert read(file, task, store, "Bob", FileFormat("cp1251")).cases == 1
    assert store.cases()[0].interaction.inputs["text"] == "привет"


@pytest.mark.parametrize(
    ("template", "inputs", "wanted"),
    [("Text: {text}", ["text"], "Text: {text}"), ("Text: {{ text }}", ["text"], "Text: {text}"),
     ("{{Text}} is {\"a\": {\"b\": 1}}", ["text"], "{text} is {{\"a\": {{\"b\": 1}}}}"),
     ("Answer as JSON {\"label\": ...}: {text}", ["text"], "Answer as JSON {{\"label\": ...}}: {text}"),
     ("Answer {{json}}: {text}", ["text"], "Answer {{json}}: {text}"), ("no column", ["text"], "no column"),
     ("Classify: {question}", ["text"], "Classify: {text}"),
     ("{Ticket Id} and {other}", ["ticket_id", "body"], "{ticket_id} and {other}")],
)  # fmt: skip
def test_templates_as_people_write_them(template, inputs, wanted):
    assert own_template(template, inputs) == wanted


def test_a_label_that_is_none_and_rows_that_contradict_each_other_are_refused_with_their_line(store, task, tmp_path):
    file = tmp_path / "cases.csv"
    for rows, code, told in (
        ("Where?,age_limit,Card arrival\nHow?,age_limit,shipping\n", "unknown-label", "cases.csv:3"),
        ("Where?,age_limit,card_arrival\nwhere? ,x,exchange_rate\n", "contested-corrections", "cases.csv:3 expects"),
        (" ,age_limit,card_arrival\n", "bad-row", "cases.csv:2: the input is empty"),
    ):
        file.write_text("input,actual,expected\n" + rows)
        with pytest.raises(DataError, match=told) as raised:
            read(file, task, store, "Bob")
        assert raised.value.code == code
    assert store.count() == 0  # all or none
    file.write_text("input,actual,expected\nWhere?,age_limit,Card arrival\n")
    read(file, task, store, "Bob")
    assert store.cases()[0].expected == "card_arrival"


@pytest.mark.parametrize(
    ("key", "value", "right"),
    [
        ("at", "yesterday", "a time with its zone"), ("at", "2026-01-31T12:00:00", "a time with its zone"),
        ("at", 5, "a time with its zone"), ("prompt_tokens", "many", "a whole number"),
        ("seconds", -3, "a number of 0 or"),
        ("completion_tokens", 1e30, "a whole number"), ("confidence", "high", "a number from 0 to 1"),
        ("confidence", float("nan"), "a number from 0 to 1"), ("split", "trian", "train or test"), ("key", 5, "a text"),
        ("missed", "no", "true or false"), ("inputs", "Where?", "an object"),
    ],
)  # fmt: skip
def test_what_is_known_about_a_case_is_of_its_kind(store, task, tmp_path, key, value, right):
    file = tmp_path / "cases.jsonl"
    good = {"inputs": {"text": "Where?"}, "actual": "age_limit", "expected": None}
    file.write_text(f"{json.dumps(good)}\n{json.dumps(good | {key: value})}\n")
    with pytest.raises(DataError) as told:
        read(file, task, store, "Ann")
    assert f"cases.jsonl:2: '{key}' is '{value}', not {right}" in told.value.message
    assert (told.value.code, list(store.cases())) == ("bad-row", [])


def test_a_table_of_cases_has_its_values_as_text(store, task, tmp_path):
    (tmp_path / "c.jsonl").write_text(json.dumps({
        "inputs": {"text": "Where?"}, "actual": {"a": None}, "prompt_tokens": "12", "seconds": "0.5", "missed": "False",
    }))  # fmt: skip
    read(tmp_path / "c.jsonl", task, store, "Ann")
    (case,) = store.cases()
    row = case.interaction
    assert (row.prompt_tokens, row.seconds, row.missed, row.actual) == (12, 0.5, False, '{"a": null}')
