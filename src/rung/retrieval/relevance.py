"""Which passages hold the answer: by the row's gold spans, or by the words of its expected answers."""

from __future__ import annotations

from rung.data.rows import Example, Span, normal
from rung.retrieval.passage import Passage

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
