"""The task file's system prompt, measured instead of believed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rung.artifact import Artifact
from rung.data.types import Data
from rung.machine import Machine
from rung.parts import PROMPTLESS
from rung.progress import QUIET, Progress
from rung.rungs.base import YES, Cost, Verdict, no
from rung.rungs.costs import inference_cost


@dataclass(frozen=True)
class SystemPrompt:
    """Put a system prompt before the instruction."""

    text: str
    name: str = "system-prompt"
    family: str = "prompting"

    def applies(self, artifact: Artifact, data: Data) -> Verdict:
        """It applies where the task has a system prompt and a prompt is what answers."""
        del data
        if not self.text:
            return no("the task file has no `system:` prompt")
        if artifact.decoder.kind in PROMPTLESS:
            return no("a head on frozen features does not read the prompt")
        if artifact.prompt.system:
            return no("a system prompt is set already")
        return YES

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """The shared beginning is computed once, so a longer one costs next to nothing."""
        return inference_cost(artifact, data, machine)

    def fit(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> Artifact:
        """Return the artifact with the system prompt."""
        del data, progress
        return artifact.step(self.name, {"text": self.text}, prompt=replace(artifact.prompt, system=self.text))
