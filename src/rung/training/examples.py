"""Training rows as tokens: the prompt as the artifact renders it, and the answer that is trained on."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol, Self, cast

from rung.artifact.artifact import Artifact
from rung.artifact.decoder import completion
from rung.artifact.rendering import refused_row
from rung.data.rows import SHOWN, Document, Example
from rung.data.spec import placeholders
from rung.engines.local import LocalModel
from rung.errors import ModelError, TrainingError
from rung.evaluation.report.words import CLOSE, OPEN, training_data_lines
from rung.models.messages import Message, Messages, encode_messages, text_end, with_thought
from rung.progress import QUIET, Progress
from rung.prompts.overflow import Rendered
from rung.training.config import Supervise, Truncation

if TYPE_CHECKING:
    from rung.models.tokenizer import Tokenizer

# ---- the training data report: shown before the first step and kept in the artifact

EXAMPLE_CHARACTERS = 160  # of the example's end that are shown before the first step


@dataclass
class TrainingReport:
    """What becomes of the training rows."""

    rows: int = 0  # number of training rows, or of documents
    dropped: dict[str, list[str]] = field(default_factory=dict)  # for every reason, the `file:line` of rows left out
    truncated: dict[str, int] = field(default_factory=dict)  # tokens cut off a row's longest input, by `file:line`
    thoughts_left_out: int = 0  # turns whose thoughts are not trained on, as the model answers without any
    without_thoughts: int = 0  # answers that have none, and for which a task that thinks is learned without thoughts
    dropped_demonstrations: int = 0  # left out so that rows fit
    turns_apart: int = 0  # assistant turns that are examples of their own (see `_Reader._with_turns`)
    examples: int = 0  # sequences trained on: a row has one for each of its answers
    tokens: int = 0  # of all examples
    supervised: dict[str, float] = field(default_factory=dict)  # tokens of an example: minimum, median, maximum
    example: str = ""  # the text of the first example, the supervised part between `>>>` and `<<<`
    reached_share: float | None = None  # of the weights of the model's layers, that the method updates

    def measure(self, rows: Sequence[TokenizedExample | Completions], tokenizer: Tokenizer) -> None:
        """Count the examples that the rows became, and their tokens."""
        examples = [example for row in rows for example in row.examples()]
        self.examples, self.tokens = len(examples), sum(map(len, examples))
        self.dropped_demonstrations = sum(example.dropped_demonstrations for example in examples)
        if examples:
            counts = [example.supervised for example in examples]
            self.supervised = {"min": min(counts), "median": statistics.median(counts), "max": max(counts)}
            self.example = marked(examples[0], tokenizer)

    def as_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {
            "rows": self.rows, "kept": self.rows - sum(map(len, self.dropped.values())),
            "dropped": {reason: len(sources) for reason, sources in self.dropped.items()},
            "dropped_at": {reason: sources[:SHOWN] for reason, sources in self.dropped.items()},
            "truncated": len(self.truncated), "truncated_at": list(self.truncated)[:SHOWN],
            "truncated_tokens": sum(self.truncated.values()), "turns_apart": self.turns_apart,
            "thoughts_left_out": self.thoughts_left_out, "without_thoughts": self.without_thoughts,
            "examples": self.examples, "tokens": self.tokens, "supervised": self.supervised, "example": self.example,
            "reached_share": self.reached_share,
        }  # fmt: skip


def as_learned(artifact: Artifact, without_thoughts: int, report: TrainingReport) -> Artifact:
    """The artifact that training makes: where some answers have no thought, they teach it to answer at once."""
    if artifact.prompt.thinking == "off" or not without_thoughts:
        return artifact
    report.without_thoughts = without_thoughts
    return replace(artifact, prompt=replace(artifact.prompt, thinking="off"))


def marked(example: TokenizedExample, tokenizer: Tokenizer) -> str:
    """An example's text with its supervised parts between `>>>` and `<<<`."""
    bounds = [bound for span in example.spans for bound in span]
    # Whole beginnings are decoded, not parts: some tokenizers leave out a space where a text begins.
    texts = [tokenizer.decode(example.tokens[:bound], skip_special=False) for bound in (0, *bounds, len(example))]
    parts = [text[len(before) :] for before, text in pairwise(texts)]
    return "".join(f"{OPEN}{part}{CLOSE}" if i % 2 else part for i, part in enumerate(parts))


