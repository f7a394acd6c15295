"""Head: the decoder that classifies the features of a text."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from rung.artifact.confidence import Calibration, of_decisions
from rung.artifact.decoder import (
    Answer,
    ArtifactReader,
    ArtifactWriter,
    Change,
    Composition,
    Promptless,
    with_confidence,
    with_list_confidence,
)
from rung.artifact.labels import listed
from rung.artifact.rendering import Given
from rung.data.rows import Example
from rung.engines.base import Floats
from rung.engines.opening import open_encoder
from rung.errors import EngineError
from rung.models.messages import Messages
from rung.models.reference import resolve
from rung.progress import QUIET, Progress
from rung.prompts.overflow import Rendered


@dataclass(frozen=True, slots=True)
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
    refusals: ClassVar[Mapping[Change, str]] = {
        **Promptless.refusals,
        "prompt": "a head on frozen features does not read the prompt",
        "demonstrations": "a head on frozen features does not read the prompt",
        "reasoning": "a head on frozen features does not write",
        "training": "the head reads frozen features, which training would change",
        "servers": "a trained head answers, and such servers run language models",
    }
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
    def uses_llm(self) -> bool:
        """Whether answering takes the artifact's language model: where its hidden states are the features."""
        return not self.encoder

    @property
    def gives_probs(self) -> bool:
        """Whether the probability of every label is known."""
        return True

    def row_flops(self, artifact: Composition, rows: Sequence[Example]) -> float:
        """The encoder, or the base model, reads the row once."""
        return self.encoder_flops(artifact, rows, self.reference if self.encoder else "")

    def trainable_parameters(self, artifact: Composition) -> int:
        """Return the number of the head's parameters and its tuned encoder's."""
        del artifact
        encoder = 0 if self.tuned is None else resolve(self.reference).parameters
        return int(self.weight.size + self.intercept.size) + encoder

    def as_dict(self, writer: ArtifactWriter) -> dict[str, Any]:
        """Save the weights as arrays, and the tuned encoder as a folder."""
        writer.arrays["head.weight"], writer.arrays["head.intercept"] = self.weight, self.intercept
        if self.tuned is not None:
            shutil.copytree(self.tuned, writer.folder / "encoder")
        return {
            "labels": self.labels,
            "encoder": self.encoder,
            "tuned": self.tuned is not None,
            "thresholds": self.thresholds,
            "confidence": None if self.confidence is None else asdict(self.confidence),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], reader: ArtifactReader) -> Self:
        """Read the weights back."""
        tuned = reader.folder / "encoder" if values["tuned"] else None
        weight, intercept = reader.arrays["head.weight"], reader.arrays["head.intercept"]
        settings = {**values, "weight": weight, "intercept": intercept, "tuned": tuned}
        return super(Head, cls).from_dict(settings, reader)

    def answer(
        self, artifact: Composition, examples: Sequence[Example], *, full: bool, passages: Given, progress: Progress
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
            return with_confidence(answer, probs, int(probs.argmax()), self.confidence)
        if self.confidence is None:
            return answer
        return with_list_confidence(answer, probs, probs >= np.array(self.thresholds), self.confidence)

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


def features(artifact: Composition, encoder: str, texts: Sequence[str], *, progress: Progress = QUIET) -> Floats:
    """Return unit feature vectors: of the sentence encoder, or of the base model where `encoder` is empty."""
    if encoder:
        return open_encoder(encoder, progress=progress).embed(texts, progress=progress)
    return artifact.open().embed(texts, progress=progress)


# --------------------
# EnsembleDecoder: the decoder that averages what other artifacts find.


@dataclass(frozen=True, slots=True)
class EnsembleDecoder(Promptless):
    """A weighted average of the label probabilities of other artifacts of the same task.

    Attributes:
        artifacts: the members, which give label probabilities.
        weights: of each member, adding up to 1.
        temperatures: of each member; its probabilities are sharpened (below 1) or softened (above 1) first.
        confidence: how probabilities become confidences, where that was fitted.
    """

    kind: ClassVar[str] = "mixture"
    refusals: ClassVar[Mapping[Change, str]] = {
        **Promptless.refusals,
        "servers": "several artifacts answer, and such servers run one language model",
    }
    artifacts: tuple[Composition, ...]
    weights: tuple[float, ...]
    temperatures: tuple[float, ...]
    confidence: Calibration | None = None

    @property
    def members(self) -> tuple[Composition, ...]:
        """The artifacts."""
        return self.artifacts

    @property
    def uses_llm(self) -> bool:
        """Whether answering takes a language model: those of the members may."""
        return True

    @property
    def gives_probs(self) -> bool:
        """Whether the probability of every label is known."""
        return True

    def row_flops(self, artifact: Composition, rows: Sequence[Example]) -> float:
        """The members' operations add up."""
        del artifact
        return sum(member.decoder.row_flops(member, rows) for member in self.artifacts)

    def trainable_parameters(self, artifact: Composition) -> int:
        """Return the sum over the members."""
        del artifact
        return sum(member.decoder.trainable_parameters(member) for member in self.artifacts)

    def as_dict(self, writer: ArtifactWriter) -> dict[str, Any]:
        """Save every member as a folder."""
        for number, member in enumerate(self.artifacts):
            writer.save_member(member, f"members/{number}")
        confidence = None if self.confidence is None else asdict(self.confidence)
        return {"weights": self.weights, "temperatures": self.temperatures, "confidence": confidence}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], reader: ArtifactReader) -> Self:
        """Load every member."""
        members = tuple(reader.load_member(f"members/{number}") for number in range(len(values["weights"])))
        return super(EnsembleDecoder, cls).from_dict({**values, "artifacts": members}, reader)

    def answer(
        self, artifact: Composition, examples: Sequence[Example], *, full: bool, passages: Given, progress: Progress
    ) -> list[Answer]:
        """Ask every member; costs add up, and what is shown as sent is what the first one was sent."""
        del full, passages  # members are mixed by all their labels' probabilities, and find documents themselves
        given = [
            member.decoder.answer(member, examples, full=True, passages=None, progress=progress)
            for member in self.artifacts
        ]
        probs = self.mixed([label_probabilities(answers) for answers in given])
        rows = list(zip(*given, strict=True))
        answers = []
        for p, row in zip(probs, rows, strict=True):
            best = int(p.argmax())
            answer = replace(
                row[0],
                text=artifact.signature.labels[best],
                prompt_tokens=sum(answer.prompt_tokens for answer in row),
                completion_tokens=sum(answer.completion_tokens for answer in row),
                seconds=sum(answer.seconds for answer in row),
            )
            answers.append(with_confidence(answer, p, best, self.confidence))
        return answers

    def render(
        self, artifact: Composition, examples: Sequence[Example], *, passages: Given = None, progress: Progress = QUIET
    ) -> list[Rendered]:
        """Return what the first member is sent."""
        del artifact, passages
        return self.artifacts[0].decoder.render(self.artifacts[0], examples, progress=progress)

    def text(self, artifact: Composition, messages: Messages) -> str:
        """Return what the first member reads."""
        del artifact
        return self.artifacts[0].decoder.text(self.artifacts[0], messages)

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
