"""Cut rows into splits and folds: stratified by label, whole groups, or by time.

The hash of a row's input, or of its group, is its place between 0 and 1. The lowest places are the test split, the next
ones validation, the rest training. So a row's split does not depend on the order of the file, and adding rows moves no
other row, with one exception: where the hash alone would give a label (or all rows, for answers that are no labels) too
few or too many rows in a split, the boundaries move for this label as little as needed. A count is wrong if it misses
the label's share of the split by more than one row and by more than a fifth, or if it is 0 for a label with three rows
and more. This is less exact than to cut the same share of each label, but added rows move almost none of the others.

Folds are even: their rows per label differ by at most one. They serve small files, where every row counts.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import accumulate
from math import ceil, floor, isfinite
from typing import Any, Literal

from rung.data.rows import Example, labels_of, place_of
from rung.data.texts import number_text
from rung.errors import DataError

FOLDS = 5
# Labelled rows from which on a fifth of them is enough to test on. A score of right or wrong says less than one of a
# written answer, and what answers with a label is mostly made in seconds, so five of it cost little.
FOLD_BELOW = {"category": 1000, "multilabel": 1000, "number": 1000, "text": 400, "json": 400, "chat": 400}
SLACK = 0.2  # of a label's share of a split, by which the hash alone may miss it
EXTRA = 0.1  # of a split, that may be added to it so that it has a row of every rare label
POOL = ""  # the stratum of labels with too few rows to be cut alone, and of answers without labels


@dataclass(frozen=True, slots=True)
class Place:
    """What decides a row's split besides its input and answer: its group, and its time; empty and None for none."""

    group: str = ""
    time: float | None = None
    dated: bool = True  # whether the time is a date, not a number

    @property
    def when(self) -> str:
        """The time as text."""
        time = self.time or 0.0
        return f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M}" if self.dated else number_text(time)


def is_dated(value: Any) -> bool:
    """Whether a time is a date or a date and time; others are numbers."""
    return isinstance(value, date) or (
        isinstance(value, str) and not value.strip().removeprefix("-").replace(".", "", 1).isdigit()
    )


def time_of(value: Any, column: str, source: str) -> float:
    """Read a date, a date and time, or a number as a number that grows with time; raise DataError `bad-row`."""
    try:
        if isinstance(value, date) and not isinstance(value, datetime):
            value = datetime(value.year, value.month, value.day, tzinfo=UTC)
        if isinstance(value, str) and is_dated(value):
            value = datetime.fromisoformat(value.strip())
        if isinstance(value, datetime):  # a time without a zone is one of UTC
            return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
        if not isinstance(value, bool) and isfinite(number := float(value)):
            return number
    except (ValueError, TypeError, OverflowError):
        pass
    hint = "write dates as 2024-05-31 or 2024-05-31T10:00:00Z, or numbers such as 2024"
    raise DataError("bad-row", f"{source}: {column!r} is no time: {str(value)[:80]!r}", hint=hint) from None


def cut(
    rows: Sequence[Example], places: Sequence[Place], shares: Sequence[float], *, kind: str, seed: int,
    method: Literal["hash", "time", "folds"] = "hash",
) -> list[int]:  # fmt: skip
    """Assign every row to a part, by its index in `shares`; rows with an equal input or group stay together.

    Args:
        rows: the rows.
        places: the group and time of each.
        shares: the shares of the parts, which add up to 1. The last part is training, the first the test.
        kind: the kind of the task's output, which says what the labels of a row are.
        seed: another seed gives other parts; it has no effect on `time`.
        method: by `hash`, by `time` (the latest rows are the first part), or even `folds`.
    """
    keys = [place.group or row.id for row, place in zip(rows, places, strict=True)]
    labels: dict[str, set[str]] = {}
    times: dict[str, float] = {}
    for row, place, key in zip(rows, places, keys, strict=True):
        labels.setdefault(key, set()).update(labels_of(row.outputs[0], kind))
        times[key] = max(times.get(key, place.time or 0.0), place.time or 0.0)
    position = {key: place_of(f"{seed}/{key}") for key in labels}
    if method == "time":  # what is trained on is never later than what is tested on
        latest_first = sorted(labels, key=lambda key: (-times[key], position[key]))
        part = dict(zip(latest_first, _spread(_nearest(len(labels), shares)), strict=True))
    else:
        part = _stratified(labels, position, shares, even=method == "folds")
    return [part[key] for key in keys]


