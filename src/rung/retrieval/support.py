"""Citations that are attached to an answer whose model wrote none: the passage sentence that says the same.

Small models often write no citation marks although they are asked for them. So each sentence of such an answer is
compared with the sentences of the passages by their words, and cites the one that has them. Words that are rare in the
passages count more (the inverse document frequency of Spärck Jones 1972), so that the small words of any language count
little. This notices words and numbers that come from nowhere, not words that are combined wrongly.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from rung.retrieval.chunking import sentence_spans
from rung.retrieval.index import terms
from rung.retrieval.passage import Citation, Passage

SUPPORTED = 0.8  # of the weight of a sentence's terms, at least, has to stand in what it cites
FEWEST_TERMS = 3  # of a sentence that is compared: shorter ones stand in many places
TOGETHER = 2  # neighbours that may support a sentence together
NAMED = re.compile(r"\d[\d.,:]*\d|\d|(?<=[\w,;:]\s)[A-ZÀ-ÞΑ-ΩА-Я]\w+")  # numbers, and names inside a sentence
NEGATED = re.compile(r"\b(?:not|no|never|none|nothing|nobody|without|cannot)\b|n['’]t\b", re.IGNORECASE)


def attached(text: str, passages: Sequence[Passage]) -> tuple[Citation, ...]:
    """Cite, for each sentence of an answer that the passages support, where they do; each place once, in order.

    A sentence is supported if one sentence of a passage, or two neighbours, hold the share `SUPPORTED` of the weight
    of its terms, all its numbers and names, and say "not" if it does. A sentence that nothing supports cites nothing.
    """
    places = [place for number, passage in enumerate(passages, start=1) for place in _places(number, passage)]
    known = [set(terms(place.passage.text)) for place in places]
    held = Counter(term for each in known for term in each)
    weight = {term: math.log(1 + len(places) / count) for term, count in held.items()}
    unknown = math.log(1 + len(places))
    found: dict[tuple[str, int, int], Citation] = {}
    for first, last in sentence_spans(text):
        sentence = text[first:last]
        said = set(terms(sentence))
        if len(said) < FEWEST_TERMS:
            continue
        total = sum(weight.get(term, unknown) for term in said)
        shares = [sum(weight[term] for term in said & each) / total for each in known]
        enough = [place for place, share in zip(places, shares, strict=True) if share >= SUPPORTED]
        same = (place for place in sorted(enough, key=_length) if _agrees(sentence, place.passage.text))
        if (nearest := next(same, None)) is not None:
            found.setdefault((nearest.passage.document, nearest.passage.start, nearest.passage.end), nearest)
    return tuple(found.values())


def _places(number: int, passage: Passage) -> list[Citation]:
    """The sentences of a passage, alone and with their next neighbour."""
    spans = list(sentence_spans(passage.text))
    both = [(spans[i][0], spans[i + TOGETHER - 1][1]) for i in range(len(spans) - TOGETHER + 1)]
    return [
        Citation(
            number,
            replace(passage, text=passage.text[first:last], start=passage.start + first, end=passage.start + last),
            attached=True,
        )
        for first, last in (*spans, *both)
    ]


def _length(place: Citation) -> int:
    return place.passage.end - place.passage.start


def _agrees(sentence: str, source: str) -> bool:
    """Whether a source has the numbers and names of a sentence, and says "not" if it does (English)."""
    plain = source.casefold()
    same = (NEGATED.search(sentence) is None) == (NEGATED.search(source) is None)
    return same and all(name.casefold() in plain for name in NAMED.findall(sentence))
