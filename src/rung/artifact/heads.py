"""Head classifies the features of a text; EnsembleDecoder averages the label probabilities of other artifacts."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from rung.artifact.confidence import Calibration, of_decisions, softmax
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
from rung.artifact.lexical import Lexicon, lexical_flops
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
    """A trained linear layer on features: an encoder's vector, the TF-IDF of a text, or both side by side.

    Attributes:
        labels: the task's labels.
        encoder: reference of the sentence encoder, empty for the base model's own hidden states, or None for neither.
        weight, intercept: shapes [labels, features] and [labels].
        tuned: folder of the encoder fine-tuned for the task, or None for its pretrained weights.
        thresholds: for several labels a row, the probability from which each is given; empty for one label a row.
        confidence: how probabilities become confidences, if that was fitted.
        lexicon: the terms whose TF-IDF are features, if any.
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
    encoder: str | None
    weight: Floats
    intercept: Floats
    tuned: Path | None = None
    thresholds: tuple[float, ...] = ()
    confidence: Calibration | None = None
    lexicon: Lexicon | None = None

    @property
    def reference(self) -> str | None:
        """The model that embeds the texts: the tuned encoder's folder, or `encoder`."""
        return self.encoder if self.tuned is None else str(self.tuned)

    @property
    def uses_llm(self) -> bool:
        """Whether answering runs the artifact's language model, whose hidden states are then the features."""
        return self.encoder == ""

    @property
    def gives_probs(self) -> bool:
        """Whether the probability of every label is known."""
        return True

    def row_flops(self, artifact: Composition, rows: Sequence[Example]) -> float:
        """Estimate one reading of the row by the encoder or the base model, and by the head."""
        encoding = 0.0 if self.reference is None else self.encoder_flops(artifact, rows, self.reference)
        lexical = 0.0 if self.lexicon is None else lexical_flops(artifact, rows, len(self.labels))
        return encoding + lexical

    def trainable_parameters(self, artifact: Composition) -> int:
        """Count the parameters of the head and of its tuned encoder."""
        del artifact
        encoder = 0 if self.tuned is None else resolve(str(self.tuned)).parameters
        return int(self.weight.size + self.intercept.size) + encoder

    def as_dict(self, writer: ArtifactWriter) -> dict[str, Any]:
        """Save the weights as arrays, and the tuned encoder as a folder."""
        writer.arrays["head.weight"], writer.arrays["head.intercept"] = self.weight, self.intercept
        if self.tuned is not None:
            shutil.copytree(self.tuned, writer.folder / "encoder")
        if self.lexicon is not None:
            self.lexicon.save(writer)
        return {
            "labels": self.labels,
            "encoder": self.encoder,
            "lexicon": self.lexicon is not None,
            "tuned": self.tuned is not None,
            "thresholds": self.thresholds,
            "confidence": None if self.confidence is None else asdict(self.confidence),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], reader: ArtifactReader) -> Self:
        """Read the weights back."""
        tuned = reader.folder / "encoder" if values["tuned"] else None
        arrays = {name: reader.arrays[f"head.{name}"] for name in ("weight", "intercept")}
        lexicon = Lexicon.load(reader) if values["lexicon"] else None
        return super(Head, cls).from_dict({**values, **arrays, "tuned": tuned, "lexicon": lexicon}, reader)

    def answer(
        self, artifact: Composition, examples: Sequence[Example], *, full: bool, passages: Given, progress: Progress
    ) -> list[Answer]:
        """Classify every example's text by its features."""
        del full, passages  # all labels' probabilities come at once, and no documents are shown
        count = token_counter(artifact, self.reference, progress)
        start = time.perf_counter()  # after the model is loaded
        texts = [artifact.prompt.question(example.inputs) for example in examples]
        vectors = None if self.reference is None else features(artifact, self.reference, texts, progress=progress)
        probs = self.classify(vectors, texts)
        seconds = (time.perf_counter() - start) / len(examples)
        answers = []
        for p, text in zip(probs, texts, strict=True):
            messages: Messages = ({"role": "user", "content": text},)
            label, confidence = self.decide(p)
            answer = Answer(label, confidence, tuple(p.tolist()), count(text), 0, seconds, messages)
            if not self.thresholds:
                answer = with_confidence(answer, p, int(p.argmax()), self.confidence)
            elif self.confidence is not None:
                answer = with_list_confidence(answer, p, p >= np.array(self.thresholds), self.confidence)
            answers.append(answer)
        return answers

    def classify(self, vectors: Floats | None, texts: Sequence[str] = ()) -> Floats:
        """Compute label probabilities, shape [rows, labels], from unit vectors [rows, dimension] and the texts.

        They sum to 1 in each row if one label is right, and are independent if several may be.
        """
        weight, logits = self.weight.T.astype(np.float64), self.intercept.astype(np.float64)
        if vectors is not None:
            logits = logits + vectors.astype(np.float64) @ weight[: vectors.shape[1]]
        if self.lexicon is not None:
            terms = self.lexicon.features(texts)
            logits = logits + terms @ weight[len(weight) - terms.shape[1] :]
        probs = 1 / (1 + np.exp(-logits.clip(-500, 500))) if self.thresholds else softmax(logits)
        result: Floats = probs.astype(np.float32)
        return result

    def decide(self, probs: Floats) -> tuple[str, float]:
        """Choose a row's answer by its probabilities, shape [labels], and give the answer's probability.

        With thresholds the answer is a JSON list; its probability is that of all decisions, assumed independent.
        """
        if not self.thresholds:
            return self.labels[int(probs.argmax())], float(probs.max())
        given = probs >= np.array(self.thresholds)
        return listed(self.labels, given), float(of_decisions(probs, given))


