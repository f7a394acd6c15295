"""From a task file to its three splits, once, the same way every time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from math import sqrt
from pathlib import Path
from statistics import NormalDist
from typing import Any

from rung.data.examples import column, examples, text_of
from rung.data.rows import (
    DISCORDANCE,
    LABELLED,
    SHOWN,
    Data,
    DataReport,
    Document,
    Example,
    SplitReport,
    hash_of,
    labels_of,
    normal,
    place_of,
)
from rung.data.sources import HUB, read_rows, read_text
from rung.data.spec import TaskSpec
from rung.errors import DataError, suggest

# --------------------
# Plain text to adapt a model to a domain: the documents of `data.text`, and what of it the rows to measure on hold.


PLAIN = (".txt", ".md")
WINDOW = 13  # words in a row that tell a copy (Brown et al. 2020, https://arxiv.org/abs/2005.14165, appendix C)
FEWEST = 5  # words of a shorter row that tell one; fewer are said by chance


def read_documents(task: TaskSpec, report: SplitReport) -> tuple[Document, ...]:
    """Read the files of `data.text`: a .txt or .md file is one document, of a table each row is one.

    Empty and repeated documents are dropped and counted in `report`.

    Raises:
        DataError: a file cannot be read, a table lacks the column, or nothing is left.
    """
    names = [task.data.text] if isinstance(task.data.text, str) else task.data.text or []
    kept: dict[str, Document] = {}
    for name in names:
        for document in _documents(name, task):
            report.read += 1
            if not document.text.strip():
                report.drop("empty document", document.source)
            elif document.text in kept:
                report.drop("repeated document", document.source)
            else:
                kept[document.text] = document
    report.kept = len(kept)
    if names and not kept:
        raise DataError("too-few-rows", f"{', '.join(names)} holds no text", hint="leave out `data.text`, or add text")
    return tuple(kept.values())


def _documents(name: str, task: TaskSpec) -> Iterator[Document]:
    path: str | Path = name if name.startswith(HUB) else task.folder / Path(name).expanduser()
    if isinstance(path, Path) and path.suffix.lower() in PLAIN:
        if not path.is_file():
            raise DataError("no-such-file", f"{path} does not exist", hint="paths are relative to the task file")
        yield Document(read_text(path, task.data.encoding), path.name)
        return
    for record in read_rows(path, encoding=task.data.encoding):
        yield Document(text_of(column(record, task.data.text_column)), record.source)


def found_in(documents: Sequence[Document], rows: Sequence[Example]) -> list[tuple[Example, Document]]:
    """Return the rows that stand in the documents, each with the first document that holds it.

    A row does if 13 words in a row of one of its inputs or answers do, or all the words of a shorter one. Case and
    spaces do not matter; what has fewer than 5 words is not looked for.
    """
    wanted: dict[tuple[str, str], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, row in enumerate(rows):
        for text in (*_texts(row.inputs), *row.outputs):
            words = normal(text).split()
            for first in range(max(1, len(words) - WINDOW + 1) if len(words) >= FEWEST else 0):
                some = words[first : first + WINDOW]
                wanted[some[0], some[1]][" ".join(some)].append(number)
    found: dict[int, Document] = {}
    for document in documents:
        words = normal(document.text).split()
        for first, pair in enumerate(pairwise(words)):
            if pair in wanted:
                here = " ".join(words[first : first + WINDOW])
                for some, numbers in wanted[pair].items():
                    if here == some or here.startswith(some + " "):
                        for number in numbers:
                            found.setdefault(number, document)
    return [(rows[number], found[number]) for number in sorted(found)]


def _texts(value: Any) -> Iterable[str]:
    """Return every text inside the inputs of a row."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [text for inner in value for text in _texts(inner)] if isinstance(value, list) else []


SPLITS = ("train", "validation", "test")
FEW_ROWS = 30


