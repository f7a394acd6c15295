"""What a model reads of a row: the prompt with the demonstrations and passages that there is room for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rung.data.rows import Example
from rung.engines.base import Engine, Floats, Messages
from rung.engines.opening import open_encoder
from rung.errors import EngineError
from rung.progress import Progress
from rung.prompts.grounding import Grounding
from rung.prompts.overflow import Rendered, fitted
from rung.retrieval.passage import Passage
from rung.retrieval.retriever import Found

if TYPE_CHECKING:
    from rung.artifact.artifact import Artifact

Given = Sequence[Sequence[Passage]] | None  # passages to show of each row, in place of what a search finds
Room = Callable[[Engine], int]  # how many tokens of an engine's context the answer may take


def fit(
    artifact: Artifact,
    room: Room,
    examples: Sequence[Example],
    passages: Given,
    progress: Progress,
) -> list[Rendered]:
    """Return the exact messages of every example, and what the overflow policy left out of them.

    Args:
        artifact: whose prompt, demonstrations and retriever these are.
        room: says how many tokens the answer may take.
        examples: the rows.
        passages: what to show of the documents for each row, in this order, instead of what a search finds.
        progress: told of encoding.
    """
    if artifact.demonstrations is None and artifact.retriever is None:
        return [Rendered(artifact.prompt.messages(example.inputs)) for example in examples]
    engine = artifact.open()
    limit = prompt_limit(artifact, engine, room)
    shown = _shown(artifact, examples, engine, progress)
    refused, groundings = _grounded(artifact, examples, shown, passages)
    rendered = []
    for example, chosen, grounding, refuse in zip(examples, shown, groundings, refused, strict=True):
        of_shown = grounding.demonstrations if grounding else ((),) * len(chosen)
        turns = [(c.inputs, artifact.target(c, c.outputs[0], p)) for c, p in zip(chosen, of_shown, strict=True)]
        one = fitted(artifact.overflow, artifact.prompt, example.inputs, turns, engine.count, limit, grounding)
        rendered.append(replace(one, refused=refuse))
    return rendered


def prompt_limit(artifact: Artifact, engine: Engine, room: Room) -> int:
    """Return how many tokens a prompt may have; only an overflow policy has to know.

    Raises:
        EngineError: `context-unknown`: the engine does not say how many tokens it reads.
    """
    if artifact.overflow == "error":
        return 0
    if engine.info.context <= 0:
        raise EngineError(
            "context-unknown",
            f"overflow: {artifact.overflow} has to know how many tokens {artifact.model} reads, and it does not say",
            hint="use `overflow: error`, and show fewer demonstrations or passages",
        )
    return engine.info.context - room(engine) - artifact.weights.virtual_tokens


def _shown(
    artifact: Artifact, examples: Sequence[Example], engine: Engine, progress: Progress
) -> Sequence[tuple[Example, ...]]:
    """Return the demonstrations of every row, in the order in which they are shown."""
    shown, prompt = artifact.demonstrations, artifact.prompt
    if shown is None:
        return [()] * len(examples)
    costs: dict[str, int] = {}

    def cost(example: Example) -> int:
        if example.id not in costs:
            question, answer = prompt.question(example.inputs), artifact.spoken(example.outputs[0])
            turns: Messages = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
            costs[example.id] = engine.count(turns)
        return costs[example.id]

    vectors: Floats | None = None
    if shown.needs_vectors:
        texts = [prompt.question(example.inputs) for example in examples]
        vectors = open_encoder(shown.encoder, progress=progress).embed(texts, progress=progress)
    return [
        shown.choose(example.id, None if vectors is None else vectors[row], cost)
        for row, example in enumerate(examples)
    ]


def _grounded(
    artifact: Artifact,
    examples: Sequence[Example],
    shown: Sequence[tuple[Example, ...]],
    given: Given,
) -> tuple[list[bool], list[Grounding | None]]:
    """Return for every row whether it is refused, and the passages shown with it and its demonstrations."""
    retriever = artifact.retriever
    if retriever is None:
        return [False] * len(examples), [None] * len(examples)
    pool = {e.id: e for chosen in shown for e in chosen} if retriever.demonstration_passages else {}
    rows = [*(examples if given is None else ()), *pool.values()]
    queries = [artifact.prompt.query(row.inputs) for row in rows]
    found = retriever.find(rows, queries, artifact.passage_cost())
    of_pool = {row.id: one.passages for row, one in zip(pool.values(), found[len(rows) - len(pool) :], strict=True)}
    refused: list[bool] = []
    groundings: list[Grounding | None] = []
    for i, chosen in enumerate(shown):
        one = found[i] if given is None else Found(tuple(given[i]))
        ranks = tuple(-float(rank) for rank in range(len(one.passages)))  # best first
        best = retriever.order == "best_first" or given is not None
        of_shown = tuple(of_pool.get(e.id, ())[: retriever.demonstration_passages] for e in chosen)
        own = one.passages if given is not None else retriever.arranged(one.passages)
        grounding = Grounding(retriever.instruction, own, ranks if best else ranks[::-1], of_shown)
        groundings.append(grounding)
        refused.append(retriever.refuses(one))
    return refused, groundings
