"""Heads for several labels a row: thresholds against a search over all of them, and learning from separable rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score

from rung.artifact.artifact import Artifact
from rung.artifact.heads import Head
from rung.evaluation.metrics.labels import labels_f1
from rung.rungs import Features
from rung.rungs.linear import best_threshold, best_thresholds, train_label_heads
from rung.task import Task

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("seed", range(20))
def test_no_threshold_has_a_better_f1(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.random(60) < 0.3
    truth[:5] = True
    probs = (np.round(rng.random(60), 1) * 0.5 + truth * 0.2).astype(np.float32)
    found = f1_score(truth, probs >= best_threshold(probs, truth))
    assert found == pytest.approx(max(f1_score(truth, probs >= t) for t in np.unique(probs)), rel=1e-12)


def test_a_rare_label_keeps_one_half() -> None:
    assert best_threshold(np.array([0.1, 0.9, 0.2], np.float32), np.array([True, False, True])) == 0.5


def test_separable_labels_are_learnt_and_the_head_lists_them() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((200, 4)) < [0.5, 0.2, 0.3, 0.0]
    vectors = (truth @ rng.normal(size=(4, 16)) + 0.05 * rng.normal(size=(200, 16))).astype(np.float32)
    weight, intercept, _, thresholds = train_label_heads([vectors[:150]], truth[:150], 0)
    head = Head(("a", "b", "c", "never"), "", weight, intercept, thresholds=thresholds)
    answers = [set(json.loads(head.decide(p)[0])) for p in head.classify(vectors[150:])]
    expected = [{label for label, t in zip(head.labels, row, strict=True) if t} for row in truth[150:]]
    assert sum(a == e for a, e in zip(answers, expected, strict=True)) >= 48


def test_the_answer_s_probability_is_that_of_all_decisions() -> None:
    head = Head(("a", "b"), "", np.eye(2, dtype=np.float32), np.zeros(2, np.float32), thresholds=(0.5, 0.2))
    answer, confidence = head.decide(np.array([0.4, 0.3], np.float32))
    assert answer == '["b"]'
    assert confidence == pytest.approx(0.6 * 0.3)


def test_shared_thresholds_win_where_most_rows_have_no_label() -> None:
    truth = np.zeros((50, 2), bool)
    truth[:6, 0] = True
    probs = np.full((50, 2), 0.3, np.float32)
    probs[:3, 0] = 0.8
    score, thresholds = best_thresholds(probs, truth)
    assert thresholds == (0.4, 0.4)  # the first of those that are as good
    assert score == pytest.approx(f1_score(truth, probs >= 0.4, average="samples", zero_division=1))


def test_real_messages_are_labelled_better_than_by_one_answer_for_all_and_saved(tmp_path: Path) -> None:
    task = Task.load(EXAMPLES / "wnut17" / "task.yaml", {"data.train_rows": "300", "data.test_rows": "200"})
    data = task.read()
    fitted = Features().fit(Artifact.zero_shot(task, data.labels), data)
    answers = [answer.text for answer in fitted.answer(data.test)]
    expected = [row.outputs[0] for row in data.test]

    def mean(texts: list[str]) -> float:
        return float(np.mean([labels_f1(text, [truth]) for text, truth in zip(texts, expected, strict=True)]))

    constant = max(mean([text] * len(expected)) for text in ("[]", '["person"]', '["location", "person"]'))
    assert mean(answers) > constant + 0.03
    again = Artifact.load(fitted.save(tmp_path / "saved"))
    assert [a.text for a in again.answer(data.test[:20])] == answers[:20]
