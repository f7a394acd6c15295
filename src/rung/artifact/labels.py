"""LabelScoring: the decoder that takes the likeliest label."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from rung.artifact.confidence import Calibration
from rung.artifact.decoder import Answer, Change, Composition, Decoder, Prompted, with_confidence
from rung.data.rows import Example
from rung.engines.base import Engine, Floats, ScoreRequest
from rung.models.messages import Messages
from rung.progress import QUIET, Progress
from rung.prompts.calibration import Normalization, divisors, probabilities
from rung.prompts.prompt import continuations


@dataclass(frozen=True, slots=True)
class LabelScoring(Prompted):
    """Take the label that the model finds likeliest, instead of letting it write.

    Attributes:
        labels: the task's labels; answers are these, exactly.
        texts: what stands for each label behind the prompt.
        normalization: `sum` of token log-probabilities, or their `mean`.
        bias: what is subtracted per label (batch calibration), or nothing.
        confidence: how probabilities become confidences, where that was fitted.
    """

    kind: ClassVar[str] = "label-scoring"
    refusals: ClassVar[Mapping[Change, str]] = {
        "servers-without-scores": "it scores labels, and such a server does not say how likely a text is"
    }
    labels: tuple[str, ...]
    texts: tuple[str, ...]
    normalization: Normalization = "sum"
    bias: tuple[float, ...] = ()
    confidence: Calibration | None = None

    @property
    def gives_probs(self) -> bool:
        """Whether the probability of every label is known."""
        return True

    @property
    def label_texts(self) -> tuple[str, ...]:
        """The scored texts."""
        return self.texts

    @property
    def scored_texts(self) -> tuple[str, ...]:
        """The texts of the labels."""
        return self.texts

    def continuations(self, engine: Engine) -> tuple[tuple[int, ...], ...]:
        """Return the token ids scored for each label."""
        return continuations(self.texts, engine.encode, engine.end_token)

    def target_text(self, output: str, labels: Sequence[str]) -> str:
        """Return the text that stands for a label."""
        del labels
        return self.texts[self.labels.index(output)]

    def room(self, engine: Engine) -> int:
        """Return how many tokens the answer may take behind the prompt: those of the longest label."""
        return max(map(len, self.continuations(engine)))

    def logprobs(
        self, artifact: Composition, engine: Engine, prompts: Sequence[Messages], *, progress: Progress = QUIET
    ) -> Floats:
        """Return the plain log-likelihood of every label, shape [prompts, labels]."""
        tokens = self.continuations(engine)
        requests = [ScoreRequest(p, tokens, artifact.weights.reference) for p in prompts]
        return np.stack([s.logprobs for s in engine.score(requests, progress=progress)])

    def answer_prompts(
        self,
        artifact: Composition,
        engine: Engine,
        prompts: Sequence[Messages],
        *,
        full: bool,
        progress: Progress = QUIET,
    ) -> list[Answer]:
        """Score the labels; with `full` all of them, so that there are probabilities, else only to the best."""
        tokens = self.continuations(engine)
        divisor, bias = self._weighing(tokens)
        requests = [
            ScoreRequest(p, tokens, artifact.weights.reference, not full, tuple(divisor.tolist()), tuple(bias.tolist()))
            if not full
            else ScoreRequest(p, tokens, artifact.weights.reference)
            for p in prompts
        ]
        scored = engine.score(requests, progress=progress)
        return [
            self._decide(one.logprobs, divisor, bias, one.prompt_tokens, one.seconds, prompt)
            for prompt, one in zip(prompts, scored, strict=True)
        ]

    def _ask(
        self, artifact: Composition, examples: Sequence[Example], prompts: Sequence[Messages], *, full: bool,
        progress: Progress,
    ) -> list[Answer]:  # fmt: skip
        """Score the labels behind the prompts, and behind the examples' other ones where several are averaged."""
        variants = artifact.prompt_variants()
        if len(variants) == 1:
            return self.answer_prompts(artifact, artifact.open(), prompts, full=full, progress=progress)
        others = [self.render(variant, examples, progress=progress) for variant in variants[1:]]
        messages = [[row.messages for row in rows] for rows in others]
        return self.answer_together(artifact, artifact.open(), [prompts, *messages], progress=progress)

    def answer_together(
        self,
        artifact: Composition,
        engine: Engine,
        prompts: Sequence[Sequence[Messages]],
        *,
        progress: Progress = QUIET,
    ) -> list[Answer]:
        """Answer rows that are asked with several prompts each: by the mean log-likelihood of every label.

        Args:
            artifact: whose weights answer.
            engine: what scores.
            prompts: one list of prompts per way of asking, all of them for the same rows in the same order.
            progress: told of every batch.

        Returns:
            One answer per row: tokens and seconds of all its prompts, and the messages of the first.
        """
        tokens = self.continuations(engine)
        divisor, bias = self._weighing(tokens)
        requests = [ScoreRequest(p, tokens, artifact.weights.reference) for member in prompts for p in member]
        scored, rows = engine.score(requests, progress=progress), len(prompts[0])
        answers = []
        for row, prompt in enumerate(prompts[0]):
            votes = scored[row::rows]
            mean = mean_logprobs([vote.logprobs for vote in votes])
            read, seconds = sum(vote.prompt_tokens for vote in votes), sum(vote.seconds for vote in votes)
            answers.append(self._decide(mean, divisor, bias, read, seconds, prompt))
        return answers

    def _weighing(self, tokens: Sequence[Sequence[int]]) -> tuple[Floats, Floats]:
        """Return what log-likelihoods are divided by and what is subtracted then, one per label each."""
        bias = np.array(self.bias, np.float32) if self.bias else np.zeros(len(tokens), np.float32)
        return divisors(tokens, self.normalization), bias

    def _decide(
        self, logprobs: Floats, divisor: Floats, bias: Floats, prompt_tokens: int, seconds: float, prompt: Messages
    ) -> Answer:
        best = int(np.argmax(logprobs / divisor - bias))
        answer = Answer(self.labels[best], None, None, prompt_tokens, 0, seconds, prompt)
        if not np.isfinite(logprobs).all():
            return answer
        return with_confidence(answer, probabilities(logprobs[None], divisor, bias)[0], best, self.confidence)


