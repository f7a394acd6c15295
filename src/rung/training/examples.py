"""Training rows as tokens: the prompt as the artifact renders it, and the answer that is learnt."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, Self

from rung.artifact.artifact import Artifact
from rung.data.rows import Example
from rung.engines.base import Messages
from rung.engines.local import LocalModel
from rung.errors import TrainingError
from rung.progress import QUIET, Progress
from rung.prompts.overflow import Rendered
from rung.prompts.prompt import placeholders
from rung.training.report import TrainingReport

Supervise = Literal["auto", "last", "all"]
Overlong = Literal["error", "truncate_input", "drop"]
TOO_LONG = "longer than the context"


class Row(Protocol):
    """What the loop has to know of a row: its length in tokens, and over how many places its loss is summed."""

    @property
    def supervised(self) -> int:
        """The number of places with a target."""

    def __len__(self) -> int: ...


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """One row as tokens, and which of them are learnt.

    Attributes:
        tokens: the whole text.
        spans: half-open ranges of `tokens` that are supervised, in order; none begins at 0, which nothing predicts.
        source: `file:line`.
        dropped_demonstrations: how many were left out so that the row fits.
        apart: it is one turn of a conversation whose end is another example.
    """

    tokens: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    source: str
    dropped_demonstrations: int = 0
    apart: bool = False

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
    artifact: Artifact,
    engine: LocalModel,
    rows: Sequence[Example],
    *,
    supervise: Supervise = "auto",
    overlong: Overlong = "error",
    virtual: int = 0,
    report: TrainingReport | None = None,
    progress: Progress = QUIET,
) -> list[TokenizedExample]:
    """Turn rows into tokens with the renderer that also predicts; a row's demonstrations never hold itself.

    Every acceptable answer of a row becomes an example of its own.

    Args:
        artifact: renders the rows.
        engine: the model's tokens; its weights are not needed.
        rows: the rows.
        supervise: of a conversation, which of the assistant's turns are learnt: the `last`, or `all` behind a user's
            turn that are not empty (their rows' demonstrations never are). `auto` is `all`: every turn was written
            to be answered with, and they are read anyway. Rows that are no conversations have one.
        overlong: what becomes of rows longer than the context: an error, or the longest input column is cut at its
            end until the row fits (`truncate_input`; template, instruction and answer stay whole), or `drop`.
        virtual: virtual tokens that will stand before every row, and take places of the context.
        report: where rows are counted, dropped and truncated ones with the place they stand in.
        progress: told of encoding, where demonstrations need it.

    Raises:
        TrainingError: an answer has no tokens, or a row does not fit the model's context.
    """
    limit = engine.files.context - virtual
    reader = _Reader(artifact, engine, supervise, overlong, limit, TrainingReport() if report is None else report)
    rendered = artifact.fit_to_context(rows, progress=progress)
    return [example for row, one in zip(rows, rendered, strict=True) for example in reader.examples(row, one)]


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads one row after the other, by the settings of `tokenize`."""

    artifact: Artifact
    engine: LocalModel
    supervise: Supervise
    overlong: Overlong
    limit: int
    report: TrainingReport

    def examples(self, row: Example, rendered: Rendered) -> list[TokenizedExample]:
        """Return the examples of a row, which fit the context."""
        self.report.rows += 1
        made = self._read(row, rendered)
        if self._excess(made) > 0 and self.overlong == "truncate_input":
            made = self._truncated(row, made)
        elif self._excess(made) > 0 and self.overlong == "drop":
            self.report.drop(TOO_LONG, row.source)
            return []
        if (excess := self._excess(made)) > 0:
            context = self.engine.files.context
            virtual = f"behind {context - self.limit} virtual ones " if self.limit < context else ""
            raise TrainingError(
                "row-too-long",
                f"{row.source}: {self.limit + excess} tokens {virtual}do not fit the context of {context}",
                hint="shorten the row, or set the rung's `overlong` to drop such rows or to truncate their input",
            )
        self.report.turns_apart += sum(one.apart for one in made)
        return made

    def _excess(self, made: Sequence[TokenizedExample]) -> int:
        return max(map(len, made)) - self.limit

    def _truncated(self, row: Example, made: list[TokenizedExample]) -> list[TokenizedExample]:
        """Cut as many tokens as the row has too many, and again while the rest still has; if in vain, all of them."""
        shown = [name for name in placeholders(self.artifact.prompt.template) if isinstance(row.inputs.get(name), str)]
        if self.artifact.prompt.chat_column is not None or not shown:
            return made  # a conversation has no column to cut
        lengths = {name: len(self.engine.encode(row.inputs[name])) for name in shown}
        longest = max(shown, key=lengths.__getitem__)
        keep, text = lengths[longest], row.inputs[longest]
        while (excess := self._excess(made)) > 0 and (keep := keep - excess) > 0:
            inputs = {**row.inputs, longest: self.engine.tokenizer.beginning(text, keep)}
            cut = replace(row, inputs=inputs)
            made = self._read(cut, self.artifact.fit_to_context([cut])[0])
        if excess <= 0:
            self.report.truncated[row.source] = lengths[longest] - keep
        return made

    def _read(self, row: Example, rendered: Rendered) -> list[TokenizedExample]:
        prompt = self.engine.tokens(rendered.messages)
        made = []
        for output in row.outputs:
            answer = self._answer(self.artifact.target(row, output, rendered.passages))
            if len(answer) == (self.engine.end_token is not None):
                raise TrainingError("no-supervised-tokens", f"{row.source}: the answer is empty: nothing to learn")
            made.append(TokenizedExample.answered(prompt, answer, row.source, rendered.dropped_demonstrations))
        column = self.artifact.prompt.chat_column
        if column is not None and self.supervise != "last":
            own = len(rendered.messages) - len(row.inputs[column])
            return [one for example in made for one in self._with_turns(example, rendered.messages, own)]
        return made

    def _answer(self, text: str) -> tuple[int, ...]:
        end = self.engine.end_token
        return (*self.engine.encode(text), *(() if end is None else (end,)))

    def _with_turns(self, example: TokenizedExample, messages: Messages, own: int) -> list[TokenizedExample]:
        """Supervise the assistant's turns among `messages[own:]`, the row's own, too.

        Stock templates mark no assistant text, so each turn's place is found by rendering what is before it, as when
        it is predicted. Where exactly those tokens and the turn's begin the example, the turn is supervised there.
        Where not (templates that take thoughts out of earlier turns, vocabularies that join the turn to what is
        around it), the turn is an example of its own: what is learnt is always what is predicted.
        """
        spans: list[tuple[int, int]] = []
        apart = []
        roles = [message["role"] for message in messages]
        for i in range(own, len(messages)):
            content = messages[i]["content"]
            if roles[i] != "assistant" or "user" not in roles[own:i] or not content.strip():
                continue
            prompt = self.engine.tokens(messages[:i])
            answer = self._answer(content.strip())
            for written in (self._answer(content), answer):  # some templates strip, some do not
                end = len(prompt) + len(written)
                behind = not spans or spans[-1][1] <= len(prompt)
                if behind and example.prompt[:end] == (*prompt, *written):
                    spans.append((len(prompt), end))
                    break
            else:
                apart.append(replace(TokenizedExample.answered(prompt, answer, example.source), apart=True))
        return [*apart, replace(example, spans=(*spans, *example.spans))]


def epoch_batches(rows: Sequence[Row], size: int, rng: random.Random) -> Iterator[list[int]]:
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