def load_data(task: TaskSpec) -> Data:
    """Read, check, split and limit the rows of a task.

    Splits that have no file are cut from the training file by a hash of the input (or of the group column), so a row's
    split never depends on other rows, and equal inputs never stand on both sides.

    Raises:
        DataError: rows are wrong; the message names file and line.
    """
    report = DataReport()
    splits = _read(task, report)
    splits = _without_duplicates(task, splits, report)
    labels = _labels(task, splits)
    splits = {name: _limited(task, name, rows, report) for name, rows in splits.items()}
    for name, rows in splits.items():
        report.splits[name].kept = len(rows)
        report.measure(name, rows, kind=task.output.kind)
    _warn(labels, splits, report)
    _note_detectable(task, splits, report)
    content: list[Any] = [[name, [_content(e) for e in splits[name]]] for name in SPLITS]
    text = _text(task, splits, report)
    if text:
        content.append(["text", [document.text for document in text]])
    train, validation, test = (tuple(splits[name]) for name in SPLITS)
    return Data(train, validation, test, labels, report, hash_of(content, digits=64), task.folder, text)


def _content(row: Example) -> list[Any]:
    """Return what of a row the data's fingerprint covers."""
    return [row.id, *row.outputs, *([] if row.spans is None else [[asdict(span) for span in row.spans]])]


def _read(task: TaskSpec, report: DataReport) -> dict[str, list[Example]]:
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
            raise DataError("too-few-rows", f"{', '.join(names)} has no rows", hint="write at least one row")
    cut = [name for name in ("test", "validation") if name not in files]
    shares = {name: getattr(source.split, name) for name in cut}
    kept = []
    for example, group in zip(splits["train"], groups, strict=True):
        place = place_of(f"{source.split.seed}/{group or example.id}")
        for name, share in shares.items():
            if place < share:
                splits[name].append(example)
                break
            place -= share
        else:
            kept.append(example)
    splits["train"] = kept
    for name in cut:
        report.splits[name] = SplitReport(read=len(splits[name]))
        report.splits["train"].read -= len(splits[name])
    report.splits = {name: report.splits[name] for name in SPLITS}
    return splits


def _without_duplicates(
    task: TaskSpec, splits: dict[str, list[Example]], report: DataReport
) -> dict[str, list[Example]]:
    """Drop repeated rows within a split; inputs that stand in two splits are an error, or leave the earlier one."""
    result: dict[str, list[Example]] = {}
    owner: dict[str, tuple[str, Example]] = {}
    crossing: list[str] = []
    conflicts: list[str] = []
    for name in reversed(SPLITS):  # test first: rows leave the training side, never the test
        seen: dict[tuple[str, tuple[str, ...]], Example] = {}
        result[name] = []
        for example in splits[name]:
            if example.id in owner and owner[example.id][0] != name:
                other, first = owner[example.id]
                crossing.append(f"the input of {example.source} ({name}) is that of {first.source} ({other})")
                report.splits[name].drop(f"also in {other}", example.source)
                continue
            if (example.id, example.outputs) in seen:
                report.splits[name].drop("repeated row", example.source)
                continue
            if example.id in owner:
                conflicts.append(f"{owner[example.id][1].source} and {example.source}")
            seen[example.id, example.outputs] = example
            owner.setdefault(example.id, (name, example))
            result[name].append(example)
    if crossing and task.data.duplicates == "error":
        more = f" (and {len(crossing) - 1:,} more rows like it)" if len(crossing) > 1 else ""
        raise DataError(
            "duplicate-across-splits",
            crossing[0] + more,
            hint="remove one, or set `data.duplicates: drop` to drop such rows from the training side",
        )
    if conflicts:
        report.warnings.append(
            f"{len(conflicts)} rows repeat an input with another expected answer: {'; '.join(conflicts[:SHOWN])}"
        )
    return {name: result[name] for name in SPLITS}


def _labels(task: TaskSpec, splits: dict[str, list[Example]]) -> tuple[str, ...]:
    """Return the sorted label set and check every row's label, and the task file's descriptions, against it."""
    if task.output.kind not in LABELLED:
        return ()
    first = _label_sources(splits, task.output.kind)
    allowed = task.output.labels or sorted(first)
    described = dict.fromkeys(task.output.descriptions, "`output.descriptions`")
    for label, source in {**described, **first}.items():
        if label not in allowed:
            of = "`output.labels`" if task.output.labels else "those of the rows"
            raise DataError(
                "unknown-label", f"{source}: the label {label!r} is not among {of}", hint=suggest(label, allowed)
            )
    return tuple(sorted(allowed))


