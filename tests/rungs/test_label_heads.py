"""Heads for several labels a row: thresholds against a search over all of them, and learning from separable rows."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import f1_score

from rung.parts import Head
from rung.rungs.label_heads import best_threshold, train_label_heads


@pytest.mark.parametrize("seed", range(20))
def test_no_threshold_has_a_better_f1(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.random(60) < 0.3
    truth[:5] = True
    chances = (np.round(rng.random(60), 1) * 0.5 + truth * 0.2).astype(np.float32)
    found = f1_score(truth, chances >= best_threshold(chances, truth))
    assert found == pytest.approx(max(f1_score(truth, chances >= t) for t in np.unique(chances)), rel=1e-12)


def test_a_rare_label_keeps_one_half() -> None:
    assert best_threshold(np.array([0.1, 0.9, 0.2], np.float32), np.array([True, False, True])) == 0.5


def test_separable_labels_are_learnt_and_the_head_lists_them() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((200, 4)) < [0.5, 0.2, 0.3, 0.0]
    vectors = (truth @ rng.normal(size=(4, 16)) + 0.05 * rng.normal(size=(200, 16))).astype(np.float32)
    weight, intercept, _, thresholds = train_label_heads(vectors[:150], truth[:150], 0)
    head = Head(("a", "b", "c", "never"), "", weight, intercept, thresholds=thresholds)
    answers = [set(json.loads(head.decide(p)[0])) for p in head.classify(vectors[150:])]
    expected = [{label for label, t in zip(head.labels, row, strict=True) if t} for row in truth[150:]]
    assert sum(a == e for a, e in zip(answers, expected, strict=True)) >= 48


def test_the_answer_s_probability_is_that_of_all_decisions() -> None:
    head = Head(("a", "b"), "", np.eye(2, dtype=np.float32), np.zeros(2, np.float32), thresholds=(0.5, 0.2))
    answer, confidence = head.decide(np.array([0.4, 0.3], np.float32))
    assert answer == '["b"]'
    assert confidence == pytest.approx(0.6 * 0.3)
