"""The data report: what was read, kept and dropped, and why. Nothing is left out silently."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rung.data.labels import LABELLED, labels_of
from rung.data.rows import Document, Example

SHOWN = 5  # places named per reason
RARE = 5  # a label with fewer training rows is named
DISCORDANCE = 0.2  # share of rows on which two artifacts are assumed to disagree, for the detectable difference


@dataclass
class SplitReport:
    """One split: rows read and kept, and for every reason the rows dropped."""

    read: int = 0
    kept: int = 0
    dropped: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, reason: str, source: str) -> None:
        """Count a dropped row."""
        self.dropped.setdefault(reason, []).append(source)


@dataclass
class DataReport:
    """What the rows are.

    Attributes:
        splits: rows read, kept and dropped; a split cut from the training file counts its rows as its own. Under
            `text`, where the task has plain text, its documents.
        labels: rows per label of each split, most frequent first; empty unless the task answers with labels.
        lengths: spread (min, median, p95, max) of `train input`, `train output`, ...
        detectable: per split, the smallest true difference of a 0/1 score that a paired test finds in 4 of 5 cases,
            where two artifacts disagree on a fifth of the rows; None where there are too few rows for any.
        warnings: what a careful reader would ask about.
    """

    splits: dict[str, SplitReport] = field(default_factory=dict)
    labels: dict[str, dict[str, int]] = field(default_factory=dict)
    lengths: dict[str, dict[str, float]] = field(default_factory=dict)
    detectable: dict[str, float | None] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def measure(self, split: str, rows: Sequence[Example], *, kind: str, count: Callable[[str], int] = len) -> None:
        """Add label counts and lengths (characters, or tokens where `count` counts them) of a split."""
        if kind in LABELLED:
            found = Counter(label for row in rows for label in labels_of(row.outputs[0], kind))
            self.labels[split] = dict(found.most_common())
        for part, texts in (
            ("input", [" ".join(str(v) for v in row.inputs.values()) for row in rows]),
            ("output", [row.outputs[0] for row in rows]),
        ):
            if texts:
                self.lengths[f"{split} {part}"] = _spread([count(text) for text in texts])

    def measure_text(self, documents: Sequence[Document], *, count: Callable[[str], int] = len) -> None:
        """Add the lengths (characters, or tokens where `count` counts them) of the documents."""
        self.lengths["text input"] = _spread([count(document.text) for document in documents])

    def rare(self) -> list[str]:
        """Return the labels with few training rows, rarest first, as `label (rows)`."""
        few = [(rows, label) for label, rows in self.labels.get("train", {}).items() if rows < RARE]
        return [f"{label} ({rows})" for rows, label in sorted(few)]

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "splits": {
                name: {
                    "read": split.read,
                    "kept": split.kept,
                    "dropped": {reason: len(sources) for reason, sources in split.dropped.items()},
                    "dropped_at": {reason: sources[:SHOWN] for reason, sources in split.dropped.items()},
                }
                for name, split in self.splits.items()
            },
            "labels": self.labels,
            "lengths": self.lengths,
            "detectable": self.detectable,
            "warnings": self.warnings,
        }


def _spread(lengths: Sequence[int]) -> dict[str, float]:
    ordered = sorted(lengths)
    return {
        "min": ordered[0],
        "median": statistics.median(ordered),
        "p95": ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))],
        "max": ordered[-1],
    }
