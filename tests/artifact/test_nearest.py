import json
from dataclasses import replace

import numpy as np
import pytest

from rung.artifact.artifact import Artifact
from rung.artifact.lookup import BLOCK, Nearest, outputs_of
from rung.data.kinds import DEFAULT_METRICS
from rung.errors import ArtifactError, ConfigError
from rung.evaluation.metrics.registry import get_metric
from rung.evaluation.scoring import summarize
from rung.rungs import registered
from rung.task import Task

ROWS = (
    "text,kind\nMy card has not arrived,arrival\nWhere is my new card?,arrival\nI forgot my PIN,pin\n"
    "How do I change my PIN?,pin\nWhat is the exchange rate?,rate\nIs the rate for euros good today?,rate\n"
)
TEST = (
    "text,kind\nMy new card did not come,arrival\nCan I set another PIN?,pin\nAt what rate is money exchanged?,rate\n"
)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranking")
    (folder / "train.csv").write_text(ROWS)
    (folder / "validation.csv").write_text("text,kind\nThe post brought no card,arrival\n")
    (folder / "test.csv").write_text(TEST)
    (folder / "task.yaml").write_text(
        "name: similar\ninstruction: Find similar messages.\ninputs: [text]\n"
        "output: {column: kind, kind: ranking, k: 2}\n"
        "data: {train: train.csv, validation: validation.csv, test: test.csv}\n"
    )
    return Task.load(folder / "task.yaml")


@pytest.fixture(scope="module")
def zero(task):
    return Artifact.zero_shot(task)


def ranked(*outputs):
    return json.dumps([{"output": output, "similarity": 0.5, "row": {}} for output in outputs])


def test_rows_are_those_of_an_exhaustive_search():
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((50, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[7] = vectors[3]  # equally similar rows keep the table's order
    names = tuple(map(str, range(50)))
    nearest = Nearest(5, "", tuple({"text": name} for name in names), names, vectors)
    queries = np.concatenate([vectors[3:4], generator.standard_normal((BLOCK + 3, 8)).astype(np.float32)])
    found = nearest.find(queries)
    assert len(found) == len(queries)
    for query, answer in zip(queries, found, strict=True):
        exact = sorted(range(50), key=lambda i: (-float(vectors[i] @ query), i))[:5]
        assert [int(name) for name in outputs_of(answer)] == exact
    first = json.loads(found[0])
    assert [one["output"] for one in first[:2]] == ["3", "7"]
    assert first[0] == {"output": "3", "similarity": 1.0, "row": {"text": "3"}}
    assert len(outputs_of(replace(nearest, k=99).find(queries[:1])[0])) == 50


@pytest.mark.parametrize(
    ("answer", "wanted", "mrr", "at_k", "at_1"),
    [
        (ranked("a", "b", "a"), ["a"], 1, 1, 1),
        (ranked("b", "b", "a"), ["a"], 1 / 3, 1, 0),
        (ranked("b", "c"), ["a"], 0, 0, 0),
        (ranked("b", "c"), ["a", "c"], 1 / 2, 1, 0),
        ("[]", ["a"], 0, 0, 0),
    ],
)
def test_metrics_by_hand(answer, wanted, mrr, at_k, at_1):
    found = [get_metric(name)(answer, wanted) for name in ("mrr", "recall_at_k", "recall_at_1")]
    assert found == [mrr, at_k, at_1]
    assert DEFAULT_METRICS["ranking"] == "mrr"


def test_a_ranking_task_is_answered_measured_saved_and_loaded(task, zero, tmp_path):
    data = task.read()
    assert [outputs_of(answer.text)[0] for answer in zero.answer(data.test)] == ["arrival", "pin", "rate"]
    assert {name: m["score"] for name, m in summarize(zero, data.test, "test")["metrics"].items()} == {
        "mrr": 1.0, "recall_at_k": 1.0, "recall_at_1": 1.0,
    }  # fmt: skip
    (row,) = zero.predict([{"text": "My card has not arrived"}])
    assert json.loads(row.text)[0] == {
        "output": "arrival",
        "similarity": 1.0,
        "row": {"text": "My card has not arrived"},
    }
    loaded = Artifact.load(zero.save(tmp_path / "artifact"))
    assert [a.text for a in loaded.answer(data.test)] == [a.text for a in zero.answer(data.test)]
    file = tmp_path / "artifact" / "artifact.json"
    file.write_text(file.read_text().replace("Where is", "Where was"))
    with pytest.raises(ArtifactError):
        Artifact.load(tmp_path / "artifact")


def test_no_rung_pretends_to_change_it(task, zero):
    data = task.read()
    with_system = task.model_copy(update={"system": "Be brief."})
    reasons = {one.name: one.make(with_system).applies(zero, data) for one in registered()}
    assert not any(verdict.applies for verdict in reasons.values()), reasons
    assert all(verdict.reason for verdict in reasons.values())


@pytest.mark.parametrize(
    "output",
    [
        "{column: kind, kind: text, k: 3}",
        "{column: kind, kind: category, encoder: embedded-encoder}",
        "{column: kind, kind: ranking, max_tokens: 3}",
        "{column: kind, kind: ranking, k: 0}",
    ],
)
def test_settings_that_would_be_ignored_are_refused(task, output, tmp_path):
    text = (task.folder / "task.yaml").read_text().replace("{column: kind, kind: ranking, k: 2}", output)
    (tmp_path / "task.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        Task.load(tmp_path / "task.yaml")
    assert caught.value.code == "bad-value"
