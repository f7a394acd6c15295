"""Mixture: the decoder that averages what other artifacts find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from rung.artifact.answer import Answer, sure
from rung.artifact.context import Given
from rung.artifact.decoder import Promptless
from rung.data.rows import Example
from rung.engines.base import Floats, Messages
from rung.errors import EngineError
from rung.evaluation.calibration import Confidence
from rung.progress import Progress
from rung.prompts.overflow import Rendered

if TYPE_CHECKING:
    from rung.artifact.artifact import Artifact


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
    confidence: Confidence | None = None

    def answer(
        self, artifact: Artifact, examples: Sequence[Example], *, full: bool, passages: Given, progress: Progress
    ) -> list[Answer]:
        """Ask every member; costs add up, and what is shown as sent is what the first one was sent."""
        del full, passages  # members are mixed by all their labels' probabilities, and find documents themselves
        given = [member.answer(examples, full=True, progress=progress) for member in self.members]
        chances = self.mixed([label_probabilities(answers) for answers in given])
        rows = list(zip(*given, strict=True))
        answers = []
        for p, row in zip(chances, rows, strict=True):
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

    def mixed(self, chances: Sequence[Floats]) -> Floats:
        """Return the probabilities [rows, labels] of the members' own, one array of that shape each."""
        parts = [
            weight * tempered(one, temperature)
            for weight, temperature, one in zip(self.weights, self.temperatures, chances, strict=True)
        ]
        total: Floats = np.sum(parts, axis=0)
        return total


def tempered(chances: Floats, temperature: float) -> Floats:
    """Return probabilities [rows, labels] of logits divided by a temperature (Guo et al. 2017, arXiv:1706.04599)."""
    logits = np.log(np.maximum(chances, 1e-12)) / temperature
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
