"""LabelScoring takes the likeliest label; ListScoring lists every label that is likely enough."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from rung.artifact.confidence import Calibration
from rung.artifact.decoder import Answer, Change, Composition, Decoder, Prompted, Prompts, with_confidence
from rung.data.rows import Example
from rung.engines.base import Engine, Floats, Scored, ScoreRequest
from rung.progress import QUIET, Progress
from rung.prompts.calibration import Normalization, divisors, probabilities
from rung.prompts.prompt import continuations


@dataclass(frozen=True, slots=True)
class LabelScoring(Prompted):
    """Take the label that the model finds likeliest, instead of letting it write.

    Attributes:
        labels: the task's labels; answers are exactly these.
        texts: the text that the model scores for each label.
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
        """Encode each label as the token ids that the engine scores."""
        return continuations(self.texts, engine.encode, engine.end_token)

    def target_text(self, output: str, labels: Sequence[str]) -> str:
        """Look up the text of a label."""
        del labels
        return self.texts[self.labels.index(output)]

    def room(self, engine: Engine) -> int:
        """Count the tokens of the longest label."""
        return max(map(len, self.continuations(engine)))

    def scored(
        self, artifact: Composition, engine: Engine, prompts: Prompts, *, progress: Progress = QUIET
    ) -> list[Scored]:
        """Score every label after each prompt, without normalization or bias."""
        tokens = self.continuations(engine)
        requests = [ScoreRequest(prompt, tokens, artifact.weights.reference) for prompt in prompts]
        return engine.score(requests, progress=progress)

    def logprobs(
        self, artifact: Composition, engine: Engine, prompts: Prompts, *, progress: Progress = QUIET
    ) -> Floats:
        """Compute the plain log-likelihood of every label, shape [prompts, labels]."""
        return np.stack([s.logprobs for s in self.scored(artifact, engine, prompts, progress=progress)])

    def answer_prompts(
        self, artifact: Composition, engine: Engine, prompts: Prompts, *, full: bool, progress: Progress = QUIET
    ) -> list[Answer]:
        """Score all labels with `full`, so that there are probabilities; else find only the best label."""
        return self._answer_variants(artifact, engine, [prompts], full=full, progress=progress)

    def _ask(
        self, artifact: Composition, examples: Sequence[Example], prompts: Prompts, *, full: bool, progress: Progress
    ) -> list[Answer]:
        """Score the labels after the prompts; average over the prompt variants if there are several."""
        others = [self.render(variant, examples, progress=progress) for variant in artifact.prompt_variants()[1:]]
        variants = [prompts, *([row.messages for row in rows] for rows in others)]
        full = full or len(variants) > 1  # a mean needs every label's score
        return self._answer_variants(artifact, artifact.open(), variants, full=full, progress=progress)

    def _answer_variants(
        self, artifact: Composition, engine: Engine, variants: Sequence[Prompts], *, full: bool, progress: Progress
    ) -> list[Answer]:
        """Answer by the mean log-likelihood of every label; each variant holds one prompt per row, in the same order.

        An answer has the tokens and seconds of all prompts of its row, and the messages of the first.
        """
        tokens = self.continuations(engine)
        divisor = divisors(tokens, self.normalization)
        bias = np.array(self.bias, np.float32) if self.bias else np.zeros(len(tokens), np.float32)
        best_only = () if full else (True, tuple(divisor.tolist()), tuple(bias.tolist()))
        requests = [ScoreRequest(p, tokens, artifact.weights.reference, *best_only) for part in variants for p in part]
        scored, rows = engine.score(requests, progress=progress), len(variants[0])
        answers = []
        for row, prompt in enumerate(variants[0]):
            votes = scored[row::rows]
            logprobs = mean_logprobs([vote.logprobs for vote in votes])
            best = int(np.argmax(logprobs / divisor - bias))
            read, seconds = sum(vote.prompt_tokens for vote in votes), sum(vote.seconds for vote in votes)
            answer = Answer(self.labels[best], None, None, read, 0, seconds, prompt)
            if np.isfinite(logprobs).all():
                probs = probabilities(logprobs[None], divisor, bias)[0]
                answer = with_confidence(answer, probs, best, self.confidence)
            answers.append(answer)
        return answers


def label_scoring(decoder: Decoder) -> LabelScoring | None:
    """Give the decoder if it scores one label of several, for techniques that change how; else None."""
    return decoder if isinstance(decoder, LabelScoring) else None


def mean_logprobs(logprobs: Sequence[Floats]) -> Floats:
    """Average log-likelihoods of the same shape over prompt variants."""
    mean: Floats = np.stack(logprobs).mean(0, dtype=np.float64).astype(np.float32)
    return mean


@dataclass(frozen=True, slots=True)
class ListScoring(Prompted):
    """Give every label that the model finds likely enough, instead of letting it write a list.

    A label's value is the geometric mean of its tokens' probabilities at the beginning of the list, so an empty list
    competes with it as much as other labels do. Each label has its own threshold for its value.

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
        """Count the tokens of the longest beginning of a list."""
        return self.scoring.room(engine)

    def values(self, artifact: Composition, engine: Engine, prompts: Prompts, *, progress: Progress = QUIET) -> Floats:
        """Compute every label's value, shape [prompts, labels]."""
        return self._values(engine, self.scoring.scored(artifact, engine, prompts, progress=progress))

    def _values(self, engine: Engine, scored: Sequence[Scored]) -> Floats:
        logprobs = np.stack([prompt.logprobs for prompt in scored])
        result: Floats = np.exp(logprobs / divisors(self.scoring.continuations(engine), "mean")).astype(np.float32)
        return result

    def answer_prompts(
        self, artifact: Composition, engine: Engine, prompts: Prompts, *, full: bool, progress: Progress = QUIET
    ) -> list[Answer]:
        """List the labels above their thresholds, without confidence: values are not probabilities of being right."""
        del full  # every label is decided by itself
        scored = self.scoring.scored(artifact, engine, prompts, progress=progress)
        given = self._values(engine, scored) >= np.array(self.thresholds)
        return [
            Answer(listed(self.labels, labels), None, None, score.prompt_tokens, 0, score.seconds, prompt)
            for prompt, score, labels in zip(prompts, scored, given, strict=True)
        ]


def listed(labels: Sequence[str], given: Sequence[bool] | npt.NDArray[np.bool_]) -> str:
    """Write the labels that are given as the JSON list that an answer is."""
    return json.dumps([label for label, is_given in zip(labels, given, strict=True) if is_given], ensure_ascii=False)
