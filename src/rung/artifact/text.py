"""Generate: the decoder that has the model write the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rung.artifact.answer import Answer
from rung.artifact.decoder import Prompted
from rung.engines.base import Constraint, Engine, GenerateRequest, Messages, Sampling
from rung.progress import QUIET, Progress

if TYPE_CHECKING:
    from rung.artifact.artifact import Artifact


@dataclass(frozen=True, slots=True)
class Generate(Prompted):
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

    @property
    def free(self) -> bool:
        """Whether the answer is held to nothing."""
        return self.constraint is None

    def spoken(self, output: str, labels: Sequence[str]) -> str:
        """Return how the model should write an expected output: the choice that stands for a label, or as it is."""
        return self.choices[labels.index(output)] if self.choices else output

    def room(self, engine: Engine) -> int:
        """Return how many tokens the answer may take behind the prompt."""
        del engine
        return self.max_tokens

    def request(self, artifact: Artifact, prompt: Messages) -> GenerateRequest:
        """Return what the engine is asked for one prompt."""
        return GenerateRequest(prompt, Sampling(self.max_tokens), self.constraint, artifact.weights.reference)

    def answer_prompts(
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
