"""The labels in an expected answer, for the kinds that answer with labels."""

from __future__ import annotations

import json

LABELLED = ("category", "multilabel")


def labels_of(output: str, kind: str) -> tuple[str, ...]:
    """Return the labels in an expected answer: itself for a category, those of the list for multilabel."""
    if kind == "multilabel":
        return tuple(json.loads(output))
    return (output,) if kind == "category" else ()
