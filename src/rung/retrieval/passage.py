"""What a search returns: a piece of a document, with the place it stands in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


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
