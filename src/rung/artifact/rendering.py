"""Render rows as prompts, with as many demonstrations and passages as fit.

Training, evaluation, prediction and serving all call `render_prompts`: a row has the same prompt everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from rung.artifact.parts import Weights
from rung.data.rows import Example
from rung.data.spec import Overflow
from rung.engines.base import Engine, Floats
from rung.engines.opening import open_encoder
from rung.errors import DataError, EngineError, ModelError
from rung.models.messages import Messages
from rung.progress import Progress
from rung.prompts.demonstrations import Demonstrations
from rung.prompts.overflow import Rendered, fitted
from rung.prompts.prompt import Grounding, Prompt, block
from rung.retrieval.passage import Passage
from rung.retrieval.retriever import Retrieved, Retriever

Given = Sequence[Sequence[Passage]] | None  # passages to show with each row, instead of what a search finds
Target = Callable[[Example, Sequence[Passage]], str]  # the answer that a demonstration shows


class PromptParts(Protocol):
    """The parts of an artifact that make its prompts."""

    @property
    def model(self) -> str:
        """Reference of the base model."""

    @property
    def prompt(self) -> Prompt:
        """The prompt that turns a row into messages."""

    @property
    def demonstrations(self) -> Demonstrations | None:
        """Solved rows to show."""

    @property
    def retriever(self) -> Retriever | None:
        """Finds passages of the user's documents."""

    @property
    def weights(self) -> Weights:
        """The weights that answer; a soft prompt uses part of the context."""

    @property
    def overflow(self) -> Overflow:
        """The policy for a prompt that is too long."""

    def open(self) -> Engine:
        """Load the engine, at the first call, and return it."""


def render_prompts(
    parts: PromptParts,
    room: Callable[[Engine], int],
    target: Target,
    examples: Sequence[Example],
    passages: Given,
    progress: Progress,
) -> list[Rendered]:
    """Render the exact messages of every example, and report what the overflow policy left out of them.

    Args:
        parts: the prompt, demonstrations and retriever of an artifact.
        room: counts the tokens that the answer may take on an engine.
        target: gives the answer that a demonstration shows, from its row and passages.
        examples: the rows.
        passages: the passages to show with each row, in this order, instead of what a search finds.
        progress: reports encoding.
    """
    if parts.demonstrations is None and parts.retriever is None and parts.overflow != "truncate_input":
        return [Rendered(parts.prompt.messages(example.inputs)) for example in examples]
    engine = parts.open()
    limit = prompt_limit(parts, engine, room)
    shown = _demonstrations(parts, target, examples, engine, progress)
    refused, groundings = _groundings(parts, examples, shown, passages)
    rendered = []
    for example, chosen, grounding, refuse in zip(examples, shown, groundings, refused, strict=True):
        contexts = grounding.demonstrations if grounding else ((),) * len(chosen)
        turns = [(solved.inputs, target(solved, context)) for solved, context in zip(chosen, contexts, strict=True)]
        prompt = fitted(parts.overflow, parts.prompt, example.inputs, turns, engine.count, limit, grounding)
        rendered.append(replace(prompt, refused=refuse))
    return rendered


def prompt_limit(parts: PromptParts, engine: Engine, room: Callable[[Engine], int]) -> int:
    """Compute how many tokens a prompt may have; 0 with `overflow: error`, where the engine itself refuses.

    Raises:
        EngineError: `context-unknown`: the engine does not say how many tokens it reads.
    """
    if parts.overflow == "error":
        return 0
    if engine.info.context <= 0:
        problem = f"overflow: {parts.overflow} needs the context length of {parts.model}, which is unknown"
        hint = "use `overflow: error`, and show fewer demonstrations or passages"
        raise EngineError("context-unknown", problem, hint=hint)
    return engine.info.context - room(engine) - parts.weights.virtual_tokens


def too_long_row(
    rows: Sequence[Example], rendered: Sequence[Rendered], engine: Engine, room: int, error: EngineError
) -> EngineError:
    """Name the rows whose prompts leave no room for the answer; the error itself where the context is unknown."""
    context, counts = engine.info.context, [engine.count(row.messages) for row in rendered if not row.refused]
    asked = [row for row, shown in zip(rows, rendered, strict=True) if not shown.refused]
    long = [(row.source, tokens) for row, tokens in zip(asked, counts, strict=True) if tokens + room > context > 0]
    if not long:
        return error
    others = f" (and {len(long) - 1:,} more rows)" if len(long) > 1 else ""
    problem = f"{long[0][0]}{others}: a prompt of {long[0][1]:,} tokens and {room:,} more for the answer do not fit"
    return EngineError(
        "context-overflow", f"{problem} the context of {context:,}",
        hint="shorten the row, choose a model with a longer context, or set `overflow`: `drop_demonstrations` leaves "
        "those out, `truncate_input` then cuts the end of the longest input",
    )  # fmt: skip


