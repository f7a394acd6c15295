"""Rows of a task as typed values."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rung.data.report import DataReport


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
