"""Metrics of numbers against scikit-learn, and kind number from the task file to the answer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import cohen_kappa_score, mean_absolute_error, root_mean_squared_error

from rung.artifact.artifact import Artifact
from rung.data.texts import number_pattern, number_text
from rung.errors import ConfigError, DataError, RungError
from rung.evaluation.metrics.numbers import number_of, number_statistics, quadratic_kappa
from rung.evaluation.metrics.registry import get_metric
from rung.evaluation.scoring import metric_of, summarize
from rung.rungs import Majority
from rung.task import Task

FOUND, WANTED = [1, 2, 3, 4, 5, 3, 3, 1], [1, 3, 3, 5, 2, 3, 4, 1]


def test_statistics_equal_scikit_learn() -> None:
    values = number_statistics([str(v) for v in FOUND], [str(v) for v in WANTED])
    assert values["mae"] == pytest.approx(mean_absolute_error(WANTED, FOUND), rel=1e-12)
    assert values["rmse"] == pytest.approx(root_mean_squared_error(WANTED, FOUND), rel=1e-12)
    kappa = cohen_kappa_score(WANTED, FOUND, weights="quadratic")
    assert values["quadratic_kappa"] == pytest.approx(kappa, rel=1e-12)
    assert values["not_a_number"] == 0.0
    assert quadratic_kappa([(2.0, 2.0)]) == 1.0


def test_answers_that_are_no_numbers_are_counted() -> None:
    values = number_statistics(["about 3.5 kg", "none", "1"], ["3", "1", "1.5"])
    assert values == {"not_a_number": pytest.approx(1 / 3), "mae": 0.5, "rmse": 0.5}
    assert number_of("1,234.5") == 1234.5
    assert number_of("none") is None


def test_closeness_is_one_minus_the_normalized_mae() -> None:
    metric = get_metric("closeness", settings={"scale": 4.0})
    scores = [metric(str(a), [str(b)]) for a, b in zip(FOUND, WANTED, strict=True)]
    assert sum(scores) / len(scores) == pytest.approx(1 - mean_absolute_error(WANTED, FOUND) / 4, rel=1e-12)
    squared = get_metric("closeness", settings={"scale": 4.0, "power": 2})
    scores = [squared(str(a), [str(b)]) for a, b in zip(FOUND, WANTED, strict=True)]
    mse = root_mean_squared_error(WANTED, FOUND) ** 2
    assert sum(scores) / len(scores) == pytest.approx(1 - mse / 16, rel=1e-12)
    assert metric("100", ["1"]) == metric("?", ["1"]) == 0.0
    assert metric("1.0", ["7", "1"]) == 1.0


def test_within() -> None:
    metric = get_metric("within", settings={"tolerance": 0.05})
    assert [metric(text, ["1"]) for text in ("1.05", "0.95", "1.051", "no")] == [1.0, 1.0, 0.0, 0.0]
    metric = get_metric("within", settings={"share": 0.05})
    assert [metric(text, ["-200"]) for text in ("-210", "-189.9", "200")] == [1.0, 0.0, 0.0]
    for settings in ({}, {"tolerance": 1.0, "share": 0.1}, {"tolerance": -1.0}):
        with pytest.raises(ConfigError):
            get_metric("within", settings=settings)


@pytest.mark.parametrize("name", ["mae", "RMSE", "quadratic_kappa"])
def test_a_statistic_of_the_set_names_the_metric_that_decides(name: str) -> None:
    with pytest.raises(ConfigError, match="whole set") as caught:
        get_metric(name)
    assert "closeness" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("low", "high", "whole", "right", "wrong"),
    [
        (None, None, False, ["0", "-12.5", "999999999999999", "0.000000001"], ["", "01", "1.", ".5", "1e5", "--1"]),
        (0, None, False, ["0.5", "12"], ["-1"]),
        (None, None, True, ["-3", "0"], ["3.5"]),
        (1, 5, True, list("12345"), ["0", "6", "1.5", "-1"]),
    ],
)
def test_what_a_model_may_write(low: Any, high: Any, whole: bool, right: list[str], wrong: list[str]) -> None:
    pattern = number_pattern(low, high, whole=whole)
    assert all(re.fullmatch(pattern, text) for text in right)
    assert not any(re.fullmatch(pattern, text) for text in wrong)
    assert all(number_text(float(text)) == text for text in right)


def _task(folder: Path, prices: list[Any], **output: Any) -> Task:
    rows = [{"text": f"invoice {i}", "price": price} for i, price in enumerate(prices)]
    (folder / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    output = {"column": "price", "kind": "number", **output}
    (folder / "task.yaml").write_text(
        json.dumps({"name": "t", "instruction": "What does it cost?", "inputs": ["text"], "output": output,
                    "data": {"train": "d.jsonl"}})
    )  # fmt: skip
    return Task.load(folder / "task.yaml")


def test_from_cells_to_answers(tmp_path: Path) -> None:
    task = _task(tmp_path, [f"€ {i}.000,50" for i in range(1, 41)], unit="€", decimal=",", minimum=0)
    data = task.read()
    rows = (*data.train, *data.validation, *data.test)
    assert sorted(float(row.outputs[0]) for row in rows) == [i * 1000 + 0.5 for i in range(1, 41)]
    zero = Artifact.zero_shot(task)
    head = zero.messages(dict(rows[0].inputs))[0]["content"]
    assert head.endswith("Answer with a number of at least 0, in €, and nothing else.")
    scale = float(zero.signature.metric_settings["scale"])
    answers = sorted(float(row.outputs[0]) for row in data.train)
    assert 0.8 * (answers[-1] - answers[0]) <= scale <= answers[-1] - answers[0]
    constant = Majority().fit(zero, data)
    values = summarize(constant, rows, "test")
    expected = [float(row.outputs[0]) for row in rows]
    middle = float(constant.predict([{"text": "x"}])[0].text)
    assert middle in answers
    assert values["whole"]["mae"] == pytest.approx(mean_absolute_error(expected, [middle] * len(expected)))
    Artifact.load(constant.save(tmp_path / "artifact"))
    assert metric_of(Artifact.load(tmp_path / "artifact"))("1", ["1"]) == 1.0


def test_a_model_writes_numbers_only(tmp_path: Path) -> None:
    task = _task(tmp_path, [1 + i % 5 for i in range(40)], minimum=1, maximum=5, whole=True)
    zero = Artifact.zero_shot(task, engine="torch")
    assert zero.signature.metric_settings["scale"] == 4.0
    answers = zero.predict([{"text": "invoice 3"}, {"text": "five stars"}])
    assert all(answer.text in "12345" and len(answer.text) == 1 for answer in answers)
    rows = task.read().train[:2]
    metric = metric_of(zero)
    assert all(0 <= metric(answer.text, row.outputs) <= 1 for answer, row in zip(answers, rows, strict=True))


@pytest.mark.parametrize(
    ("price", "output", "problem"),
    [
        ("3,5", {}, "with `,` it is"), ("12 kg", {}, "not a number"), (7, {"maximum": 5}, "more than `output.maximum`"),
        (0, {"minimum": 1}, "less than `output.minimum`"), (1.5, {"whole": True}, "not whole"), (True, {}, "a number"),
        ([1], {}, "not a number"), ("NaN", {}, "not a number"), (1e-12, {}, "decimals"), (1e15, {}, "digits"),
    ],
)  # fmt: skip
def test_what_is_no_number_is_an_error_with_its_line(
    tmp_path: Path, price: Any, output: dict[str, Any], problem: str
) -> None:
    with pytest.raises(DataError) as caught:
        _task(tmp_path, [2, 3, price, 2], **output).read()
    assert problem in caught.value.message
    assert "d.jsonl:3" in caught.value.message


def test_one_number_is_no_task(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="every training row"):
        Artifact.zero_shot(_task(tmp_path, [3] * 40))


@pytest.mark.parametrize("output", [{"max_tokens": 3}, {"minimum": 3, "maximum": 3}, {"labels": ["1", "2"]}])
def test_settings_without_effect_are_refused(tmp_path: Path, output: dict[str, Any]) -> None:
    with pytest.raises(RungError):
        _task(tmp_path, [1, 2], **output)
