"""Frozen features with a trained head: the baseline that every classification rung must beat.

The head is multinomial logistic regression, or one logistic regression per label where a row may have several (binary
relevance). Cross-validation on the training rows chooses the penalty, and for several labels the thresholds (Yang 2001,
A study of thresholding strategies for text categorization): each label's own, where its F1 is best, or one for all,
whichever gives the better mean F1 over the labels of a row, which is the metric of such tasks. The first finds rare
labels; the second leaves rows without labels alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rung.artifact.artifact import Artifact
from rung.artifact.heads import Head, features
from rung.data.rows import Data, Example, labels_of
from rung.engines.base import Floats
from rung.errors import EngineError, needed_by
from rung.machine import Machine
from rung.models.reference import is_endpoint, resolve
from rung.progress import QUIET, Progress
from rung.prompts.prompt import verbalize
from rung.rungs.base import OK, Applicability, Cost, CountOrZero, Rung, rung, skip
from rung.rungs.costs import forward_cost, sizes

PENALTIES = (0.01, 0.1, 1.0, 10.0)
FOLDS = 3
SHARED = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # thresholds that all labels may share
FEWEST = 5  # rows with a label; with fewer, its best threshold is chance
ROWS_FOR_SEARCH = 3000  # the penalty is chosen on this many rows at most
NEVER = -30.0  # the intercept of a label that no training row has


def train_label_heads(
    vectors: Floats, truth: npt.NDArray[np.bool_], seed: int, *, progress: Progress = QUIET
) -> tuple[Floats, Floats, float, tuple[float, ...]]:
    """Fit one head per label on standardized features, and fold the standardization into the weights.

    `vectors` has the shape [rows, features], `truth` (which labels each row has) [rows, labels]. Returns the weight
    [labels, features], the intercept [labels], the chosen inverse penalty, and a threshold per label.
    """
    mean = vectors.mean(0)
    scale = float(vectors.std(0).mean()) or 1.0
    standard = (vectors - mean) / scale
    folds = np.random.default_rng(seed).permutation(len(vectors)) % FOLDS
    progress.start("training the heads", len(PENALTIES) + 1)
    tried: list[tuple[float, float, tuple[float, ...]]] = []
    for penalty in PENALTIES:
        probs = _cross_validated_heads(standard, truth, folds, penalty)
        score, thresholds = best_thresholds(probs, truth)
        tried.append((score, penalty, thresholds))
        progress.advance(note=f"penalty {penalty:g}: {score:.3f}")
    _, penalty, thresholds = max(tried, key=lambda each: each[0])
    weight, intercept = _fit(standard, truth, penalty)
    progress.advance()
    progress.finish()
    slopes = weight / scale
    return slopes.astype(np.float32), (intercept - slopes @ mean).astype(np.float32), penalty, thresholds


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
    vectors: Floats, truth: npt.NDArray[np.bool_], folds: npt.NDArray[np.int64], penalty: float
) -> Floats:
    """Each row's probabilities by heads that were trained without it, shape [rows, labels]."""
    probs = np.zeros(truth.shape, np.float32)
    for held in range(FOLDS):
        train, test = folds != held, folds == held
        if train.any() and test.any():
            weight, intercept = _fit(vectors[train], truth[train], penalty)
            probs[test] = 1 / (1 + np.exp(-(vectors[test] @ weight.T + intercept)))
    return probs


def _fit(vectors: Floats, truth: npt.NDArray[np.bool_], penalty: float) -> tuple[Floats, Floats]:
    """Weight [labels, features] and intercept [labels]; labels that all rows or none have get no weight."""
    weight = np.zeros((truth.shape[1], vectors.shape[1]), np.float32)
    intercept = np.where(truth.any(0), -NEVER, NEVER).astype(np.float32)
    for k in range(truth.shape[1]):
        if truth[:, k].any() and not truth[:, k].all():
            model = logistic(penalty).fit(vectors, truth[:, k])
            weight[k], intercept[k] = model.coef_[0], model.intercept_[0]
    return weight, intercept


def logistic(penalty: float) -> Any:
    """scikit-learn's logistic regression with this inverse penalty."""
    with needed_by("training a head", error=EngineError):
        from sklearn.linear_model import LogisticRegression
    return LogisticRegression(C=penalty, max_iter=500, tol=1e-3)


