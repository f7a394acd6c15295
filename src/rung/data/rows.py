"""The rows of a task as typed values, and the report of what was read, kept and dropped."""

from __future__ import annotations

import hashlib
import json
import statistics
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from rung.errors import DataError
from rung.progress import card, table_html

PREVIEWED = 3  # rows of each split that a notebook shows


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a file: its values by column, and `file:line`."""

    values: dict[str, Any]
    source: str


NOT_IN_DOCUMENTS = "The documents do not say."  # the answer to a question that the corpus does not answer


@dataclass(frozen=True, slots=True)
class Span:
    """The location of a part of an answer: a document of the corpus, and characters `start` to `end` of its text."""

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
        spans: the answer's locations in the corpus; empty if it is not in the corpus, None if that is unknown.
        turn: the answer's chat message (kind chat), if it has tool calls or thoughts besides its text.
        masked: the positions of the conversation's assistant turns that training must not learn.
        weight: how much the row counts when a head is trained.
    """

    id: str
    inputs: Mapping[str, Any]
    outputs: tuple[str, ...]
    source: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    spans: tuple[Span, ...] | None = None
    turn: Mapping[str, Any] | None = None
    masked: tuple[int, ...] = ()
    weight: float = 1.0

    @property
    def has_thought(self) -> bool:
        """Whether the answer comes with what was thought before it."""
        return self.turn is not None and "reasoning_content" in self.turn


@dataclass(frozen=True, slots=True)
class Preference:
    """What people think of answers to one input: one better than another, or a single one good or bad.

    Both answers are examples with the task's inputs, so each is rendered as a training row is.

    Attributes:
        chosen: the input with the better answer, or with one that is good; None for a single bad answer.
        rejected: the input with the worse answer, or with one that is bad; None for a single good answer.
        folds: the folds in which this input, or a row of its group, is answered; nothing may learn it there.
    """

    chosen: Example | None
    rejected: Example | None
    folds: frozenset[int] = frozenset()

    @property
    def row(self) -> Example:
        """The example of either answer; both have the same inputs."""
        row = self.chosen or self.rejected
        assert row is not None
        return row

    @property
    def id(self) -> str:
        """The hash of the input and of both answers."""
        return hash_of(
            [self.row.id, *(None if each is None else each.outputs for each in (self.chosen, self.rejected))]
        )

    @property
    def pair(self) -> tuple[Example, Example] | None:
        """The better and the worse answer; None for a single answer."""
        return None if self.chosen is None or self.rejected is None else (self.chosen, self.rejected)


@dataclass(frozen=True, slots=True)
class Document:
    """A text without question or answer, and `file` or `file:line`."""

    text: str
    source: str


