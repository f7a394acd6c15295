"""Chain-of-thought: steps before the answer (Wei et al. 2022, https://arxiv.org/abs/2201.11903)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from rung.artifact.artifact import Artifact
from rung.artifact.costs import REASONING_TOKENS
from rung.artifact.heads import Head
from rung.artifact.labels import LabelScoring
from rung.artifact.text import Generate, Reasoning
from rung.data.rows import Data
from rung.errors import ConfigError
from rung.machine import Machine
from rung.models.reference import is_endpoint, resolve
from rung.progress import QUIET, Progress
from rung.prompts.extraction import REQUEST, Extract, is_number
from rung.rungs.base import YES, Cost, Verdict, never, no
from rung.rungs.costs import inference_cost

ENOUGH_PARAMETERS = 1.5e9  # below, reasoning hurts more often than it helps
UNREASONED = ("json", "chat")  # kinds of output that are the whole text
SHORT = 12  # words; a longer answer is a text, not the result of a calculation


@dataclass(frozen=True)
class ChainOfThought:
    """Have the model think step by step, and take the answer from behind a marker.

    Attributes:
        when: `auto`: not for categories, models under 1.5 billion parameters or long answers, where it rarely helps;
            `always`: wherever text is an answer. Either way the race decides.
        extract: what an answer looks like: `label`, `number`, `text`, or `auto`: by the task and its rows.
        max_tokens: most tokens of steps and answer together.
    """

    when: Literal["auto", "always"] = "auto"
    extract: Extract | Literal["auto"] = "auto"
    max_tokens: int = 512
    name: str = "chain-of-thought"
    family: str = "prompting"

    def applies(self, artifact: Artifact, data: Data) -> Verdict:
        """It applies to untuned prompts whose answers are short, and with `auto` to models that can reason."""
        if artifact.signature.kind in UNREASONED:
            return never(f"the answer of kind {artifact.signature.kind} is the whole text")
        if reason := reason_against(artifact):
            return no(reason)
        if self.when == "always":
            return YES
        ask = "ask for it with `rungs: {chain-of-thought: {when: always}}`"
        if artifact.signature.kind == "category":
            return never(f"steps rarely help to choose a label; {ask}")
        if not is_endpoint(artifact.model) and (size := resolve(artifact.model).parameters) < ENOUGH_PARAMETERS:
            return no(f"a model of {size / 1e6:.0f} million parameters rarely gains by steps; {ask}")
        words = sorted(len(row.outputs[0].split()) for row in data.train)
        if words and words[len(words) // 2] > SHORT:
            return never(f"its answers are texts of {words[len(words) // 2]} words, not results; {ask}")
        return YES

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """Every answer grows by its steps."""
        return inference_cost(artifact, data, machine, extra_tokens=REASONING_TOKENS)

    def fit(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> Artifact:
        """Return the artifact that reasons; nothing is trained."""
        del progress
        how = self.extract if self.extract != "auto" else looks_like(artifact, data)
        texts = label_texts(artifact) if how == "label" else ()
        prompt = replace(artifact.prompt, instruction=f"{artifact.prompt.instruction.strip()}\n\n{REQUEST}")
        if texts and not prompt.labels:  # a label that was never named cannot be written
            prompt = replace(prompt, labels=texts)
        decoder = Reasoning(how, self.max_tokens, texts=texts)
        return artifact.step(self.name, {"extract": how, "max_tokens": self.max_tokens}, prompt=prompt, decoder=decoder)


def reason_against(artifact: Artifact) -> str:
    """Return why an artifact cannot be made to reason, or an empty text."""
    if isinstance(artifact.decoder, Head):
        return "a head on frozen features does not write"
    if artifact.decoder.kind == "nearest":
        return "a search does not write"
    if artifact.decoder.kind == "agent":
        return "an agent takes its steps with tools"
    if isinstance(artifact.decoder, Reasoning):
        return "it reasons already"
    if artifact.weights.adapter is not None:
        return "the adapter was trained to answer without steps"
    if isinstance(artifact.decoder, Generate) and artifact.decoder.regex:
        return "the whole answer has to match a regular expression"
    if len(artifact.prompt_variants()) > 1:
        return "label scores are averaged over several prompts"
    return ""


def looks_like(artifact: Artifact, data: Data) -> Extract:
    """Return what the task's answers look like."""
    if artifact.signature.kind == "category":
        return "label"
    rows = data.train or data.validation
    return "number" if rows and all(is_number(row.outputs[0]) for row in rows) else "text"


def label_texts(artifact: Artifact) -> tuple[str, ...]:
    """Return what stands for each label."""
    decoder = artifact.decoder
    if isinstance(decoder, LabelScoring):
        return decoder.texts
    assert isinstance(decoder, Generate)
    return decoder.choices or artifact.signature.labels


# --------------------
# Self-consistency: several chains of thought, and the answer that most of them reach.
#
# Wang et al. 2023, https://arxiv.org/abs/2203.11171.


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
            refused = never if artifact.signature.kind in UNREASONED else no
            return refused("there is no chain of thought to sample")
        if artifact.decoder.samples > 1:
            return no("several chains are sampled already")
        return YES

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """Every further chain costs its tokens; the prompt is read once."""
        return inference_cost(artifact, data, machine, extra_tokens=(self.samples - 1) * REASONING_TOKENS)

    def fit(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> Artifact:
        """Return the artifact that votes."""
        del data, progress
        assert isinstance(artifact.decoder, Reasoning)
        settings = {"samples": self.samples, "temperature": self.temperature, "seed": self.seed}
        decoder = replace(artifact.decoder, samples=self.samples, temperature=self.temperature, seed=self.seed)
        return artifact.step(self.name, settings, decoder=decoder)
