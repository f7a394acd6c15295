"""Passages: the pieces of documents that a search finds, which of them hold an answer, and how answers cite them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rung.data.rows import Example, Span, normal


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document."""

    id: str  # document, start and end, joined; the same passage of the same document always has the same id
    document: str  # the file relative to the corpus, with the row where the file is a table: `faq.csv:12`
    title: str  # of the document, then the headings above the passage: `Returns > Electronics`
    text: str  # exactly `document_text[start:end]`
    page: int | None  # of the first character, counted from 1; None where the document has no pages
    start: int  # first character in the document's text
    end: int  # one past the last
    score: float = 0.0  # of the search that found it; larger is better. Its scale depends on the search settings
    metadata: Mapping[str, str] = field(default_factory=dict)  # the columns named by `corpus.metadata`, as text


# ---- relevance: which passages hold the answer

MIN_LETTERS = 3  # of an answer that is searched for in the text: "no" occurs everywhere


def overlaps(passage: Passage, span: Span) -> bool:
    """Whether the passage holds a part of the span."""
    return passage.document == span.document and passage.start < span.end and span.start < passage.end


def holds_answer(passage: Passage, row: Example) -> bool:
    """Whether the passage holds a part of a gold span, or, for a row without spans, a whole expected answer."""
    if row.spans is not None:
        return any(overlaps(passage, span) for span in row.spans)
    text = normal(passage.text)
    answers = [normal(output) for output in row.outputs]
    return any(len(answer) >= MIN_LETTERS and answer in text for answer in answers)


def span_recall(passages: Sequence[Passage], gold: Sequence[Span], k: int) -> float:
    """Compute the share of the gold spans' characters in the first k passages; no character counts twice.

    Raises:
        ValueError: the gold spans hold no character.
    """
    wanted, found = _merged(gold), _merged(passages[:k])
    characters = sum(end - start for _, start, end in wanted)
    if not characters:
        raise ValueError("nothing is relevant")
    shared = (
        min(end, last) - max(start, first)
        for document, start, end in wanted
        for place, first, last in found
        if place == document
    )
    return sum(max(0, each) for each in shared) / characters


def _merged(pieces: Sequence[Span | Passage]) -> list[tuple[str, int, int]]:
    """The document, start and end of what the pieces cover, without overlaps."""
    merged: list[tuple[str, int, int]] = []
    for document, start, end in sorted((piece.document, piece.start, piece.end) for piece in pieces):
        if merged and merged[-1][0] == document and start <= merged[-1][2]:
            merged[-1] = (document, merged[-1][1], max(end, merged[-1][2]))
        else:
            merged.append((document, start, end))
    return merged


# ---- citations
#
# A mark such as `[2]` or `[1, 3]` is a citation if every number in it is the number of a passage in the prompt and it
# stands where a writer cites: behind white space, the end of a sentence or another citation. Any other mark is text:
# `items[1]`, code, years in brackets, and a reference of the documents' own, which a passage has behind the same word.

WORD = 100  # characters before a mark that are looked at
_NUMBERS = r"\[(\d{1,3}(?:\s*,\s*\d{1,3})*)\]"
_CODE = r"(?<!`)(`++).*?(?<!`)\1(?!`)"  # Markdown's spans and blocks
_MARK = re.compile(rf"{_CODE}|\s?{_NUMBERS}", re.DOTALL)
_END = re.compile(r"[.!?…:;,。！？；，、؟۔।\u3040-\u30ff\u3400-\u9fff\u0e00-\u0eff][\"'”’»)」』）*_]*$")
_OPERATOR = re.compile(r"(?:[=+*/%<>({\[,:\\-]|\b(?:return|in))\s*$")  # before a list that is written as code


@dataclass(frozen=True, slots=True)
class Citation:
    """A passage that an answer names, with its number in the prompt.

    It is `attached` if the model named none: the passage is then the sentence that says the same as the answer's, found
    by `rung.retrieval.support`.
    """

    number: int
    passage: Passage
    attached: bool = False

    def __str__(self) -> str:
        return f"[{self.number}] {self.location}"

    @property
    def location(self) -> str:
        """Document, page and span."""
        p = self.passage
        page = f", page {p.page}" if p.page is not None else ""
        return f"{p.document}{page}, characters {p.start} to {p.end}"

    def as_dict(self) -> dict[str, Any]:
        """Convert to JSON values."""
        p = self.passage
        return {
            "number": self.number, "document": p.document, "title": p.title, "page": p.page, "start": p.start,
            "end": p.end, "text": p.text, "attached": self.attached,
        }  # fmt: skip


def resolve(text: str, passages: Sequence[Passage]) -> tuple[str, tuple[Citation, ...]]:
    """Split an answer into its text without citation marks, and its citations in order of first mention.

    An answer of nothing but marks, such as a list of numbers, cites nothing.
    """
    numbers: dict[int, None] = {}
    after_citation = -1  # where the last citation ends

    def take(mark: re.Match[str]) -> str:
        nonlocal after_citation
        if mark[2] is None:  # code
            return mark[0]
        named = [int(number) for number in mark[2].split(",")]
        chained = mark.start() == after_citation
        if not all(1 <= number <= len(passages) for number in named) or not (chained or _cites(mark, passages)):
            return mark[0]
        after_citation = mark.end()
        numbers.update(dict.fromkeys(named))
        return ""

    plain = _MARK.sub(take, text).strip()
    if not any(map(str.isalnum, plain)):
        return text.strip(), ()
    return plain, tuple(Citation(number, passages[number - 1]) for number in numbers)


def _cites(mark: re.Match[str], passages: Sequence[Passage]) -> bool:
    """Whether a mark stands where citations stand, and no passage has it behind the same word."""
    before = mark.string[max(0, mark.start() - WORD) : mark.start()]
    if not before:
        return True
    if not mark[0][0].isspace():
        return before[-1].isspace() or _END.search(before) is not None
    if _OPERATOR.search(before):
        return False
    own = " ".join([*before.split()[-1:], mark[0].strip()])
    return not any(own in " ".join(passage.text.split()) for passage in passages)


def shown_sources(
    citations: Sequence[Citation], passages: Sequence[Passage], *, refused: bool
) -> tuple[str, tuple[Citation, ...]]:
    """List the sources of an answer under a heading: what it cites, or, where it cites nothing, the passages it read.

    The heading tells citations of the model from attached ones. A refused answer has no sources.
    """
    if not passages or refused:
        return "", ()
    if citations:
        attached = any(citation.attached for citation in citations)
        return "Sources, found by their words" if attached else "Sources", tuple(citations)
    return "Read, but not cited", tuple(Citation(n, passage) for n, passage in enumerate(passages, start=1))


def cited(output: str, row: Example, passages: Sequence[Passage]) -> str:
    """Add the marks of the passages that hold an expected answer to it: the text that training teaches."""
    marks = "".join(f"[{number}]" for number, p in enumerate(passages, start=1) if holds_answer(p, row))
    return f"{output} {marks}" if marks else output