@dataclass(frozen=True)
class Data:
    """The rows of a task.

    Attributes:
        train, validation, test: the three splits.
        labels: the sorted label set; empty unless the task answers with labels.
        report: what was read, kept and dropped.
        fingerprint: a hash of all rows and documents.
        folder: the task file's folder, which may hold the user's metric.
        text: the documents of `data.text`, to adapt a model to the domain.
        preferences: those of `data.preferences` that may be learned.
        unseen_preferences: those about inputs of the validation and test rows (in `fold`, of the fold's rows): nothing
            may learn them, and they can measure what was learned.
        folds: all rows of `train` in parts of about equal size, if they are answered out of fold; then there are no
            validation rows, and the test rows are those of the user's own file, or none.
        known: all rows that fits of this climb learn from, where this is a part of them: what is computed of each row
            alone, such as vectors, can be computed for all at once.
    """

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    labels: tuple[str, ...]
    report: DataReport
    fingerprint: str
    folder: Path | None = None
    text: tuple[Document, ...] = ()
    folds: tuple[tuple[Example, ...], ...] = ()
    preferences: tuple[Preference, ...] = ()
    unseen_preferences: tuple[Preference, ...] = ()
    known: tuple[Example, ...] = ()

    def __repr__(self) -> str:
        sizes = {name: len(getattr(self, name)) for name in ("train", "validation", "test")}
        how = f", {len(self.folds)} folds" if self.folds else ""
        return f"Data({', '.join(f'{name}: {size} rows' for name, size in sizes.items() if size)}{how})"

    def _repr_html_(self) -> str:
        rows = [
            (name, row.id, *row.inputs.values(), " / ".join(row.outputs))
            for name in ("train", "validation", "test")
            for row in getattr(self, name)[:PREVIEWED]
        ]
        heads = ("split", "row", *(self.train or self.test)[0].inputs, "answer") if rows else ()
        return card(repr(self), {}, table_html(heads, rows))

    def rows_of(self, split: str) -> tuple[Example, ...]:
        """The rows of a split; raise DataError `too-few-rows` if it has none."""
        rows: tuple[Example, ...] = getattr(self, split)
        if rows:
            return rows
        if self.folds:
            problem = f"there are no {split} rows: all rows of the task may be trained on, and are answered out of fold"
            hint = f"give new rows as `data.{split}`; the scores of all rows out of fold are in the report of a climb"
            if split == "validation":
                hint = "set `data.split.method: holdout` to split rows off, before anything is trained"
            raise DataError("too-few-rows", problem, hint=hint)
        hint = f"give `data.{split}`, or more rows to split off"
        raise DataError("too-few-rows", f"the {split} split has no rows", hint=hint)

    def with_validation(self) -> Data:
        """Make data whose training rows are those of training and validation, so that none is held out."""
        fingerprint = hash_of([self.fingerprint, "with validation"], digits=64)
        return replace(self, train=(*self.train, *self.validation), validation=(), fingerprint=fingerprint)

    def fold(self, index: int) -> Data:
        """Make the rows to fit on, as `train`, and those to answer, as `test`, of one fold.

        The inputs of the fold are not among the rows to fit on, not even with another answer.

        Example:
            >>> data = Task.load("task.yaml").read()  # doctest: +SKIP
            >>> [len(data.fold(i).test) for i in range(len(data.folds))]  # doctest: +SKIP
            [12, 12, 12, 12, 12]

        Raises:
            IndexError: there are not so many folds.
        """
        test = self.folds[index]
        held_out = {row.id for row in test}
        train = tuple(row for row in self.train if row.id not in held_out)
        fingerprint = hash_of([self.fingerprint, "fold", index], digits=64)
        return replace(
            self, train=train, validation=(), test=test, folds=(), fingerprint=fingerprint, known=self.train,
            preferences=tuple(each for each in self.preferences if index not in each.folds),
            unseen_preferences=tuple(each for each in self.preferences if index in each.folds),
        )  # fmt: skip


def selection_rows(data: Data, n: int) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Choose training rows on which a rung may choose its settings, and give the others to fit on.

    The rows of the race and of the test must not choose anything, or their scores would be too good.

    Args:
        data: the rows; only `train` is used.
        n: rows to choose; at most half of the training rows are.

    Returns:
        The chosen rows in an order in which each beginning has about the labels of the whole, and the others in the
        order of `train`. Both depend on the hash of the inputs, not on the order of the file.
    """
    by_answer: dict[str, list[Example]] = {}
    for row in sorted(data.train, key=lambda row: place_of([row.id, "selection"])):
        by_answer.setdefault(row.outputs[0] if data.labels else "", []).append(row)
    ranked = [((rank + 0.5) / len(rows), row) for rows in by_answer.values() for rank, row in enumerate(rows)]
    ranked.sort(key=lambda entry: (entry[0], place_of([entry[1].id, "selection"])))
    chosen = tuple(row for _, row in ranked[: min(n, len(ranked) // 2)])
    ids = {row.id for row in chosen}
    return chosen, tuple(row for row in data.train if row.id not in ids)


def example_id(inputs: Mapping[str, Any]) -> str:
    """Hash the inputs, normalized (Unicode NFC, lower case, single spaces), to 16 hex digits."""
    return hash_of([normal(value) for value in inputs.values()])


def hash_of(value: Any, digits: int = 16) -> str:
    """Hash a JSON value to the first hex digits (at most 64) of its sha256."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    # JSON from a client may contain lone surrogates, which strict UTF-8 rejects.
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:digits]


def place_of(value: Any) -> float:
    """Hash a JSON value to a number in [0, 1), by which shares of rows are cut."""
    return int(hash_of(value), 16) / 16**16


