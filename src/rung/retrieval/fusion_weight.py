"""Learn how much the dense scores should weigh against those of BM25, from queries whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rung.data.rows import Span
from rung.errors import DataError
from rung.evaluation.rag_metrics import span_recall
from rung.retrieval.index import Index
from rung.retrieval.search import FEWEST_LABELLED, SearchSettings

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
            "few-labelled-queries",
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
