"""Citations: the numbers in an answer, resolved to document, page and span.

A mark such as `[2]` or `[1, 3]` is a citation if every number in it is that of a passage shown. Marks with any other
number are text: years in brackets and references of the documents' own stay what they are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rung.data.rows import Example
from rung.retrieval.passage import Passage
from rung.retrieval.relevance import holds_answer

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
