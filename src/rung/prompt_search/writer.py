"""Instructions and label descriptions written by a model: the task's own, or a stronger one.

Asking a model for instructions that explain solved rows: Zhou et al. 2023, "Large language models are human-level
prompt engineers" (https://arxiv.org/abs/2211.01910); a different tip in every request, so that proposals differ:
Opsahl-Ong et al. 2024, MIPRO (https://arxiv.org/abs/2406.11695).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rung.artifact.artifact import Artifact
from rung.data.cells import text_of
from rung.data.rows import Example, labels_of, normal
from rung.engines.base import Engine, GenerateRequest, Sampling
from rung.models.messages import Messages
from rung.progress import QUIET, Progress
from rung.prompt_search.scorer import Meter

LENGTH, SHORTEST = 6, 3  # words
_WORD = re.compile(r"\w+")
Gram = tuple[str, ...]


class CopyGuard:
    """Find texts that repeat training rows: such a text shows answers instead of saying what to do.

    A text copies a row if they share `LENGTH` words in a row, or all words of a shorter row of at least `SHORTEST`.
    Words of the task itself (its instruction, its labels) do not count.

    Args:
        rows: training rows, whose inputs and outputs must not be repeated.
        allowed: texts of the task, which may be repeated.
    """

    def __init__(self, rows: Iterable[Example], allowed: Iterable[str] = ()) -> None:
        known = [_words(text) for text in allowed]
        self._allowed = " | ".join(" ".join(words) for words in known)
        self._where: dict[Gram, str] = {}
        for row in rows:
            for text in (*map(text_of, row.inputs.values()), *row.outputs):
                for gram in _grams(_words(text)):
                    self._where.setdefault(gram, row.source)

    def copied(self, text: str) -> str:
        """Find the row that `text` repeats, as `file:line`; empty if there is none."""
        words = _words(text)
        for length in range(SHORTEST, LENGTH + 1):
            for start in range(len(words) - length + 1):
                gram = tuple(words[start : start + length])
                if gram in self._where and f" {' '.join(gram)} " not in f" {self._allowed} ":
                    return self._where[gram]
        return ""


def _words(text: str) -> list[str]:
    return _WORD.findall(normal(text))


def _grams(words: list[str]) -> Iterator[Gram]:
    """Yield the word sequences that count as a copy: every run of LENGTH words, or all words of a shorter text."""
    if SHORTEST <= len(words) < LENGTH:
        yield tuple(words)
    for start in range(len(words) - LENGTH + 1):
        yield tuple(words[start : start + LENGTH])


TIPS = (
    "Be short and clear.",
    "Say what to pay attention to in the input.",
    "Say exactly what the answer must look like.",
    "Name the mistakes that are easily made.",
    "Describe who asks, and what the answer is used for.",
    "Explain how close cases are told apart.",
)
SHOWN = 5  # solved rows in one request
MOST_WORDS = 150
MAX_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Proposal:
    """A proposed text, and why it is refused (empty if it is used)."""

    text: str
    refused: str = ""


@dataclass(frozen=True)
class Writer:
    """Have a model write instructions and label descriptions.

    Attributes:
        engine: the engine of the writing model.
        guard: refuses copies of training rows.
        meter: counts the calls.
        temperature: of the writing, so that proposals differ.
        seed: of everything random.
    """

    engine: Engine
    guard: CopyGuard
    meter: Meter
    temperature: float = 0.8
    seed: int = 0

    def instructions(
        self, artifact: Artifact, rows: Sequence[Example], count: int, *, progress: Progress = QUIET
    ) -> list[Proposal]:
        """Propose `count` instructions; refused proposals say why."""
        rng = random.Random(self.seed)
        prompts = [
            _instruction_request(artifact, rng.sample(list(rows), min(SHOWN, len(rows))), TIPS[i % len(TIPS)])
            for i in range(count)
        ]
        seen = {artifact.prompt.instruction}
        return [self._checked(text, seen) for text in self._write(prompts, progress)]

    def descriptions(
        self, artifact: Artifact, rows: Sequence[Example], labels: Sequence[str], *, progress: Progress = QUIET
    ) -> list[Proposal]:
        """Describe each label in one sentence, from rows with that label and rows with other labels."""
        rng = random.Random(self.seed)
        prompts = []
        for label in labels:
            own = [row for row in rows if label in labels_of(row.outputs[0], artifact.signature.kind)]
            others = [row for row in rows if label not in labels_of(row.outputs[0], artifact.signature.kind)]
            chosen = rng.sample(own, min(SHOWN, len(own))), rng.sample(others, min(SHOWN, len(others)))
            prompts.append(
                _description_request(artifact, artifact.decoder.target_text(label, artifact.signature.labels), *chosen)
            )
        return [self._checked(text, set()) for text in self._write(prompts, progress)]

    def _write(self, prompts: Sequence[Messages], progress: Progress) -> list[str]:
        requests = [
            GenerateRequest(prompt, Sampling(MAX_TOKENS, self.temperature, seed=self.seed + i))
            for i, prompt in enumerate(prompts)
        ]
        replies = self.engine.generate(requests, progress=progress)
        tokens = sum(reply.prompt_tokens for reply in replies), sum(reply.completion_tokens for reply in replies)
        self.meter.add(len(replies), *tokens)
        return [reply.text for reply in replies]

    def _checked(self, raw: str, seen: set[str]) -> Proposal:
        text = cleaned(raw)
        if not text:
            return Proposal(text, "nothing was written")
        if len(text.split()) > MOST_WORDS:
            return Proposal(text, f"it has more than {MOST_WORDS} words")
        if row := self.guard.copied(text):
            return Proposal(text, f"it repeats the training row {row}")
        if text in seen:
            return Proposal(text, "it is there already")
        seen.add(text)
        return Proposal(text)


def cleaned(text: str) -> str:
    """Remove what models put around a text: a title, quotes, a code fence."""
    text = re.sub(r"^```\w*\n|\n?```$", "", text.strip()).strip()
    text = re.sub(
        r"^(?:\*\*)?(?:new |improved )?(?:instruction|description)s?(?:\*\*)?:(?:\*\*)?\s*", "", text, flags=re.I
    )
    if len(text) > 1 and text[0] in "\"'“" and text[-1] in "\"'”":
        text = text[1:-1].strip()
    return " ".join(text.split())


def _instruction_request(artifact: Artifact, rows: Sequence[Example], tip: str) -> Messages:
    labels = f"\nThe possible answers: {', '.join(artifact.prompt.labels)}" if artifact.prompt.labels else ""
    return (
        {"role": "system", "content": "You write instructions for a language model."},
        {
            "role": "user",
            "content": (
                f"This is the present instruction:\n{artifact.prompt.instruction}{labels}\n\n"
                f"Solved examples:\n\n{_solved(artifact, rows)}\n\n"
                f"Write a better instruction, which holds for any input. {tip} Do not repeat the examples. "
                "Reply with the instruction alone."
            ),
        },
    )


def _description_request(artifact: Artifact, label: str, own: Sequence[Example], others: Sequence[Example]) -> Messages:
    return (
        {"role": "system", "content": "You describe what a label means."},
        {
            "role": "user",
            "content": (
                f"The task: {artifact.prompt.instruction}\n\nInputs with the label {label!r}:\n\n"
                f"{_inputs(artifact, own)}\n\nInputs with other labels:\n\n{_inputs(artifact, others)}\n\n"
                f"Say in one short sentence what {label!r} means and what tells it from the others. "
                "Do not repeat the inputs. Reply with the sentence alone."
            ),
        },
    )


def _solved(artifact: Artifact, rows: Sequence[Example]) -> str:
    answers = [artifact.decoder.target_text(row.outputs[0], artifact.signature.labels) for row in rows]
    questions = [artifact.prompt.question(row.inputs) for row in rows]
    return "\n\n".join(f"Input: {q}\nAnswer: {a}" for q, a in zip(questions, answers, strict=True))


def _inputs(artifact: Artifact, rows: Sequence[Example]) -> str:
    return "\n".join(f"- {artifact.prompt.question(row.inputs)}" for row in rows) or "(none)"
