"""From a task file to its three splits, once, the same way every time."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from rung.data.examples import examples
from rung.data.report import DataReport, SplitReport
from rung.data.sources import HUB, read_rows
from rung.data.types import Data, Example, hash_of
from rung.errors import DataError

if TYPE_CHECKING:
    from rung.task import Task

SPLITS = ("train", "validation", "test")
FEW_ROWS = 30


def load_data(task: Task) -> Data:
    """Read, check, split and limit the rows of a task.

    Splits that have no file are cut from the training file by a hash of the input (or of the group column), so a row's
    split never depends on other rows, and equal inputs never stand on both sides.

    Raises:
        DataError: rows are wrong; the message names file and line.
    """
    report = DataReport()
    splits, cut = _read(task, report)
    for name in cut:
        report.splits[name] = SplitReport()
    splits = _without_duplicates(task, splits, report)
    labels = _labels(task, splits)
    splits = {name: _limited(task, name, rows, report) for name, rows in splits.items()}
    for name, rows in splits.items():
        report.splits[name].kept = len(rows)
        report.measure(name, rows, category=task.output.kind == "category")
    _warn(report, splits)
    digest = hash_of([[name, [[e.id, *e.outputs] for e in splits[name]]] for name in SPLITS])
    train, validation, test = (tuple(splits[name]) for name in SPLITS)
    return Data(train, validation, test, labels=labels, report=report, fingerprint=digest)


def _read(task: Task, report: DataReport) -> tuple[dict[str, list[Example]], list[str]]:
    """Read the given files; cut what is not given from the training rows."""
    source = task.data
    files = {"train": [source.train] if isinstance(source.train, str) else source.train}
    files |= {name: [file] for name in SPLITS[1:] if (file := getattr(source, name)) is not None}
    splits: dict[str, list[Example]] = {name: [] for name in SPLITS}
    groups: list[str] = []
    for name, names in files.items():
        part = report.splits[name] = SplitReport()
        for file in names:
            path = file if file.startswith(HUB) else task.folder / Path(file).expanduser()
            made, of_group = examples(read_rows(path, encoding=source.encoding), task, part)
            splits[name] += made
            if name == "train":
                groups += of_group
        if part.read == 0:
            raise DataError("empty-file", f"{', '.join(names)} has no rows", hint="write at least one row")
    cut = [name for name in ("test", "validation") if name not in files]
    shares = {name: getattr(source.split, name) for name in cut}
    kept = []
    for example, group in zip(splits["train"], groups, strict=True):
        place = _fraction(f"{source.split.seed}/{group or example.id}")
        for name, share in shares.items():
            if place < share:
                splits[name].append(example)
                break
            place -= share
        else:
            kept.append(example)
    splits["train"] = kept
    return splits, cut


def _fraction(text: str) -> float:
    return int(hash_of(text), 16) / 16**16


def _without_duplicates(task: Task, splits: dict[str, list[Example]], report: DataReport) -> dict[str, list[Example]]:
    """Drop repeated rows within a split; inputs that stand in two splits are an error, or leave the earlier one."""
    result: dict[str, list[Example]] = {}
    owner: dict[str, tuple[str, Example]] = {}
    for name in reversed(SPLITS):  # test first: rows leave the training side, never the test
        seen: dict[tuple[str, tuple[str, ...]], Example] = {}
        result[name] = []
        for example in splits[name]:
            if example.id in owner and owner[example.id][0] != name:
                other, first = owner[example.id]
                if task.data.duplicates == "error":
                    raise DataError(
                        "duplicate-across-splits",
                        f"the input of {example.source} ({name}) is that of {first.source} ({other})",
                        hint="remove one, or set `data.duplicates: drop` to drop such rows from the training side",
                    )
                report.splits[name].drop(f"also in {other}", example.source)
                continue
            if (example.id, example.outputs) in seen:
                report.splits[name].drop("repeated row", example.source)
                continue
            if example.id in owner:
                report.warnings.append(
                    f"{example.source} and {owner[example.id][1].source}: the same input, another expected answer"
                )
            seen[example.id, example.outputs] = example
            owner.setdefault(example.id, (name, example))
            result[name].append(example)
    return {name: result[name] for name in SPLITS}


def _labels(task: Task, splits: dict[str, list[Example]]) -> tuple[str, ...]:
    """Return the sorted label set and check every row's label against it."""
    if task.output.kind != "category":
        return ()
    first: dict[str, str] = {}
    spelled: dict[str, str] = {}
    for name in SPLITS:
        for example in splits[name]:
            label = example.outputs[0]
            first.setdefault(label, example.source)
            other = spelled.setdefault(" ".join(label.lower().split()), label)
            if other != label:
                raise DataError(
                    "label-spelling",
                    f"{other!r} ({first[other]}) and {label!r} ({example.source}) differ in case or spaces only",
                    hint="write both the same way",
                )
    if len(first) < 2:
        raise DataError(
            "one-label", f"every row has the label {next(iter(first), '')!r}", hint="give rows of two labels"
        )
    allowed = task.output.labels
    if allowed is None:
        return tuple(sorted(first))
    for label, source in first.items():
        if label not in allowed:
            from rung.task import suggest

            raise DataError(
                "unknown-label",
                f"{source}: the label {label!r} is not among `output.labels`",
                hint=suggest(label, allowed),
            )
    return tuple(sorted(allowed))


def _limited(task: Task, name: str, rows: list[Example], report: DataReport) -> list[Example]:
    """Keep as many rows as the task allows: chosen by hash, kept in file order."""
    kept = {id(row) for row in rows}
    ordered = sorted(rows, key=lambda row: row.id)
    if name == "train" and task.data.train_per_label is not None:
        by_label: dict[str, int] = defaultdict(int)
        for row in ordered:
            by_label[row.outputs[0]] += 1
            if by_label[row.outputs[0]] > task.data.train_per_label:
                kept.discard(id(row))
    limit = getattr(task.data, f"{name}_rows")
    if limit is not None:
        still = [row for row in ordered if id(row) in kept]
        kept = {id(row) for row in still[:limit]}
    for row in rows:
        if id(row) not in kept:
            report.splits[name].drop("over the limit", row.source)
    return [row for row in rows if id(row) in kept]


def _warn(report: DataReport, splits: dict[str, list[Example]]) -> None:
    """Note what a careful reader would ask about."""
    counts = report.labels
    if counts:
        for name in SPLITS[1:]:
            unseen = sorted(set(counts[name]) - set(counts["train"]))
            if unseen:
                report.warnings.append(f"{len(unseen)} labels of {name} have no training row, such as {unseen[0]!r}")
    for name in SPLITS:
        if 0 < len(splits[name]) < FEW_ROWS:
            report.warnings.append(
                f"{name} has only {len(splits[name])} rows: differences will be hard to tell from chance"
            )
