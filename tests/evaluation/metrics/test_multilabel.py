"""Several labels a row, against scikit-learn."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from rung.errors import DataError
from rung.evaluation.metrics.labels import label_f1, labels_exact, labels_f1

LABELS = ["a", "b", "c", "d", "never"]


def rows(seed: int) -> tuple[list[str], list[str], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    expected, predicted = rng.random((40, 5)) < 0.35, rng.random((40, 5)) < 0.35
    expected[:, 4] = predicted[:, 4] = False
    expected[0] = predicted[0] = False  # a row without labels, rightly answered

    def text(flags: np.ndarray) -> str:
        return json.dumps([label for label, flag in zip(LABELS, flags, strict=True) if flag])

    return [text(r) for r in predicted], [text(r) for r in expected], predicted, expected


@pytest.mark.parametrize("seed", range(5))
def test_they_equal_scikit_learn_s(seed: int) -> None:
    predicted, expected, guess, truth = rows(seed)
    found = label_f1(predicted, expected, LABELS)
    assert found.micro == pytest.approx(f1_score(truth, guess, average="micro", zero_division=0), rel=1e-12)
    assert found.macro == pytest.approx(f1_score(truth, guess, average="macro", zero_division=0), rel=1e-12)
    each = [labels_f1(p, [e]) for p, e in zip(predicted, expected, strict=True)]
    assert np.mean(each) == pytest.approx(f1_score(truth, guess, average="samples", zero_division=1), rel=1e-12)
    exact = [labels_exact(p, [e]) for p, e in zip(predicted, expected, strict=True)]
    assert np.mean(exact) == pytest.approx(accuracy_score(truth, guess), rel=1e-12)


def test_order_and_repetition_do_not_matter() -> None:
    assert labels_exact('["b", "a", "a"]', ['["a", "b"]']) == 1.0
    assert labels_f1("[]", ["[]"]) == labels_exact("[]", ["[]"]) == 1.0
    assert labels_f1("[]", ['["a"]']) == 0.0


@pytest.mark.parametrize("text", ["a, b", "", '{"a": 1}', "[1]", '["a"', "[" * 100_000])
def test_what_is_no_list_of_labels_scores_nothing(text: str) -> None:
    assert labels_f1(text, ['["a"]']) == labels_exact(text, ["[]"]) == 0.0
    assert label_f1([text], ['["a"]'], ["a"]).micro == 0.0


def test_a_broken_reference_is_the_data_s_fault() -> None:
    with pytest.raises(DataError) as caught:
        labels_f1("[]", ["a; b"])
    assert caught.value.code == "bad-reference"
