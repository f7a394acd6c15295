"""Linear heads on the features of texts: logistic regression, its penalty and its thresholds chosen on training rows.

Features come in blocks, such as an encoder's vectors and TF-IDF. Every block is divided by one number, so that blocks
weigh the same and one range of penalties suits all. Where there are more features than rows, the rows are rotated into
as many dimensions as there are rows: a linear model with a quadratic penalty depends on the inner products of the rows
alone (Schölkopf et al. 2001, A generalized representer theorem), so the result is the same and takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from rung.data.rows import Example
from rung.engines.base import Floats
from rung.errors import EngineError, needed_by
from rung.progress import QUIET, Progress

PENALTIES = (0.001, 0.003, 0.01, 0.03, 0.1, 1.0, 10.0)  # inverse; see VARIANCE for the scale of the features
LEXICAL = (0.1, 1.0)  # variance of TF-IDF beside an encoder's: short texts need little of it, long ones much
RIDGE_PENALTIES = (1.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 1e5)
VARIANCE = 384  # of TF-IDF as scaled; a coordinate of an encoder has 1, and the built-in one has so many
FOLDS = 3
UNEVEN = 2.0  # a label with so many times the rows of another: then balanced class weights are tried as well
ROWS_FOR_SEARCH = 2500  # the penalty is chosen on this many rows at most
ROTATED = 2500  # rows that are rotated at most: the time grows with the cube
SHARED = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # thresholds that all labels may share
FEWEST = 5  # rows with a label; with fewer, its best threshold is chance
NEVER = -30.0  # the intercept of a label that no training row has
RAREST = 1e-12  # the least probability that the likelihood of a label counts with
EXACT = 1e-6  # tolerance of the final fit

Matrix = Any  # [rows, features]: a numpy array, or a sparse matrix of scipy
Truth = npt.NDArray[Any]


# ---- features as rows of a matrix to fit on


@dataclass(frozen=True)
class Design:
    """Rows to fit a linear model on, and the way back to the weights of the features.

    Attributes:
        rows: shape [rows, columns].
        unfold: turns the weight [outputs, columns] and intercept [outputs] of a model on `rows` into those on the
            features as they were given, [outputs, features] and [outputs].
    """

    rows: Matrix
    unfold: Callable[[Floats, Floats], tuple[Floats, Floats]]


def design(blocks: Sequence[Matrix], lexical: float = 1.0) -> Design:
    """Scale the blocks, and rotate the rows where there are fewer of them than features.

    `lexical` multiplies the variance of sparse blocks, which are TF-IDF.
    """
    means = [np.asarray(block.mean(0)).ravel() for block in blocks]
    scales = [
        _scale(block, mean) / (float(np.sqrt(lexical)) if _is_sparse(block) else 1.0)
        for block, mean in zip(blocks, means, strict=True)
    ]
    rows, columns = blocks[0].shape[0], sum(block.shape[1] for block in blocks)
    if columns > rows and rows <= ROTATED:
        return _rotated(blocks, means, scales)
    if not any(map(_is_sparse, blocks)):
        dense = np.hstack([(b - m) / s for b, m, s in zip(blocks, means, scales, strict=True)])
        return Design(dense, lambda weight, intercept: _scaled_back(weight, intercept, means, scales))
    from scipy.sparse import csr_matrix, hstack

    sparse = hstack([csr_matrix(block) / scale for block, scale in zip(blocks, scales, strict=True)], format="csr")
    origin = [np.zeros_like(mean) for mean in means]  # a sparse matrix stays sparse, so it is not centred
    return Design(sparse, lambda weight, intercept: _scaled_back(weight, intercept, origin, scales))


def _is_sparse(block: Matrix) -> bool:
    return not isinstance(block, np.ndarray)


def _scale(block: Matrix, mean: Floats) -> float:
    """One number for a block: a coordinate that hardly varies carries little."""
    if not _is_sparse(block):
        return float(block.std(0).mean()) or 1.0
    variance = float(block.multiply(block).sum()) / block.shape[0] - float(mean @ mean)
    return float(np.sqrt(max(variance, 0.0) / VARIANCE)) or 1.0


def _scaled_back(
    weight: Floats, intercept: Floats, means: Sequence[Floats], scales: Sequence[float]
) -> tuple[Floats, Floats]:
    slopes = weight / np.repeat(scales, [len(mean) for mean in means])
    return slopes.astype(np.float32), (intercept - slopes @ np.concatenate(means)).astype(np.float32)


def _rotated(blocks: Sequence[Matrix], means: Sequence[Floats], scales: Sequence[float]) -> Design:
    """Compute rows with the same inner products from the eigenvectors of the centred Gram matrix."""
    gram = np.zeros((blocks[0].shape[0],) * 2)
    for block, scale in zip(blocks, scales, strict=True):
        product = block @ block.T
        gram += (product.toarray() if _is_sparse(block) else product) / scale**2
    centre = gram.mean(0)
    values, vectors = np.linalg.eigh(gram - centre - centre[:, None] + centre.mean())
    kept = values > 1e-10 * max(float(values[-1]), 1e-12)
    roots, vectors = np.sqrt(values[kept]), vectors[:, kept]

    def unfold(weight: Floats, intercept: Floats) -> tuple[Floats, Floats]:
        dual = (weight / roots) @ vectors.T
        dual -= dual.mean(1, keepdims=True)  # the rows were centred
        parts = [np.asarray((block.T @ dual.T).T) / scale**2 for block, scale in zip(blocks, scales, strict=True)]
        slopes = np.hstack(parts)
        return slopes.astype(np.float32), (intercept - slopes @ np.concatenate(means)).astype(np.float32)

    return Design(vectors * roots, unfold)


# ---- one label a row


Weights = npt.NDArray[np.float64] | None  # of rows, shape [rows]; None where all count alike


def row_weights(rows: Sequence[Example], more: int = 0) -> Weights:
    """The weights of the rows, 1 on average; then as many ones as there are `more` rows that are none of the task's."""
    weights = np.array([row.weight for row in rows])
    return None if (weights == 1).all() else np.concatenate([weights / weights.mean(), np.ones(more)])