def label_scoring(decoder: Decoder) -> LabelScoring | None:
    """Return the decoder if it scores one label of several, for techniques that change how; else None."""
    return decoder if isinstance(decoder, LabelScoring) else None


def mean_logprobs(logprobs: Sequence[Floats]) -> Floats:
    """Return the mean of log-likelihoods over ways of asking, of the shape of each."""
    mean: Floats = np.stack(logprobs).mean(0, dtype=np.float64).astype(np.float32)
    return mean


# --------------------
# ListScoring: the decoder that lists every label likely enough.


@dataclass(frozen=True, slots=True)
class ListScoring(Prompted):
    """Give every label that the model finds likely enough, instead of letting it write a list.

    A label's value is the geometric mean of its tokens' probabilities at the beginning of the list, so an empty list
    competes with it as much as other labels do. Values are compared with a threshold of the label's own.

    Attributes:
        labels: the task's labels; answers are JSON lists of these.
        thresholds: the value from which each is given.
    """

    kind: ClassVar[str] = "list-scoring"
    refusals: ClassVar[Mapping[Change, str]] = {
        "demonstrations": "the labels' thresholds hold for the prompt without demonstrations",
        "training": "the labels' thresholds hold for the untuned model",
    }
    labels: tuple[str, ...]
    thresholds: tuple[float, ...]

    @property
    def scoring(self) -> LabelScoring:
        """What scores the beginnings of lists: `["refund"`."""
        texts = tuple(json.dumps([label], ensure_ascii=False)[:-1] for label in self.labels)
        return LabelScoring(self.labels, texts, "mean")

    @property
    def scored_texts(self) -> tuple[str, ...]:
        """The beginnings of lists."""
        return self.scoring.texts

    def room(self, engine: Engine) -> int:
        """Return how many tokens the answer may take after the prompt."""
        return self.scoring.room(engine)

    def values(
        self, artifact: Composition, engine: Engine, prompts: Sequence[Messages], *, progress: Progress = QUIET
    ) -> Floats:
        """Return every label's value, shape [prompts, labels]."""
        logprobs = self.scoring.logprobs(artifact, engine, prompts, progress=progress)
        result: Floats = np.exp(logprobs / divisors(self.scoring.continuations(engine), "mean")).astype(np.float32)
        return result

    def answer_prompts(
        self,
        artifact: Composition,
        engine: Engine,
        prompts: Sequence[Messages],
        *,
        full: bool,
        progress: Progress = QUIET,
    ) -> list[Answer]:
        """List the labels above their thresholds; values are no probabilities of being right, so none is told."""
        del full  # every label is decided on its own
        tokens = self.scoring.continuations(engine)
        requests = [ScoreRequest(p, tokens, artifact.weights.reference) for p in prompts]
        divisor, thresholds = divisors(tokens, "mean"), np.array(self.thresholds)
        answers = []
        for prompt, scored in zip(prompts, engine.score(requests, progress=progress), strict=True):
            text = listed(self.labels, np.exp(scored.logprobs / divisor) >= thresholds)
            answers.append(Answer(text, None, None, scored.prompt_tokens, 0, scored.seconds, prompt))
        return answers


def listed(labels: Sequence[str], given: Sequence[bool] | npt.NDArray[np.bool_]) -> str:
    """Return the labels that are given as the JSON list that an answer is."""
    return json.dumps([label for label, is_given in zip(labels, given, strict=True) if is_given], ensure_ascii=False)
