"""A row has one prompt: measured, predicted, served and trained, for every kind of task, type of value and format."""

from __future__ import annotations

import datetime as dt
import json
import random
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import openpyxl
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import Dataset

from rung.artifact.artifact import Artifact
from rung.data.cells import plain
from rung.data.examples import given_records, read_row
from rung.data.sources import read_rows
from rung.engines.local import LocalModel
from rung.models.reference import resolve
from rung.serving.requests import checked_row
from rung.serving.served import example
from rung.task import Task
from rung.training.examples import tokenize

Value = Callable[[random.Random], Any]
WORDS = [
    "naïve",
    "5 €",
    'say "hi", you',
    "{braces}",
    "{{x}}",
    "<|im_end|> no",
    "Größe",
    "今日は",
    "a\tb",
    "two\nlines",
    "=1+1",
    "007",
]


def words(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(1, 4)))


# A maker of values for each type of column that tables have; the first values of a column are never missing, so that
# every library finds its type.
TYPES: dict[str, Value] = {
    "text": words,
    "whole": lambda rng: rng.choice([0, 7, -3, 2**53 + 1, 10**15]),
    "number": lambda rng: rng.choice([1.0, 0.1, -2.5, 1e-7, 1e16, float("inf")]),
    "flag": lambda rng: rng.random() < 0.5,
    "sum": lambda rng: Decimal(rng.randint(-(10**6), 10**6)).scaleb(-2),
    "day": lambda rng: dt.date(2020, 1, 1) + dt.timedelta(rng.randint(0, 3000)),
    "at": lambda rng: dt.datetime(2024, 1, 31, rng.randint(0, 23), 5, tzinfo=dt.UTC),
    "naive": lambda rng: dt.datetime(2024, 1, 31, rng.randint(0, 23), 5, 0, rng.choice([0, 1000])),
    "clock": lambda rng: dt.time(rng.randint(0, 23), 30),
    "took": lambda rng: dt.timedelta(seconds=rng.randint(0, 10**6)),
    "sentences": lambda rng: [words(rng) for _ in range(rng.randint(0, 3))],
    "numbers": lambda rng: [rng.choice([1, 2, None]) for _ in range(rng.randint(0, 3))],
    "record": lambda rng: {"name": words(rng), "n": rng.choice([1, None]), "days": [dt.date(2024, 1, 1)]},
}
ANSWERS: dict[str, Value] = {
    "category": lambda rng: rng.choice(["x", "card lost", "1.0"]), "text": words,
    "multilabel": lambda rng: rng.sample(["a", "b", "c"], k=rng.randint(1, 2)),
    "json": lambda rng: {"total": rng.randint(1, 9), "note": words(rng)}, "number": lambda rng: rng.randint(1, 9),
}  # fmt: skip


def table(rng: random.Random, kind: str, rows: int = 12) -> tuple[list[str], list[dict[str, Any]]]:
    """Random input columns with random values, some of them missing, and answers of the kind."""
    names = ["text", *rng.sample([name for name in TYPES if name != "text"], k=3)]
    made = []
    for i in range(rows):
        values = {name: None if i > 2 and rng.random() < 0.2 else TYPES[name](rng) for name in names}
        made.append({**values, "text": f"{i} {values['text'] or ''}", "answer": ANSWERS[kind](rng), "other": i})
    return names, made


