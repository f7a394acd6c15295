"""The parts of an artifact that answer: Weights and the Decoders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from rung.agents.agent import Agent
from rung.agents.trace import Step
from rung.engines.base import Constraint, Engine, Floats, GenerateRequest, Messages, Sampling, ScoreRequest
from rung.evaluation.confidence import Confidence
from rung.nearest import Nearest
from rung.progress import QUIET, Progress
from rung.prompts.calibration import Normalization, divisors, probabilities
from rung.prompts.extraction import MARKER, Extract, extracted, majority
from rung.prompts.verbalizer import continuations
from rung.retrieval.citations import Citation
from rung.retrieval.passage import Passage

if TYPE_CHECKING:
    from rung.artifact import Artifact


@dataclass(frozen=True, slots=True)
class Answer:
    """What an artifact says to one row.

    `confidence` is the probability of the answer among the labels (None for generated text, or where only the best
    label was looked for); `probabilities` has one entry per label of the task, in its order. `messages` is what was
    sent; for a head it is the text that was encoded. `dropped_demonstrations` and `dropped_passages` were left out,
    and `shortened_passages` cut, so that the prompt fits.
    `abstained` says that the confidence is below the artifact's threshold: `text` is what it would have answered.

    Where documents are looked up: `written` is the answer as the model wrote it, `text` is it without its citation
    marks (what is scored), `citations` are what the marks name, `passages` what was shown, [1] first. `refused`
    answers say that nothing relevant was found; the model was not asked.

    Of an agent, `steps` are what it did, and `stopped` is the limit that it ran into: `steps`, `tokens` or `context`.
    """

    text: str
    confidence: float | None
    probabilities: tuple[float, ...] | None
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    messages: Messages = ()
    dropped_demonstrations: int = 0
    abstained: bool = False
    dropped_passages: int = 0
    shortened_passages: int = 0
    written: str = ""
    citations: tuple[Citation, ...] = ()
    passages: tuple[Passage, ...] = ()
    refused: bool = False
    steps: tuple[Step, ...] = ()
    stopped: str = ""


@dataclass(frozen=True, slots=True)
class Weights:
    """The base model's weights (`adapter` None), or those with a trained change on top.

    `base` says how the base model is held: empty for its own precision, `nf4` for 4-bit NormalFloat (QLoRA).
    """

    method: str = "base"
    adapter: Path | None = None
    trainable_parameters: int = 0
    base: str = ""

    @property
    def reference(self) -> str | None:
        """How engines are told of the adapter."""
        return None if self.adapter is None else str(self.adapter)

    @property
    def virtual_tokens(self) -> int:
        """How many tokens a soft prompt puts before every prompt; 0 for other weights."""
        file = None if self.adapter is None else self.adapter / "adapter_config.json"
        if file is None or not file.is_file():
            return 0
        return int(json.loads(file.read_text("utf-8")).get("num_virtual_tokens") or 0)


BASE = Weights()


@dataclass(frozen=True, slots=True)
class Generate:
    """Write the answer token by token, greedily.

    Attributes:
        max_tokens: most tokens of an answer.
        json_schema: the schema (JSON text) that the answer keeps to, or None.
        regex: the regular expression that the whole answer matches, or None.
        choices: the texts that stand for the task's labels, in their order; the answer is one of them, and becomes its
            label. Nothing else ever does: a text that is no choice (one that was cut) stays as it is, and is wrong.
    """

    kind: ClassVar[str] = "generate"
    max_tokens: int = 256
    json_schema: str | None = None
    choices: tuple[str, ...] = ()
    regex: str | None = None

    @property
    def constraint(self) -> Constraint | None:
        """What the engine holds the answer to."""
        if self.choices:
            return Constraint("choices", self.choices)
        if self.regex:
            return Constraint("regex", self.regex)
        return Constraint("json_schema", self.json_schema) if self.json_schema else None

    def room(self, engine: Engine) -> int:
        """Return how many tokens the answer may take behind the prompt."""
        del engine
        return self.max_tokens

    def request(self, artifact: Artifact, prompt: Messages) -> GenerateRequest:
        """Return what the engine is asked for one prompt."""
        return GenerateRequest(prompt, Sampling(self.max_tokens), self.constraint, artifact.weights.reference)

    def answer(
        self, artifact: Artifact, engine: Engine, prompts: Sequence[Messages], *, full: bool, progress: Progress = QUIET
    ) -> list[Answer]:
        """Complete every prompt."""
        del full  # generated text has no label probabilities to leave out
        labels = dict(zip(self.choices, artifact.shape.labels, strict=True)) if self.choices else {}
        requests = [self.request(artifact, prompt) for prompt in prompts]
        return [
            Answer(
                labels.get(g.text.strip(), g.text.strip()),
                None,
                None,
                g.prompt_tokens,
                g.completion_tokens,
                g.seconds,
                prompt,
            )
            for prompt, g in zip(prompts, engine.generate(requests, progress=progress), strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Write steps first, then the answer (chain-of-thought); several times with a vote (self-consistency).

    `confidence` of an answer is its share of the votes, or None for a single chain. An answer without anything to
    extract is empty, and wrong.

    Attributes:
        extract: what an answer looks like; see `rung.prompts.extraction`.
        max_tokens: most tokens of one chain, the answer included.
        samples: chains per row; one is greedy, several are sampled.
        temperature: of the sampled chains.
        seed: of the first chain; the others count on from it.
        texts: what stands for each label of the task, in its order (extract `label`).
    """

    kind: ClassVar[str] = "reasoning"
    extract: Extract
    max_tokens: int = 512
    samples: int = 1
    temperature: float = 0.7
    seed: int = 0
    texts: tuple[str, ...] = ()

    def room(self, engine: Engine) -> int:
        """Return how many tokens a chain may take behind the prompt."""
        del engine
        return self.max_tokens

    def spoken(self, output: str, labels: Sequence[str]) -> str:
        """Return how a demonstration gives an expected output: behind the marker, without steps."""
        return f"{MARKER} {self.texts[labels.index(output)] if self.texts else output}"

    def answer(
        self, artifact: Artifact, engine: Engine, prompts: Sequence[Messages], *, full: bool, progress: Progress = QUIET
    ) -> list[Answer]:
        """Complete every prompt `samples` times and count the answers; a prompt is counted once, chains all."""
        del full
        requests = [
            GenerateRequest(prompt, self._sampling(chain), None, artifact.weights.reference)
            for prompt in prompts
            for chain in range(self.samples)
        ]
        made = engine.generate(requests, progress=progress)
        labels = dict(zip(self.texts, artifact.shape.labels, strict=True)) if self.texts else {}
        answers = []
        for row, prompt in enumerate(prompts):
            chains = made[row * self.samples : (row + 1) * self.samples]
            found, share = majority([extracted(chain.text, self.extract, self.texts) for chain in chains])
            answers.append(
                Answer(
                    labels.get(found, found),
                    share if self.samples > 1 else None,
                    None,
                    chains[0].prompt_tokens,
                    sum(chain.completion_tokens for chain in chains),
                    sum(chain.seconds for chain in chains),
                    prompt,
                )
            )
        return answers

    def _sampling(self, chain: int) -> Sampling:
        if self.samples == 1:
            return Sampling(self.max_tokens)
        return Sampling(self.max_tokens, self.temperature, seed=self.seed + chain)


