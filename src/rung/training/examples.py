"""Training rows as tokens: the prompt as the artifact renders it, and the answer that is learnt."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from rung.artifact.artifact import Artifact
from rung.data.rows import SHOWN, Document, Example
from rung.engines.local import LocalModel
from rung.errors import TrainingError
from rung.evaluation.report.words import CLOSE, OPEN, training_data_lines
from rung.models.messages import Messages
from rung.models.turns import text_end
from rung.progress import QUIET, Progress
from rung.prompts.overflow import Rendered
from rung.prompts.prompt import placeholders

if TYPE_CHECKING:
    from rung.models.tokenizer import Tokenizer


# --------------------
# The training data report: what a tuning rung learns from, told before its first step and kept in the artifact.


TOLD = 160  # characters of the example's end that are told before the first step


@dataclass
class TrainingReport:
    """What becomes of the training rows.

    Attributes:
        rows: training rows, or documents, there were.
        dropped: for every reason, where the rows left out stand.
        truncated: by `file:line`, the tokens cut off the end of a row's longest input.
        turns_apart: assistant turns that are examples of their own, because the model's template writes the
            conversation before them differently once it goes on.
        examples: sequences trained on: a row has one for each of its answers.
        tokens: tokens of all examples.
        supervised: minimum, median and maximum of the supervised tokens of an example.
        example: the text of the first example, the supervised part between `>>>` and `<<<`.
    """

    rows: int = 0
    dropped: dict[str, list[str]] = field(default_factory=dict)
    truncated: dict[str, int] = field(default_factory=dict)
    turns_apart: int = 0
    examples: int = 0
    tokens: int = 0
    supervised: dict[str, float] = field(default_factory=dict)
    example: str = ""

    def drop(self, reason: str, source: str) -> None:
        """Count a row that is left out."""
        self.dropped.setdefault(reason, []).append(source)

    def measure(self, examples: Sequence[TokenizedExample], tokenizer: Tokenizer) -> None:
        """Take the figures of the examples that the rows became."""
        self.examples, self.tokens = len(examples), sum(map(len, examples))
        if examples:
            counts = [one.supervised for one in examples]
            self.supervised = {"min": min(counts), "median": statistics.median(counts), "max": max(counts)}
            self.example = marked(examples[0], tokenizer)

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "rows": self.rows,
            "kept": self.rows - sum(map(len, self.dropped.values())),
            "dropped": {reason: len(sources) for reason, sources in self.dropped.items()},
            "dropped_at": {reason: sources[:SHOWN] for reason, sources in self.dropped.items()},
            "truncated": len(self.truncated),
            "truncated_at": list(self.truncated)[:SHOWN],
            "truncated_tokens": sum(self.truncated.values()),
            "turns_apart": self.turns_apart,
            "examples": self.examples,
            "tokens": self.tokens,
            "supervised": self.supervised,
            "example": self.example,
        }


def marked(example: TokenizedExample, tokenizer: Tokenizer) -> str:
    """Return an example's text with its supervised parts between `>>>` and `<<<`."""
    bounds = [place for span in example.spans for place in span]
    # Beginnings are decoded, not parts: some tokenizers leave out a space where a text begins.
    texts = [tokenizer.decode(example.tokens[:place], skip_special=False) for place in (0, *bounds, len(example))]
    parts = [text[len(before) :] for before, text in pairwise(texts)]
    return "".join(f"{OPEN}{part}{CLOSE}" if i % 2 else part for i, part in enumerate(parts))


def tell(report: TrainingReport, progress: Progress) -> None:
    """Tell what is learnt from, before the first step; of the example no more than its end."""
    lines = list(training_data_lines(report.as_dict()))
    if report.examples:
        text = " ".join(lines[-1].split())
        lines[-1] = text if len(text) <= TOLD else f"...{text[-TOLD:]}"
    for line in lines:
        progress.start("training data")
        progress.finish(line)


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
                "context-overflow",
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
                raise TrainingError("bad-row", f"{row.source}: the answer is empty: nothing to learn")
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


# --------------------
# Plain text as training examples: documents one after the other, cut into blocks of a length.
#
# Documents are joined and cut regardless of where they end, as in the pretraining of the models themselves (Brown et
# al.
# 2020, https://arxiv.org/abs/2005.14165, appendix B), so that no token is padding and none is thrown away.


def blocks(engine: LocalModel, documents: Sequence[Document], length: int) -> list[TokenizedExample]:
    """Return blocks of at most `length` tokens; every token of the text is supervised exactly once.

    Each document is ended by the model's end-of-text token. The first token of a block is not supervised: it is the
    model's beginning token, or for models without one the last token of the block before (of the first block, an
    end-of-text token).

    Raises:
        TrainingError: the model has no end-of-text token.
    """
    end = text_end(engine.tokenizer)
    if end is None:
        raise TrainingError(
            "tuning-unsupported",
            f"the tokenizer of {engine.files.name} has no token that ends a text",
            hint="choose another base model: the end of a document could not be told from its middle",
        )
    length = min(length, engine.files.context)
    begin = engine.tokenizer.bos_id if engine.tokenizer.adds_bos else None
    tokens: list[int] = []
    starts: list[tuple[int, str]] = []
    for document in documents:
        starts.append((len(tokens), document.source))
        tokens += (*engine.encode(document.text), end)
    made, before, at = [], end, 0
    for first in range(0, len(tokens), length - 1):
        part = tokens[first : first + length - 1]
        while at + 1 < len(starts) and starts[at + 1][0] <= first:
            at += 1
        lead = before if begin is None else begin
        made.append(TokenizedExample.answered((lead,), part, starts[at][1]))
        before = part[-1]
    return made
