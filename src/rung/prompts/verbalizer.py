"""Labels as the text that a model reads and writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def verbalize(labels: Sequence[str]) -> tuple[str, ...]:
    """Return a readable text per label: `card_arrival` becomes `card arrival`.

    Words cost fewer tokens than identifiers and lie closer to what the model was trained on. Labels stay as they are
    where two would become the same text.
    """
    words = tuple(" ".join(label.replace("_", " ").split()) for label in labels)
    return words if len(set(words)) == len(words) and all(words) else tuple(labels)


def continuations(
    texts: Sequence[str], encode: Callable[[str], tuple[int, ...]], end: int | None
) -> tuple[tuple[int, ...], ...]:
    """Return token ids per label text, ended by `end` only where it is needed.

    A label that is the beginning of another (`transfer`, `transfer fee`) can only be told apart by where it ends; then
    all are ended, so that all are scored alike. Otherwise the end is left away: it would cost a node a label.
    """
    tokens = [encode(text) for text in texts]
    known = set(tokens)
    nested = any(row[:n] in known for row in tokens for n in range(1, len(row)))
    if nested and end is not None:
        return tuple((*row, end) for row in tokens)
    return tuple(tokens)
