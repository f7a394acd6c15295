"""When to say that the documents do not answer: a threshold on the relevance of the best passage.

Relevance is the cosine of the question with the nearest passage of the corpus. The threshold separates two samples of
it: questions that the documents answer, and questions that they do not. For the second, rows marked as unanswerable are
used where there are enough; else every validation question is asked once more with the passages that hold its answer
left out of account, as if the corpus lacked it. What is left are passages on the same subject, the hardest to refuse,
so this threshold errs on the side of answering.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rung.data.rows import Example, Span
from rung.errors import DataError
from rung.evaluation.rag_metrics import span_recall
from rung.evaluation.scoring import cases, metric_of
from rung.progress import QUIET, Progress
from rung.retrieval.build import build
from rung.retrieval.corpus import Corpus
from rung.retrieval.index import FEWEST_LABELLED, Index, SearchSettings
from rung.retrieval.passage import Passage, holds_answer
from rung.retrieval.retriever import Order, Retriever, is_itself

if TYPE_CHECKING:
    from rung.artifact.artifact import Artifact


FEWEST = 10  # questions of each sample below which nothing can be told


@dataclass(frozen=True, slots=True)
class Refusal:
    """A calibrated threshold, and how it does on the rows it was chosen on.

    Attributes:
        threshold: relevance below which a row is refused; None where none helps.
        reason: why there is none.
        answerable: questions that the documents answer; `refused_answerable` is the share refused in spite of it.
        unanswerable: questions that they do not; `refused_unanswerable` is the share refused.
        simulated: whether those are questions whose answer was taken away.
    """

    threshold: float | None
    reason: str = ""
    answerable: int = 0
    unanswerable: int = 0
    refused_answerable: float = 0.0
    refused_unanswerable: float = 0.0
    simulated: bool = True


def calibrate(
    retriever: Retriever,
    rows: Sequence[Example],
    queries: Sequence[str],
    cost: Callable[[Passage], int],
    *,
    at_most: float,
) -> Refusal:
    """Choose the threshold on validation rows.

    Args:
        retriever: what searches.
        rows: validation rows.
        queries: what is looked up, one text per row.
        cost: tokens of a passage.
        at_most: largest share of answerable questions that may be refused.
    """
    found = [one.passages for one in retriever.find(rows, queries, cost)]
    pairs = list(zip(rows, queries, found, strict=True))
    answerable = [(row, query) for row, query, shown in pairs if any(holds_answer(p, row) for p in shown)]
    unanswerable = [(row, query) for row, query, _ in pairs if row.spans == ()]
    simulated = len(unanswerable) < FEWEST
    negative = answerable if simulated else unanswerable
    if min(len(answerable), len(negative)) < FEWEST:
        reason = f"only {len(answerable)} validation questions were found to have their answer in the passages"
        return Refusal(None, reason, len(answerable), len(negative), simulated=simulated)
    taken_away = _itself_or_its_answer if simulated else is_itself
    yes = retriever.relevance([row for row, _ in answerable], [query for _, query in answerable])
    no = retriever.relevance([row for row, _ in negative], [query for _, query in negative], taken_away)
    return choose(yes, no, at_most, simulated=simulated)


def _itself_or_its_answer(passage: Passage, row: Example) -> bool:
    return is_itself(passage, row) or holds_answer(passage, row)


def choose(answerable: Sequence[float], unanswerable: Sequence[float], at_most: float, *, simulated: bool) -> Refusal:
    """Return the threshold with the largest difference of the shares refused (Youden 1950), within `at_most`.

    Thresholds lie midway between neighbouring values, so that both samples are told apart by as much as can be.
    """
    yes, no = np.asarray(answerable, np.float64), np.asarray(unanswerable, np.float64)
    values = np.unique(np.concatenate([yes, no]))
    best = Refusal(None, "no threshold tells the two apart", len(yes), len(no), simulated=simulated)
    gain = 0.0
    for threshold in (values[:-1] + values[1:]) / 2:
        wrong, right = float((yes < threshold).mean()), float((no < threshold).mean())
        if wrong <= at_most and right - wrong > gain:
            gain = right - wrong
            best = replace(
                best, threshold=float(threshold), reason="", refused_answerable=wrong, refused_unanswerable=right
            )
    return best


# --------------------
# Learn how much the dense scores should weigh against those of BM25, from queries whose answers are known.


WEIGHTS = tuple(number / 10 for number in range(11))


@dataclass(frozen=True, slots=True)
class LabelledQuery:
    """A question and the spans that answer it."""

    text: str
    spans: tuple[Span, ...]


def learn_weight(
    index: Index, queries: Sequence[LabelledQuery], settings: SearchSettings, *, k: int = 5
) -> SearchSettings:
    """Return the settings with the weight that finds most: their own, None (ranks), or 0, 0.1, ..., 1.

    Measure on other queries than these: the best of several weights on the same queries looks better than it is.

    Args:
        index: where to search.
        queries: at least 30.
        settings: of the search, `hybrid`.
        k: passages that count.

    Raises:
        DataError: there are fewer queries; a weight learned from them would follow chance.
    """
    if len(queries) < FEWEST_LABELLED:
        raise DataError(
            "too-few-rows",
            f"{len(queries)} labelled queries are too few to learn a weight from",
            hint=f"give {FEWEST_LABELLED} or more; without, keep the default",
        )
    texts = [query.text for query in queries]
    tried = [replace(settings, weight=weight) for weight in (settings.weight, None, *WEIGHTS)]

    def found(candidate: SearchSettings) -> float:
        results = index.search(texts, k, candidate)
        return sum(
            span_recall(passages, query.spans, k) for passages, query in zip(results, queries, strict=True)
        ) / len(queries)

    return max(tried, key=found)  # the first of equals: what was set


# --------------------
# The position effect: how well a model uses the passage that answers, by where it stands among the others.
#
# Liu et al. 2023, "Lost in the Middle" (https://arxiv.org/abs/2307.03172): models use what stands at the beginning or
# the end of a long context better than what stands between. Which end is better differs from model to model, so it is
# measured, and the passages are ordered by it.


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
    metric = metric_of(artifact, folder)
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


# --------------------
# Choose how documents are cut by what is found: each candidate is indexed and asked the same questions.


@dataclass(frozen=True, slots=True)
class Chunking:
    """A candidate: passages of at most `tokens` tokens, of which `overlap` begin the next one too."""

    tokens: int
    overlap: int = 0


@dataclass(frozen=True, slots=True)
class ChunkingScore:
    """What a candidate found: the span recall of every query, and the characters read for it on average."""

    chunking: Chunking
    recalls: tuple[float, ...]
    characters: float

    @property
    def recall(self) -> float:
        """Mean span recall."""
        return sum(self.recalls) / len(self.recalls)


def choose_chunking(
    corpus: Corpus,
    base: Path,
    queries: Sequence[LabelledQuery],
    candidates: Sequence[Chunking],
    folder: Path,
    *,
    budget: int = 1000,
    settings: SearchSettings | None = None,
    progress: Progress = QUIET,
) -> list[ChunkingScore]:
    """Return every candidate with what it finds, best first; of equals the one that reads less.

    All candidates may hand the same number of tokens to the reader, so small passages are not punished for being
    small: a candidate with passages of n tokens is asked for `budget // n` of them. Use validation queries.

    Args:
        corpus: the documents; its own chunk settings are not looked at.
        base: the folder from which relative paths resolve.
        queries: with their gold spans.
        candidates: what to try.
        folder: where the indexes are built, one below it for each candidate.
        budget: tokens of passages for one question.
        settings: how to search.
        progress: told of every build.
    """
    scores = []
    for one in candidates:
        cut = corpus.model_copy(update={"chunk_tokens": one.tokens, "overlap_tokens": one.overlap, "store": None})
        index = build(folder / f"{one.tokens}-{one.overlap}", cut, base, progress=progress)
        k = max(1, budget // one.tokens)
        results = index.search([query.text for query in queries], k, settings or SearchSettings())
        recalls = tuple(span_recall(passages, query.spans, k) for passages, query in zip(results, queries, strict=True))
        read = sum(len(passage.text) for passages in results for passage in passages) / len(queries)
        scores.append(ChunkingScore(one, recalls, read))
    return sorted(scores, key=lambda score: (-score.recall, score.characters))