def shapes(rows: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """The same rows in everything that holds them without loss: what a task and `predict` take."""
    arrow = pa.Table.from_pylist(rows)
    pyarrow.parquet.write_table(arrow, folder / "rows.parquet")
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as out:
        out.writelines(json.dumps({name: plain(value) for name, value in row.items()}) + "\n" for row in rows)
    return {
        "list": rows, "arrow": arrow,
        "pandas": pd.DataFrame({name: pd.Series([row[name] for row in rows], dtype=object) for name in rows[0]}),
        "typed": arrow.to_pandas(types_mapper=pd.ArrowDtype), "polars": pl.from_arrow(arrow), "dataset": Dataset(arrow),
        "parquet": folder / "rows.parquet", "jsonl": folder / "rows.jsonl",
    }  # fmt: skip


def prompts(artifact: Artifact, examples: list[Any]) -> list[str]:
    return [artifact.text(rendered.messages) for rendered in artifact.render(examples)]


def zero_shot(task: Task, labels: Any, local: LocalModel) -> Artifact:
    """The first artifact, on an engine that is open already and never runs."""
    return Artifact.zero_shot(task, labels).with_engine(local)  # type: ignore[arg-type]


def every_way(task: Task, rows: Any, local: LocalModel) -> dict[str, list[str]]:
    """The prompts of the rows on each way through Rung, in the order of the rows."""
    data = task.read()
    artifact, shape = zero_shot(task, data.labels, local), (tuple(task.inputs), task.output.kind)
    parts = (*data.train, *data.validation, *data.test, *(row for fold in data.folds for row in fold))
    measured = sorted({int(row.source.rpartition(" ")[2]): row for row in parts}.items())
    given = list(given_records(rows, *shape))
    kept = [given[number - 1] for number, _ in measured]  # what is dropped, as without an answer, is not measured
    requests = [json.loads(json.dumps({name: plain(row.values[name]) for name in task.inputs})) for row in kept]
    trained = tokenize(artifact, local, [row for _, row in measured])
    return {
        "measured": prompts(artifact, [row for _, row in measured]),
        "predicted": prompts(artifact, [read_row(row.values, *shape, row.source) for row in kept]),
        "served": prompts(artifact, [example(artifact, checked_row(artifact, request)) for request in requests]),
        "trained": [local.tokenizer.decode(row.prompt, skip_special=False) for row in trained],
    }


@pytest.fixture(scope="module")
def local() -> LocalModel:
    return LocalModel(resolve("embedded"))


@pytest.mark.parametrize("kind", ANSWERS)
@pytest.mark.parametrize("seed", range(3))
def test_a_random_table_has_one_prompt_a_row(kind: str, seed: int, local: LocalModel, tmp_path: Path) -> None:
    rng = random.Random(f"{kind}/{seed}")
    names, rows = table(rng, kind)
    first: list[str] = []
    for shape, given in shapes(rows, tmp_path).items():
        source = list(read_rows(given)) if isinstance(given, Path) else None
        data = [record.values for record in source] if source else given
        output = {"column": "answer", "kind": kind}
        task = Task(name="t", instruction="Answer.", inputs=names, output=output, data={"train": data})
        ways = every_way(task, given, local)
        first = first or ways["measured"]
        assert len(first) >= len(rows) - 1
        for way, texts in ways.items():
            assert texts == first, f"{way} from {shape}"


def test_nested_inputs_and_excel(local: LocalModel, tmp_path: Path) -> None:
    rows = [
        {"ticket": {"subject": f"subject {i}", "day": dt.date(2024, 1, 31)}, "label": "ab"[i % 2]} for i in range(12)
    ]
    fields = {"name": "t", "instruction": "Which?", "output": {"column": "label", "kind": "category"}}
    task = Task(**fields, inputs=["ticket.subject", "ticket.day"], data=rows)
    artifact = zero_shot(task, ("a", "b"), local)
    data = task.read()
    measured = {row.source: row for row in (*data.train, *data.validation, *data.test)}["train row 3"]
    expected = "Ticket.subject: subject 2\nTicket.day: 2024-01-31"
    assert artifact.prompt.question(measured.inputs) == expected
    for row in (rows[2], {"ticket.subject": "subject 2", "ticket.day": "2024-01-31"}):
        assert artifact.messages(row)[-1]["content"] == expected
    request = checked_row(artifact, {"ticket": {"subject": "subject 2", "day": "2024-01-31"}})
    assert prompts(artifact, [example(artifact, request)]) == prompts(artifact, [measured])

    book = openpyxl.Workbook()
    book.active.append(["text", "day", "sum", "label"])
    for i in range(12):
        book.active.append([f"note {i}", dt.date(2024, 1, 31), 0.1 + 0.2, "ab"[i % 2]])
    book.save(tmp_path / "rows.xlsx")
    frame = pd.DataFrame(
        {"text": [f"note {i}" for i in range(12)], "day": [dt.date(2024, 1, 31)] * 12, "sum": [0.3] * 12}
    )
    task = Task(**fields, inputs=["text", "day", "sum"], data=tmp_path / "rows.xlsx")
    artifact = zero_shot(task, ("a", "b"), local)
    sheet = [row.values for row in read_rows(tmp_path / "rows.xlsx")]
    asked = [artifact.messages(row) for row in sheet]
    assert asked == [artifact.messages(row) for row in frame.to_dict("records")]
    assert asked[0][-1]["content"] == "Text: note 0\nDay: 2024-01-31\nSum: 0.3"


@pytest.mark.parametrize("answered", [True, False])
def test_a_conversation_with_or_without_its_answer(local: LocalModel, answered: bool) -> None:
    turns = [
        {"role": "user", "content": "What is 2+2?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "And 3?"},
    ]
    rows = [{"messages": [*turns, {"role": "assistant", "content": f"{i}"}]} for i in range(3)]
    task = Task(name="c", instruction="Answer.", inputs=["messages"], output={"kind": "chat"}, data={"train": rows})
    artifact = zero_shot(task, (), local)
    data = task.read()
    measured = (*data.train, *data.validation, *data.test)[0]
    given = rows[0]["messages"] if answered else turns
    wanted = artifact.text(artifact.render([measured])[0].messages)
    assert wanted.count("assistant") == 2  # the answered turn, and the beginning of the answer
    assert artifact.text(artifact.messages({"messages": given})) == wanted
    assert artifact.text(artifact.messages({"messages": json.dumps(given)})) == wanted
    assert (
        artifact.text(artifact.render([example(artifact, checked_row(artifact, {"messages": turns}))])[0].messages)
        == wanted
    )
    trained = tokenize(artifact, local, [measured])[-1]
    assert local.tokenizer.decode(trained.tokens[: trained.spans[-1][0]], skip_special=False) == wanted
