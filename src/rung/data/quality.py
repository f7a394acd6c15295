"""What makes a climb on some rows meaningless, and what would mislead: found in the rows alone, without a model."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from math import sqrt
from statistics import NormalDist
from typing import Any

from rung.data.examples import NOT_APPROVED
from rung.data.rows import LABELLED, SHOWN, DataReport, Example, labels_of, normal
from rung.data.spec import TaskSpec, placeholders
from rung.data.splitting import Place
from rung.data.texts import number_text, read_number, spelling
from rung.errors import DataError
from rung.yamlfile import json_value

Rows = Mapping[str, Sequence[Example]]  # by split
Placed = Mapping[str, Sequence[tuple[Example, Place]]]  # rows with their places, by split
LIMITED = "over the limit"  # why a row is left out that a limit of the task file leaves out
WANTED = (LIMITED, NOT_APPROVED)  # what the task file asks to leave out
FEW_LABELLED = 5  # a label with fewer test rows has no score of its own
LOPSIDED = 0.9  # share of one label, from which accuracy says little about the others
EMPTY = 0.95  # share of the rows, from which an input says nothing
LEAK_ROWS = 20  # rows from which an input that gives the answer away can be told from chance
LEAK_SHARE = 0.95  # of the rows
REPEATED = 3  # rows for each value of an input, on average, that determines the answer
DISCORDANCE = 0.2  # share of rows on which two artifacts are assumed to disagree
LEVEL, CANDIDATES, POWER = 0.05, 4, 0.8  # one-sided, shared by so many comparisons with the incumbent (Holm)
FEW_ROWS = 30
GAIN = 0.1  # the difference for which the rows needed are stated


def judge(task: TaskSpec, labels: Sequence[str], splits: Rows, report: DataReport) -> None:
    """Add the problems and warnings of the rows to their report."""
    tested = [
        name for name in ("train", "validation", "test") if name in report.splits and (report.folds or name != "train")
    ]
    report.problems += [
        *_problems(splits, report),
        *_one_answer(task, [row for part in splits.values() for row in part]),
    ]
    report.warnings += _left_out(report)
    if task.output.kind == "category" and (name := task.output.column) in labels:
        report.warnings.append(
            f"{name!r} is the name of the column and one of its labels: the first line may be no header, or the header "
            "may be repeated where files were joined"
        )
    if task.output.kind == "multilabel" and task.output.columns is None:
        rows = [row for part in splits.values() for row in part]
        report.warnings += _unseparated(task.output.separator, labels, rows)
    if task.output.kind in LABELLED:
        report.warnings += _labels_without_rows(labels, report, tested)
        report.warnings += _few_of_a_label(task, splits, report)
    if task.output.kind == "ranking":
        problems, told = _unanswerable(splits, report, [name for name in tested if splits[name]])
        report.problems, report.warnings = [*report.problems, *problems], [*report.warnings, *told]
    report.warnings += _unread(task, [row for part in splits.values() for row in part])
    report.warnings += _given_away(task, [row for name in report.splits for row in splits.get(name, ())])
    for name in tested:
        if splits[name]:
            _enough(task, _name(name, report), len(splits[name]), report)


def _enough(task: TaskSpec, name: str, rows: int, report: DataReport) -> None:
    """State what so many rows can show; the validation rows need not show anything."""
    size, binary = smallest_difference(rows), task.output.kind in (*LABELLED, "json")
    if binary:  # their usual scores are 0 or 1
        report.detectable["folds" if name == "labelled" else name] = size
    needed = f"a gain of {100 * GAIN:.0f} points needs about {rows_for(GAIN):,}"
    if size is None and name != "validation":
        report.problems.append(f"{rows} {name} rows can never show a difference: {needed}")
    elif rows < FEW_ROWS:
        shown = f"gains below {100 * size:.0f} points" if binary and size else "differences"
        source = task.data
        foldable = report.method == "holdout" and not (source.split.time or source.test or source.validation)
        more = "; `data.split: {method: folds}` measures all rows" if foldable else ""
        report.warnings.append(f"with {rows} {name} rows, {shown} are hard to tell from chance: {needed}{more}")


def _name(split: str, report: DataReport) -> str:
    return "labelled" if report.method == "folds" and split == "train" else {"train": "training"}.get(split, split)


def _problems(splits: Rows, report: DataReport) -> Iterator[str]:
    for name, part in report.splits.items():
        if (name in splits and not splits[name]) or (name == "preferences" and not part.kept):
            reasons = [f"{len(sources):,} dropped, {reason}" for reason, sources in part.dropped.items()]
            why = f" ({'; '.join(reasons)})" if reasons else f": give `data.{name}`, or more rows to split off"
            yield f"{name} has no rows{why}"
    if report.method == "folds" and len(report.folds) < 2 and splits["train"]:
        yield "all rows are in one fold, so none could be fitted on: give more rows, or more groups"


def _one_answer(task: TaskSpec, rows: Sequence[Example]) -> Iterator[str]:
    """Rows that all expect the same answer, unless a metric of the user looks at something else."""
    if len(rows) > 1 and ":" not in task.metric_name and len({row.outputs for row in rows}) == 1:
        yield (
            f"every row expects the same answer, {rows[0].outputs[0][:80]!r}, so whatever always gives it is right: "
            "check `output`, or add rows with another answer"
        )


def _left_out(report: DataReport) -> Iterator[str]:
    for name, part in report.splits.items():
        for reason, sources in part.dropped.items():
            if reason not in WANTED:
                yield f"{name}: {len(sources):,} of {part.read:,} rows dropped, {reason}: {places(sources)}"


def _unseparated(separator: str, labels: Sequence[str], rows: Sequence[Example]) -> Iterator[str]:
    """Warn of labels that may be several with another separator between them."""
    alone = all(len(labels_of(row.outputs[0], "multilabel")) < 2 for row in rows)
    for mark in (each for each in (";", "|", ",", "/") if each not in separator):
        joined = [label for label in labels if mark in label.strip(mark)]
        parts = {part.strip() for label in joined for part in label.split(mark)}
        if joined and (alone or mark in ";|" or parts <= {*labels}):
            yield f"labels hold {mark!r}: {_some(joined)}. If these are several, set `output.separator: {mark!r}`"
            return
    if alone:
        yield f"no row has two labels: if a cell holds several, set `output.separator`, which is {separator!r}"


def places(sources: Sequence[str]) -> str:
    """Name the first of the places."""
    more = f" and {len(sources) - SHOWN:,} more" if sources[SHOWN:] else ""
    return f"{', '.join(sources[:SHOWN])}{more}"


def _some(labels: Sequence[str], counts: Mapping[str, int] | None = None) -> str:
    shown = [repr(label) if counts is None else f"{label!r} ({counts[label]})" for label in labels[:SHOWN]]
    return places([*shown, *labels[SHOWN:]])


def _labels_without_rows(labels: Sequence[str], report: DataReport, tested: Sequence[str]) -> Iterator[str]:
    for split in ("train", *(name for name in tested if name != "train")):
        lacking = [label for label in labels if label not in report.labels.get(split, {})]
        if lacking and report.labels.get(split):
            effect = (
                "only prompting can answer with them" if split == "train" else "no score says how they are answered"
            )
            name = {"train": "training"}.get(split, split)
            yield f"{len(lacking)} of {len(labels)} labels have no {name} row: {_some(lacking)}: {effect}"


def _few_of_a_label(task: TaskSpec, splits: Rows, report: DataReport) -> Iterator[str]:
    """Labels with too few rows for a score of their own, and one label that hides the others."""
    split = "train" if report.method == "folds" else "test"
    counts, rows = report.labels.get(split, {}), len(splits[split])
    few = sorted((label for label, count in counts.items() if count < FEW_LABELLED), key=lambda label: counts[label])
    if few:
        yield (
            f"{len(few)} of {len(counts)} labels have fewer than {FEW_LABELLED} {_name(split, report)} rows, too few "
            f"to say how well they are answered: {_some(few, counts)}"
        )
    label, count = max(counts.items(), key=lambda item: item[1], default=("", 0))
    if task.output.kind == "category" and task.metric_name == "accuracy" and rows and LOPSIDED * rows <= count < rows:
        yield (
            f"always answering {label!r} is right in {count / rows:.1%} of the {_name(split, report)} rows: accuracy "
            "says little about the other labels"
        )


def _unanswerable(splits: Rows, report: DataReport, tested: Sequence[str]) -> tuple[list[str], list[str]]:
    """Find the rows whose answer no training row has, which no ranking of training rows can get right."""
    problems: list[str] = []
    told: list[str] = []
    counts = Counter(row.outputs[0] for row in splits["train"])
    for name in tested:
        least = 2 if name == "train" else 1  # in folds, another row than itself
        lone = [row.source for row in splits[name] if counts[row.outputs[0]] < least]
        text = (
            f"{len(lone):,} of {len(splits[name]):,} {_name(name, report)} rows ({len(lone) / len(splits[name]):.1%}) "
            f"have an answer that no {'other' if least > 1 else 'training'} row has, so nothing right can be found: "
            f"{places(lone)}"
        )
        if lone:
            (problems if len(lone) == len(splits[name]) else told).append(text)
    return problems, told


def _unread(task: TaskSpec, rows: Sequence[Example]) -> Iterator[str]:
    """Inputs that say nothing: empty in nearly all rows, or left out of the user's template."""
    if task.output.kind == "chat":
        return
    for name in task.inputs:
        empty = [row.source for row in rows if not row.inputs[name].strip()]
        if len(empty) >= EMPTY * len(rows) > 0:
            yield f"the input {name!r} is empty in {len(empty):,} of {len(rows):,} rows: {places(empty)}"
    if task.template is not None:
        for name in task.inputs:
            if name not in placeholders(task.template):
                yield f"`template` leaves out the input {name!r}, so no prompt shows it: add {{{name}}}, or drop it"


