"""Reasoning: the decoder that has the model write steps before the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rung.artifact.answer import Answer
from rung.artifact.decoder import Prompted
from rung.engines.base import Engine, GenerateRequest, Messages, Sampling
from rung.progress import QUIET, Progress
from rung.prompts.extraction import MARKER, Extract, extracted, majority

if TYPE_CHECKING:
    from rung.artifact.artifact import Artifact


@dataclass(frozen=True, slots=True)
class Reasoning(Prompted):
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

    @property
    def free(self) -> bool:
        """Chains are held to nothing."""
        return True

    def room(self, engine: Engine) -> int:
        """Return how many tokens a chain may take behind the prompt."""
        del engine
        return self.max_tokens

    def spoken(self, output: str, labels: Sequence[str]) -> str:
        """Return how a demonstration gives an expected output: behind the marker, without steps."""
        return f"{MARKER} {self.texts[labels.index(output)] if self.texts else output}"

    def answer_prompts(
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