def show(report: TrainingReport, progress: Progress) -> None:
    """Show the report before the first step, with only the end of the example."""
    lines = list(training_data_lines(report.as_dict()))
    if report.examples:
        text = " ".join(lines[-1].split())
        lines[-1] = text if len(text) <= EXAMPLE_CHARACTERS else f"...{text[-EXAMPLE_CHARACTERS:]}"
    for line in lines:
        progress.start("training data")
        progress.finish(line)


# ---- rows as tokens

TOO_LONG = "longer than the context"


class TrainingRow(Protocol):
    """What the loop needs of a row: its length in tokens, and over how many targets its loss is summed."""

    @property
    def mass(self) -> float:
        """The number of targets, times the row's weight."""

    def __len__(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Layout:
    """How a row runs: the tokens that are read, and what their outputs predict.

    A row is a trunk, which sees itself, and branches, each of which sees the trunk and itself.
    """

    tokens: tuple[int, ...]
    branches: tuple[int, ...]  # of each token: 0 for the trunk, n for the n-th branch
    positions: tuple[int, ...]  # of each token: a branch goes on from the end of the trunk
    predictors: tuple[int, ...]  # the tokens whose output predicts a target, by their place
    targets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """One row as tokens, and which of them are supervised."""

    tokens: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]  # half-open, in order: supervised tokens; none begins at 0: nothing predicts it
    source: str  # `file:line`
    dropped_demonstrations: int = 0  # left out so that the row fits
    apart: bool = False  # it is one turn of a conversation whose end is another example
    weight: float = 1.0  # of the loss of its tokens

    @classmethod
    def answered(cls, prompt: Sequence[int], answer: Sequence[int], source: str, dropped: int = 0) -> Self:
        """A row whose prompt is masked and whose answer is supervised."""
        return cls((*prompt, *answer), ((len(prompt), len(prompt) + len(answer)),), source, dropped)

    def after(self, prefix: Sequence[int]) -> Self:
        """The row with `prefix` before it."""
        n = len(prefix)
        spans = tuple((first + n, last + n) for first, last in self.spans)
        return replace(self, tokens=(*prefix, *self.tokens), spans=spans)

    @property
    def prompt(self) -> tuple[int, ...]:
        """The tokens before the first supervised one."""
        return self.tokens[: self.spans[0][0]]

    @property
    def supervised(self) -> int:
        """The number of supervised tokens."""
        return sum(last - first for first, last in self.spans)

    @property
    def mass(self) -> float:
        """The number of supervised tokens, times the row's weight."""
        return self.weight * self.supervised

    def examples(self) -> list[TokenizedExample]:
        """Itself."""
        return [self]

    @property
    def content(self) -> list[Any]:
        """What identifies the row among others, as JSON values."""
        return [self.tokens, self.spans] if self.weight == 1 else [self.tokens, self.spans, self.weight]

    def layouts(self) -> list[Layout]:
        """The row as a trunk. Its last supervised token, and what follows it, is never read."""
        tokens = self.tokens[: self.spans[-1][1] - 1]
        predicted = [i for first, last in self.spans for i in range(first, last)]
        targets = tuple(self.tokens[i] for i in predicted)
        read = range(len(tokens))
        return [Layout(tokens, (0,) * len(tokens), tuple(read), tuple(i - 1 for i in predicted), targets)]

    def __len__(self) -> int:
        return len(self.tokens)


JOINED = 1500  # times the prompt's tokens: the largest product of two branches' lengths for which they share a row


@dataclass(frozen=True, slots=True)
class Completions:
    """One prompt with completions that a loss compares: their tokens are supervised, the prompt's are not."""

    prompt: tuple[int, ...]
    completions: tuple[tuple[int, ...], ...]
    source: str  # `file:line`

    def examples(self) -> list[TokenizedExample]:
        """The prompt with each of its completions."""
        return [TokenizedExample.answered(self.prompt, each, self.source) for each in self.completions]

    @property
    def mass(self) -> float:
        """One: the loss of such a row is one number, however long its completions are."""
        return 1

    @property
    def content(self) -> list[Any]:
        """What identifies the row among others, as JSON values."""
        return [self.prompt, self.completions]

    def after(self, prefix: Sequence[int]) -> Self:
        """The row with `prefix` before it."""
        return replace(self, prompt=(*prefix, *self.prompt))

    def layouts(self) -> list[Layout]:
        """The prompt as a trunk, with a branch for each completion; long completions get a trunk of their own.

        Branches of a row cost attention to each other, which is masked. The prompt that they share costs all layers:
        a token takes about 24 d^2 operations in a layer of width d, and two branches of r and s tokens attend to each
        other in vain for 8 d r s. So with `JOINED` about 3 d, they share a row while r s < 3 d times the prompt's
        length.
        """
        groups: list[list[tuple[int, ...]]] = []
        for answer in self.completions:
            beside = sum(map(len, groups[-1])) if groups else 0
            if groups and beside * len(answer) <= JOINED * len(self.prompt):
                groups[-1].append(answer)
            else:
                groups.append([answer])
        return [self._layout(group) for group in groups]

    def _layout(self, answers: Sequence[tuple[int, ...]]) -> Layout:
        length = len(self.prompt)
        tokens, branches, positions, predictors = list(self.prompt), [0] * length, list(range(length)), []
        for branch, answer in enumerate(answers, 1):
            predictors += [length - 1, *range(len(tokens), len(tokens) + len(answer) - 1)]
            read = answer[:-1]
            tokens += read
            branches += [branch] * len(read)
            positions += range(length, length + len(read))
        targets = tuple(token for answer in answers for token in answer)
        return Layout(tuple(tokens), tuple(branches), tuple(positions), tuple(predictors), targets)

    def __len__(self) -> int:
        return len(self.prompt) + sum(map(len, self.completions))


