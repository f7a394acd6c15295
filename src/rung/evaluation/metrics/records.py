"""Metrics of extracted records: precision, recall and F1 over fields, and whole records, of JSON values.

A field is a leaf of the JSON value at its path. Objects are compared key by key. Items of lists are first paired, each
with at most one, so that the most fields agree. A field counts only inside its pair, so a price under the name of
another article is wrong. The order of lists does not matter, and a missing item costs only its own fields. A key whose
value is null has no field: a schema that requires every key is met with null where there is nothing to extract. Runs of
whitespace in texts count as one space, Unicode's forms of a text are equal, 1 equals 1.0, and an invalid prediction
scores 0; references must be valid.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from rung.data.texts import canonical
from rung.errors import DataError
from rung.evaluation.metrics.base import f1, some

_INVALID = object()
_MAX_DEPTH = 100  # a model can write "[[[[" endlessly; no real record is nested this deeply


class Fields(NamedTuple):
    """The number of fields that were found, that were expected, and that are both."""

    shared: int
    found: int
    wanted: int


def json_exact(prediction: str, references: Sequence[str]) -> float:
    """Score 1 if the prediction is valid JSON and equal to a reference, else 0.

    The order of keys, and runs of whitespace inside strings, do not matter; the order of lists does.

    Raises:
        DataError: `bad-reference` if a reference is not valid JSON.
    """
    wanted = [_canonical(_reference_json(reference)) for reference in some(references)]
    found = _parse_json(prediction)
    return float(found is not _INVALID and _canonical(found) in wanted)


def read_record(prediction: str) -> str:
    """Write the JSON value of an answer in one form, empty if it is invalid."""
    found = _parse_json(prediction)
    return "" if found is _INVALID else canonical(json.dumps(found, ensure_ascii=False, sort_keys=True))


def json_field_f1(prediction: str, references: Sequence[str]) -> float:
    """Compute the F1 over the fields of the record, the best over all references."""
    return max((f1(*fields) for fields in _compared(prediction, references)), default=0.0)


def json_field_precision(prediction: str, references: Sequence[str]) -> float:
    """Compute the share of the fields found that are right, by the best reference; 1 where none was found."""
    return max((n.shared / n.found if n.found else 1.0 for n in _compared(prediction, references)), default=0.0)


def json_field_recall(prediction: str, references: Sequence[str]) -> float:
    """Compute the share of the expected fields that were found, by the best reference; 1 where none is expected."""
    return max((n.shared / n.wanted if n.wanted else 1.0 for n in _compared(prediction, references)), default=0.0)


def _compared(prediction: str, references: Sequence[str]) -> list[Fields]:
    """Count fields against each reference; no counts if the prediction is not JSON."""
    wanted = [_reference_json(reference) for reference in some(references)]
    found = _parse_json(prediction)
    return [] if found is _INVALID else [compare_fields(found, value) for value in wanted]


def compare_fields(found: Any, wanted: Any) -> Fields:
    """Count the fields of two JSON values, and those they share."""
    return Fields(_shared(found, wanted), _count(found), _count(wanted))


def _shared(found: Any, wanted: Any) -> int:
    if isinstance(found, dict) and isinstance(wanted, dict):
        both = (key for key in found if key in wanted and found[key] is not None and wanted[key] is not None)
        return sum(_shared(found[key], wanted[key]) for key in both)
    if isinstance(found, list) and isinstance(wanted, list) and found and wanted:
        return _shared_items(found, wanted)
    if isinstance(found, dict) or isinstance(wanted, dict):
        return 0
    return int(_canonical(found) == _canonical(wanted))


def _shared_items(found: list[Any], wanted: list[Any]) -> int:
    """Pair items so that the most fields agree. Equal items are paired first: no other pairing gains more."""
    left, right = Counter(map(_canonical, found)), Counter(map(_canonical, wanted))
    same = left & right
    rest_found, rest_wanted = _without(found, same.copy()), _without(wanted, same.copy())
    shared = sum(_count(item) for item in found) - sum(_count(item) for item in rest_found)
    nested = [[item for item in items if isinstance(item, dict | list)] for items in (rest_found, rest_wanted)]
    gains = [[_shared(a, b) for b in nested[1]] for a in nested[0]]
    return shared + sum(int(gains[i][j]) for i, j in best_assignment(gains))


def _without(items: list[Any], gone: Counter[Any]) -> list[Any]:
    kept = []
    for item in items:
        key = _canonical(item)
        if gone[key] > 0:
            gone[key] -= 1
        else:
            kept.append(item)
    return kept


def _count(value: Any) -> int:
    if isinstance(value, dict):
        return sum(_count(child) for child in value.values() if child is not None)
    if isinstance(value, list) and value:
        return sum(_count(child) for child in value)
    return 1


def _parse_json(text: str) -> Any:
    """Parse JSON; `_INVALID` if it is none, since None is the value `null`."""
    try:
        value = json.loads(text, parse_constant=_refuse, object_pairs_hook=_canonical_keys)
    except (ValueError, RecursionError):
        return _INVALID
    return value if _depth_within(value, _MAX_DEPTH) else _INVALID


def _canonical_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {canonical(key): value for key, value in pairs}


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def _depth_within(value: Any, limit: int) -> bool:
    if not isinstance(value, dict | list):
        return True
    children = value.values() if isinstance(value, dict) else value
    return limit > 0 and all(_depth_within(child, limit - 1) for child in children)


def _reference_json(text: str) -> Any:
    parsed = _parse_json(text)
    if parsed is _INVALID:
        raise DataError(
            "bad-reference", f"an expected output is not valid JSON: {text[:80]!r}",
            hint="with `kind: json`, the output column must hold one JSON value per row",
        )  # fmt: skip
    return parsed


def _canonical(value: Any) -> Any:
    """Convert a value so that Python compares it as JSON does: true differs from 1, and 1.0 equals 1."""
    if isinstance(value, dict):
        return ("object", frozenset((key, _canonical(child)) for key, child in value.items()))
    if isinstance(value, list):
        return ("list", tuple(_canonical(child) for child in value))
    if isinstance(value, str):
        return ("string", " ".join(canonical(value).split()))
    return ("literal", value) if value is None or isinstance(value, bool) else ("number", value)


def best_assignment(gains: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    """Pair rows and columns, each used at most once, so that the gains sum to the most.

    The Hungarian method with potentials (Kuhn 1955; Jonker and Volgenant 1987), O(rows² columns) after turning the
    matrix so that it has no more rows than columns. scipy has it too, but is not a dependency of the core.
    """
    if not gains or not gains[0]:
        return []
    if len(gains) > len(gains[0]):
        turned = [list(column) for column in zip(*gains, strict=True)]
        return sorted((row, column) for column, row in best_assignment(turned))
    rows, columns = len(gains), len(gains[0])
    row_price, column_price = [0.0] * (rows + 1), [0.0] * (columns + 1)
    owner = [0] * (columns + 1)  # 1-based row that holds each column; column 0 represents the row to assign
    for row in range(1, rows + 1):
        owner[0] = row
        column, came_from = 0, [0] * (columns + 1)
        slack, done = [math.inf] * (columns + 1), [False] * (columns + 1)
        while owner[column]:
            done[column] = True
            held, nearest, step = owner[column], 0, math.inf
            for j in range(1, columns + 1):
                if not done[j]:
                    reduced = -gains[held - 1][j - 1] - row_price[held] - column_price[j]
                    if reduced < slack[j]:
                        slack[j], came_from[j] = reduced, column
                    if slack[j] < step:
                        step, nearest = slack[j], j
            for j in range(columns + 1):
                if done[j]:
                    row_price[owner[j]] += step
                    column_price[j] -= step
                else:
                    slack[j] -= step
            column = nearest
        while column:  # shift the columns along the alternating path
            owner[column] = owner[came_from[column]]
            column = came_from[column]
    return sorted((owner[j] - 1, j - 1) for j in range(1, columns + 1) if owner[j])