def normal(value: Any) -> Any:
    """Normalize text, also inside messages, to Unicode NFC, lower case and single spaces."""
    if isinstance(value, str):
        return " ".join(unicodedata.normalize("NFC", value).lower().split())
    if isinstance(value, Mapping):
        return {key: normal(item) for key, item in value.items()}
    if isinstance(value, list):
        return [normal(item) for item in value]
    return value


LABELLED = ("category", "multilabel")  # the kinds that answer with labels


def labels_of(output: str, kind: str) -> tuple[str, ...]:
    """List the labels of an expected answer: the answer itself for category, its items for multilabel."""
    if kind == "multilabel":
        return tuple(json.loads(output))
    return (output,) if kind == "category" else ()


# ---- the data report

SHOWN = 5  # rows named per reason
RARE = 5  # labels with fewer training rows are named


@dataclass
class SplitReport:
    """One split: rows read and kept, and the sources of the rows dropped, by reason."""

    read: int = 0
    kept: int = 0
    dropped: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, reason: str, source: str) -> None:
        """Count a dropped row."""
        self.dropped.setdefault(reason, []).append(source)


@dataclass
class DataReport:
    """Counts and lengths of the rows, and warnings.

    Attributes:
        splits: rows read, kept and dropped; rows cut from the training file count in their new split. Under `text`
            and `preferences`, the documents and preferences of a task that has them.
        method: `files` if the user gave all splits, `holdout` if some were cut, `folds` to answer rows out of fold.
        folds: the rows of each fold; empty without folds.
        formats: what is unusual about the format of a file, such as `cp1252, semicolons`; empty for UTF-8 and commas.
        labels: rows per label of each split, most frequent first; empty unless the task answers with labels.
        lengths: min, median, p95 and max of `train input`, `train output`, ...
        detectable: per split, or for all `folds`, the smallest true difference of a 0/1 score that a climb finds in 4
            of 5 cases; None if it can find none. See `rung.data.quality.smallest_difference`.
        preferences: how many preferences there are, by form.
        problems: what makes a climb meaningless.
        warnings: what would mislead.
    """

    splits: dict[str, SplitReport] = field(default_factory=dict)
    method: Literal["files", "holdout", "folds"] = "holdout"
    folds: list[int] = field(default_factory=list)
    formats: dict[str, str] = field(default_factory=dict)
    labels: dict[str, dict[str, int]] = field(default_factory=dict)
    lengths: dict[str, dict[str, float]] = field(default_factory=dict)
    detectable: dict[str, float | None] = field(default_factory=dict)
    preferences: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def measure(self, split: str, rows: Sequence[Example], *, kind: str, count: Callable[[str], int] = len) -> None:
        """Add the label counts and lengths of a split; `count` gives the length of a text, by default in characters."""
        if kind in LABELLED:
            counts = Counter(label for row in rows for label in labels_of(row.outputs[0], kind))
            self.labels[split] = dict(counts.most_common())
        for part, texts in (
            ("input", [" ".join(str(v) for v in row.inputs.values()) for row in rows]),
            ("output", [row.outputs[0] for row in rows]),
        ):
            if texts:
                self.lengths[f"{split} {part}"] = _spread([count(text) for text in texts])

    def measure_text(self, documents: Sequence[Document], *, count: Callable[[str], int] = len) -> None:
        """Add the lengths of the documents; see `measure`."""
        self.lengths["text input"] = _spread([count(document.text) for document in documents])

    def rare(self) -> list[str]:
        """List the labels with few training rows, rarest first, as `label (rows)`."""
        few = [(rows, label) for label, rows in self.labels.get("train", {}).items() if rows < RARE]
        return [f"{label} ({rows})" for rows, label in sorted(few)]

    def as_dict(self) -> dict[str, Any]:
        """Give the report as JSON values."""
        splits = {
            name: {
                "read": split.read,
                "kept": split.kept,
                "dropped": {reason: len(sources) for reason, sources in split.dropped.items()},
                "dropped_at": {reason: sources[:SHOWN] for reason, sources in split.dropped.items()},
            }
            for name, split in self.splits.items()
        }
        return {**vars(self), "splits": splits}


def _spread(lengths: Sequence[int]) -> dict[str, float]:
    ordered = sorted(lengths)
    p95 = ordered[round(0.95 * (len(ordered) - 1))]
    return {"min": ordered[0], "median": statistics.median(ordered), "p95": p95, "max": ordered[-1]}
