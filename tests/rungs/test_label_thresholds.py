"""Thresholds of likelihoods: an engine whose likelihoods tell the labels, whatever each label's own level."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from rung.artifact.artifact import Artifact
from rung.artifact.labels import ListScoring
from rung.artifact.text import Generate
from rung.data.rows import Data
from rung.engines.base import EngineInfo, Scored
from rung.evaluation.scoring import summarize
from rung.rungs import LabelThresholds
from rung.task import Task

LABELS = ["common", "never", "often", "rare"]
LEVEL = np.array([-1.0, -9.0, -4.0, -2.0])  # labels differ more in their level than rows do


class Knowing:
    """An engine that finds the labels named in a row likelier by a little, per token."""

    end_token = 0
    info = EngineInfo("fake", "fake", "cpu", "none", 0, 4096, "fake", {})

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(text.encode())

    def text(self, prompt: Any) -> str:
        return prompt[-1]["content"]

    def score(self, requests: Any, **_: Any) -> list[Scored]:
        results = []
        for request in requests:
            words = request.prompt[-1]["content"].split()
            texts = [bytes(tokens).decode() for tokens in request.continuations]
            assert texts == [f'["{label}"' for label in LABELS]
            named = np.array([label in words for label in LABELS])
            lengths = np.array([len(tokens) for tokens in request.continuations])
            results.append(Scored(((LEVEL + 0.5 * named) * lengths).astype(np.float32), 1, 0.0))
        return results


@pytest.fixture
def task(tmp_path: Path) -> Task:
    rows = []
    for i in range(120):
        labels = [label for label, every in (("common", 2), ("often", 3), ("rare", 40)) if i % every == 0]
        rows.append({"text": f"row {i} {' '.join(labels)}", "tags": labels})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "name": "t", "instruction": "Which tags?", "inputs": ["text"],
        "data": {"train": "rows.jsonl", "split": {"method": "holdout"}},
        "output": {"column": "tags", "kind": "multilabel", "labels": LABELS},
    }  # fmt: skip
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(values))
    return Task.load(tmp_path / "task.yaml")


@pytest.fixture
def data(task: Task) -> Data:
    return task.read()


@pytest.fixture
def zero(task: Task, data: Data) -> Artifact:
    return Artifact.zero_shot(task, data.labels).with_engine(Knowing())  # type: ignore[arg-type]


def test_zero_shot_writes_a_list_held_to_the_labels(zero: Artifact) -> None:
    assert isinstance(zero.decoder, Generate)
    assert zero.decoder.constraint is not None
    assert json.loads(str(zero.decoder.constraint.value))["items"]["enum"] == LABELS
    assert zero.prompt.head().endswith("Answer with a JSON list of all that apply of: common, never, often, rare")


def test_every_label_gets_the_threshold_that_its_level_needs(zero: Artifact, data: Data) -> None:
    fitted = LabelThresholds().fit(zero, data).with_engine(Knowing())  # type: ignore[arg-type]
    assert isinstance(fitted.decoder, ListScoring)
    for k, label in enumerate(LABELS):
        low, high = np.exp(LEVEL[k]), np.exp(LEVEL[k] + 0.5)
        if label in ("common", "often"):
            assert low < fitted.decoder.thresholds[k] < high
    rows = [e for e in (*data.validation, *data.test) if '"rare"' not in e.outputs[0]]
    answers = fitted.answer(rows)
    found = [[label for label in json.loads(a.text) if label != "rare"] for a in answers]
    assert found == [json.loads(e.outputs[0]) for e in rows]
    assert any(labels == [] for labels in found)
    assert all(a.confidence is None for a in answers)


def test_it_is_summarized_and_read_back(zero: Artifact, data: Data, tmp_path: Path) -> None:
    fitted = LabelThresholds().fit(zero, data).with_engine(Knowing())  # type: ignore[arg-type]
    assert set(summarize(fitted, data.test, "test")["metrics"]) == {"labels_f1", "labels_exact"}
    assert Artifact.load(fitted.save(tmp_path / "artifact")).decoder == fitted.decoder


def test_where_it_does_not_apply(zero: Artifact, data: Data) -> None:
    rung = LabelThresholds()
    assert rung.applies(zero, data).applies
    assert (
        rung.applies(replace(zero, signature=replace(zero.signature, kind="text")), data).reason
        == "only where a row may have several labels"
    )
    assert rung.applies(rung.fit(zero, data), data).reason == "the labels have thresholds already"
