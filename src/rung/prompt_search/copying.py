"""Whether a text that a model wrote repeats training rows: then it would show answers, not say what to do.

A row is copied where the text and the row share `LENGTH` words in a row, or all words of a shorter row that has at
least `SHORTEST`. Words that the task itself says (its instruction, its labels) are no copy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from rung.data.rows import Example, normal
from rung.prompts.template import as_text

LENGTH, SHORTEST = 6, 3
_WORD = re.compile(r"\w+")
Gram = tuple[str, ...]


class CopyGuard:
    """Knows the training rows' word sequences.

    Args:
        rows: training rows: their inputs and outputs must not be repeated.
        allowed: texts of the task that may be.
    """

    def __init__(self, rows: Iterable[Example], allowed: Iterable[str] = ()) -> None:
        known = [_words(text) for text in allowed]
        self._allowed = " | ".join(" ".join(words) for words in known)
        self._where: dict[Gram, str] = {}
        for row in rows:
            for text in (*map(as_text, row.inputs.values()), *row.outputs):
                for gram in _grams(_words(text)):
                    self._where.setdefault(gram, row.source)

    def copied(self, text: str) -> str:
        """Return `file:line` of a row that `text` repeats, or an empty text."""
        words = _words(text)
        for length in range(SHORTEST, LENGTH + 1):
            for start in range(len(words) - length + 1):
                gram = tuple(words[start : start + length])
                if gram in self._where and f" {' '.join(gram)} " not in f" {self._allowed} ":
                    return self._where[gram]
        return ""


def _words(text: str) -> list[str]:
    return _WORD.findall(normal(text))


def _grams(words: list[str]) -> Iterator[Gram]:
    """Yield what counts as a copy of these words: every run of LENGTH, or all of a shorter text."""
    if SHORTEST <= len(words) < LENGTH:
        yield tuple(words)
    for start in range(len(words) - LENGTH + 1):
        yield tuple(words[start : start + LENGTH])
