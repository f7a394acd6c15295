"""ListScoring: the decoder that lists every label likely enough."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from rung.artifact.answer import Answer
from rung.artifact.decoder import Prompted
from rung.artifact.labels import LabelScoring
from rung.engines.base import Engine, Floats, Messages, ScoreRequest
from rung.progress import QUIET, Progress
from rung.prompts.calibration import divisors

if TYPE_CHECKING:
    from rung.artifact.artifact import Artifact


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

    def answer_prompts(
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
