"""Generate: the decoder that has the model write the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rung.artifact.costs import REASONING_TOKENS, Sizes
from rung.artifact.decoder import Answer, Change, Composition, Decoder, Prompted
from rung.data.rows import Example
from rung.engines.base import Constraint, Engine, GenerateRequest, Sampling
from rung.models.messages import Messages
from rung.progress import QUIET, Progress
from rung.prompts.extraction import MARKER, Extract, extracted, majority


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
    generates: ClassVar[bool] = True
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
    def unconstrained(self) -> bool:
        """Whether the answer is held to nothing."""
        return self.constraint is None

    def target_text(self, output: str, labels: Sequence[str]) -> str:
        """Return how the model should write an expected output: the choice that stands for a label, or as it is."""
        return self.choices[labels.index(output)] if self.choices else output

    def room(self, engine: Engine) -> int:
        """Return how many tokens the answer may take behind the prompt."""
        del engine
        return self.max_tokens

    @property
    def streams(self) -> bool:
        """Whether the answer is the completion itself; choices and patterns are checked when it is complete."""
        return not self.choices and not self.regex

    @property
    def max_new_tokens(self) -> int:
        """The most tokens of an answer."""
        return self.max_tokens

    @property
    def answer_schema(self) -> str | None:
        """The JSON Schema that the answer keeps to."""
        return self.json_schema

    @property
    def label_texts(self) -> tuple[str, ...]:
        """The choices."""
        return self.choices

    def refuses(self, change: Change) -> str:
        """A pattern for the whole answer leaves no room for reasoning."""
        if change == "reasoning" and self.regex:
            return "the whole answer has to match a regular expression"
        return super(Generate, self).refuses(change)

    def warm_up(self, artifact: Composition, example: Example) -> None:
        """Write one token."""
        rendered = self.render(artifact, [example])[0]
        request = GenerateRequest(
            rendered.messages, Sampling(max_tokens=1), self.constraint, artifact.weights.reference
        )
        artifact.open().generate([request])

    def request(self, artifact: Composition, prompt: Messages) -> GenerateRequest:
        """Return what the engine is asked for one prompt."""
        return GenerateRequest(prompt, Sampling(self.max_tokens), self.constraint, artifact.weights.reference)

    def answer_prompts(
        self,
        artifact: Composition,
        engine: Engine,
        prompts: Sequence[Messages],
        *,
        full: bool,
        progress: Progress = QUIET,
    ) -> list[Answer]:
        """Complete every prompt."""
        del full  # generated text has no label probabilities to leave out
        labels = dict(zip(self.choices, artifact.signature.labels, strict=True)) if self.choices else {}
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


def generation(decoder: Decoder) -> Generate | None:
    """Return the decoder if the model writes the answer right away, for techniques that change how; else None."""
    return decoder if isinstance(decoder, Generate) else None


# --------------------
# Reasoning: the decoder that has the model write steps before the answer.


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
    generates: ClassVar[bool] = True
    refusals: ClassVar[Mapping[Change, str]] = {
        "reasoning": "it reasons already",
        "training": "training rows give answers without the steps that it writes",
    }
    extract: Extract
    max_tokens: int = 512
    samples: int = 1
    temperature: float = 0.7
    seed: int = 0
    texts: tuple[str, ...] = ()

    @property
    def unconstrained(self) -> bool:
        """Chains are held to nothing."""
        return True

    def room(self, engine: Engine) -> int:
        """Return how many tokens a chain may take after the prompt."""
        del engine
        return self.max_tokens

    @property
    def max_new_tokens(self) -> int:
        """The most tokens of one chain."""
        return self.max_tokens

    @property
    def label_texts(self) -> tuple[str, ...]:
        """The texts that chains end with."""
        return self.texts

    def decoding_tokens(self, sizes: Sizes) -> float:
        """Every chain writes its steps and the answer."""
        return self.samples * (sizes.answer + min(REASONING_TOKENS, self.max_tokens))

    def target_text(self, output: str, labels: Sequence[str]) -> str:
        """Return how a demonstration gives an expected output: behind the marker, without steps."""
        return f"{MARKER} {self.texts[labels.index(output)] if self.texts else output}"

    def answer_prompts(
        self,
        artifact: Composition,
        engine: Engine,
        prompts: Sequence[Messages],
        *,
        full: bool,
        progress: Progress = QUIET,
    ) -> list[Answer]:
        """Complete every prompt `samples` times and count the answers; a prompt is counted once, chains all."""
        del full
        requests = [
            GenerateRequest(prompt, self._sampling(chain), None, artifact.weights.reference)
            for prompt in prompts
            for chain in range(self.samples)
        ]
        made = engine.generate(requests, progress=progress)
        labels = dict(zip(self.texts, artifact.signature.labels, strict=True)) if self.texts else {}
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


def reasoning(decoder: Decoder) -> Reasoning | None:
    """Return the decoder if the model writes steps before the answer; else None."""
    return decoder if isinstance(decoder, Reasoning) else None
