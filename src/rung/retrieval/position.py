"""The position effect: how well a model uses the passage that answers, by where it stands among the others.

Liu et al. 2023, "Lost in the Middle" (https://arxiv.org/abs/2307.03172): models use what stands at the beginning or
the end of a long context better than what stands between. Which end is better differs from model to model, so it is
measured, and the passages are ordered by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rung.data.rows import Example
from rung.evaluation.scoring import cases
from rung.progress import QUIET, Progress
from rung.retrieval.passage import Passage
from rung.retrieval.relevance import holds_answer
from rung.retrieval.retriever import Order

if TYPE_CHECKING:
    from rung.artifact.artifact import Artifact

WIDER = 3  # times k passages are searched: the other ones that hold the answer are left out
DEFAULT: Order = "best_last"  # as for demonstrations, the best next to the question


def position_effect(
    artifact: Artifact,
    rows: Sequence[Example],
    *,
    positions: Sequence[int] | None = None,
    folder: Path | None = None,
    progress: Progress = QUIET,
) -> dict[int, float]:
    """Return the mean score of the rows with the passage that answers at each position among the others.

    Used are rows of whose passages one holds the answer; all are shown equally many passages.

    Args:
        artifact: what answers; it has a retriever.
        rows: rows with expected answers, best with gold spans.
        positions: which to measure, counted from 0, negative ones from the end; None for all.
        folder: of the task file, where a metric of the user's own may lie.
        progress: told of every batch.

    Returns:
        Position, counted from 0, to mean score; empty where no row can be used.
    """
    usable = _with_answer(artifact, rows)
    if not usable:
        return {}
    shown = min(len(others) for _, _, others in usable) + 1
    wanted = sorted({p % shown for p in (range(shown) if positions is None else positions)})
    metric = artifact.shape.scorer(folder)
    asked = [row for row, _, _ in usable]
    effect = {}
    for position in wanted:
        arranged = [(*o[:position], gold, *o[position : shown - 1]) for _, gold, o in usable]
        answers = artifact.answer(asked, full=False, passages=arranged, progress=progress)
        scores = metric.scores(cases(asked, answers))
        effect[position] = sum(score.value for score in scores) / len(scores)
    return effect


def best_order(effect: Mapping[int, float]) -> Order:
    """Return which end of the passages the model reads better; the default where both are equal or not measured."""
    if len(effect) < 2 or effect[min(effect)] == effect[max(effect)]:
        return DEFAULT
    return "best_first" if effect[min(effect)] > effect[max(effect)] else "best_last"


def _with_answer(artifact: Artifact, rows: Sequence[Example]) -> list[tuple[Example, Passage, tuple[Passage, ...]]]:
    """Return rows with the best passage that holds the answer and the others that do not, best first."""
    retriever = artifact.retriever
    assert retriever is not None
    wide = replace(retriever, k=WIDER * retriever.k, token_budget=WIDER * retriever.token_budget, threshold=None)
    cost = artifact.passage_cost()
    found = wide.find(rows, [artifact.prompt.query(row.inputs) for row in rows], cost)
    usable = []
    for row, one in zip(rows, found, strict=True):
        gold = [p for p in one.passages if holds_answer(p, row)]
        others = [p for p in one.passages if not holds_answer(p, row)]
        if gold and others:
            kept = retriever.within_budget([gold[0], *others][: retriever.k], cost)
            if len(kept) > 1:
                usable.append((row, gold[0], kept[1:]))
    return usable
