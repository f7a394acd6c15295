"""Load a task's data: read the rows, check them, cut the three splits, and report on them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from rung.data.cells import text_of
from rung.data.examples import column, examples
from rung.data.kinds import BALANCED
from rung.data.preferences import parted, read_preferences
from rung.data.quality import LIMITED, Placed, crossing_groups, judge, time_warnings, united_groups
from rung.data.quality import places as places_of
from rung.data.rows import (
    LABELLED,
    SHOWN,
    Data,
    DataReport,
    Document,
    Example,
    Preference,
    SplitReport,
    hash_of,
    labels_of,
    normal,
)
from rung.data.sources import is_hub, opened, read_text
from rung.data.spec import TaskSpec
from rung.data.splitting import FOLD_BELOW, FOLDS, Place, cut
from rung.data.texts import canonical, spelling, words
from rung.errors import DataError, suggest

SPLITS = ("train", "validation", "test")
Splits = dict[str, list[Example]]  # the rows by the name of their split

# ---- plain text of a domain, and evaluation rows that occur in it

PLAIN = (".txt", ".md")
WINDOW = (
    13  # equal words in sequence that show a copy (Brown et al. 2020, https://arxiv.org/abs/2005.14165, appendix C)
)
BEGINNING = 1000  # characters of an input that are looked for in the documents of a corpus
FEWEST = 5  # a text with fewer words may occur by chance


def read_documents(task: TaskSpec, report: SplitReport) -> tuple[Document, ...]:
    """Read the files of `data.text`: each .txt or .md file and each row of a table is one document.

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
        raise DataError(
            "too-few-rows", f"{', '.join(names)} contains no text", hint="leave out `data.text`, or add text"
        )
    return tuple(kept.values())


def _documents(name: str, task: TaskSpec) -> Iterator[Document]:
    path = task.folder / Path(name).expanduser()
    if not is_hub(name) and path.suffix.lower() in PLAIN:
        if not path.is_file():
            raise DataError("no-such-file", f"{path} does not exist", hint="paths are relative to the task file")
        yield Document(read_text(path, task.data.encoding), path.name)
        return
    for record in opened(name, task.folder, task.data.format)[0]:
        yield Document(text_of(column(record, task.data.text_column)), record.source)