def tokenize(
    artifact: Artifact, engine: LocalModel, rows: Sequence[Example], *, supervise: Supervise = "auto",
    truncation: Truncation = "error", virtual_tokens: int = 0, report: TrainingReport | None = None,
    progress: Progress = QUIET,
) -> list[TokenizedExample]:  # fmt: skip
    """Turn rows into tokens with the renderer that also predicts; a row's demonstrations never include itself.

    Every acceptable answer of a row becomes an example of its own. The engine's weights are not needed.

    `supervise` says which of the assistant's turns in a conversation are supervised: the `last`, or `all` that follow a
    user's turn and are not empty (demonstrations' turns never are). `auto` is `all`: every turn was written as an
    answer, and is read anyway. `truncation` says what happens to rows longer than the context: an `error`, `drop`, or
    `truncate_input`: the longest input column is cut at its end until the row fits; template, instruction and answer
    stay whole. The `virtual_tokens` that will precede every row take up context.

    Raises:
        TrainingError: an answer has no tokens, or a row does not fit the model's context.
    """
    limit = engine.files.context - virtual_tokens
    reader = _Reader(artifact, engine, supervise, truncation, limit, TrainingReport() if report is None else report)
    rendered = artifact.render(rows, progress=progress)
    answered = [[replace(row, outputs=(output,)) for output in row.outputs] for row in rows]
    return [example for each, text in zip(answered, rendered, strict=True) for example in reader.examples(each, text)]


def tokenize_answers(
    artifact: Artifact, engine: LocalModel, answered: Sequence[Sequence[Example]], *,
    truncation: Truncation = "error", report: TrainingReport, progress: Progress = QUIET,
) -> list[Completions]:  # fmt: skip
    """Turn answers to some inputs into tokens as `tokenize` does: each item holds examples with the same inputs.

    What is dropped is counted in `report`: inputs that are too long, and answers that the artifact cannot write, such
    as a text that is none of its labels.

    Raises:
        TrainingError: an answer has no tokens, or a row does not fit the model's context.
    """
    labels = set(artifact.signature.labels) if artifact.decoder.label_texts or artifact.decoder.scored_texts else None
    kept = []
    for each in answered:
        if labels is not None and any(row.outputs[0] not in labels for row in each):
            report.rows += 1
            report.dropped.setdefault("an answer that is none of the labels", []).append(each[0].source)
        else:
            kept.append(each)
    limit = engine.files.context - artifact.weights.virtual_tokens
    reader = _Reader(artifact, engine, "last", truncation, limit, report)
    rendered = artifact.render([each[0] for each in kept], progress=progress)
    rows = []
    for each, text in zip(kept, rendered, strict=True):
        if examples := reader.examples(each, text):
            prompt = examples[0].prompt
            if any(example.prompt != prompt for example in examples):
                report.dropped.setdefault("only one of its answers has thoughts", []).append(each[0].source)
                continue
            rows.append(Completions(prompt, tuple(e.tokens[len(prompt) :] for e in examples), each[0].source))
    return rows