def _given_away(task: TaskSpec, rows: Sequence[Example]) -> Iterator[str]:
    """Inputs that contain the answer, or of which each value has one answer only."""
    kind = task.output.kind
    if kind == "multilabel":  # a row without labels has nothing to give away
        rows = [row for row in rows if labels_of(row.outputs[0], kind)]
    if len(rows) < LEAK_ROWS:
        return
    what = "contains" if kind in (*LABELLED, "ranking", "chat") else "is"
    answers = [normal(row.outputs[0]) for row in rows]
    for name in task.inputs:
        if kind == "chat":
            shown, values = f"the system text of {name!r}", [_system_text(row.inputs[name]) for row in rows]
            ends = zip(min(values), max(values), strict=False)
            shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], ends))  # the instruction of all rows
            inside = sum(a in v and 2 * len(a) >= len(v) - shared > 0 for a, v in zip(answers, values, strict=True))
        else:
            shown, values = f"the input {name!r}", [normal(row.inputs[name]) for row in rows]
            inside = sum(_gives(value, answer, task) for value, answer in zip(values, answers, strict=True))
        if inside >= LEAK_SHARE * len(rows):
            yield f"{shown} {what} the answer in {inside:,} of {len(rows):,} rows: is it known beforehand?"
        elif len(task.inputs) > 1 and determines(values, answers, REPEATED):
            yield (
                f"{shown} determines the answer: all rows with one of its {len(set(values)):,} values have "
                "the same answer. Leave it out of `inputs` if it is not known beforehand"
            )


