"""`rung eval --at-least` with statistics of the whole set, and accuracy among the most probable labels."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from sklearn.metrics import fbeta_score, recall_score, top_k_accuracy_score
from test_tasks import run

import rung
from rung.artifact.artifact import Artifact
from rung.errors import DataError
from rung.evaluation.scoring import evaluate, summarize
from rung.rungs import TfidfHead
from rung.task import Task

WORDS = ("red", "green", "blue", "black", "white")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task whose labels are mostly words of the texts, and a head trained on it."""
    made = tmp_path_factory.mktemp("bars")
    draw = Random(0)
    pairs = [(draw.choice(WORDS), draw.choice(WORDS)) for _ in range(150)]
    rows = [
        {"text": f"{a} or {b} {i}", "label": draw.choice([a, a, b, draw.choice(WORDS)])}
        for i, (a, b) in enumerate(pairs)
    ]
    (made / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "name": "colours", "instruction": "Which?", "inputs": ["text"],
        "output": {"column": "label", "kind": "category"},
        "data": {"train": "rows.jsonl", "split": {"method": "holdout", "test": 0.4}},
    }  # fmt: skip
    (made / "task.yaml").write_text(json.dumps(values))
    task = Task.load(made / "task.yaml")
    data = task.read()
    TfidfHead().fit(Artifact.zero_shot(task, data.labels), data).save(made / "head")
    return made


def test_statistics_are_scikit_learns_and_may_be_bars(folder: Path) -> None:
    artifact, data = Artifact.load(folder / "head"), Task.load(folder / "task.yaml").read()
    answered = evaluate(artifact, data.test, "test", full=True)
    expected, predicted = [row.expected[0] for row in answered], [row.prediction for row in answered]
    probs = [row.probs for row in answered]
    scores = {
        "accuracy@2": top_k_accuracy_score(expected, probs, k=2, labels=data.labels),
        "accuracy@3": top_k_accuracy_score(expected, probs, k=3, labels=data.labels),
        "macro_f2": fbeta_score(expected, predicted, beta=2, average="macro"),
        "recall:red": recall_score(expected, predicted, labels=["red"], average="macro"),
    }
    assert 0 < scores["accuracy@2"] < scores["accuracy@3"]
    values = summarize(artifact, data.test, "test", statistics=list(scores))
    measured = {name: each["score"] for name, each in values["metrics"].items()} | values["whole"]
    assert {name: measured[name] for name in scores} == pytest.approx(scores)
    assert "accuracy@5" not in measured  # of five labels, it is always 1
    bars = [part for name, score in scores.items() for part in ("--at-least", f"{name}={score - 1e-6}")]
    arguments = ("eval", str(folder / "head"), str(folder / "task.yaml"), "--quiet")
    assert run(*arguments, *bars).exit_code == 0
    for name, score in scores.items():
        refused = run(*arguments, "--at-least", f"{name}={score + 1e-3}")
        assert (refused.exit_code, getattr(refused.exception, "code", "")) == (1, "below-threshold")
    unknown = run(*arguments, "--at-least", "accuracy@9=0.5")
    assert getattr(unknown.exception, "code", "") == "unknown-name"


@pytest.mark.parametrize("bar", ["accuracy=nan", "accuracy=-1", "accuracy=200", "accuracy=inf", "accuracy=x", "mae=1"])
def test_a_bar_that_no_score_can_miss_or_reach_is_refused(folder: Path, bar: str) -> None:
    refused = run("eval", str(folder / "head"), str(folder / "task.yaml"), "--quiet", "--at-least", bar)
    assert getattr(refused.exception, "code", "") == "bad-option"
    assert refused.stdout == ""  # it is refused before anything is measured


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"inputs": ["txt"]}, "missing-column", "reads 'text'.*did you mean 'txt'"),
        ({"output": {"column": "label", "kind": "text"}}, "bad-option", "the kind category, .* expects text"),
        ({"output": {"column": "other", "kind": "category"}}, "unknown-label", "the rows expect 'x', 'y'.*it gives"),
    ],
)
def test_a_task_that_the_artifact_does_not_suit_is_refused(
    folder: Path, tmp_path: Path, changes: dict[str, object], code: str, said: str
) -> None:
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    lines = [json.dumps({**row, "txt": row["text"], "other": "xy"[i % 2]}) for i, row in enumerate(rows)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    values = json.loads((folder / "task.yaml").read_text()) | changes
    (tmp_path / "task.yaml").write_text(json.dumps(values))
    for command in ("eval", "confidence"):
        refused = run(command, str(folder / "head"), str(tmp_path / "task.yaml"), "--quiet")
        assert getattr(refused.exception, "code", "") == code
        assert re.search(said, f"{refused.exception} {getattr(refused.exception, 'hint', '')}")


def test_rows_that_cannot_be_compared_are_named(folder: Path) -> None:
    head, test = Artifact.load(folder / "head"), Task.load(folder / "task.yaml").read().test
    assert rung.compare(head, head, test).n == len(test)
    for rows, code, said in (
        ((), "too-few-rows", "no rows to compare on"), ([{"text": "red"}], "bad-row", "row 1, of type dict, is no row"),
        ([test[0], replace(test[1], outputs=())], "bad-row", "row 2, of type Example, is no row of a task with its"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=said) as refused:
            rung.compare(head, head, rows)
        assert (refused.value.code, "data.test" in refused.value.hint) == (code, True)