@dataclass(frozen=True, slots=True)
class _Reader:
    """Turns one row after the other into tokens, with the arguments of `tokenize`."""

    artifact: Artifact
    engine: LocalModel
    supervise: Supervise
    truncation: Truncation
    limit: int
    report: TrainingReport

    def examples(self, answered: Sequence[Example], rendered: Rendered) -> list[TokenizedExample]:
        """The examples of a row, which fit the context; it is given once for each of its answers."""
        self.report.rows += 1
        source = answered[0].source
        examples = self._read(answered, rendered)
        if self._excess(examples) > 0 and self.truncation == "truncate_input":
            examples = self._truncated(answered, examples)
        elif self._excess(examples) > 0 and self.truncation == "drop":
            self.report.dropped.setdefault(TOO_LONG, []).append(source)
            return []
        if (excess := self._excess(examples)) > 0:
            context = self.engine.files.context
            virtual = f"after {context - self.limit} virtual ones " if self.limit < context else ""
            why = f"{source}: {self.limit + excess} tokens {virtual}do not fit the context of {context}"
            hint = "shorten the row, or set the rung's `truncation` to drop such rows or to truncate their input"
            raise TrainingError("context-overflow", why, hint=hint)
        self.report.turns_apart += sum(example.apart for example in examples)
        return [replace(example, weight=answered[0].weight) for example in examples]

    def _excess(self, examples: Sequence[TokenizedExample]) -> int:
        return max(map(len, examples)) - self.limit

    def _truncated(self, answered: Sequence[Example], examples: list[TokenizedExample]) -> list[TokenizedExample]:
        """Cut the tokens that the row has too many, and more while it is still too long or nothing is left."""
        row = answered[0]
        shown = [name for name in placeholders(self.artifact.prompt.template) if isinstance(row.inputs.get(name), str)]
        if self.artifact.prompt.chat_column is not None or not shown:
            return examples  # a conversation has no column to cut
        lengths = {name: len(self.engine.encode(row.inputs[name])) for name in shown}
        longest = max(shown, key=lengths.__getitem__)
        keep, text = lengths[longest], row.inputs[longest]
        while (excess := self._excess(examples)) > 0 and (keep := keep - excess) > 0:
            inputs = {**row.inputs, longest: self.engine.tokenizer.beginning(text, keep)}
            cut = [replace(each, inputs=inputs) for each in answered]
            examples = self._read(cut, self.artifact.render(cut[:1])[0])
        if excess <= 0:
            self.report.truncated[row.source] = lengths[longest] - keep
        return examples

    def _read(self, answered: Sequence[Example], rendered: Rendered) -> list[TokenizedExample]:
        try:
            return self._examples(answered, rendered)
        except ModelError as error:
            if error.code != "chat-template-refused":
                raise
            raise refused_row(answered[:1], [rendered.messages], self.engine.tokens) or error from None

    def _examples(self, answered: Sequence[Example], rendered: Rendered) -> list[TokenizedExample]:
        messages, column = rendered.messages, self.artifact.prompt.chat_column
        asked = self.engine.tokens(messages)
        examples = []
        for row in answered:
            if row.turn is not None and column is not None:
                prompt, answer = self._written(messages, cast("Message", row.turn), row.source)
            else:
                target = completion(self.artifact, row, row.outputs[0], rendered.passages)
                prompt, answer = asked, self._answer(target)
            if len(answer) == (self.engine.end_token is not None):
                raise TrainingError("bad-row", f"{row.source}: the answer is empty: nothing to learn")
            examples.append(TokenizedExample.answered(prompt, answer, row.source, rendered.dropped_demonstrations))
        if column is not None and self.supervise != "last":
            return [turn for example in examples for turn in self._with_turns(example, messages, answered[0])]
        return examples

    def _written(self, before: Messages, turn: Message, source: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The tokens before a turn, and of the turn as the template writes it, up to the token that ends it.

        Thoughts are part of the turn where the model is to think, and left out where it answers without.
        """
        opened = "reasoning_content" in turn and self.artifact.prompt.thinking != "off"
        if "reasoning_content" in turn and not opened:
            turn = cast("Message", {key: value for key, value in turn.items() if key != "reasoning_content"})
            self.report.thoughts_left_out += 1
        prompt = self.engine.tokens(with_thought(before, None) if opened else before)
        if len(turn) == 2:
            return prompt, self._answer(turn["content"])
        whole = encode_messages(self.engine.tokenizer, (*before, turn), answered=True)
        shown = prompt if opened else encode_messages(self.engine.tokenizer, before, written=True)
        if whole[: len(shown)] != shown:
            problem = f"{source}: the model's template writes the assistant's turn {len(before) + 1} of the prompt "
            problem += "differently from what it writes where the turn is predicted"
            hint = "leave out its reasoning_content or tool_calls, or choose another model"
            raise TrainingError("tuning-unsupported", problem, hint=hint)
        answer, ends = whole[len(shown) :], self.engine.tokenizer.eos_ids
        last = max((i for i, token in enumerate(answer) if token in ends), default=None)
        if last is None:
            return prompt, (*answer, *(() if self.engine.end_token is None else (self.engine.end_token,)))
        return prompt, answer[: last + 1]

    def _answer(self, text: str) -> tuple[int, ...]:
        end = self.engine.end_token
        return (*self.engine.encode(text), *(() if end is None else (end,)))

    def _with_turns(self, example: TokenizedExample, messages: Messages, row: Example) -> list[TokenizedExample]:
        """Also supervise the assistant's turns among the row's own messages, unless the row masks them.

        Stock templates do not mark the assistant's text, so each turn is located by rendering what is before it, as
        when it is predicted. Where exactly those tokens and the turn's begin the example, the turn is supervised
        there. Where they do not (templates that remove thoughts from earlier turns, vocabularies that join the turn to
        its surroundings), the turn is an example of its own: what is trained on is always what is predicted.
        """
        assert self.artifact.prompt.chat_column is not None
        turns = row.inputs[self.artifact.prompt.chat_column]
        moved = len(messages) - len(turns)  # a message's number minus its number among the row's turns
        own = moved + next((i for i, turn in enumerate(turns) if turn["role"] != "system"), len(turns))
        spans: list[tuple[int, int]] = []
        apart = []
        roles = [message["role"] for message in messages]
        for i in range(own, len(messages)):
            content, structured = messages[i]["content"], len(messages[i].keys() - {"tools", "thinking"}) > 2
            if roles[i] != "assistant" or "user" not in roles[own:i] or i - moved in row.masked:
                continue
            if not content.strip() and not structured:
                continue
            prompt = self.engine.tokens(messages[:i])
            if structured:
                prompt, turn = self._written(messages[:i], messages[i], row.source)
                written = [turn]
            else:  # some templates strip, some do not
                written = [self._answer(content), self._answer(content.strip())]
            for answer in written:
                end = len(prompt) + len(answer)
                in_order = not spans or spans[-1][1] <= len(prompt)
                if in_order and example.prompt[:end] == (*prompt, *answer):
                    spans.append((len(prompt), end))
                    break
            else:
                apart.append(replace(TokenizedExample.answered(prompt, written[-1], example.source), apart=True))
        return [*apart, replace(example, spans=(*spans, *example.spans))]


def epoch_batches(rows: Sequence[TrainingRow], size: int, rng: random.Random) -> Iterator[list[int]]:
    """Batches of row numbers in random order, every row once, rows of similar length together.

    Rows are shuffled, then sorted by length within blocks of 16 batches: there is nearly no padding, and the batches
    differ from epoch to epoch.
    """
    order = rng.sample(range(len(rows)), len(rows))
    block = 16 * size
    batches = []
    for first in range(0, len(order), block):
        part = sorted(order[first : first + block], key=lambda i: len(rows[i]))
        batches += [part[i : i + size] for i in range(0, len(part), size)]
    rng.shuffle(batches)
    yield from batches


def text_blocks(engine: LocalModel, documents: Sequence[Document], length: int) -> list[TokenizedExample]:
    """Plain text as blocks of at most `length` tokens; every token of the text is supervised exactly once.

    Documents are joined and cut regardless of where they end, as in the pretraining of the models themselves (Brown et
    al. 2020, https://arxiv.org/abs/2005.14165, appendix B), so that no token is padding and none is thrown away. The
    model's end-of-text token ends each document. The first token of a block is not supervised: it is the model's
    beginning token, or for models without one the last token of the block before (in the first block, an end-of-text
    token).

    Raises:
        TrainingError: the model has no end-of-text token.
    """
    end = text_end(engine.tokenizer)
    if end is None:
        why = f"the tokenizer of {engine.files.name} has no end-of-text token to separate documents"
        raise TrainingError("tuning-unsupported", why, hint="choose another base model")
    length = min(length, engine.files.context)
    begin = engine.tokenizer.bos_id if engine.tokenizer.adds_bos else None
    tokens: list[int] = []
    starts: list[tuple[int, str]] = []
    for document in documents:
        starts.append((len(tokens), document.source))
        tokens += (*engine.encode(document.text), end)
    blocks, before, at = [], end, 0
    for first in range(0, len(tokens), length - 1):
        part = tokens[first : first + length - 1]
        while at + 1 < len(starts) and starts[at + 1][0] <= first:
            at += 1
        blocks.append(TokenizedExample.answered((before if begin is None else begin,), part, starts[at][1]))
        before = part[-1]
    return blocks
