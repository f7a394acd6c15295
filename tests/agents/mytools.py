"""Tools that the tests name."""

import os
import sys
from dataclasses import dataclass
from typing import Literal

calls = 0


@dataclass
class Place:
    name: str
    floor: int = 0


def double(number: int) -> int:
    """Double a number.

    Twice as much.

    Args:
        number: the number to
            double.

    Returns:
        Its double.
    """
    print("noise on stdout")
    return 2 * number


def where(place: Place, unit: Literal["m", "ft"] = "m") -> dict[str, object]:
    """Say where a place is."""
    return {"name": place.name, "height": place.floor * 3, "unit": unit}


def count() -> int:
    """Count the calls of this process."""
    global calls
    calls += 1
    return calls


def raises(text: str) -> str:
    """Raise."""
    raise LookupError(f"no {text}")


def loops() -> str:
    """Never end."""
    while True:
        pass


def leaves() -> str:
    """End the process."""
    os._exit(7)


def asks() -> str:
    """Read from stdin."""
    return sys.stdin.read()


def unwritable() -> object:
    """Return what JSON cannot write."""
    return object()


def long() -> str:
    """Return a long text."""
    return "x" * 5000


def untyped(number) -> int:
    """Take anything."""
    return 0


def undocumented(number: int) -> int:
    return 0


def positional(number: int, /) -> int:
    """Take a number that has no name."""
    return 0


constant = 3
