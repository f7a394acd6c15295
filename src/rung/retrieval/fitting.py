"""Fit a retriever's settings to labelled rows: the relevance below which it refuses, and the weight of meaning.

Relevance is the cosine of the question with the nearest passage of the corpus. The refusal threshold separates the
relevance of questions that the documents answer from that of questions that they do not. The second sample is rows
marked as unanswerable, where there are enough. Otherwise every training question is searched once more without the
passages that hold its answer, as if the corpus lacked it. The remaining passages are on the same subject, the hardest
to refuse, so this threshold errs on the side of answering.
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

FEWEST = 10  # questions that each sample needs
# The threshold of the built-in encoder until there are enough questions. docs/answering.md says what it refuses.
CAUTIOUS = 0.3


@dataclass(frozen=True, slots=True)
class Refusal:
    """A calibrated threshold, and its shares of refused rows on the rows that it was chosen on."""

    threshold: float | None  # relevance below which a row is refused; None where none helps
    reason: str = ""  # why none was chosen on rows
    answerable: int = 0  # questions that the documents answer; `refused_answerable` is the share that is refused
    unanswerable: int = 0  # questions that they do not answer; `refused_unanswerable` is the share that is refused
    refused_answerable: float = 0.0
    refused_unanswerable: float = 0.0
    simulated: bool = True  # whether those are answerable questions whose passages were taken away


def calibrate(
    retriever: Retriever, rows: Sequence[Example], queries: Sequence[str], cost: Callable[[Passage], int],
    *, at_most: float, otherwise: float | None = None,
) -> Refusal:  # fmt: skip
    """Choose the threshold on labelled rows, each with the text to look for.

    `cost` counts the tokens of a passage. At most the share `at_most` of the answerable questions may be refused.
    `otherwise` is the threshold where there are too few rows to choose one.
    """
    searched = list(zip(rows, queries, retriever.find(rows, queries, cost), strict=True))
    answerable = [(row, query) for row, query, hits in searched if any(holds_answer(p, row) for p in hits.passages)]
    unanswerable = [(row, query) for row, query, _ in searched if row.spans == ()]
    simulated = len(unanswerable) < FEWEST
    negative = answerable if simulated else unanswerable
    if min(len(answerable), len(negative)) < FEWEST:
        reason = f"the passages found hold the answer of only {len(answerable)} training questions"
        return Refusal(otherwise, reason, len(answerable), len(negative), simulated=simulated)

    def taken_away(passage: Passage, row: Example) -> bool:
        return is_itself(passage, row) or (simulated and holds_answer(passage, row))

    yes = retriever.relevance([row for row, _ in answerable], [query for _, query in answerable])
    no = retriever.relevance([row for row, _ in negative], [query for _, query in negative], taken_away)
    return choose(yes, no, at_most, simulated=simulated)


def choose(answerable: Sequence[float], unanswerable: Sequence[float], at_most: float, *, simulated: bool) -> Refusal:
    """Choose the threshold with the largest difference of the shares refused (Youden 1950), within `at_most`.

    Thresholds lie midway between neighbouring values, so the margin to both samples is as large as possible.
    """
    yes, no = np.asarray(answerable, np.float64), np.asarray(unanswerable, np.float64)
    values = np.unique(np.concatenate([yes, no]))
    best = Refusal(None, "no threshold separates the two", len(yes), len(no), simulated=simulated)
    gain = 0.0
    for threshold in ((values[:-1] + values[1:]) / 2).tolist():
        wrong, right = float((yes < threshold).mean()), float((no < threshold).mean())
        if wrong <= at_most and right - wrong > gain:
            gain = right - wrong
            best = replace(best, threshold=threshold, reason="", refused_answerable=wrong, refused_unanswerable=right)
    return best


# ---- the weight of dense scores against those of BM25

WEIGHTS = tuple(number / 10 for number in range(11))
LabelledQuery = tuple[str, tuple[Span, ...]]  # a question and the spans that answer it


def learn_weight(
    index: Index, queries: Sequence[LabelledQuery], settings: SearchSettings, *, k: int = 5
) -> SearchSettings:
    """Choose the weight that finds most in k passages: the one of the settings, None (ranks), or 0, 0.1, ..., 1.

    Measure the result on other queries: on these, the best of several weights looks better than it is.

    Raises:
        DataError: there are fewer than 30 queries; a weight learned from them would be noise.
    """
    if len(queries) < FEWEST_LABELLED:
        raise DataError(
            "too-few-rows", f"{len(queries)} labelled queries are too few to learn a weight from",
            hint=f"give {FEWEST_LABELLED} or more, or keep the default",
        )  # fmt: skip
    texts = [text for text, _ in queries]
    candidates = [replace(settings, weight=weight) for weight in (settings.weight, None, *WEIGHTS)]

    def recall(candidate: SearchSettings) -> float:
        results = index.search(texts, k, candidate)
        return sum(span_recall(passages, spans, k) for passages, (_, spans) in zip(results, queries, strict=True))

    return max(candidates, key=recall)  # the first of equals: the weight that was set
