"""Head: the decoder that classifies the features of a text."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from rung.artifact.confidence import Calibration, of_decisions
from rung.artifact.decoder import Answer, Given, Promptless, sure, sure_of_list
from rung.artifact.labels import listed
from rung.data.rows import Example
from rung.engines.base import Floats
from rung.engines.opening import open_encoder
from rung.errors import EngineError
from rung.models.messages import Messages
from rung.progress import QUIET, Progress
from rung.prompts.overflow import Rendered

if TYPE_CHECKING:
    from rung.artifact.artifact import Artifact


@dataclass(frozen=True)
class Head(Promptless):
    """A trained linear layer on features.

    Attributes:
        labels: the task's labels.
        encoder: reference of the sentence encoder, or empty for the base model's own hidden states.
        weight, intercept: shapes [labels, features] and [labels].
        tuned: folder of the encoder with weights that were trained for the task, or None for its own.
        confidence: how probabilities become confidences, where that was fitted.
        thresholds: for several labels a row, the probability from which each is given; empty for one label a row.
    """

    kind: ClassVar[str] = "head"
    labels: tuple[str, ...]
    encoder: str
    weight: Floats
    intercept: Floats
    tuned: Path | None = None
    thresholds: tuple[float, ...] = ()
    confidence: Calibration | None = None

    @property
    def reference(self) -> str:
        """What embeds the texts: the tuned encoder's folder, or `encoder`."""
        return self.encoder if self.tuned is None else str(self.tuned)

    @property
    def asks_model(self) -> bool:
        """Whether answering takes the artifact's language model: where its hidden states are the features."""
        return not self.encoder

    def answer(
        self, artifact: Artifact, examples: Sequence[Example], *, full: bool, passages: Given, progress: Progress
    ) -> list[Answer]:
        """Classify every example's text by its features."""
        del full, passages  # all labels' probabilities come at once, and no documents are shown
        encode = open_encoder(self.reference, progress=progress).encode if self.encoder else artifact.open().encode
        start = time.perf_counter()  # loading a model is no part of answering a row
        texts = [artifact.prompt.question(example.inputs) for example in examples]
        probs = self.classify(features(artifact, self.reference, texts, progress=progress))
        seconds = (time.perf_counter() - start) / len(examples)
        answers = []
        for p, text in zip(probs, texts, strict=True):
            messages: Messages = ({"role": "user", "content": text},)
            said, confidence = self.decide(p)
            answer = Answer(said, confidence, tuple(p.tolist()), len(encode(text)), 0, seconds, messages)
            answers.append(self._sure(answer, p))
        return answers

    def _sure(self, answer: Answer, probs: Floats) -> Answer:
        """Return the answer with its confidence, calibrated where that was fitted."""
        if not self.thresholds:
            return sure(answer, probs, int(probs.argmax()), self.confidence)
        if self.confidence is None:
            return answer
        return sure_of_list(answer, probs, probs >= np.array(self.thresholds), self.confidence)

    def classify(self, features: Floats) -> Floats:
        """Return probabilities, shape [rows, labels], of unit feature vectors [rows, features].

        They sum to 1 in each row where one label is right, and are each on its own where several may be.
        """
        logits = features.astype(np.float64) @ self.weight.T.astype(np.float64) + self.intercept
        if self.thresholds:
            each: Floats = (1 / (1 + np.exp(-logits.clip(-500, 500)))).astype(np.float32)
            return each
        logits -= logits.max(-1, keepdims=True)
        weights = np.exp(logits)
        result: Floats = (weights / weights.sum(-1, keepdims=True)).astype(np.float32)
        return result

    def decide(self, probs: Floats) -> tuple[str, float]:
        """Return the answer to a row by its probabilities, shape [labels], and the answer's own probability.

        With thresholds the answer is a JSON list, and its probability that of all decisions, taken as independent.
        """
        if not self.thresholds:
            return self.labels[int(probs.argmax())], float(probs.max())
        given = probs >= np.array(self.thresholds)
        return listed(self.labels, given), float(of_decisions(probs, given))


def features(artifact: Artifact, encoder: str, texts: Sequence[str], *, progress: Progress = QUIET) -> Floats:
    """Return unit feature vectors: of the sentence encoder, or of the base model where `encoder` is empty."""
    if encoder:
        return open_encoder(encoder, progress=progress).embed(texts, progress=progress)
    return artifact.open().embed(texts, progress=progress)


# --------------------
# Mixture: the decoder that averages what other artifacts find.


@dataclass(frozen=True)
class Mixture(Promptless):
    """A weighted average of the label probabilities of other artifacts of the same task.

    Attributes:
        members: artifacts that give label probabilities.
        weights: of each member, adding up to 1.
        temperatures: of each member; its probabilities are sharpened (below 1) or softened (above 1) first.
        confidence: how probabilities become confidences, where that was fitted.
    """

    kind: ClassVar[str] = "mixture"
    members: tuple[Artifact, ...]
    weights: tuple[float, ...]
    temperatures: tuple[float, ...]
    confidence: Calibration | None = None

    def answer(
        self, artifact: Artifact, examples: Sequence[Example], *, full: bool, passages: Given, progress: Progress
    ) -> list[Answer]:
        """Ask every member; costs add up, and what is shown as sent is what the first one was sent."""
        del full, passages  # members are mixed by all their labels' probabilities, and find documents themselves
        given = [member.answer(examples, full=True, progress=progress) for member in self.members]
        probs = self.mixed([label_probabilities(answers) for answers in given])
        rows = list(zip(*given, strict=True))
        answers = []
        for p, row in zip(probs, rows, strict=True):
            best = int(p.argmax())
            answer = replace(
                row[0],
                text=artifact.shape.labels[best],
                prompt_tokens=sum(answer.prompt_tokens for answer in row),
                completion_tokens=sum(answer.completion_tokens for answer in row),
                seconds=sum(answer.seconds for answer in row),
            )
            answers.append(sure(answer, p, best, self.confidence))
        return answers

    def fit_to_context(
        self, artifact: Artifact, examples: Sequence[Example], *, passages: Given, progress: Progress
    ) -> list[Rendered]:
        """Return what the first member is sent."""
        del artifact, passages
        return self.members[0].fit_to_context(examples, progress=progress)

    def text(self, artifact: Artifact, messages: Messages) -> str:
        """Return what the first member reads."""
        del artifact
        return self.members[0].text(messages)

    def mixed(self, probs: Sequence[Floats]) -> Floats:
        """Return the probabilities [rows, labels] of the members' own, one array of that shape each."""
        parts = [
            weight * tempered(one, temperature)
            for weight, temperature, one in zip(self.weights, self.temperatures, probs, strict=True)
        ]
        total: Floats = np.sum(parts, axis=0)
        return total


def tempered(probs: Floats, temperature: float) -> Floats:
    """Return probabilities [rows, labels] of logits divided by a temperature (Guo et al. 2017, arXiv:1706.04599)."""
    logits = np.log(np.maximum(probs, 1e-12)) / temperature
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    result: Floats = (weights / weights.sum(-1, keepdims=True)).astype(np.float32)
    return result


def label_probabilities(answers: Sequence[Answer]) -> Floats:
    """Return the probabilities of answers that were asked for all of them, shape [rows, labels].

    Raises:
        EngineError: `no-probabilities`: an answer has none.
    """
    if any(answer.probabilities is None for answer in answers):
        raise EngineError(
            "no-probabilities",
            "a mixture needs the probability of every label, and a member gives only its answer",
            hint="mix artifacts that score labels or have a head",
        )
    return np.array([answer.probabilities for answer in answers], np.float32)