def _system_text(turns: Sequence[Mapping[str, Any]]) -> str:
    return " ".join(normal(turn["content"]) for turn in turns if turn["role"] == "system")


def _gives(value: str, answer: str, task: TaskSpec) -> bool:
    """Whether the value of an input gives the answer of its row away; both are `normal`."""
    output = task.output
    if output.kind in (*LABELLED, "ranking"):
        parts = _parts(value)
        labels = labels_of(answer, output.kind) or (answer,)
        return all(f" {label} " in f" {value} " or label in parts for label in labels)
    if value == answer:  # one that is a part of the text is usual: a quote, a name
        return True
    try:
        if output.kind == "number":
            return number_text(read_number(value, output.decimal, output.unit)) == answer
        return output.kind == "json" and bool(json_value(value) == json_value(answer))
    except ValueError:
        return False


def _parts(value: str) -> set[str]:
    for mark in '>/|;,:[]"':
        value = value.replace(mark, "\n")
    return {part.strip() for part in value.split("\n")}


def determines(values: Sequence[str], answers: Sequence[str], repeated: int) -> bool:
    """Whether the values occur `repeated` times on average, and each has one answer only."""
    given: dict[str, set[str]] = defaultdict(set)
    for value, answer in zip(values, answers, strict=True):
        given[value].add(answer)
    several = len(set(answers)) > 1 and len(set(answers)) < len(answers)
    return several and repeated * len(given) <= len(values) and all(len(own) == 1 for own in given.values())


def crossing_groups(groups: Mapping[str, Mapping[str, str]], column: str) -> Iterator[str]:
    """Say which groups are in two given splits; `groups` has the first place of each group by split."""
    names = list(groups)
    for index, first in enumerate(names):
        for second in names[index + 1 :]:
            if both := [group for group in groups[first] if group in groups[second]]:
                place = f"{groups[first][both[0]]} and {groups[second][both[0]]}"
                yield (
                    f"{len(both):,} groups of {column!r} are in both {first} and {second}: {_some(both)}, such as "
                    f"{place}. `data.duplicates: drop` drops their rows from the training side"
                )


