"""Exports and imports: exact lines, formulas guarded, and what is written is what is read back."""

import csv
import io
import json

import pytest

from rung.errors import DataError
from rung.feedback.exchange import guarded, read, unguarded, write
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
        assert read(file, task, other, "Bob") == (len(CELLS), sum(bool(c.strip()) for c in CELLS))
        back = {(c.interaction.inputs["text"], c.interaction.actual, c.expected) for c in other.cases()}
        assert back == {(c or "empty", c, f"={c}" if c.strip() else None) for c in CELLS}
        assert read(file, task, other, "Bob") == (len(CELLS), 0)  # a second time, nothing is new
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
        with pytest.raises(DataError, match="has no column 'inputs'"):
            read(file, task, other, "Bob")


def test_jsonl_is_read_back_whole(store, make, task, tmp_path):
    rows = [make(1, split="test", key=None), make(2, confidence=None)]
    store.record(rows)
    store.correct("r1", "card_arrival", "Ann")
    file = tmp_path / "out.jsonl"
    with file.open("w") as out:
        write(store.cases(), "jsonl", out)
    with FeedbackStore(tmp_path / "other.db") as other:
        assert read(file, task, other, "Bob") == (2, 1)
        assert other.case("r1").interaction == rows[0]
        assert other.case("r1").expected == "card_arrival"
        assert other.case("r2").interaction.input_id == rows[1].input_id