def _label_sources(splits: dict[str, list[Example]], kind: str) -> dict[str, str]:
    """Return every label of the rows with the place where it stands first; refuse two spellings and a single label."""
    first: dict[str, str] = {}
    spelled: dict[str, str] = {}
    for name in SPLITS:
        for example, label in ((e, label) for e in splits[name] for label in labels_of(e.outputs[0], kind)):
            first.setdefault(label, example.source)
            other = spelled.setdefault(" ".join(label.lower().split()), label)
            if other != label:
                raise DataError(
                    "label-spelling",
                    f"the labels {other!r} ({first[other]}) and {label!r} ({example.source}) "
                    "differ in case or spaces only",
                    hint="write both the same way",
                )
    if len(first) < 2:
        found = ", ".join(f"{source}: every row's label is {label!r}" for label, source in first.items())
        found = found or "no row has a label"
        raise DataError(
            "one-label", found, hint="a choice needs two labels: check `output.column`, or add rows with another label"
        )
    return first


def _limited(task: TaskSpec, name: str, rows: list[Example], report: DataReport) -> list[Example]:
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


def _text(task: TaskSpec, splits: dict[str, list[Example]], report: DataReport) -> tuple[Document, ...]:
    """Read the plain text, and warn of rows to measure on that stand in it."""
    if task.data.text is None:
        return ()
    part = SplitReport()
    documents = read_documents(task, part)
    report.splits["text"] = part
    report.measure_text(documents)
    for name in SPLITS[1:]:
        if found := found_in(documents, splits[name]):
            row, document = found[0]
            report.warnings.append(
                f"{len(found):,} of {len(splits[name]):,} {name} rows stand in the text of `data.text`, such as "
                f"{row.source} in {document.source}: a model adapted to it has read them"
            )
    return documents


def _warn(labels: Sequence[str], splits: dict[str, list[Example]], report: DataReport) -> None:
    """Note what a careful reader would ask about."""
    unseen = [label for label in labels if label not in report.labels["train"]]
    if unseen:
        report.warnings.append(
            f"{len(unseen)} of {len(labels)} labels have no training row, such as {unseen[0]!r}: "
            "only prompting can answer with them"
        )
    for name in SPLITS:
        rows = len(splits[name])
        if rows == 0:
            report.warnings.append(f"{name} has no rows")
        elif rows < FEW_ROWS and name != "train":
            report.warnings.append(f"{name} has only {rows} rows: differences will be hard to tell from chance")


def _note_detectable(task: TaskSpec, splits: dict[str, list[Example]], report: DataReport) -> None:
    """Say how large a difference the splits can show, for kinds whose usual scores are 0 or 1."""
    if task.output.kind not in (*LABELLED, "json"):
        return
    for name in SPLITS[1:]:
        if splits[name]:
            report.detectable[name] = detectable_difference(len(splits[name]), DISCORDANCE)


def detectable_difference(n: int, discordance: float, *, power: float = 0.8, alpha: float = 0.05) -> float | None:
    """Find the smallest true difference that a two-sided paired test of 0/1 scores detects with the given power.

    Connor, Sample size for testing differences in proportions for the paired-sample design, Biometrics 43 (1987):
    sqrt(n) d = z_alpha sqrt(discordance) + z_power sqrt(discordance - d^2), squared and solved for d.

    Args:
        n: number of rows.
        discordance: share of rows on which the two scores disagree; no difference can exceed it.
        power: probability of detecting the difference.
        alpha: level of the test.

    Returns:
        The difference, or None where even the largest possible one is not detected.
    """
    z_alpha, z_power = NormalDist().inv_cdf(1 - alpha / 2), NormalDist().inv_cdf(power)
    inside = n + z_power**2 - z_alpha**2
    if inside < 0:
        return None
    effect = sqrt(discordance) * (sqrt(n) * z_alpha + z_power * sqrt(inside)) / (n + z_power**2)
    return effect if effect <= discordance else None