def united_groups(placed: Placed, column: str) -> tuple[dict[str, str], list[str]]:
    """Give every group one name, however its rows spell it; with what to warn of."""
    spelled: dict[str, dict[str, str]] = defaultdict(dict)
    bare: list[str] = []
    count = 0
    for row, place in (each for rows in placed.values() for each in rows):
        count += 1
        if place.group:
            spelled[spelling(place.group)].setdefault(place.group, row.source)
        else:
            bare.append(row.source)
    names = {group: min(own) for own in spelled.values() for group in own}
    told = []
    if several := [own for own in spelled.values() if len({group.removesuffix(".0") for group in own}) > 1]:
        shown = "; ".join(" and ".join(f"{group!r} ({place})" for group, place in own.items()) for own in several[:2])
        told.append(f"{len(several):,} groups of {column!r} are spelled differently, and taken for one each: {shown}")
    if bare:
        told.append(
            f"{len(bare):,} of {count:,} rows have no group in {column!r}: {places(bare)}. Each is a group of its own, "
            "so rows that belong together may be in two splits"
        )
    return names, told


def time_warnings(placed: Placed, column: str) -> Iterator[str]:
    """What makes a cut by time say little: a single time, or a file to measure on that is earlier than training rows.

    Raises:
        DataError: `bad-row`: some times are dates, and others are numbers.
    """
    rows = [each for name in placed for each in placed[name]]
    first = {place.dated: (row, place) for row, place in reversed(rows)}
    if len(first) > 1:
        shown = " and ".join(f"{row.source} has the {'date' if place.dated else 'number'} {place.when}"
                             for row, place in (first[True], first[False]))  # fmt: skip
        hint = "write all as dates such as 2024-05-31, or all as numbers"
        raise DataError("bad-row", f"{column!r} mixes dates and numbers, which have no order: {shown}", hint=hint)
    if len({place.time for _, place in rows}) == 1 < len(rows):
        yield f"all rows have the time {rows[0][1].when} in {column!r}, so the cut is by a hash of the input"
        return
    for name in ("validation", "test"):
        if placed["train"] and placed[name]:
            start = min((place for _, place in placed[name]), key=lambda place: place.time or 0.0)
            later = [row.source for row, place in placed["train"] if (place.time or 0.0) > (start.time or 0.0)]
            if later:
                yield (
                    f"{len(later):,} of {len(placed['train']):,} rows of `data.train` are later in {column!r} than "
                    f"{start.when}, the first of `data.{name}`: {places(later)}. They may tell what comes"
                )


# ---- how many rows show a difference


def detectable_difference(n: int, discordance: float, *, power: float = POWER, alpha: float = 0.05) -> float | None:
    """Find the smallest true difference that a one-sided paired test of 0/1 scores detects with the given power.

    Connor, Sample size for testing differences in proportions for the paired-sample design, Biometrics 43 (1987):
    sqrt(n) d = z_alpha sqrt(discordance) + z_power sqrt(discordance - d^2), squared and solved for d.

    `n` is the number of rows, `discordance` the share of rows on which the two scores disagree, which no difference can
    exceed. The result is None if even the largest possible difference is not detected.
    """
    z_alpha, z_power = NormalDist().inv_cdf(1 - alpha), NormalDist().inv_cdf(power)
    inside = n + z_power**2 - z_alpha**2
    if inside < 0:
        return None
    effect = sqrt(discordance) * (sqrt(n) * z_alpha + z_power * sqrt(inside)) / (n + z_power**2)
    return effect if effect <= discordance else None


def smallest_difference(n: int) -> float | None:
    """Find the smallest difference that a climb on `n` rows likely shows; None if it can show none.

    Two artifacts are assumed to disagree on a fifth of the rows, or on as many as they differ by. The level is that of
    the gate, one-sided and shared by four candidates.
    """
    if 0.5 ** (n + 1) > LEVEL / CANDIDATES:  # the mid-p of winning every row
        return None
    alpha = LEVEL / CANDIDATES
    if (effect := detectable_difference(n, DISCORDANCE, alpha=alpha)) is not None:
        return effect
    for percent in range(round(100 * DISCORDANCE), 101):
        effect = detectable_difference(n, percent / 100, alpha=alpha)
        if effect is not None:
            return effect
    return None


def rows_for(effect: float) -> int:
    """Count the rows on which a difference is likely shown, at the level and discordance of `smallest_difference`."""
    z_alpha, z_power = NormalDist().inv_cdf(1 - LEVEL / CANDIDATES), NormalDist().inv_cdf(POWER)
    root = z_alpha * sqrt(DISCORDANCE) + z_power * sqrt(DISCORDANCE - effect**2)
    return 10 * round((root / effect) ** 2 / 10)
