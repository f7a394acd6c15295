"""Training rows as tokens: the prompt as the artifact renders it, and the answer that is learnt."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

from rung.artifact import Artifact
from rung.data.types import Example
from rung.engines.torch_engine import TorchEngine
from rung.errors import TrainingError
from rung.progress import QUIET, Progress


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """One row as tokens, and which of them are learnt.

    Attributes:
        tokens: the whole text.
        spans: half-open ranges of `tokens` that are supervised, in order; none begins at 0, which nothing predicts.
        source: `file:line`.
        dropped_demonstrations: how many were left out so that the row fits.
    """

    tokens: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    source: str
    dropped_demonstrations: int = 0

    @classmethod
    def answered(cls, prompt: Sequence[int], answer: Sequence[int], source: str, dropped: int = 0) -> Self:
        """Return a row whose prompt is masked and whose answer is supervised."""
        return cls((*prompt, *answer), ((len(prompt), len(prompt) + len(answer)),), source, dropped)

    def behind(self, prefix: Sequence[int]) -> Self:
        """Return the row with tokens put before it."""
        n = len(prefix)
        spans = tuple((first + n, last + n) for first, last in self.spans)
        return replace(self, tokens=(*prefix, *self.tokens), spans=spans)

    @property
    def prompt(self) -> tuple[int, ...]:
        """What stands before the first supervised token."""
        return self.tokens[: self.spans[0][0]]

    @property
    def supervised(self) -> int:
        """The number of supervised tokens."""
        return sum(last - first for first, last in self.spans)

    def __len__(self) -> int:
        return len(self.tokens)


def tokenize(
    artifact: Artifact, engine: TorchEngine, rows: Sequence[Example], *, progress: Progress = QUIET
) -> list[TokenizedExample]:
    """Turn rows into tokens with the renderer that also predicts; a row's demonstrations never hold itself.

    Every acceptable answer of a row becomes an example of its own.

    Raises:
        TrainingError: an answer has no tokens, or a row does not fit the model's context.
    """
    end = () if engine.end_token is None else (engine.end_token,)
    rendered = artifact.fit_to_context(rows, progress=progress)
    result = []
    for row, one in zip(rows, rendered, strict=True):
        prompt = engine.tokens(one.messages)
        for output in row.outputs:
            answer = (*engine.encode(artifact.spoken(output)), *end)
            if len(answer) == len(end):
                raise TrainingError("no-supervised-tokens", f"{row.source}: the answer is empty: nothing to learn")
            if len(prompt) + len(answer) > engine.info.context:
                raise TrainingError(
                    "row-too-long",
                    f"{row.source}: {len(prompt) + len(answer)} tokens do not fit the context of {engine.info.context}",
                    hint="shorten the row, or drop it from the training file",
                )
            result.append(TokenizedExample.answered(prompt, answer, row.source, one.dropped_demonstrations))
    return result


def epoch_batches(rows: Sequence[TokenizedExample], size: int, rng: random.Random) -> Iterator[list[int]]:
    """Yield batches of row numbers, every row once, rows of like length together, batches in random order.

    Rows are shuffled, then sorted by length within stretches of 16 batches: padding nearly vanishes while the batches
    differ from epoch to epoch.
    """
    order = rng.sample(range(len(rows)), len(rows))
    stretch = 16 * size
    batches = []
    for first in range(0, len(order), stretch):
        part = sorted(order[first : first + stretch], key=lambda i: len(rows[i]))
        batches += [part[i : i + size] for i in range(0, len(part), size)]
    rng.shuffle(batches)
    yield from batches