@contextmanager
def one_thread() -> Iterator[None]:
    """Run what is inside on one thread: on two cores, OpenBLAS's products of so few rows took six times as long."""
    with needed_by("training a head", error=EngineError):
        from threadpoolctl import threadpool_limits
    with threadpool_limits(1):
        yield


def logistic(penalty: float, *, balanced: bool = False, tolerance: float = 1e-3) -> Any:
    """scikit-learn's logistic regression with this inverse penalty."""
    with needed_by("training a head", error=EngineError):
        from sklearn.linear_model import LogisticRegression
    weights = "balanced" if balanced else None
    return LogisticRegression(C=penalty, max_iter=2000, tol=tolerance, class_weight=weights)


@dataclass(frozen=True, slots=True)
class HeadSettings:
    """The inverse penalty, whether labels weigh the same however many rows they have, and the variance of TF-IDF.

    That variance is a share of the variance of an encoder's vectors, where both are features.
    """

    penalty: float
    balanced: bool
    lexical: float = 1.0


@one_thread()
def train_head(
    blocks: Sequence[Matrix], truth: Truth, labels: int, *, seed: int, weights: Weights = None,
    progress: Progress = QUIET,
) -> tuple[Floats, Floats, HeadSettings]:  # fmt: skip
    """Fit multinomial logistic regression on scaled features, and fold the scaling into the weights.

    `blocks` have the shape [rows, features], `truth` (label numbers) [rows]; of the `labels` labels, one without rows
    gets a probability of nearly zero. Cross-validated accuracy chooses the penalty, and between equals the likelihood
    of the labels. Returns the weight [labels, features of all blocks], the intercept [labels], and what was chosen.
    `weights` [rows] are those of scikit-learn's `sample_weight`; the accuracy that chooses is weighted, too.
    """
    shares = LEXICAL if len(set(map(_is_sparse, blocks))) == 2 else (1.0,)
    designs = {lexical: design(blocks, lexical) for lexical in shares}
    choices = choices_of(np.bincount(truth), shares)
    progress.start("training the head", len(choices) + 1)
    order, fold = stratified(truth, seed)
    halves = {lexical: made.rows.astype(np.float32) for lexical, made in designs.items()}  # suffice to choose, faster
    scores = []
    for choice in choices:
        scores.append(_cross_validated(halves[choice.lexical], truth, order, fold, choice, weights))
        progress.advance(note=f"penalty {choice.penalty:g}: {scores[-1][0]:.3f}")
    best = choices[max(range(len(choices)), key=lambda number: scores[number])]
    made = designs[best.lexical]
    model = logistic(best.penalty, balanced=best.balanced, tolerance=EXACT).fit(made.rows, truth, weights)
    progress.advance()
    progress.finish()
    classes, slopes, offsets = model.classes_, model.coef_, model.intercept_
    if len(classes) == 2:  # scikit-learn keeps one row for two classes
        slopes, offsets = np.concatenate([-slopes, slopes]) / 2, np.concatenate([-offsets, offsets]) / 2
    slopes, offsets = made.unfold(slopes, offsets)
    weight = np.zeros((labels, slopes.shape[1]), np.float32)
    intercept = np.full(labels, NEVER, np.float32)
    weight[classes], intercept[classes] = slopes, offsets
    return weight, intercept, best


