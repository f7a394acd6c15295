"""Rows of a task as typed values."""

from __future__ import annotations

import hashlib
import json
import statistics
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Record:
    """One row as it stands in a file: its values by column, and `file:line`."""

    values: dict[str, Any]
    source: str


NOT_IN_DOCUMENTS = "The documents do not say."  # the answer to a question that the corpus does not answer


@dataclass(frozen=True, slots=True)
class Span:
    """Where a part of an answer stands: a document of the corpus, and characters `start` to `end` of its text."""

    document: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a task.

    Attributes:
        id: 16 hex digits of the hash of the normalized inputs; equal for inputs that differ in case or spaces only.
        inputs: the task's input columns.
        outputs: acceptable answers: exactly one for category, multilabel (a JSON list) and json, one or more for text.
        source: `file:line`, for errors and reports.
        extra: columns that only the metric reads.
        spans: where the answer stands in the corpus; empty where it stands nowhere, None where that is not known.
    """

    id: str
    inputs: Mapping[str, Any]
    outputs: tuple[str, ...]
    source: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    spans: tuple[Span, ...] | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """A text without question or answer, and `file` or `file:line`."""

    text: str
    source: str


@dataclass(frozen=True)
class Data:
    """The three splits, the sorted label set (empty unless the task is a category), and the data report.

    `folder` is the task file's, where a metric of the user's own is looked for; `text` are the documents of
    `data.text`, to adapt a model to the domain.
    """

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    labels: tuple[str, ...]
    report: DataReport
    fingerprint: str
    folder: Path | None = None
    text: tuple[Document, ...] = ()


def example_id(inputs: Mapping[str, Any]) -> str:
    """Return the hash of the inputs, normalized (Unicode NFC, lower case, single spaces), as 16 hex digits."""
    return hash_of([normal(value) for value in inputs.values()])


def hash_of(value: Any, digits: int = 16) -> str:
    """Return the first hex digits (at most 64) of the sha256 of a JSON value."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    # JSON from a client may hold lone surrogates, which UTF-8 proper cannot.
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:digits]


def place_of(value: Any) -> float:
    """Return a place in [0, 1) that the hash of a JSON value gives: shares of rows are cut by it."""
    return int(hash_of(value), 16) / 16**16


def normal(value: Any) -> Any:
    """Return text in Unicode NFC, lower case, with single spaces, also inside messages; other values as they are."""
    if isinstance(value, str):
        return " ".join(unicodedata.normalize("NFC", value).lower().split())
    if isinstance(value, Mapping):
        return {key: normal(item) for key, item in value.items()}
    if isinstance(value, list):
        return [normal(item) for item in value]
    return value


# --------------------
# The labels in an expected answer, for the kinds that answer with labels.


LABELLED = ("category", "multilabel")


def labels_of(output: str, kind: str) -> tuple[str, ...]:
    """Return the labels in an expected answer: itself for a category, those of the list for multilabel."""
    if kind == "multilabel":
        return tuple(json.loads(output))
    return (output,) if kind == "category" else ()


# --------------------
# The data report: what was read, kept and dropped, and why. Nothing is left out silently.


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