@rung("llm-features", family="features", order=510, default=True, topics=("hidden states",), encoder="")
@rung("features", family="features", order=500, default=True)
@dataclass(frozen=True)
class Features(Rung):
    """A linear head on frozen features.

    Attributes:
        encoder: reference of a sentence encoder; empty for the base model's own hidden states.
        label_names: also train on the labels' names and descriptions, one more row for each. On BANKING77 that gained
            two points of validation accuracy with five rows a label, and lost two with ten.
        seed: seed of the folds.
    """

    encoder: str = "embedded-encoder"
    label_names: bool = False
    seed: CountOrZero = 0

    @property
    def name(self) -> str:
        """`features`, or `llm-features` for the base model's hidden states."""
        return "features" if self.encoder else "llm-features"

    def suits(self, artifact: Artifact, data: Data) -> Applicability:
        """It applies to categories, once."""
        if not self.encoder and is_endpoint(artifact.model):
            return skip("an endpoint does not show its hidden states", final=True)
        return head_applies(artifact, data)

    def cache_key(self, artifact: Artifact) -> tuple[object, ...]:
        """The rows' text as in the prompt, and the base model if its hidden states are the features."""
        model = () if self.encoder else (artifact.model, artifact.engine, artifact.weights.base)
        return (*head_key(artifact, names=self.label_names), *model)

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """One pass of the encoder over the training rows; the head itself is small."""
        s = sizes(artifact, data)
        parameters = resolve(self.encoder).parameters if self.encoder else s.parameters
        return forward_cost(parameters, s.question, machine, fit_rows=len(data.train))

    def fit(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> Artifact:
        """Replace the decoder by a head."""
        if artifact.signature.kind == "multilabel":
            given = [set(labels_of(example.outputs[0], "multilabel")) for example in data.train]
            truths = np.array([[label in row for label in data.labels] for row in given])
            vectors = features(artifact, self.encoder, texts_of(artifact, data.train), progress=progress)
            weight, intercept, penalty, thresholds = train_label_heads(vectors, truths, self.seed, progress=progress)
            head = Head(data.labels, self.encoder, weight, intercept, thresholds=thresholds)
        else:
            texts, truth = labelled_texts(artifact, data.train, data.labels, names=self.label_names)
            vectors = features(artifact, self.encoder, texts, progress=progress)
            weight, intercept, penalty = train_head(vectors, truth, len(data.labels), seed=self.seed, progress=progress)
            head = Head(data.labels, self.encoder, weight, intercept)
        settings = {
            "encoder": self.encoder or artifact.model, "inverse_penalty": penalty, "rows": len(data.train),
            "label_names": self.label_names,
        }  # fmt: skip
        return artifact.step(self.name, settings, decoder=head)


def head_applies(artifact: Artifact, data: Data) -> Applicability:
    """Say whether a head on an encoder can replace an artifact's decoder, or why not."""
    if not data.labels:
        return skip("a head answers categories only", final=True)
    if len({e.outputs[0] for e in data.train}) < 2:
        return skip("the training rows all have the same answer", final=True)
    if not artifact.decoder.reads_prompt:
        return skip("a head is trained already")
    if artifact.weights.adapter is not None:
        return skip("a head would not see the tuned language model")
    return OK


def head_key(artifact: Artifact, *, names: bool) -> tuple[object, ...]:
    """All parts of an artifact that `labelled_texts` and a head's predictions read, for comparison."""
    prompt = artifact.prompt
    return (artifact.signature, prompt.template, prompt.chat_column, prompt.descriptions if names else ())


def texts_of(artifact: Artifact, rows: Sequence[Example]) -> list[str]:
    """The rows as they appear in prompts."""
    return [artifact.prompt.question(example.inputs) for example in rows]


def labelled_texts(
    artifact: Artifact, rows: Sequence[Example], labels: Sequence[str], *, names: bool
) -> tuple[list[str], np.ndarray[Any, Any]]:
    """The texts and label numbers that a head is trained on: the rows, and with `names` the labels themselves."""
    texts = texts_of(artifact, rows)
    truth = [labels.index(example.outputs[0]) for example in rows]
    if names:
        described = dict(artifact.prompt.descriptions)
        spoken = verbalize(labels)
        texts += [f"{text}: {described[text]}" if text in described else text for text in spoken]
        truth += range(len(labels))
    return texts, np.array(truth)


def train_head(
    vectors: Floats, truth: np.ndarray[Any, Any], labels: int, *, seed: int, progress: Progress = QUIET
) -> tuple[Floats, Floats, float]:
    """Fit logistic regression on standardized features, and fold the standardization into the weights.

    `vectors` has the shape [rows, features], `truth` (label numbers) [rows]; of the `labels` labels, one without rows
    gets a probability of nearly zero. Returns the weight [labels, features], the intercept [labels], and the chosen
    inverse penalty.
    """
    mean = vectors.mean(0)
    scale = float(vectors.std(0).mean()) or 1.0  # one scale: a coordinate that hardly varies carries little
    standard = (vectors - mean) / scale
    progress.start("training the head", len(PENALTIES) + 1)
    scores = []
    for penalty in PENALTIES:
        scores.append(_cross_validated(standard, truth, penalty, seed))
        progress.advance(note=f"penalty {penalty:g}: {scores[-1]:.3f}")
    best = PENALTIES[int(np.argmax(scores))]
    model = logistic(best).fit(standard, truth)
    progress.advance()
    progress.finish()
    weight = np.zeros((labels, vectors.shape[1]), np.float32)
    intercept = np.full(labels, NEVER, np.float32)
    classes, slopes, offsets = model.classes_, model.coef_ / scale, model.intercept_
    if len(classes) == 2:  # scikit-learn keeps one row for two classes
        slopes, offsets = np.concatenate([-slopes, slopes]) / 2, np.concatenate([-offsets, offsets]) / 2
    weight[classes] = slopes
    intercept[classes] = offsets - slopes @ mean
    return weight, intercept, best


def _cross_validated(vectors: Floats, truth: np.ndarray[Any, Any], penalty: float, seed: int) -> float:
    """Accuracy over folds that keep the labels' shares, on a bounded number of rows."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(truth))[:ROWS_FOR_SEARCH]
    fold = np.empty(len(order), int)
    for label in np.unique(truth[order]):
        members = np.flatnonzero(truth[order] == label)
        fold[members] = (np.arange(len(members)) + rng.integers(FOLDS)) % FOLDS
    right = 0
    for held in range(FOLDS):
        train, test = order[fold != held], order[fold == held]
        if len(test) == 0 or len(np.unique(truth[train])) < 2:
            continue
        right += int((logistic(penalty).fit(vectors[train], truth[train]).predict(vectors[test]) == truth[test]).sum())
    return right / len(order)