def refused_row(
    rows: Sequence[Example], rendered: Sequence[Messages], read: Callable[[Messages], object]
) -> DataError | None:
    """Name the first row, and the turn of its conversation, whose messages the model's chat template refuses.

    Args:
        rows: the rows.
        rendered: the messages of each.
        read: renders messages with the template.
    """

    def refusal(messages: Messages) -> ModelError | None:
        try:
            read(messages)
        except ModelError as error:
            if error.code == "chat-template-refused":
                return error
            raise
        return None

    for row, messages in zip(rows, rendered, strict=True):
        if (error := refusal(messages)) is None:
            continue
        end = len(messages)
        while end > 1 and refusal(messages[: end - 1]) is not None:
            end -= 1
        turns = next((value for value in row.inputs.values() if isinstance(value, list)), ())
        number = end - len(messages) + len(turns)
        turn = f", turn {number} ({messages[end - 1]['role']})" if number > 0 else ""
        return DataError("chat-template-refused", f"{row.source}{turn}: {error.message}", hint=error.hint)
    return None


def passage_cost(parts: PromptParts) -> Callable[[Passage], int]:
    """Make a cached function that counts the tokens of a passage."""
    engine, costs = parts.open(), dict[str, int]()

    def cost(passage: Passage) -> int:
        if passage.id not in costs:
            text: Messages = ({"role": "user", "content": block([passage])},)
            costs[passage.id] = engine.count(text)
        return costs[passage.id]

    return cost


def _demonstrations(
    parts: PromptParts, target: Target, examples: Sequence[Example], engine: Engine, progress: Progress
) -> Sequence[tuple[Example, ...]]:
    """Choose the demonstrations of every row, in the order shown."""
    pool, prompt = parts.demonstrations, parts.prompt
    if pool is None:
        return [()] * len(examples)
    costs: dict[str, int] = {}

    def cost(example: Example) -> int:
        if example.id not in costs:
            question, answer = prompt.question(example.inputs), target(example, ())
            turns: Messages = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
            costs[example.id] = engine.count(turns)
        return costs[example.id]

    vectors: Floats | None = None
    if pool.needs_vectors:
        texts = [prompt.question(example.inputs) for example in examples]
        vectors = open_encoder(pool.encoder, progress=progress).embed(texts, progress=progress)
    return [
        pool.choose(example, None if vectors is None else vectors[row], cost) for row, example in enumerate(examples)
    ]


def _groundings(
    parts: PromptParts, examples: Sequence[Example], shown: Sequence[tuple[Example, ...]], given: Given
) -> tuple[list[bool], list[Grounding | None]]:
    """Decide for every row whether it is refused, and which passages it and its demonstrations show."""
    retriever = parts.retriever
    if retriever is None:
        return [False] * len(examples), [None] * len(examples)
    pool = {e.id: e for chosen in shown for e in chosen} if retriever.demonstration_passages else {}
    rows = [*(examples if given is None else ()), *pool.values()]
    queries = [parts.prompt.query(row.inputs) for row in rows]
    found = retriever.find(rows, queries, passage_cost(parts))
    of_pool = {row.id: hit.passages for row, hit in zip(pool.values(), found[len(rows) - len(pool) :], strict=True)}
    refused: list[bool] = []
    groundings: list[Grounding | None] = []
    for i, chosen in enumerate(shown):
        hits = found[i] if given is None else Retrieved(tuple(given[i]))
        ranks = tuple(-float(rank) for rank in range(len(hits.passages)))  # best first
        best_first = retriever.order == "best_first" or given is not None
        contexts = tuple(of_pool.get(e.id, ())[: retriever.demonstration_passages] for e in chosen)
        own = hits.passages if given is not None else retriever.arranged(hits.passages)
        groundings.append(Grounding(retriever.instruction, own, ranks if best_first else ranks[::-1], contexts))
        refused.append(retriever.refuses(hits))
    return refused, groundings
