"""When to say that the documents do not answer: a threshold on the relevance of the best passage.

Relevance is the cosine of the question with the nearest passage of the corpus. The threshold separates two samples of
it: questions that the documents answer, and questions that they do not. For the second, rows marked as unanswerable are
used where there are enough; else every validation question is asked once more with the passages that hold its answer
left out of account, as if the corpus lacked it. What is left are passages on the same subject, the hardest to refuse,
so this threshold errs on the side of answering.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rung.data.rows import Example, Span
from rung.errors import DataError
from rung.retrieval.index import FEWEST_LABELLED, Index, SearchSettings
from rung.retrieval.passage import Passage, holds_answer, span_recall
from rung.retrieval.retriever import Retriever, is_itself

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
