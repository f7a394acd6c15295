"""Score candidates on rows, each row once: the paired matrix that the races of a search share.

Where labels are scored, the racing score of a row is the probability of the gold label, which tells close prompts apart
with fewer rows than right or wrong does. Label probabilities are calibrated on the inputs of the first rows (Zhou et
al. 2024, https://arxiv.org/abs/2309.17249). Everywhere else the racing score is the task's metric. Both are kept: the
race uses the racing score, the report and the adoption use the metric.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from rung.artifact.artifact import Artifact
from rung.artifact.labels import LabelScoring, label_scoring, mean_logprobs
from rung.data.rows import Example
from rung.engines.base import ScoreRequest
from rung.errors import EngineError
from rung.evaluation.metrics.base import Metric
from rung.evaluation.scoring import cases
from rung.progress import QUIET, Progress
from rung.prompt_search.candidates import Candidate, SearchSpace
from rung.prompts.calibration import batch_bias, divisors, probabilities

FEWEST_TO_CALIBRATE = 8  # rows; fewer say more about themselves than about the labels
MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class SearchLimits:
    """The most that a search may spend; None for no limit. A call is one prompt that a model answers."""

    calls: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    money: float | None = None


class Meter:
    """Count what a search spends, and estimate from the cost so far how many calls are left.

    Args:
        limits: the budget.
        prices: of a million prompt tokens and a million completion tokens, for `money`.
        clock: returns seconds; tests give their own.
    """

    def __init__(
        self, limits: SearchLimits, prices: tuple[float, float] = (0.0, 0.0),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.limits, self.prices = limits, prices
        self.calls = self.prompt_tokens = self.completion_tokens = 0
        self._clock, self._start = clock, clock()

    def add(self, calls: int, prompt_tokens: int, completion_tokens: int = 0) -> None:
        """Count calls with all the tokens that they read and wrote."""
        self.calls += calls
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens

    @property
    def money(self) -> float:
        """What the tokens cost."""
        return (self.prices[0] * self.prompt_tokens + self.prices[1] * self.completion_tokens) / MILLION

    def left(self) -> int | None:
        """How many calls are left under the tightest limit; None without a limit."""
        spent = (
            (self.limits.calls, float(self.calls)),
            (self.limits.tokens, float(self.prompt_tokens + self.completion_tokens)),
            (self.limits.seconds, self._clock() - self._start),
            (self.limits.money, self.money),
        )
        left = [
            (limit - used) / (used / self.calls if self.calls and used else 1.0) if used < limit else 0.0
            for limit, used in spent
            if limit is not None
        ]
        return math.floor(min(left) + 1e-9) if left else None

    def as_dict(self) -> dict[str, Any]:
        """What was spent, as JSON values."""
        return {
            "calls": self.calls, "prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens,
            "seconds": round(self._clock() - self._start, 1), "money": round(self.money, 6),
        }  # fmt: skip


@dataclass
class ScoredCandidate:
    """A candidate with its racing scores and metric scores on the first rows, in race order."""

    name: str
    candidate: Candidate
    artifact: Artifact
    round: int
    calibrated: bool
    scores: list[float] = field(default_factory=list)
    metric: list[float] = field(default_factory=list)
    failed: str = ""


class CandidateScorer:
    """Answer rows with candidates; `scored` holds every candidate by name, `incumbent` among them.

    Args:
        space: makes artifacts of candidates.
        rows: the rows of the search, in race order.
        metric: the task's metric.
        meter: counts the calls.
        calibrate: calibrate label probabilities of new candidates; those of the incumbent never change.
        progress: reports every batch.
    """

    def __init__(
        self, space: SearchSpace, rows: Sequence[Example], metric: Metric, meter: Meter, *, calibrate: bool = True,
        progress: Progress = QUIET,
    ) -> None:  # fmt: skip
        self.space, self.rows, self.metric, self.meter = space, rows, metric, meter
        self.calibrate, self.progress = calibrate, progress
        self.scored = {"incumbent": ScoredCandidate("incumbent", space.start, space.artifact, 0, False)}

    def add(self, candidate: Candidate, round_: int) -> str:
        """Add a candidate and return its name."""
        name, artifact = f"candidate-{len(self.scored)}", self.space.apply(candidate)
        calibrated = self.calibrate and label_scoring(artifact.decoder) is not None
        self.scored[name] = ScoredCandidate(name, candidate, artifact, round_, calibrated)
        return name

    def score(self, name: str, until: int) -> list[float]:
        """Score the first rows for the race; only rows that are new are answered.

        A prompt that does not fit the model's context scores 0 on every row, and its record says so.
        """
        entry = self.scored[name]
        if new := self.rows[len(entry.scores) : until]:
            self.progress.start(f"{name} on {len(new)} rows", len(new))
            try:
                scores, metric = self._answer(entry, new)
            except EngineError as error:
                if error.code != "context-overflow":
                    raise
                entry.failed = error.message
                scores = metric = [0.0] * len(new)
            entry.scores += scores
            entry.metric += metric
            self.progress.advance(len(new))
            self.progress.finish()
        return entry.scores[:until]

    def _answer(self, entry: ScoredCandidate, rows: Sequence[Example]) -> tuple[list[float], list[float]]:
        decoder = label_scoring(entry.artifact.decoder)
        if decoder is not None and entry.artifact.signature.kind == "category":
            return self._score_labels(entry, decoder, rows)
        answers = entry.artifact.answer(rows, full=False)
        self.meter.add(len(rows), sum(a.prompt_tokens for a in answers), sum(a.completion_tokens for a in answers))
        metric = [score.value for score in self.metric.scores(cases(rows, answers))]
        return metric, metric

    def _score_labels(
        self, entry: ScoredCandidate, decoder: LabelScoring, rows: Sequence[Example]
    ) -> tuple[list[float], list[float]]:
        engine, variants = entry.artifact.open(), entry.artifact.prompt_variants()
        tokens = decoder.continuations(engine)
        requests = [
            ScoreRequest(row.messages, tokens, entry.artifact.weights.reference)
            for variant in variants
            for row in variant.render(rows)
        ]
        replies = engine.score(requests)
        self.meter.add(len(requests), sum(reply.prompt_tokens for reply in replies))
        shape = (len(variants), len(rows), len(tokens))
        logprobs = mean_logprobs(list(np.stack([reply.logprobs for reply in replies]).reshape(shape)))
        divisor = divisors(tokens, decoder.normalization)
        if not entry.scores and len(rows) < FEWEST_TO_CALIBRATE:
            entry.calibrated = False
        if entry.calibrated and not decoder.bias:
            decoder = replace(decoder, bias=tuple(batch_bias(logprobs, divisor).tolist()))
            entry.artifact = replace(entry.artifact, decoder=decoder).with_engine(engine)
        bias = np.array(decoder.bias or [0.0] * len(tokens), np.float32)
        best = (logprobs / divisor - bias).argmax(1)
        gold = [decoder.labels.index(row.outputs[0]) for row in rows]
        answers = [decoder.labels[int(label)] for label in best]
        metric = [float(self.metric(answer, row.outputs)) for answer, row in zip(answers, rows, strict=True)]
        probs = probabilities(logprobs, divisor, bias)
        return [float(probs[i, label]) for i, label in enumerate(gold)], metric