def found_in(
    documents: Iterable[Document], rows: Sequence[Example], *, answered: bool = False
) -> list[tuple[Example, Document]]:
    """Find the rows that occur in the documents, each with the first document that contains it.

    A row occurs if 13 words in sequence of one of its inputs or answers do, or all words of a shorter one. Case and
    spaces do not matter; texts with fewer than 5 words are ignored.

    With `answered`, the beginning of an input and a whole answer must stand in the same document, and punctuation does
    not matter either.
    """
    wanted: dict[tuple[str, str], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    split: Callable[[str], list[str]] = words if answered else lambda text: normal(text).split()
    for number, row in enumerate(rows):
        for text in _texts(row.inputs) if answered else (*_texts(row.inputs), *row.outputs):
            own = split(text[:BEGINNING] if answered else text)
            for first in range(max(1, len(own) - WINDOW + 1) if len(own) >= FEWEST else 0):
                window = own[first : first + WINDOW]
                wanted[window[0], window[1]][" ".join(window)].append(number)
    owners: dict[int, Document] = {}
    for document in documents:
        own = split(document.text)
        whole = f" {' '.join(own)} " if answered else ""
        for first, pair in enumerate(pairwise(own)):
            if pair in wanted:
                here = " ".join(own[first : first + WINDOW])
                for phrase, numbers in wanted[pair].items():
                    if here == phrase or here.startswith(phrase + " "):
                        for number in numbers:
                            if number not in owners and (not answered or _answered(rows[number], whole)):
                                owners[number] = document
    return [(rows[number], owners[number]) for number in sorted(owners)]


def _answered(row: Example, text: str) -> bool:
    return any(f" {' '.join(words(output))} " in text for output in row.outputs)


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [text for inner in value for text in _texts(inner)] if isinstance(value, list) else []


# ---- rows


def load_data(task: TaskSpec) -> Data:
    """Read, check, split and limit the rows of a task.

    Splits without a file are cut from the training file, or all rows become folds; see `rung.data.splitting`. Equal
    inputs are never in two splits.

    Raises:
        DataError: rows are wrong; the message names file and line.
    """
    report = DataReport()
    splits, folds, groups = _read(task, report)
    splits = _without_duplicates(task, splits, report)
    if not any(splits.values()):
        dropped = [(reason, rows) for part in report.splits.values() for reason, rows in part.dropped.items()]
        reasons = "; ".join(f"{reason}: {len(rows):,} rows, {places_of(rows)}" for reason, rows in dropped)
        hint = "check `inputs` and `output` in the task file, and the cells of these columns"
        raise DataError("too-few-rows", f"no row can be used ({reasons})", hint=hint)
    labels, every = _labels(task, splits), splits
    splits = {name: _limited(task, name, rows, report) for name, rows in splits.items()}
    kept = {id(row) for row in splits["train"]}
    if task.metric_name == BALANCED:
        splits |= {name: _balanced(splits[name], report.splits[name]) for name in SPLITS[1:] if splits[name]}
        kept = {id(row) for row in _balanced(splits["train"], None)} if folds else kept
    left = (tuple(row for row in fold if id(row) in kept) for fold in folds)
    parts = tuple(fold for fold in left if fold)
    folds = [fold for fold in folds if any(id(row) in kept for row in fold)]
    learned, unseen = _preferences(task, labels, every, folds, groups, report)
    for name in (name for name in SPLITS if name in report.splits):
        report.splits[name].kept = len(splits[name])
        report.measure(name, splits[name], kind=task.output.kind)
    report.folds = [len(fold) for fold in parts]
    content: list[Any] = [[name, [_content(e) for e in splits[name]]] for name in SPLITS]
    text = _text(task, splits, report)
    judge(task, labels, splits, report)
    if text:
        content.append(["text", [document.text for document in text]])
    if parts:
        content.append(["folds", [[row.id for row in fold] for fold in parts]])
    if learned or unseen:
        content.append(["preferences", [[_content(row) if row else [] for row in (each.chosen, each.rejected)]
                                        for each in (*learned, *unseen)]])  # fmt: skip
    train, validation, test = (tuple(splits[name]) for name in SPLITS)
    return Data(
        train, validation, test, labels, report, hash_of(content, digits=64), task.folder, text, parts, learned, unseen
    )


def _preferences(
    task: TaskSpec, labels: tuple[str, ...], splits: Splits, folds: Sequence[Sequence[Example]],
    groups: Mapping[int, str], report: DataReport,
) -> tuple[tuple[Preference, ...], tuple[Preference, ...]]:  # fmt: skip
    """Read the preferences: those that may be learned, and those about validation and test rows."""
    if task.data.preferences is None:
        return (), ()

    def places(rows: Iterable[Example]) -> dict[str, str]:
        own = {row.id: row.source for row in rows}
        return own | {f"group {spelling(groups[id(row)])}": row.source for row in rows if groups[id(row)]}

    part = SplitReport()
    read = read_preferences(task, labels, part)
    held = {name: places(splits[name]) for name in SPLITS[1:]}
    learned, unseen = parted(read, task, held, [places(fold) for fold in folds], part)
    part.kept = len(learned) + len(unseen)
    report.splits["preferences"] = part
    every = [*learned, *unseen]
    report.preferences = {
        "pairs": sum(each.pair is not None for each in every),
        "good": sum(each.rejected is None for each in every),
        "bad": sum(each.chosen is None for each in every),
        "unseen": len(unseen),
    }
    return tuple(learned), tuple(unseen)


def _balanced(rows: list[Example], part: SplitReport | None) -> list[Example]:
    """Keep as many rows of each label as the rarest has, chosen by hash: their accuracy is the balanced accuracy."""
    by_label: dict[str, list[Example]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.id):
        by_label[row.outputs[0]].append(row)
    fewest = min(map(len, by_label.values()))
    kept = {id(row) for group in by_label.values() for row in group[:fewest]}
    if part is not None:
        for row in rows:
            if id(row) not in kept:
                part.drop("left out so that labels count alike", row.source)
    return [row for row in rows if id(row) in kept]


def _content(row: Example) -> list[Any]:
    """Select the values of a row that the data's fingerprint covers."""
    spans = [] if row.spans is None else [[asdict(span) for span in row.spans]]
    return [row.id, *row.outputs, *spans, *([[row.turn, row.masked]] if row.turn or row.masked else []),
            *([] if row.weight == 1 else [["weight", row.weight]])]  # fmt: skip


def _read(task: TaskSpec, report: DataReport) -> tuple[Splits, list[list[Example]], dict[int, str]]:
    """Read the given files, and cut the training rows into the other splits or into folds; with the groups of rows."""
    source = task.data
    if source.train is None:
        hint = "name a file with inputs and expected answers: `data: {train: rows.csv}`"
        raise DataError("too-few-rows", f"the task {task.name} has no rows: `data.train` is missing", hint=hint)
    files = source.given()
    splits: Splits = {name: [] for name in SPLITS}
    places: dict[str, list[Place]] = {name: [] for name in SPLITS}
    for name, sources in files.items():
        part = report.splits[name] = SplitReport()
        for file in sources:
            records, stated = opened(file, task.folder, source.format)
            report.formats |= {str(file): stated} if stated else {}
            rows, own = examples(records, task, part)
            splits[name] += rows
            places[name] += own
        if part.read == 0:
            raise DataError(
                "too-few-rows", f"{', '.join(map(str, sources))} has no rows", hint="write at least one row"
            )
    if source.split.time:
        report.warnings += time_warnings(_placed(splits, places), source.split.time)
    if source.split.group:
        united, told = united_groups(_placed(splits, places), source.split.group)
        places = {
            name: [replace(place, group=united.get(place.group, "")) for place in own] for name, own in places.items()
        }
        report.warnings += told
        _separate_groups(task, source.split.group, splits, places, report)
    groups = {id(row): place.group for name in SPLITS
              for row, place in zip(splits[name], places[name], strict=True)}  # fmt: skip
    missing = [name for name in ("test", "validation") if name not in files]
    report.method = _method(task, splits["train"], missing)
    kind, split = task.output.kind, source.split
    folds: list[list[Example]] = []
    if report.method == "folds":
        parts = cut(splits["train"], places["train"], [1 / FOLDS] * FOLDS, kind=kind, seed=split.seed, method="folds")
        folds = [[row for row, part in zip(splits["train"], parts, strict=True) if part == i] for i in range(FOLDS)]
    elif report.method == "holdout":
        shares = [float(getattr(split, name)) for name in missing]
        method: Literal["hash", "time"] = "time" if split.time else "hash"
        given, names = splits["train"], [*missing, "train"]
        parts = cut(given, places["train"], [*shares, 1 - sum(shares)], kind=kind, seed=split.seed, method=method)
        for index, name in enumerate(names):
            splits[name] = [row for row, part in zip(given, parts, strict=True) if part == index]
        for name in missing:
            report.splits[name] = SplitReport(read=len(splits[name]))
            report.splits["train"].read -= len(splits[name])
    report.splits = {name: report.splits[name] for name in SPLITS if name in report.splits}
    return splits, folds, groups


def _placed(splits: Splits, places: Mapping[str, Sequence[Place]]) -> Placed:
    return {name: list(zip(splits[name], places[name], strict=True)) for name in SPLITS}


def _separate_groups(
    task: TaskSpec, column: str, splits: Splits, places: dict[str, list[Place]], report: DataReport
) -> None:
    """Warn of groups that are in two given files; with `duplicates: drop`, drop their rows from the training side."""
    groups: dict[str, dict[str, str]] = {}
    for name in SPLITS:
        groups[name] = {}
        for row, place in zip(splits[name], places[name], strict=True):
            if place.group:
                groups[name].setdefault(place.group, row.source)
    if task.data.duplicates == "error":
        report.warnings += crossing_groups(groups, column)
        return
    for number, name in enumerate(SPLITS):
        kept: list[tuple[Example, Place]] = []
        for row, place in zip(splits[name], places[name], strict=True):
            other = next((other for other in reversed(SPLITS[number + 1 :]) if place.group in groups[other]), "")
            if other:
                report.splits[name].drop(f"its group is also in {other}", row.source)
            else:
                kept.append((row, place))
        splits[name], places[name] = [row for row, _ in kept], [place for _, place in kept]


def _method(task: TaskSpec, rows: Sequence[Example], missing: Sequence[str]) -> Literal["files", "holdout", "folds"]:
    """How rows are kept apart: see `split.method`."""
    wanted = task.data.split.method
    if not missing:
        return "files"
    if (
        wanted == "auto"
        and task.data.may_use_folds()
        and len({row.id for row in rows}) < FOLD_BELOW.get(task.output.kind, 0)
    ):
        return "folds"
    return "folds" if wanted == "folds" else "holdout"


def _without_duplicates(task: TaskSpec, splits: Splits, report: DataReport) -> Splits:
    """Drop repeated rows within a split; inputs in two splits are an error, or dropped from the earlier split."""
    result: Splits = {}
    owner: dict[str, tuple[str, Example]] = {}
    crossing: list[str] = []
    conflicts: list[str] = []
    for name in reversed(SPLITS):  # test first: rows leave the training side, never the test
        seen: set[tuple[str, tuple[str, ...]]] = set()
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
            seen.add((example.id, example.outputs))
            owner.setdefault(example.id, (name, example))
            result[name].append(example)
    if crossing and task.data.duplicates == "error":
        more = f" (and {len(crossing) - 1:,} more rows like it)" if len(crossing) > 1 else ""
        hint = "remove one, or set `data.duplicates: drop` to drop such rows from the training side"
        raise DataError("duplicate-across-splits", crossing[0] + more, hint=hint)
    if conflicts:
        shown = "; ".join(conflicts[:SHOWN])
        report.warnings.append(f"{len(conflicts)} rows repeat an input with another expected answer: {shown}")
    return {name: result[name] for name in SPLITS}


def _labels(task: TaskSpec, splits: Splits) -> tuple[str, ...]:
    """Collect the sorted label set, and check the rows' labels and the task file's descriptions against it."""
    if task.output.kind not in LABELLED:
        return ()
    first = _label_sources(splits, task.output.kind, task.output.labels or ())
    named = task.output.columns or ()  # a label that no row has is an answer all the same
    allowed = task.output.labels or sorted({*first, *named})
    described = dict.fromkeys(task.output.descriptions, "`output.descriptions`")
    for label, source in {**described, **first}.items():
        if label not in allowed:
            of = "`output.labels`" if task.output.labels else "those of the rows"
            problem = f"{source}: the label {label!r} is not among {of}"
            raise DataError("unknown-label", problem, hint=suggest(label, allowed))
    return tuple(sorted(allowed))


def _label_sources(splits: Splits, kind: str, listed: Sequence[str]) -> dict[str, str]:
    """Find the first row of every label; refuse two spellings of a label unless both are listed, and a single label."""
    first: dict[str, str] = {}
    spelled = {spelling(label): label for label in listed}
    for name in SPLITS:
        for example, label in ((e, label) for e in splits[name] for label in labels_of(e.outputs[0], kind)):
            first.setdefault(label, example.source)
            other = spelled.setdefault(spelling(label), label)
            if other != label and label not in listed:
                shown = ascii if canonical(other) == canonical(label) else repr  # escapes show what cannot be seen
                place = first.get(other, "`output.labels`")
                both = f"{shown(other)} ({place}) and {shown(label)} ({example.source})"
                problem = f"the labels {both} differ in case, spaces, invisible characters, width or form only"
                raise DataError(
                    "label-spelling", problem, hint="write both the same way, or list both in `output.labels`"
                )
    if len(first) < 2:
        problem = ", ".join(f"{source}: every row's label is {label!r}" for label, source in first.items())
        hint = "a choice needs two labels: check `output.column`, or add rows with another label"
        raise DataError("one-label", problem or "no row has a label", hint=hint)
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
        kept = {id(row) for row in [row for row in ordered if id(row) in kept][:limit]}
    for row in rows:
        if id(row) not in kept:
            report.splits[name].drop(LIMITED, row.source)
    return [row for row in rows if id(row) in kept]


def _text(task: TaskSpec, splits: Splits, report: DataReport) -> tuple[Document, ...]:
    """Read the plain text, and warn of evaluation rows that occur in it."""
    if task.data.text is None:
        return ()
    part = SplitReport()
    documents = read_documents(task, part)
    report.splits["text"] = part
    report.measure_text(documents)
    for name in SPLITS if report.method == "folds" else SPLITS[1:]:
        if leaked := found_in(documents, splits[name]):
            row, document = leaked[0]
            report.warnings.append(
                f"{len(leaked):,} of {len(splits[name]):,} {name} rows occur in the text of `data.text`, such as "
                f"{row.source} in {document.source}: a model adapted to it has read them"
            )
    return documents