@dataclass(frozen=True, slots=True)
class LabelScoring:
    """Take the label that the model finds likeliest, instead of letting it write.

    Attributes:
        labels: the task's labels; answers are these, exactly.
        texts: what stands for each label behind the prompt.
        normalization: `sum` of token log-probabilities, or their `mean`.
        bias: what is subtracted per label (batch calibration), or nothing.
        confidence: how probabilities become confidences, where that was fitted.
    """

    kind: ClassVar[str] = "label-scoring"
    labels: tuple[str, ...]
    texts: tuple[str, ...]
    normalization: Normalization = "sum"
    bias: tuple[float, ...] = ()
    confidence: Confidence | None = None

    def continuations(self, engine: Engine) -> tuple[tuple[int, ...], ...]:
        """Return the token ids scored for each label."""
        return continuations(self.texts, engine.encode, engine.end_token)

    def room(self, engine: Engine) -> int:
        """Return how many tokens the answer may take behind the prompt: those of the longest label."""
        return max(map(len, self.continuations(engine)))

    def logprobs(
        self, artifact: Artifact, engine: Engine, prompts: Sequence[Messages], *, progress: Progress = QUIET
    ) -> Floats:
        """Return the plain log-likelihood of every label, shape [prompts, labels]."""
        tokens = self.continuations(engine)
        requests = [ScoreRequest(p, tokens, artifact.weights.reference) for p in prompts]
        return np.stack([s.logprobs for s in engine.score(requests, progress=progress)])

    def answer(
        self, artifact: Artifact, engine: Engine, prompts: Sequence[Messages], *, full: bool, progress: Progress = QUIET
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

    def answer_together(
        self, artifact: Artifact, engine: Engine, prompts: Sequence[Sequence[Messages]], *, progress: Progress = QUIET
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
        return sure(answer, probabilities(logprobs[None], divisor, bias)[0], best, self.confidence)


def mean_logprobs(logprobs: Sequence[Floats]) -> Floats:
    """Return the mean of log-likelihoods over ways of asking, of the shape of each."""
    mean: Floats = np.stack(logprobs).mean(0, dtype=np.float64).astype(np.float32)
    return mean


@dataclass(frozen=True, slots=True)
class ListScoring:
    """Give every label that the model finds likely enough, instead of letting it write a list.

    A label's value is the geometric mean of its tokens' probabilities at the beginning of the list, so an empty list
    competes with it as much as other labels do. Values are compared with a threshold of the label's own.

    Attributes:
        labels: the task's labels; answers are JSON lists of these.
        thresholds: the value from which each is given.
    """

    kind: ClassVar[str] = "list-scoring"
    labels: tuple[str, ...]
    thresholds: tuple[float, ...]

    @property
    def scoring(self) -> LabelScoring:
        """What scores the beginnings of lists: `["refund"`."""
        texts = tuple(json.dumps([label], ensure_ascii=False)[:-1] for label in self.labels)
        return LabelScoring(self.labels, texts, "mean")

    def room(self, engine: Engine) -> int:
        """Return how many tokens the answer may take behind the prompt."""
        return self.scoring.room(engine)

    def values(
        self, artifact: Artifact, engine: Engine, prompts: Sequence[Messages], *, progress: Progress = QUIET
    ) -> Floats:
        """Return every label's value, shape [prompts, labels]."""
        logprobs = self.scoring.logprobs(artifact, engine, prompts, progress=progress)
        result: Floats = np.exp(logprobs / divisors(self.scoring.continuations(engine), "mean")).astype(np.float32)
        return result

    def answer(
        self, artifact: Artifact, engine: Engine, prompts: Sequence[Messages], *, full: bool, progress: Progress = QUIET
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


@dataclass(frozen=True)
class Head:
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
    confidence: Confidence | None = None

    @property
    def reference(self) -> str:
        """What embeds the texts: the tuned encoder's folder, or `encoder`."""
        return self.encoder if self.tuned is None else str(self.tuned)

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

    def decide(self, chances: Floats) -> tuple[str, float]:
        """Return the answer to a row by its probabilities, shape [labels], and the answer's own probability.

        With thresholds the answer is a JSON list, and its probability that of all decisions, taken as independent.
        """
        if not self.thresholds:
            return self.labels[int(chances.argmax())], float(chances.max())
        given = chances >= np.array(self.thresholds)
        return listed(self.labels, given), float(np.where(given, chances, 1 - chances).prod())


@dataclass(frozen=True)
class Mixture:
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


Probable = LabelScoring | Head | Mixture  # decoders that give labels probabilities
Decoder = Generate | Reasoning | ListScoring | Probable | Agent | Nearest
# Decoders whose answers do not come from the artifact's own prompt and weights.
PROMPTLESS = (Head.kind, Mixture.kind, Nearest.kind)


def unfitted(decoder: Decoder) -> Decoder:
    """Return the decoder without fitted confidence: it holds only for the artifact that it was fitted with."""
    return replace(decoder, confidence=None) if isinstance(decoder, Probable) else decoder


def sure(answer: Answer, chances: Floats, best: int, fitted: Confidence | None) -> Answer:
    """Return the answer with its confidence: the probability of label `best`, calibrated where that was fitted."""
    values = tuple(chances.tolist())
    if fitted is None:
        return replace(answer, confidence=values[best], probabilities=values)
    values = fitted.scaled(values)
    confidence = fitted.of(values[best])
    return replace(answer, confidence=confidence, probabilities=values, abstained=fitted.abstains(confidence))
