"""Self-consistency: several chains of thought, and the answer that most of them reach.

Wang et al. 2023, https://arxiv.org/abs/2203.11171.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from rung.artifact.artifact import Artifact
from rung.artifact.parts import Reasoning
from rung.data.rows import Data
from rung.errors import ConfigError
from rung.machine import Machine
from rung.progress import QUIET, Progress
from rung.rungs.base import YES, Cost, Verdict, never, no
from rung.rungs.costs import STEPS, inference_cost
from rung.rungs.reasoning import UNREASONED


@dataclass(frozen=True)
class SelfConsistency:
    """Sample chains and vote.

    Attributes:
        samples: chains per row.
        temperature: of the sampling.
        seed: seed of the first chain.
    """

    samples: int = 5
    temperature: float = 0.7
    seed: int = 0
    name: str = "self-consistency"
    family: str = "prompting"

    def __post_init__(self) -> None:
        if self.samples < 2 or self.temperature <= 0:
            raise ConfigError(
                "bad-setting",
                f"self-consistency: {self.samples} samples at temperature {self.temperature:g} cannot differ",
                hint="take 2 samples or more, at a temperature above 0",
            )

    def applies(self, artifact: Artifact, data: Data) -> Verdict:
        """It applies where a single chain of thought answers."""
        del data
        if not isinstance(artifact.decoder, Reasoning):
            refused = never if artifact.shape.kind in UNREASONED else no
            return refused("there is no chain of thought to sample")
        if artifact.decoder.samples > 1:
            return no("several chains are sampled already")
        return YES

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """Every further chain costs its tokens; the prompt is read once."""
        return inference_cost(artifact, data, machine, extra_tokens=(self.samples - 1) * STEPS)

    def fit(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> Artifact:
        """Return the artifact that votes."""
        del data, progress
        assert isinstance(artifact.decoder, Reasoning)
        settings = {"samples": self.samples, "temperature": self.temperature, "seed": self.seed}
        decoder = replace(artifact.decoder, samples=self.samples, temperature=self.temperature, seed=self.seed)
        return artifact.step(self.name, settings, decoder=decoder)
