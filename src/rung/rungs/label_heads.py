"""One logistic regression for each label, where a row may have several: binary relevance with a threshold per label.

Thresholds are set on cross-validated probabilities (Yang 2001, A study of thresholding strategies for text
categorization): each label's own, where its F1 is best, or one for all, whichever gives the better F1 over the labels
of a row, which is what such tasks are scored by. The first finds rare labels; the second leaves rows without labels
alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rung.engines.base import Floats
from rung.errors import EngineError, needed_by
from rung.progress import QUIET, Progress

PENALTIES = (0.01, 0.1, 1.0, 10.0)
FOLDS = 3
SHARED = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # thresholds that all labels may share
FEWEST = 5  # rows with a label below which its best threshold would be that of chance
NEVER = -30.0  # the intercept of a label that no training row has


def train_label_heads(
    vectors: Floats, truth: npt.NDArray[np.bool_], seed: int, *, progress: Progress = QUIET
) -> tuple[Floats, Floats, float, tuple[float, ...]]:
    """Fit one head per label on standardized features and fold the standardization into the weights.

    Args:
        vectors: shape [rows, features].
        truth: which labels each row has, shape [rows, labels].
        seed: seed of the cross-validation folds.
        progress: told of every penalty.

    Returns:
        Weight [labels, features], intercept [labels], the chosen inverse penalty (one for all labels), and a threshold
        per label.
    """
    mean = vectors.mean(0)
    scale = float(vectors.std(0).mean()) or 1.0
    standard = (vectors - mean) / scale
    folds = np.random.default_rng(seed).permutation(len(vectors)) % FOLDS
    progress.start("training the heads", len(PENALTIES) + 1)
    found: list[tuple[float, float, tuple[float, ...]]] = []
    for penalty in PENALTIES:
        chances = _cross_validated(standard, truth, folds, penalty)
        score, thresholds = best_thresholds(chances, truth)
        found.append((score, penalty, thresholds))
        progress.advance(note=f"penalty {penalty:g}: {score:.3f}")
    _, penalty, thresholds = max(found, key=lambda one: one[0])
    weight, intercept = _fit(standard, truth, penalty)
    progress.advance()
    progress.finish()
    slopes = weight / scale
    return slopes.astype(np.float32), (intercept - slopes @ mean).astype(np.float32), penalty, thresholds


def best_thresholds(chances: Floats, truth: npt.NDArray[np.bool_]) -> tuple[float, tuple[float, ...]]:
    """Return the best mean F1 over the labels of a row, and the thresholds that give it: shared ones, or each its own.

    Args:
        chances: shape [rows, labels].
        truth: which labels each row has, shape [rows, labels].
    """
    labels = truth.shape[1]
    own = tuple(best_threshold(chances[:, k], truth[:, k]) for k in range(labels))
    options = [*((shared,) * labels for shared in SHARED), own]
    scores = [row_f1(chances >= np.array(option), truth) for option in options]
    best = int(np.argmax(scores))
    return scores[best], options[best]


def row_f1(given: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> float:
    """Return the mean over rows of the F1 of their labels; 1 for a row without labels that is given none."""
    total = given.sum(1) + truth.sum(1)
    return float(np.where(total > 0, 2 * (given & truth).sum(1) / np.maximum(total, 1), 1.0).mean())


def best_threshold(chances: Floats, truth: npt.NDArray[np.bool_]) -> float:
    """Return the probability from which to give a label, so that its F1 is best; one half where it is too rare to say.

    The threshold lies halfway between two neighbouring probabilities.
    """
    if truth.sum() < FEWEST:
        return 0.5
    order = np.argsort(-chances, kind="stable")
    ranked, hits = chances[order], np.cumsum(truth[order])
    scores = 2 * hits / (np.arange(1, len(order) + 1) + truth.sum())
    last_of_equals = np.append(ranked[:-1] != ranked[1:], True)
    best = int(np.argmax(np.where(last_of_equals, scores, -1)))
    below = ranked[best + 1] if best + 1 < len(ranked) else 0.0
    return float((ranked[best] + below) / 2)


def _cross_validated(
    vectors: Floats, truth: npt.NDArray[np.bool_], folds: npt.NDArray[np.int64], penalty: float
) -> Floats:
    """Return each row's probabilities by heads that were trained without it, shape [rows, labels]."""
    chances = np.zeros(truth.shape, np.float32)
    for held in range(FOLDS):
        train, test = folds != held, folds == held
        if train.any() and test.any():
            weight, intercept = _fit(vectors[train], truth[train], penalty)
            chances[test] = 1 / (1 + np.exp(-(vectors[test] @ weight.T + intercept)))
    return chances


def _fit(vectors: Floats, truth: npt.NDArray[np.bool_], penalty: float) -> tuple[Floats, Floats]:
    """Return weight [labels, features] and intercept [labels]; labels that all rows or none have get no weight."""
    weight = np.zeros((truth.shape[1], vectors.shape[1]), np.float32)
    intercept = np.where(truth.any(0), -NEVER, NEVER).astype(np.float32)
    for k in range(truth.shape[1]):
        if truth[:, k].any() and not truth[:, k].all():
            model = logistic(penalty).fit(vectors, truth[:, k])
            weight[k], intercept[k] = model.coef_[0], model.intercept_[0]
    return weight, intercept


def logistic(penalty: float) -> Any:
    """Return scikit-learn's logistic regression with this inverse penalty."""
    with needed_by("training a head", error=EngineError):
        from sklearn.linear_model import LogisticRegression
    return LogisticRegression(C=penalty, max_iter=500, tol=1e-3)
