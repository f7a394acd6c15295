"""Cells: one way to turn any value of a table or of a Python object into JSON values and into text.

| value | JSON value | text |
|---|---|---|
| missing: None, NaN, NaT, pandas.NA | null | nothing |
| text, whole number, boolean | as it is | as it is; `true` |
| number with a fraction | as it is | its shortest form: `1.0`, `0.1` also for 32 bits |
| date, time, date and time, duration | text, ISO 8601 | `2024-01-31`, `2024-01-31T09:30:00+01:00`, `P1DT2H` |
| period, interval of pandas | text | `2024-01`, `(0, 5]` |
| decimal | text without loss; in lists and objects a number where that loses nothing | `12.50` |
| list, tuple, set, array; object | list; object | sentences joined by a space, else JSON |
| bytes, images, other objects | an error when the column is read | |
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID


class CellError(ValueError):
    """A value that is no text; the message says what it is, as the end of a sentence about its column."""


class Unreadable:
    """A cell that its file holds but that cannot be used; reading its column is an error with this reason."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def missing(value: Any) -> bool:
    """Say whether a value stands for no value: None, NaN, NaT or pandas.NA."""
    if value is None or type(value).__name__ in ("NaTType", "NAType"):
        return True
    if isinstance(value, float):
        return math.isnan(value)
    if isinstance(value, Decimal):
        return value.is_nan()
    return _is_array(value) and value.ndim == 0 and bool(value != value)  # numpy's NaN and NaT


def plain(value: Any, *, nested: bool = False) -> Any:
    """Turn a value into JSON values; NaN and infinities inside lists and objects stay, for `json_text` to write.

    Raises:
        CellError: it is bytes, or an object that no table holds.
    """
    if value is None or type(value) in (str, int, bool):
        return value
    if isinstance(value, float) and (nested or not math.isnan(value)):
        return float(value)
    if missing(value):
        return None
    if isinstance(value, (str, int)):
        return str.__str__(value) if isinstance(value, str) else int(value)  # without the class of an enumeration
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else text_of(key): plain(item, nested=True) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, nested=True) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item, nested=True) for item in value), key=json_text)
    if isinstance(value, (date, time)):  # a datetime is a date, and so is pandas' Timestamp
        return value.isoformat()
    if isinstance(value, timedelta):
        return _duration(value)
    if isinstance(value, Decimal):
        return _number(value) if nested else format(value, "f")
    if isinstance(value, UUID) or type(value).__name__ in ("Period", "Interval"):  # the last two are pandas'
        return str(value)
    if isinstance(value, Unreadable):
        raise CellError(value.reason)
    if isinstance(value, (bytes, bytearray, memoryview)):
        raise CellError("holds bytes, not text")
    if _is_array(value):
        return _array(value, nested=nested)
    raise CellError(f"holds a {type(value).__module__}.{type(value).__qualname__}, which is no text")


def text_of(value: Any) -> str:
    """Write a value as the text that a prompt shows; see the table above.

    Raises:
        CellError: it is bytes, or an object that no table holds.

    Example:
        >>> text_of(Decimal("12.50")), text_of(["One.", "Two."]), text_of({"a": None}), text_of(float("nan"))
        ('12.50', 'One. Two.', '{"a": null}', '')
    """
    value = plain(value)
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return " ".join(value)
    return str(value) if type(value) is int else _shown(value)


def json_text(value: Any) -> str:
    """Write a value as JSON, NaN as null and an infinity as text; raise CellError like `plain`."""
    value = plain(value, nested=True)
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False)


def _shown(value: Any) -> str:
    """A number, boolean, list or object as text: as JSON, without the quotes of an infinity."""
    return json_text(value).strip('"') if isinstance(value, float) else json_text(value)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value


def _number(value: Decimal) -> int | float | str:
    """A decimal as a JSON number if its value survives, else as text."""
    if value.is_finite() and value == value.to_integral_value():
        return int(value)
    return float(value) if Decimal(repr(float(value))) == value else format(value, "f")


def _duration(value: timedelta) -> str:
    """A duration in ISO 8601, with the nanoseconds that pandas adds."""
    whole = (value.days * 86400 + value.seconds) * 10**9 + value.microseconds * 1000 + getattr(value, "nanoseconds", 0)
    seconds, fraction = divmod(abs(whole), 10**9)
    days, minutes = divmod(seconds // 60, 1440)
    rest = f"{seconds % 60}.{fraction:09d}".rstrip("0").rstrip(".") if fraction else str(seconds % 60)
    parts = (minutes // 60, "H"), (minutes % 60, "M"), (rest, "S")
    clock = "".join(f"{part}{unit}" for part, unit in parts if part not in (0, "0"))
    text = (f"{days}D" if days else "") + (f"T{clock}" if clock else "")
    return f"{'-' if whole < 0 else ''}P{text or 'T0S'}"


def _is_array(value: Any) -> bool:
    return type(value).__module__ == "numpy" and hasattr(value, "ndim")


def _array(value: Any, *, nested: bool) -> Any:
    """A numpy scalar or array: 32-bit numbers in their shortest form, times as numpy writes them."""
    if value.dtype.kind == "f" and value.dtype.itemsize < 8:
        value = value.astype(str).astype("float64")
    elif value.dtype.kind == "m":
        value = value.astype("timedelta64[us]")
    elif value.dtype.kind == "M":
        value = value.astype(str)
    return plain(value.tolist(), nested=nested)
