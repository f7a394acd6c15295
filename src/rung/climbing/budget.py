"""The budget of a climb: what is left of the time and the money, and a progress that stops whatever runs too long."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import NamedTuple

from rung.errors import ConfigError
from rung.progress import Progress

CLOSING_SECONDS = 1.0  # kept for saving and for the reports
CENT = 0.01  # from which costs are shown where money has no limit


class TimeUp(BaseException):  # like KeyboardInterrupt: no `except Exception` may swallow it
    """The budget is used up; `Budget.stage` catches it."""


class Limits(NamedTuple):
    """Seconds, or money in the currency of the prices; None for no limit."""

    seconds: float | None
    money: float | None


NO_LIMITS = Limits(None, None)


def parse_budget(text: str | float) -> Limits:
    """Read a budget: `90s`, `10m`, `1h30m`, or money such as `5USD` or `$5`.

    Raises:
        ConfigError: `bad-option`.
    """
    if isinstance(text, str):
        found = re.fullmatch(r"\s*(?:[$€£]\s*(\d+(?:\.\d+)?)|(\d+(?:\.\d+)?)\s*(?:[A-Z]{3}|[$€£]))\s*", text)
        if found is not None:
            return Limits(None, float(found[1] or found[2]))
    return Limits(parse_duration(text), None)


def parse_duration(text: str | float) -> float:
    """The seconds of `90`, `90s`, `10m`, `1.5h`, `1h30m` or `30d`; raise ConfigError (`bad-option`) for other text."""
    try:
        if not isinstance(text, str):
            if isinstance(text, bool) or not isinstance(text, Real) or not 0 <= text < math.inf:
                raise ValueError(text)
            return float(text)
        found = re.fullmatch(r"(?:([\d.]+)d)?(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s?)?", text.strip())
        if found is None or not any(found.groups()):
            raise ValueError(text)
        days, hours, minutes, seconds = (float(part or 0) for part in found.groups())
    except ValueError:
        hint = "write `90s`, `10m`, `1.5h` or `1h30m`, or seconds; or an amount of money: `5USD`"
        raise ConfigError("bad-option", f"invalid duration {text!r}", hint=hint) from None
    return 86_400 * days + 3600 * hours + 60 * minutes + seconds


def duration_text(seconds: float) -> str:
    """`8 s`, `3 min 20 s` or `1 h 05 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min" + (f" {seconds % 60:02d} s" if seconds % 60 else "")
    return f"{seconds // 3600} h" + (f" {seconds % 3600 // 60:02d} min" if seconds % 3600 // 60 else "")


class Budget:
    """Keeps the time and money of a climb, and is the progress of everything that it runs.

    At every report of progress it looks at what is left, and raises TimeUp in whatever runs once nothing is. Seconds
    count from the climb's start, loading and indexing included, and those of an interrupted climb's earlier processes.
    Downloads of models and exports of encoders, which a machine needs once, do not count.
    """

    def __init__(self, progress: Progress, limits: Limits = NO_LIMITS) -> None:
        self.inner, self.limits = progress, limits
        self.before = 0.0  # seconds of earlier processes
        self.money: Callable[[], float | None] = lambda: None  # tells what was spent so far
        self.reserve = 0.0  # seconds that the present stage leaves to the later ones
        self.limited = False  # whether a stage of this process ended because the budget was used up
        self._began = time.monotonic()
        self._open = 0

    def spent(self) -> float:
        """The seconds that the climb has taken."""
        return self.before + time.monotonic() - self._began

    def left(self) -> float:
        """The seconds that the present stage has left; infinite without a limit."""
        if self.limits.seconds is None:
            return float("inf")
        return self.limits.seconds - CLOSING_SECONDS - self.reserve - self.spent()

    @property
    def money_left(self) -> float:
        """The money left; infinite without a limit."""
        return float("inf") if self.limits.money is None else self.limits.money - (self.money() or 0.0)

    def check(self, seconds: float = 0.0) -> None:
        """Raise TimeUp unless so many seconds, and some money, are left."""
        if self.left() <= seconds or self.money_left <= 0:
            raise TimeUp

    @contextmanager
    def stage(self, reserve: float = 0.0) -> Iterator[None]:
        """Run a stage that leaves `reserve` seconds to later ones; it ends early when its time is up."""
        outer, self.reserve = self.reserve, reserve
        try:
            yield
        except TimeUp:
            self.limited = True
        finally:
            self.reserve = outer
            self.unwind()

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """Run something short that has to be done, whatever is left."""
        limits, self.limits = self.limits, NO_LIMITS
        try:
            yield
        finally:
            self.limits = limits

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Run what is needed once on a machine, such as a download: its time is not part of the climb's."""
        began = time.monotonic()
        with self.lifted():
            yield
        self._began += time.monotonic() - began

    def unwind(self) -> None:
        """End the steps that something left open when it was stopped, so that later ones are shown."""
        while self._open:
            self.finish(quiet=True)

    # ---- a Progress

    def say(self, text: str) -> None:
        """Report news."""
        self.inner.say(text)

    def start(self, label: str, total: int | None = None) -> None:
        """Begin a step."""
        self.check()
        self._open += 1
        self.inner.start(label, total)

    def advance(self, units: int = 1, note: str = "") -> None:
        """Count units as done."""
        self.inner.advance(units, note)
        self.check()

    def finish(self, note: str = "", *, quiet: bool = False) -> None:
        """End the step."""
        self._open = max(0, self._open - 1)
        self.inner.finish("" if quiet else note)

    def board(self, lines: Sequence[str], news: str = "") -> None:
        """Show where the climb stands, below the time and the money."""
        if not lines:
            self.inner.board(())
            return
        used = [f"{duration_text(self.spent())}{_of(self.limits.seconds, duration_text)}"]
        if (money := self.money()) is not None and (self.limits.money is not None or money >= CENT):
            used.append(f"cost {money:.3g}{_of(self.limits.money, '{:g}'.format)}")
        self.inner.board([f"climb: {', '.join(used)}", *lines], f"{', '.join(used)}: {news}")


def _of(whole: float | None, text: Callable[[float], str]) -> str:
    return "" if whole is None else f" of {text(whole)}"
