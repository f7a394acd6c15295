"""Scores candidates on rows, each row once: the paired matrix that the races of a search share.

Where labels are scored, the racing score of a row is the probability of the gold label, which tells near prompts apart
with fewer rows than right or wrong does; label probabilities are calibrated on the rows of the first request (Zhou et
al. 2024, https://arxiv.org/abs/2309.17249), whose labels this does not look at. Otherwise it is the task's metric. Both
are kept: the race looks at the one, the report and the adoption at the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from rung.artifact.artifact import Artifact
from rung.artifact.labels import LabelScoring, label_scoring, mean_logprobs
from rung.data.rows import Example
from rung.engines.base import Floats, ScoreRequest
from rung.errors import EngineError
from rung.evaluation.metrics import Metric
from rung.evaluation.scoring import cases
from rung.progress import QUIET, Progress
from rung.prompt_search.budget import Meter
from rung.prompt_search.candidates import Candidate, Space
from rung.prompts.calibration import batch_bias, divisors, probabilities

FEWEST_TO_CALIBRATE = 8  # rows; fewer say more of themselves than of the labels


@dataclass
class Tried:
    """A candidate and what is known of it: racing scores and metric scores of the first rows, in race order."""

    name: str
    candidate: Candidate
    artifact: Artifact
    round: int
    calibrated: bool
    scores: list[float] = field(default_factory=list)
    metric: list[float] = field(default_factory=list)
    failed: str = ""


class Judge:
    """Answers rows with candidates.

    Args:
        space: makes artifacts of candidates.
        rows: the rows of the search, in race order.
        metric: the task's metric.
        meter: counts the calls.
        calibrate: calibrate label probabilities of new candidates; those of the incumbent are never changed.
        progress: told of every batch.
    """

    def __init__(
        self, space: Space, rows: Sequence[Example], metric: Metric, meter: Meter, *, calibrate: bool = True,
        progress: Progress = QUIET,
    ) -> None:  # fmt: skip
        self.space, self.rows, self.metric, self.meter = space, rows, metric, meter
        self.calibrate, self.progress = calibrate, progress
        self.tried: dict[str, Tried] = {}
        start = Tried("incumbent", space.start, space.artifact, 0, False)
        self.tried[start.name] = start

    def add(self, candidate: Candidate, round_: int) -> str:
        """Take a candidate up and return its name."""
        name = f"candidate-{len(self.tried)}"
        artifact = self.space.apply(candidate)
        calibrated = self.calibrate and label_scoring(artifact.decoder) is not None
        self.tried[name] = Tried(name, candidate, artifact, round_, calibrated)
        return name

    def ask(self, name: str, until: int) -> list[float]:
        """Return the racing scores of the first rows, answering only those that are new.

        A prompt that does not fit the model's context scores 0 on every row; its record says so.
        """
        one = self.tried[name]
        new = self.rows[len(one.scores) : until]
        if new:
            self.progress.start(f"{name} on {len(new)} rows", len(new))
            try:
                scores, metric = self._answer(one, new)
            except EngineError as error:
                if error.code != "context-overflow":
                    raise
                one.failed = error.message
                scores = metric = [0.0] * len(new)
            one.scores += scores
            one.metric += metric
            self.progress.advance(len(new))
            self.progress.finish()
        return one.scores[:until]

    def _answer(self, one: Tried, rows: Sequence[Example]) -> tuple[list[float], list[float]]:
        scoring = label_scoring(one.artifact.decoder)
        if scoring is not None and one.artifact.signature.kind == "category":
            return self._score_labels(one, scoring, rows)
        answers = one.artifact.answer(rows, full=False)
        self.meter.add(len(rows), sum(a.prompt_tokens for a in answers), sum(a.completion_tokens for a in answers))
        metric = [score.value for score in self.metric.scores(cases(rows, answers))]
        return metric, metric

    def _score_labels(
        self, one: Tried, decoder: LabelScoring, rows: Sequence[Example]
    ) -> tuple[list[float], list[float]]:
        tokens = decoder.continuations(one.artifact.open())
        divisor = divisors(tokens, decoder.normalization)
        logprobs = self._logprobs(one.artifact, tokens, rows)
        if not one.scores and len(rows) < FEWEST_TO_CALIBRATE:
            one.calibrated = False
        if one.calibrated and not decoder.bias:
            decoder = replace(decoder, bias=tuple(batch_bias(logprobs, divisor).tolist()))
            one.artifact = replace(one.artifact, decoder=decoder).with_engine(one.artifact.open())
        bias = np.array(decoder.bias or [0.0] * len(tokens), np.float32)
        probs = probabilities(logprobs, divisor, bias)
        best = (logprobs / divisor - bias).argmax(1)
        gold = [decoder.labels.index(row.outputs[0]) for row in rows]
        metric = [
            float(self.metric(decoder.labels[int(answer)], row.outputs)) for answer, row in zip(best, rows, strict=True)
        ]
        return [float(probs[i, label]) for i, label in enumerate(gold)], metric

    def _logprobs(self, artifact: Artifact, tokens: tuple[tuple[int, ...], ...], rows: Sequence[Example]) -> Floats:
        """Return the log-likelihood of every label, shape [rows, labels], and count what was read."""
        members = artifact.prompt_variants()
        requests = [
            ScoreRequest(row.messages, tokens, artifact.weights.reference)
            for member in members
            for row in member.render(rows)
        ]
        scored = artifact.open().score(requests)
        self.meter.add(len(requests), sum(one.prompt_tokens for one in scored))
        rows_each = [scored[first : first + len(rows)] for first in range(0, len(scored), len(rows))]
        return mean_logprobs([np.stack([one.logprobs for one in member]) for member in rows_each])
