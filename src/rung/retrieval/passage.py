"""What a search returns: a piece of a document, with the place it stands in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rung.data.rows import Example, Span, normal


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document.

    Attributes:
        id: document, start and end, joined; the same passage of the same document always has the same id.
        document: the file relative to the corpus, with the row where the file is a table: `faq.csv:12`.
        title: of the document, then the headings above the passage: `Returns > Electronics`.
        text: exactly `document_text[start:end]`.
        page: 1-based, where the document has pages; that of the passage's first character.
        start: first character in the document's text.
        end: one past the last.
        score: of the search that found it; larger is better. What it measures depends on the search settings.
        metadata: the columns named by `corpus.metadata`, as text.
    """

    id: str
    document: str
    title: str
    text: str
    page: int | None
    start: int
    end: int
    score: float = 0.0
    metadata: Mapping[str, str] = field(default_factory=dict)


# --------------------
# Which passages hold the answer: by the row's gold spans, or by the words of its expected answers.


FEWEST_LETTERS = 3  # of an answer looked for by its words: "no" stands everywhere


def overlaps(passage: Passage, span: Span) -> bool:
    """Say whether the passage holds a part of the span."""
    return passage.document == span.document and passage.start < span.end and span.start < passage.end


def holds_answer(passage: Passage, row: Example) -> bool:
    """Say whether the passage holds a part of the row's answer: of a gold span, or, without spans, all its words."""
    if row.spans is not None:
        return any(overlaps(passage, span) for span in row.spans)
    text = normal(passage.text)
    answers = [normal(output) for output in row.outputs]
    return any(len(answer) >= FEWEST_LETTERS and answer in text for answer in answers)


def span_recall(passages: Sequence[Passage], gold: Sequence[Span], k: int) -> float:
    """Compute the share of the gold spans' characters in the first k passages; no character counts twice.

    Raises:
        ValueError: the gold spans hold no character.
    """
    wanted = _characters(gold)
    if not wanted:
        raise ValueError("nothing is relevant")
    return len(wanted & _characters(passages[:k])) / len(wanted)


def _characters(pieces: Sequence[Span | Passage]) -> set[tuple[str, int]]:
    return {(piece.document, position) for piece in pieces for position in range(piece.start, piece.end)}


# --------------------
# Citations: the numbers in an answer, resolved to document, page and span.
#
# A mark such as `[2]` or `[1, 3]` is a citation if every number in it is that of a passage shown. Marks with any other
# number are text: years in brackets and references of the documents' own stay what they are.


_MARK = re.compile(r"\s?\[(\d{1,3}(?:\s*,\s*\d{1,3})*)\]")


@dataclass(frozen=True, slots=True)
class Citation:
    """A passage that an answer names: its number in the prompt, and where it stands."""

    number: int
    passage: Passage

    def __str__(self) -> str:
        return f"[{self.number}] {self.place}"

    @property
    def place(self) -> str:
        """Document, page and span."""
        p = self.passage
        page = f", page {p.page}" if p.page is not None else ""
        return f"{p.document}{page}, characters {p.start} to {p.end}"

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        p = self.passage
        return {
            "number": self.number, "document": p.document, "title": p.title, "page": p.page, "start": p.start,
            "end": p.end, "text": p.text,
        }  # fmt: skip


def resolve(text: str, passages: Sequence[Passage]) -> tuple[str, tuple[Citation, ...]]:
    """Return the answer without its citation marks, and what they name, in order of first mention."""
    numbers: dict[int, None] = {}

    def take(mark: re.Match[str]) -> str:
        named = [int(number) for number in mark.group(1).split(",")]
        if not all(1 <= number <= len(passages) for number in named):
            return mark.group()
        numbers.update(dict.fromkeys(named))
        return ""

    plain = _MARK.sub(take, text).strip()
    return plain, tuple(Citation(number, passages[number - 1]) for number in numbers)


def shown_sources(
    citations: Sequence[Citation], passages: Sequence[Passage], *, refused: bool
) -> tuple[str, tuple[Citation, ...]]:
    """Return where an answer comes from, under a heading: what it cites, or, where it cites nothing, what it read.

    Args:
        citations: of the answer.
        passages: that were shown to the model, in order.
        refused: whether the documents do not answer; then there are none.
    """
    if not passages or refused:
        return "", ()
    if citations:
        return "Sources", tuple(citations)
    return "Read, but not cited", tuple(Citation(n, passage) for n, passage in enumerate(passages, start=1))


def cited(output: str, row: Example, passages: Sequence[Passage]) -> str:
    """Return an expected answer with the marks of the passages that hold it: what a model shall learn to write."""
    marks = "".join(f"[{number}]" for number, p in enumerate(passages, start=1) if holds_answer(p, row))
    return f"{output} {marks}" if marks else output
