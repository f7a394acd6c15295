"""Every example folder: a short task file, data that loads, and zero-shot answers that are scored."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rung.artifact.artifact import Artifact
from rung.cli.main import app
from rung.data.rows import Example
from rung.engines import opening
from rung.engines.base import EngineInfo, GenerateRequest, Generation, Scored, ScoreRequest
from rung.evaluation.metrics.judge import open_judge
from rung.evaluation.scoring import evaluate, summarize
from rung.task import Task

EXAMPLES = Path(__file__).parents[2] / "examples"
FOLDERS = sorted(folder.parent.name for folder in EXAMPLES.glob("*/task.yaml"))
ANSWERED = {
    "banking77",
    "wnut17",
    "sroie",
    "passages",
    "gsm8k",
    "scitldr",
    "self_instruct",
    "text_to_sql",
    "pandalm",
    "tools",
    "similar",
    "translation",
    "chat",
}


class Parrot:
    """An engine that answers with the expected texts, or with `wrong`; a judge's pair it calls a tie."""

    def __init__(self, answers: Sequence[str] = ()) -> None:
        self.answers = list(answers)
        self.info = EngineInfo("fake", "fake", "cpu", "none", 0, 4096, "fake", {"scoring": "exact"})
        self.end_token = None

    def generate(self, requests: Sequence[GenerateRequest], **_: Any) -> list[Generation]:
        texts = [
            "tie" if r.constraint is not None and r.constraint.value == ("A", "B", "tie") else self.answers.pop(0)
            for r in requests
        ]
        return [Generation(text, 1, 1, "stop", 0.0) for text in texts]

    def score(self, requests: Sequence[ScoreRequest], **_: Any) -> list[Scored]:
        import numpy as np

        return [Scored(np.arange(len(r.continuations), dtype=np.float32), 1, 0.0) for r in requests]

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(text.encode())

    def count(self, prompt: Any) -> int:
        return len(self.text(prompt))

    def text(self, prompt: Any) -> str:
        return "\n".join(message["content"] for message in prompt)


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of an example."""
    copy = tmp_path / request.param
    shutil.copytree(EXAMPLES / request.param, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def load(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"example_{file.parent.name}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_there_are_ten() -> None:
    assert set(FOLDERS) >= ANSWERED
    assert len(FOLDERS) >= 10


@pytest.mark.parametrize("name", FOLDERS)
def test_the_task_file_is_short_and_the_readme_names_the_command_and_the_licence(name: str) -> None:
    assert len((EXAMPLES / name / "task.yaml").read_text().splitlines()) < 25
    readme = (EXAMPLES / name / "README.md").read_text()
    assert f"rung climb examples/{name}/task.yaml" in readme
    assert re.search(r"\b(CC BY|Apache-2\.0|MIT|BSD)\b", readme)


@pytest.mark.parametrize("name", sorted(file.parent.name for file in EXAMPLES.glob("*/README.md")))
def test_the_readme_states_the_command_and_what_it_measured(name: str) -> None:
    readme = (EXAMPLES / name / "README.md").read_text()
    assert re.search(rf"^    .*\brung (climb|cluster) examples/{name}/", readme, re.MULTILINE)
    result = " ".join(readme.split()).partition("True result")[2].partition(" Data: ")[0]
    assert re.search(r"\d\.\d % \[|\d\.\d % on \d|\b0\.\d\d\b", result)  # with its interval where there is one
    assert re.search(r"\d (test )?(rows|questions|conversations|messages)\b", result)


@pytest.mark.parametrize("folder", FOLDERS, indirect=True)
def test_check_accepts_it(folder: Path) -> None:
    ran = CliRunner().invoke(app, ["check", str(folder / "task.yaml"), "--json"])
    assert ran.exit_code == 0, ran.output
    report = json.loads(ran.stdout)
    assert all(report["splits"][split]["kept"] > 0 for split in ("train", "validation", "test"))
    assert not any(split["dropped"] for name, split in report["splits"].items() if name == "test")


def turns(task: Task, answers: Sequence[str]) -> list[str]:
    """What a model writes to answer: of a task with tools, a turn of an agent."""
    return [json.dumps({"step": {"answer": answer}}) for answer in answers] if task.tools else list(answers)


def answers_of(rows: Sequence[Example]) -> list[str]:
    return [row.outputs[0] for row in rows]


@pytest.mark.parametrize("folder", FOLDERS, indirect=True)
def test_two_rows_are_answered_and_scored(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task.load(folder / "task.yaml")
    data = task.read()
    rows = data.test[:2]
    right, wrong = Parrot(turns(task, answers_of(rows))), Parrot(turns(task, ["~", "~"]))
    open_judge.cache_clear()
    monkeypatch.setattr(opening, "open_engine", lambda model, *_: right)
    zero = Artifact.zero_shot(task, data.labels)
    found = evaluate(zero.with_engine(right), rows, "test", folder=task.folder)  # type: ignore[arg-type]
    lost = evaluate(zero.with_engine(wrong), rows, "test", folder=task.folder)  # type: ignore[arg-type]
    open_judge.cache_clear()
    if task.output.kind == "category":  # scores of labels know nothing of what is right
        assert {row.prediction for row in found} <= set(data.labels)
    elif task.output.kind == "ranking":  # no model writes, and the encoder reads the row alone
        assert [row.prediction for row in found] == [row.prediction for row in lost]
        assert all(len(json.loads(row.prediction)) == task.output.k for row in found)
        return
    elif task.metric_name == "judge":
        assert [row.score for row in found] == [0.5, 0.5]
    else:
        assert [row.score for row in found] == [1.0, 1.0]
        assert all(row.score < 0.1 for row in lost)
    assert all(task.instruction.strip() in row.prompt for row in found)


@pytest.mark.parametrize("name", ["passages", "wnut17"])
def test_the_whole_set_is_summarized(name: str) -> None:
    task = Task.load(EXAMPLES / name / "task.yaml")
    data = task.read()
    engine = Parrot(answers_of(data.test))
    found = summarize(Artifact.zero_shot(task, data.labels).with_engine(engine), data.test, "test", folder=task.folder)  # type: ignore[arg-type]
    assert found["metrics"][task.metric_name]["score"] == 1.0
    if name == "wnut17":
        assert found["whole"] == {"micro_f1": 1.0, "macro_f1": 1.0}
    else:
        assert found["whole"]["refusals_due"] == found["whole"]["refusals_given"] > 0.2
        assert found["whole"]["refusal_precision"] == found["whole"]["refusal_recall"] == 1.0


def test_the_rows_of_chat_are_made_from_those_of_documents(tmp_path: Path) -> None:
    load(EXAMPLES / "chat" / "rows.py").main(EXAMPLES / "documents", tmp_path)
    for made in tmp_path.iterdir():
        assert made.read_text("utf-8") == (EXAMPLES / "chat" / made.name).read_text("utf-8")
    texts = [
        json.loads(line)["messages"][0]["content"]
        for f in tmp_path.iterdir()
        for line in f.read_text("utf-8").splitlines()
    ]
    parts = [text.rpartition("\n\n")[0] for text in texts]
    assert len(parts) == len(set(parts)) == 33


def test_every_query_of_text_to_sql_runs_and_returns_rows() -> None:
    from rung.evaluation.metrics.execution import Database

    database = Database(EXAMPLES / "text_to_sql" / "library.sql")
    data = Task.load(EXAMPLES / "text_to_sql" / "task.yaml").read()
    rows = [*data.train, *data.validation, *data.test]
    assert len(rows) == 153
    assert all(database.query(row.outputs[0]) for row in rows)


def test_the_judge_s_agreement_with_people_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    open_judge.cache_clear()
    monkeypatch.setattr(opening, "open_engine", lambda model, *_: Parrot())
    folder = EXAMPLES / "pandalm"
    ran = CliRunner().invoke(app, ["judge", str(folder / "task.yaml"), str(folder / "human.jsonl"), "--json"])
    open_judge.cache_clear()
    assert ran.exit_code == 0, ran.output
    ties = sum(json.loads(line)["preference"] == "tie" for line in (folder / "human.jsonl").read_text().splitlines())
    assert json.loads(ran.stdout) == {
        "judge": "embedded", "pairs": 100, "unreadable": 0, "consistent": 100, "agreed": ties, "kappa": 0.0,
    }  # fmt: skip


def test_geoquery_s_loader_leaves_out_what_fails_and_what_returns_nothing(tmp_path: Path) -> None:
    import sqlite3

    with sqlite3.connect(tmp_path / "geo.sqlite") as connection:
        connection.executescript("CREATE TABLE state (name text, people int); INSERT INTO state VALUES ('ohio', 11)")
    connection.close()
    entries = [
        {
            "sql": [sql],
            "sentences": [
                {"text": f"how many live in s0 {i}", "question-split": split, "variables": {"s0": "ohio"}}
                for split in ("train", "dev", "test")
            ],
        }
        for i, sql in enumerate(
            ["SELECT people FROM state WHERE name = 's0'", "SELECT x FROM state", "SELECT 1 WHERE 0"]
        )
    ]
    (tmp_path / "geo.json").write_text(json.dumps(entries))
    load(EXAMPLES / "text_to_sql" / "geoquery.py").main(
        tmp_path / "geo.json", tmp_path / "geo.sqlite", tmp_path / "geo"
    )
    task = Task.load(tmp_path / "geo" / "task.yaml")
    assert "state(name text, people int)" in task.instruction
    assert (tmp_path / "geo" / "train.jsonl").read_text() == (
        '{"question": "how many live in ohio 0", "sql": "SELECT people FROM state WHERE name = \'ohio\'"}\n'
    )


def test_the_tools_know_every_answer() -> None:
    shop = load(EXAMPLES / "tools" / "shop.py")
    assert shop.look_up("hammer")["price"] > 0
    assert shop.calculate("3 * (2.5 + 1) - 1") == 9.5
    for bad in ("__import__('os')", "2 ** 9", "x"):
        with pytest.raises(ValueError, match="only numbers"):
            shop.calculate(bad)
    data = Task.load(EXAMPLES / "tools" / "task.yaml").read()
    singular = {
        "batteries": "battery",
        "brushes": "brush",
        "torches": "torch",
        "switches": "switch",
        "pliers": "pliers",
    }
    asked = 0
    for row in (*data.train, *data.validation, *data.test):
        if found := re.fullmatch(r"How much do (\d+) (\w+) cost\?", row.inputs["question"]):
            price = shop.look_up(singular.get(found[2], found[2].removesuffix("s")))["price"]
            assert float(row.outputs[0]) == shop.calculate(f"{found[1]} * {price}")
            asked += 1
    assert asked > 30
