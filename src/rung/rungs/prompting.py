"""The task file's system prompt, measured instead of believed; of several, the best by a race on training rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from rung.artifact.artifact import Artifact
from rung.artifact.parts import LabelScoring, Promptless
from rung.data.rows import Data
from rung.evaluation.racing import halve, race_order
from rung.machine import Machine
from rung.progress import QUIET, Progress
from rung.prompt_search.budget import Limits, Meter
from rung.prompt_search.candidates import Space
from rung.prompt_search.judge import Judge
from rung.rungs.base import YES, Cost, Verdict, never, no
from rung.rungs.costs import inference_cost

SHARE = 0.5  # of all texts on all rows: what the race among the texts may take


@dataclass(frozen=True)
class SystemPrompt:
    """Put a system prompt before the instruction.

    Attributes:
        texts: the system prompts to choose from.
        rows: training rows that the race among several looks at.
    """

    texts: tuple[str, ...]
    rows: int = 64
    name: str = "system-prompt"
    family: str = "prompting"

    def applies(self, artifact: Artifact, data: Data) -> Verdict:
        """It applies where the task has a system prompt and a prompt is what answers."""
        if not any(self.texts):
            return never("the task file has no `system:` prompt")
        if artifact.decoder.kind == "nearest":
            return never("the rows are ranked without a prompt")
        if isinstance(artifact.decoder, Promptless):
            return no("a head on frozen features does not read the prompt")
        if artifact.prompt.system:
            return no("a system prompt is set already")
        if len(self.texts) > 1 and not data.train:
            return never("there are no training rows to choose among the system prompts by")
        return YES

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """The shared beginning is computed once, so a longer one costs next to nothing; choosing costs answers."""
        rows = int(SHARE * len(self.texts) * min(self.rows, len(data.train))) if len(self.texts) > 1 else 0
        return inference_cost(artifact, data, machine, fit_rows=rows)

    def fit(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> Artifact:
        """Return the artifact with the best of the system prompts."""
        settings: dict[str, Any] = {"text": self.texts[0]}
        if len(self.texts) > 1:
            settings["text"], settings["raced"] = self._raced(artifact, data, progress)
        return artifact.step(self.name, settings, prompt=replace(artifact.prompt, system=settings["text"]))

    def _raced(self, artifact: Artifact, data: Data, progress: Progress) -> tuple[str, dict[str, float]]:
        """Return the winner, and the mean score of every text on the rows that it answered."""
        space = Space(artifact, (artifact.prompt.instruction,), (artifact.prompt.template,), {}, vary_shots=False)
        calibrate = isinstance(artifact.decoder, LabelScoring) and bool(artifact.decoder.bias)
        rows = race_order(data.train)[: self.rows]
        metric = artifact.shape.scorer(data.folder)
        judge = Judge(space, rows, metric, Meter(Limits()), calibrate=calibrate, progress=progress)
        names = {judge.add(replace(space.start, system=text, origin="system"), 1): text for text in self.texts}
        price = int(SHARE * len(names) * len(rows))
        found = halve(list(names), judge.ask, len(rows), price, least=max(1, len(rows) // 4))
        scores = {text: sum(s := judge.tried[name].metric) / len(s) for name, text in names.items()}
        return names[found.winner], scores