def token_counter(artifact: Composition, encoder: str | None, progress: Progress) -> Callable[[str], int]:
    """Give a function that counts the tokens of a text; none are counted where no model reads it."""
    if encoder is None:
        return lambda text: 0
    encode = (open_encoder(encoder, progress=progress) if encoder else artifact.open()).encode
    return lambda text: len(encode(text))


def features(artifact: Composition, encoder: str, texts: Sequence[str], *, progress: Progress = QUIET) -> Floats:
    """Compute unit feature vectors with the sentence encoder, or with the base model if `encoder` is empty."""
    if encoder:
        return open_encoder(encoder, progress=progress).embed(texts, progress=progress)
    return artifact.open().embed(texts, progress=progress)


@dataclass(frozen=True, slots=True)
class EnsembleDecoder(Promptless):
    """A weighted average of the label probabilities of other artifacts of the same task.

    Attributes:
        artifacts: the members; each gives label probabilities.
        weights: one per member; they sum to 1.
        temperatures: one per member; below 1 sharpens its probabilities, above 1 softens them.
        confidence: how probabilities become confidences, if that was fitted.
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
        """Whether answering may run a language model: members may."""
        return True

    @property
    def gives_probs(self) -> bool:
        """Whether the probability of every label is known."""
        return True

    def row_flops(self, artifact: Composition, rows: Sequence[Example]) -> float:
        """Add up the members' operations."""
        del artifact
        return sum(member.decoder.row_flops(member, rows) for member in self.artifacts)

    def trainable_parameters(self, artifact: Composition) -> int:
        """Add up the members' parameters."""
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
        """Average the members' answers; tokens and seconds add up, and `messages` are the first member's."""
        del full, passages  # the average needs all labels' probabilities, and members find passages themselves
        by_member = [
            member.decoder.answer(member, examples, full=True, passages=None, progress=progress)
            for member in self.artifacts
        ]
        probs = self.mixed([label_probabilities(answers) for answers in by_member])
        answers = []
        for p, row in zip(probs, zip(*by_member, strict=True), strict=True):
            best = int(p.argmax())
            answer = replace(
                row[0],
                text=artifact.signature.labels[best],
                prompt_tokens=sum(answer.prompt_tokens for answer in row),
                completion_tokens=sum(answer.completion_tokens for answer in row),
                cached_tokens=sum(answer.cached_tokens for answer in row),
                seconds=sum(answer.seconds for answer in row),
            )
            answers.append(with_confidence(answer, p, best, self.confidence))
        return answers

    def render(
        self, artifact: Composition, examples: Sequence[Example], *, passages: Given = None, progress: Progress = QUIET
    ) -> list[Rendered]:
        """Render what the first member is sent."""
        del artifact, passages
        return self.artifacts[0].decoder.render(self.artifacts[0], examples, progress=progress)

    def text(self, artifact: Composition, messages: Messages) -> str:
        """Give the text that the first member reads."""
        del artifact
        return self.artifacts[0].decoder.text(self.artifacts[0], messages)

    def mixed(self, probs: Sequence[Floats]) -> Floats:
        """Average the members' probabilities, one array [rows, labels] each."""
        members = zip(self.weights, self.temperatures, probs, strict=True)
        total: Floats = np.sum([weight * tempered(member, temperature) for weight, temperature, member in members], 0)
        return total


def tempered(probs: Floats, temperature: float) -> Floats:
    """Divide log-probabilities [rows, labels] by a temperature, in float32 (Guo et al. 2017, arXiv:1706.04599)."""
    return softmax(np.log(np.maximum(probs, 1e-12)) / temperature).astype(np.float32)


def label_probabilities(answers: Sequence[Answer]) -> Floats:
    """Stack the answers' probabilities, shape [rows, labels]; raise EngineError `no-probabilities` if one has none."""
    if any(answer.probabilities is None for answer in answers):
        problem = "an ensemble needs the probability of every label, but a member gives only its answer"
        raise EngineError("no-probabilities", problem, hint="combine artifacts that score labels or have a head")
    return np.array([answer.probabilities for answer in answers], np.float32)
