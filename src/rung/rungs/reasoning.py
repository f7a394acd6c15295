"""Chain-of-thought: steps before the answer (Wei et al. 2022, https://arxiv.org/abs/2201.11903)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import Field

from rung.artifact.artifact import Artifact
from rung.artifact.costs import REASONING_TOKENS
from rung.artifact.text import Reasoning, generation, reasoning
from rung.data.rows import Data
from rung.machine import Machine
from rung.models.reference import is_endpoint, resolve
from rung.progress import QUIET, Progress
from rung.prompts.answer_form import ALONE
from rung.prompts.extraction import REQUEST, Extract, is_number
from rung.rungs.base import OK, Applicability, Cost, CountOrZero, Positive, Rung, rung, skip
from rung.rungs.costs import inference_cost
from rung.training.config import Count

ENOUGH_PARAMETERS = 1.5e9  # below, reasoning hurts more often than it helps
UNREASONED = ("json", "chat")  # kinds of output that are the whole text
SHORT = 12  # words; a longer answer is a text, not the result of a calculation


@rung("chain-of-thought", family="prompting", order=130, default=True, topics=("reasoning",))
@dataclass(frozen=True)
class ChainOfThought(Rung):
    """Let the model think step by step, and read the answer after a marker.

    Attributes:
        when: `auto`: not for categories, models under 1.5 billion parameters or long answers, where it rarely helps;
            `always`: for every kind of answer that steps can precede. Either way, the race decides.
        extract: what an answer looks like: `label`, `number`, `text`, or `auto`: by the task and its rows.
        max_tokens: tokens of steps and answer together, at most.
    """

    needs = ("reasoning", "untuned", "one prompt")
    learns = False

    when: Literal["auto", "always"] = "auto"
    extract: Extract | Literal["auto"] = "auto"
    max_tokens: Count = 512

    def suits(self, artifact: Artifact, data: Data) -> Applicability:
        """It applies to prompts whose answers are short, and with `auto` to models that can reason."""
        kind, written = artifact.signature.kind, generation(artifact.decoder)
        if kind in UNREASONED:
            return skip(f"the answer of kind {kind} is the whole text", final=True)
        if written is not None and written.regex and kind != "number":
            return skip("the whole answer has to match a regular expression", final=True)
        if self.when == "always":
            return OK
        ask = "ask for it with `rungs: {chain-of-thought: {when: always}}`"
        if kind == "category":
            return skip(f"steps rarely help to choose a label; {ask}", final=True)
        if not is_endpoint(artifact.model) and (size := resolve(artifact.model).parameters) < ENOUGH_PARAMETERS:
            return skip(f"a model of {size / 1e6:.0f} million parameters rarely gains by steps; {ask}")
        words = sorted(len(row.outputs[0].split()) for row in data.train)
        if words and words[len(words) // 2] > SHORT:
            return skip(f"its answers are texts of {words[len(words) // 2]} words, not results; {ask}", final=True)
        return OK

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """Every answer grows by its steps."""
        return inference_cost(artifact, data, machine, extra_tokens=REASONING_TOKENS)

    def fit(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> Artifact:
        """Ask for steps before the answer; nothing is trained."""
        del progress
        how = self.extract if self.extract != "auto" else looks_like(artifact, data)
        texts = (artifact.decoder.label_texts or artifact.signature.labels) if how == "label" else ()
        prompt = replace(artifact.prompt, instruction=f"{artifact.prompt.instruction.strip()}\n\n{REQUEST}")
        if texts and not prompt.labels:  # a label that was never named cannot be written
            prompt = replace(prompt, labels=texts)
        regex = None
        if artifact.signature.kind == "number" and (written := generation(artifact.decoder)) is not None:
            prompt = replace(prompt, answer_form=prompt.answer_form.replace(ALONE, ""))
            regex = written.regex if how == "number" else None
        decoder = Reasoning(how, self.max_tokens, texts=texts, regex=regex)
        return artifact.step(self.name, {"extract": how, "max_tokens": self.max_tokens}, prompt=prompt, decoder=decoder)


def looks_like(artifact: Artifact, data: Data) -> Extract:
    """The form of the task's answers."""
    if artifact.signature.kind == "category":
        return "label"
    numbers = data.train and all(is_number(row.outputs[0]) for row in data.train)
    return "number" if numbers or artifact.signature.kind == "number" else "text"


@rung("self-consistency", family="prompting", order=140, default=True, topics=("reasoning",))
@dataclass(frozen=True)
class SelfConsistency(Rung):
    """Sample several chains of thought, and take the answer of most (Wang et al. 2023, https://arxiv.org/abs/2203.11171).

    Attributes:
        samples: chains per row.
        temperature: of the sampling.
        seed: seed of the first chain.
    """

    learns = False

    samples: Annotated[int, Field(ge=2)] = 5
    temperature: Positive = 0.7
    seed: CountOrZero = 0

    def suits(self, artifact: Artifact, data: Data) -> Applicability:
        """It applies where a single chain of thought answers."""
        del data
        chain = reasoning(artifact.decoder)
        if chain is None:
            return skip("there is no chain of thought to sample", final=artifact.signature.kind in UNREASONED)
        return OK if chain.samples == 1 else skip("several chains are sampled already")

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """Every further chain costs its tokens; the prompt is read once."""
        return inference_cost(artifact, data, machine, extra_tokens=(self.samples - 1) * REASONING_TOKENS)

    def fit(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> Artifact:
        """Sample several chains instead of one."""
        del data, progress
        chain = reasoning(artifact.decoder)
        assert chain is not None
        settings = {"samples": self.samples, "temperature": self.temperature, "seed": self.seed}
        decoder = replace(chain, samples=self.samples, temperature=self.temperature, seed=self.seed)
        return artifact.step(self.name, settings, decoder=decoder)
