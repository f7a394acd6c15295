"""Answer: what an artifact says to one row."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from rung.agents.trace import Step
from rung.engines.base import Floats, Messages
from rung.evaluation.calibration import Confidence, of_decisions
from rung.retrieval.citations import Citation
from rung.retrieval.passage import Passage


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


def sure(answer: Answer, chances: Floats, best: int, fitted: Confidence | None) -> Answer:
    """Return the answer with its confidence: the probability of label `best`, calibrated where that was fitted."""
    values = tuple(chances.tolist())
    if fitted is None:
        return replace(answer, confidence=values[best], probabilities=values)
    values = fitted.scaled(values)
    confidence = fitted.of(values[best])
    return replace(answer, confidence=confidence, probabilities=values, abstained=fitted.abstains(confidence))


def sure_of_list(answer: Answer, chances: Floats, given: npt.NDArray[np.bool_], fitted: Confidence) -> Answer:
    """Return the answer to a row of several labels with its calibrated confidence, that of all decisions together.

    Args:
        answer: the list of the labels given.
        chances: that each label is right, shape [labels].
        given: whether it is given, shape [labels].
        fitted: the calibration.
    """
    values = fitted.scaled_each(chances)
    confidence = fitted.of(float(of_decisions(values, given)))
    return replace(answer, confidence=confidence, probabilities=values, abstained=fitted.abstains(confidence))