def _spread(counts: Iterable[int]) -> list[int]:
    return [index for index, count in enumerate(counts) for _ in range(count)]


def _nearest(rows: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers near the shares of `rows`, which add up to `rows`; the last parts get a row first."""
    quotas = [share * rows for share in shares]
    least = [int(rows >= len(shares) - index) for index in range(len(shares))]
    return _settled([round(quota) for quota in quotas], quotas, least, rows)


def _stratified(
    labels: Mapping[str, set[str]], position: Mapping[str, float], shares: Sequence[float], *, even: bool
) -> dict[str, int]:
    """Assign units (inputs or groups) to parts, label by label, the rarest first; see the module."""
    ends = list(accumulate(shares))[:-1]
    by_hash = {key: sum(place >= end for end in ends) for key, place in position.items()}
    part: dict[str, int] = {}
    for members in _strata(labels, shares, even=even):
        free = sorted((key for key in members if key not in part), key=lambda key: (position[key], key))
        fixed = Counter(part[key] for key in members if key in part)
        counts = [fixed[index] for index in range(len(shares))]
        for key in free:
            counts[by_hash[key]] += 1
        wanted, high = _bounds(len(members), shares, even=even)
        low, left = [fixed[index] for index in range(len(shares))], len(free)
        for index in (len(shares) - 1, *range(len(shares) - 1)):  # if there are too few, training comes first
            more = min(left, max(0, wanted[index] - low[index]))
            low[index], left = low[index] + more, left - more
        counts = [min(max(n, least), max(most, least)) for n, least, most in zip(counts, low, high, strict=True)]
        counts = _settled(counts, [share * len(members) for share in shares], low, len(members))
        part |= zip(free, _spread(n - fixed[index] for index, n in enumerate(counts)), strict=True)
    return part


def _strata(labels: Mapping[str, set[str]], shares: Sequence[float], *, even: bool) -> list[list[str]]:
    """The units of each label, the rarest first. Labels with too few units are pooled."""
    counts = Counter(label for own in labels.values() for label in own)
    fewest = 2 if even else len(shares)
    rare = {label for label, count in counts.items() if count < fewest}
    if not even:  # one row of every label in every split, unless that makes the split much larger than asked for
        for share in shares[:-1]:
            scarce = {label for label, count in counts.items() if label not in rare and share * count < 1}
            if sum(1 - share * counts[label] for label in scarce) > max(1.0, EXTRA * share * len(labels)):
                rare |= scarce
    members: dict[str, list[str]] = defaultdict(list)
    for key, own in labels.items():
        for label in own - rare or {POOL}:
            members[label].append(key)
    return [members[label] for label in sorted(members, key=lambda label: (len(members[label]), label))]


def _bounds(rows: int, shares: Sequence[float], *, even: bool) -> tuple[list[int], list[int]]:
    """The fewest and the most of a label's rows in each part."""
    quotas = [round(share * rows, 6) for share in shares]  # 0.2 * 15 is not exactly 3
    if even:
        return [floor(quota) for quota in quotas], [ceil(quota) for quota in quotas]
    low, high = [], []
    for index, quota in enumerate(quotas):
        slack = max(1.0, SLACK * quota)
        least = max(ceil(quota - slack), int(rows >= len(shares)))
        low.append(least if index < len(shares) - 1 else max(1, least))
        high.append(max(floor(quota + slack), low[-1]))
    return low, high


def _settled(counts: list[int], quotas: Sequence[float], low: Sequence[int], rows: int) -> list[int]:
    """Change counts until they add up to `rows`: where they are farthest from their quota, but not below `low`."""
    order = range(len(counts))
    while (total := sum(counts)) != rows:
        if total < rows:
            counts[min(order, key=lambda index: counts[index] - quotas[index])] += 1
        else:
            above = [index for index in order if counts[index] > low[index]]
            counts[max(above, key=lambda index: counts[index] - quotas[index])] -= 1
    return counts