def choices_of(counts: npt.NDArray[np.int64], shares: Sequence[float]) -> list[HeadSettings]:
    """What cross-validation chooses from, for labels with so many rows; `shares` are the variances of TF-IDF."""
    uneven = counts.max() >= UNEVEN * counts[counts > 0].min()
    return [HeadSettings(*each) for each in product(PENALTIES, (False, True) if uneven else (False,), shares)]


def stratified(truth: Truth, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Draw a bounded number of rows, and folds of them that keep the labels' shares."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(truth))[:ROWS_FOR_SEARCH]
    fold = np.empty(len(order), int)
    for label in np.unique(truth[order]):
        members = np.flatnonzero(truth[order] == label)
        fold[members] = (np.arange(len(members)) + rng.integers(FOLDS)) % FOLDS
    return order, fold


def _cross_validated(
    rows: Matrix, truth: Truth, order: npt.NDArray[np.int64], fold: npt.NDArray[np.int64], choice: HeadSettings,
    weights: Weights = None,
) -> tuple[float, float]:  # fmt: skip
    """Accuracy over the folds, and the mean log-likelihood."""
    right, likelihood = 0.0, 0.0
    share = np.ones(len(truth)) if weights is None else weights * (len(order) / weights[order].sum())
    for held in range(FOLDS):
        train, test = order[fold != held], order[fold == held]
        if len(test) == 0 or len(np.unique(truth[train])) < 2:
            continue
        model = logistic(choice.penalty, balanced=choice.balanced).fit(
            rows[train], truth[train], None if weights is None else weights[train]
        )
        logs = np.log(np.maximum(model.predict_proba(rows[test]), RAREST))
        right += float(share[test] @ (model.classes_[logs.argmax(1)] == truth[test]))
        known = np.isin(truth[test], model.classes_)
        own = logs[known, np.searchsorted(model.classes_, truth[test][known])]
        likelihood += float(share[test][known] @ own) + float(np.log(RAREST)) * float(share[test][~known].sum())
    return right / len(order), likelihood / len(order)


# ---- several labels a row


@one_thread()
def train_label_heads(
    blocks: Sequence[Matrix], truth: npt.NDArray[np.bool_], seed: int, *, weights: Weights = None,
    progress: Progress = QUIET,
) -> tuple[Floats, Floats, float, tuple[float, ...]]:  # fmt: skip
    """Fit one head per label on scaled features, and fold the scaling into the weights.

    `blocks` have the shape [rows, features], `truth` (which labels each row has) [rows, labels]. Returns the weight
    [labels, features of all blocks], the intercept [labels], the chosen inverse penalty, and a threshold per label.
    `weights` [rows] weigh rows in the fit; thresholds are chosen on rows that count alike.
    """
    made = design(blocks)
    folds = np.random.default_rng(seed).permutation(len(truth)) % FOLDS
    progress.start("training the heads", len(PENALTIES) + 1)
    tried: list[tuple[float, float, tuple[float, ...]]] = []
    for penalty in PENALTIES:
        probs = _cross_validated_heads(made.rows, truth, folds, penalty, weights)
        score, thresholds = best_thresholds(probs, truth)
        tried.append((score, penalty, thresholds))
        progress.advance(note=f"penalty {penalty:g}: {score:.3f}")
    _, penalty, thresholds = max(tried, key=lambda each: each[0])
    weight, intercept = made.unfold(*_fit(made.rows, truth, penalty, EXACT, weights))
    progress.advance()
    progress.finish()
    return weight, intercept, penalty, thresholds


def best_thresholds(probs: Floats, truth: npt.NDArray[np.bool_]) -> tuple[float, tuple[float, ...]]:
    """The best mean F1 over the labels of a row, and the thresholds that give it: one for all labels, or each its own.

    Both arrays have the shape [rows, labels].
    """
    labels = truth.shape[1]
    own = tuple(best_threshold(probs[:, k], truth[:, k]) for k in range(labels))
    options = [*((shared,) * labels for shared in SHARED), own]
    scores = [row_f1(probs >= np.array(option), truth) for option in options]
    best = int(np.argmax(scores))
    return scores[best], options[best]


def row_f1(given: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> float:
    """The mean over rows of the F1 of their labels; 1 for a row without labels that is given none."""
    total = given.sum(1) + truth.sum(1)
    return float(np.where(total > 0, 2 * (given & truth).sum(1) / np.maximum(total, 1), 1.0).mean())


def best_threshold(probs: Floats, truth: npt.NDArray[np.bool_]) -> float:
    """The threshold of the best F1, halfway between two neighbouring probabilities; one half for a rare label."""
    if truth.sum() < FEWEST:
        return 0.5
    order = np.argsort(-probs, kind="stable")
    ranked, hits = probs[order], np.cumsum(truth[order])
    scores = 2 * hits / (np.arange(1, len(order) + 1) + truth.sum())
    last_of_equals = np.append(ranked[:-1] != ranked[1:], True)
    best = int(np.argmax(np.where(last_of_equals, scores, -1)))
    below = ranked[best + 1] if best + 1 < len(ranked) else 0.0
    return float((ranked[best] + below) / 2)


def _cross_validated_heads(
    rows: Matrix, truth: npt.NDArray[np.bool_], folds: npt.NDArray[np.int64], penalty: float, weights: Weights
) -> Floats:
    """Each row's probabilities by heads that were trained without it, shape [rows, labels]."""
    probs = np.zeros(truth.shape, np.float32)
    for held in range(FOLDS):
        train, test = folds != held, folds == held
        if train.any() and test.any():
            weight, intercept = _fit(
                rows[train], truth[train], penalty, 1e-3, None if weights is None else weights[train]
            )
            probs[test] = 1 / (1 + np.exp(-(rows[test] @ weight.T + intercept)))
    return probs


def _fit(
    rows: Matrix, truth: npt.NDArray[np.bool_], penalty: float, tolerance: float, weights: Weights
) -> tuple[Floats, Floats]:
    """Weight [labels, columns] and intercept [labels]; labels that all rows or none have get no weight."""
    weight: Any = np.zeros((truth.shape[1], rows.shape[1]))
    intercept: Any = np.where(truth.any(0), -NEVER, NEVER)
    for k in range(truth.shape[1]):
        if truth[:, k].any() and not truth[:, k].all():
            model = logistic(penalty, tolerance=tolerance).fit(rows, truth[:, k], weights)
            weight[k], intercept[k] = model.coef_[0], model.intercept_[0]
    return weight, intercept


# ---- numbers


@one_thread()
def train_number(
    blocks: Sequence[Matrix], numbers: Sequence[float], weights: Weights = None
) -> tuple[Floats, Floats, float]:
    """Fit scikit-learn's ridge regression on scaled features, and fold the scaling into the weights.

    Leave-one-out errors choose the penalty; of very many rows, the errors over folds. Returns the weight [1, features
    of all blocks], the intercept [1], and the penalty.
    """
    with needed_by("ridge regression", error=EngineError):
        from sklearn.linear_model import RidgeCV
    made = design(blocks)
    model = RidgeCV(RIDGE_PENALTIES, cv=None if len(numbers) <= ROTATED else FOLDS).fit(made.rows, numbers, weights)
    weight, intercept = made.unfold(np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_))
    return weight, intercept, float(model.alpha_)
