"""Generate has the model write the answer; Reasoning has it write steps before the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from rung.artifact.costs import REASONING_TOKENS, Sizes
from rung.artifact.decoder import Answer, Change, Composition, Decoder, Prompted, Prompts
from rung.data.rows import Example
from rung.engines.base import Constraint, Engine, GenerateRequest, Sampling
from rung.engines.constraints import schema_problem
from rung.models.bounded import found
from rung.models.messages import Messages
from rung.models.thinking import split_thought
from rung.progress import QUIET, Progress
from rung.prompts.extraction import MARKER, Extract, extracted, majority
from rung.yamlfile import json_value


@dataclass(frozen=True, slots=True)
class Generate(Prompted):
    """Write the answer token by token, greedily.

    Attributes:
        max_tokens: the most tokens of an answer.
        json_schema: the schema (JSON text) that the answer follows, or None.
        regex: the regular expression that the whole answer matches, or None.
        choices: one text per label of the task, in its order. The answer is one of them, and is replaced by its label.
            Any other text (one that was cut) is kept unchanged, and is wrong.
    """

    kind: ClassVar[str] = "generate"
    generates: ClassVar[bool] = True
    max_tokens: int = 256
    json_schema: str | None = None
    choices: tuple[str, ...] = ()
    regex: str | None = None

    @property
    def constraint(self) -> Constraint | None:
        """The constraint that the engine applies to the answer."""
        if self.choices:
            return Constraint("choices", self.choices)
        if self.regex:
            return Constraint("regex", self.regex)
        return Constraint("json_schema", self.json_schema) if self.json_schema else None

    @property
    def unconstrained(self) -> bool:
        """Whether there is no constraint."""
        return self.constraint is None

    def target_text(self, output: str, labels: Sequence[str]) -> str:
        """Give the choice of a label; without choices, the output itself."""
        return self.choices[labels.index(output)] if self.choices else output

    @property
    def streams(self) -> bool:
        """Whether the answer is the completion itself; choices and patterns can be checked only at its end."""
        return not self.choices and not self.regex

    @property
    def max_new_tokens(self) -> int:
        """The most tokens of an answer: `max_tokens`."""
        return self.max_tokens

    @property
    def answer_schema(self) -> str | None:
        """The JSON Schema that the answer follows."""
        return self.json_schema

    @property
    def label_texts(self) -> tuple[str, ...]:
        """The choices."""
        return self.choices

    def is_valid(self, text: str) -> bool:
        """Whether an answer, written without the constraint, has the form that it would have with it."""
        if self.choices or self.regex:
            return text in self.choices if not self.regex else found(self.regex, text, whole=True)
        if not self.json_schema:
            return bool(text)
        try:
            return schema_problem(json_value(text), self.json_schema) is None
        except ValueError:
            return False

    def warm_up(self, artifact: Composition, example: Example) -> None:
        """Write one token."""
        request = self.request(artifact, self.render(artifact, [example])[0].messages)
        artifact.open().generate([replace(request, sampling=Sampling(max_tokens=1))])

    def request(self, artifact: Composition, prompt: Messages) -> GenerateRequest:
        """Build the request for one prompt."""
        sampling = Sampling(self.max_tokens, call_marks=bool(prompt) and "tools" in prompt[0])
        return GenerateRequest(prompt, sampling, self.constraint, artifact.weights.reference)

    def answer_prompts(
        self, artifact: Composition, engine: Engine, prompts: Prompts, *, full: bool, progress: Progress = QUIET
    ) -> list[Answer]:
        """Complete every prompt."""
        del full  # generated text has no label probabilities to leave out
        labels = dict(zip(self.choices, artifact.signature.labels, strict=True)) if self.choices else {}
        answers = []
        generations = engine.generate([self.request(artifact, prompt) for prompt in prompts], progress=progress)
        for prompt, g in zip(prompts, generations, strict=True):
            text = labels.get(g.text.strip(), g.text.strip())
            tokens = g.prompt_tokens, g.completion_tokens
            other = {"cached_tokens": g.cached_tokens, "reasoning": g.reasoning}
            answers.append(Answer(text, None, None, *tokens, g.seconds, prompt, **other))  # type: ignore[arg-type]
        return answers


def generation(decoder: Decoder) -> Generate | None:
    """Give the decoder if the model writes the answer directly, for techniques that change how; else None."""
    return decoder if isinstance(decoder, Generate) else None


@dataclass(frozen=True, slots=True)
class Reasoning(Prompted):
    """Write steps first, then the answer (chain-of-thought); several times with a vote (self-consistency).

    An answer's `confidence` is its share of the votes, or None for a single chain. If nothing can be extracted from a
    chain, its answer is empty, and wrong.

    Attributes:
        extract: what an answer looks like; see `rung.prompts.extraction`.
        max_tokens: the most tokens of one chain, the answer included.
        samples: chains per row; one is greedy, several are sampled.
        temperature: of the sampled chains.
        seed: of the first chain; each next chain adds 1.
        texts: one text per label of the task, in its order (extract `label`).
        regex: what an answer must match as a whole, or None; a chain that ends with another one has no answer.
    """

    kind: ClassVar[str] = "reasoning"
    generates: ClassVar[bool] = True
    refusals: ClassVar[Mapping[Change, str]] = {
        "reasoning": "it reasons already",
        "training": "training rows hold answers without the steps that it writes",
    }
    extract: Extract
    max_tokens: int = 512
    samples: int = 1
    temperature: float = 0.7
    seed: int = 0
    texts: tuple[str, ...] = ()
    regex: str | None = None

    @property
    def unconstrained(self) -> bool:
        """Chains have no constraint."""
        return True

    @property
    def max_new_tokens(self) -> int:
        """The most tokens of one chain: `max_tokens`."""
        return self.max_tokens

    @property
    def label_texts(self) -> tuple[str, ...]:
        """The texts that chains end with."""
        return self.texts

    def decoding_tokens(self, sizes: Sizes) -> float:
        """Count the steps and the answer of every chain."""
        return self.samples * (sizes.answer + min(REASONING_TOKENS, self.max_tokens))

    def target_text(self, output: str, labels: Sequence[str]) -> str:
        """Write an expected output as a demonstration shows it: after the marker, without steps."""
        return f"{MARKER} {self.texts[labels.index(output)] if self.texts else output}"

    def answer_prompts(
        self, artifact: Composition, engine: Engine, prompts: Prompts, *, full: bool, progress: Progress = QUIET
    ) -> list[Answer]:
        """Complete every prompt `samples` times and vote; an answer's tokens are those of all chains."""
        del full
        samplings = [Sampling(self.max_tokens)]
        if self.samples > 1:
            seeds = range(self.seed, self.seed + self.samples)
            samplings = [Sampling(self.max_tokens, self.temperature, seed=seed) for seed in seeds]
        reference = artifact.weights.reference
        requests = [GenerateRequest(prompt, sampling, None, reference) for prompt in prompts for sampling in samplings]
        generations = engine.generate(requests, progress=progress)
        labels = dict(zip(self.texts, artifact.signature.labels, strict=True)) if self.texts else {}
        answers = []
        for row, prompt in enumerate(prompts):
            chains = generations[row * self.samples : (row + 1) * self.samples]
            text, share = majority([self._answer(chain.text) for chain in chains])
            text, confidence = labels.get(text, text), share if self.samples > 1 else None
            written, seconds = sum(chain.completion_tokens for chain in chains), sum(chain.seconds for chain in chains)
            # Every chain reads the prompt again, which an endpoint bills.
            read, cached = sum(chain.prompt_tokens for chain in chains), sum(chain.cached_tokens for chain in chains)
            answers.append(Answer(text, confidence, None, read, written, seconds, prompt, cached_tokens=cached))
        return answers

    def _answer(self, chain: str) -> str:
        text = extracted(split_thought(chain)[1], self.extract, self.texts)
        return text if self.regex is None or found(self.regex, text, whole=True) else ""


def reasoning(decoder: Decoder) -> Reasoning | None:
    """Give the decoder if the model writes steps before the answer; else None."""
    return decoder if isinstance(decoder, Reasoning) else None
