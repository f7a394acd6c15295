"""Progress on stderr: a live bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time


class TerminalProgress:
    """Shows one step at a time with its rate, time left and note."""

    INTERVAL_LIVE = 0.2
    INTERVAL_LOG = 10.0

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._label, self._total, self._done, self._note = "", 0, 0, ""
        self._start = self._shown = time.monotonic()
        self._nested = 0

    def start(self, label: str, total: int | None = None) -> None:
        """Begin a step; a step inside a step (embedding while scoring) stays silent."""
        self._nested += 1
        if self._nested > 1:
            return
        self._label, self._total, self._done, self._note = label, total or 0, 0, ""
        self._start = self._shown = time.monotonic()

    def advance(self, units: int = 1, note: str = "") -> None:
        """Count units as done."""
        if self._nested != 1:
            return
        self._done += units
        self._note = note or self._note
        now = time.monotonic()
        if now - self._shown >= (self.INTERVAL_LIVE if self._live else self.INTERVAL_LOG):
            self._shown = now
            self._show(end="" if self._live else "\n")

    def finish(self, note: str = "") -> None:
        """End the step; on a terminal its line stays, with the time it took."""
        self._nested -= 1
        if self._nested:
            return
        took = time.monotonic() - self._start
        if took >= 1.0:
            text = f"{self._label}: {self._done or self._total} in {_duration(took)}"
            self._write(f"{text}, {note}" if note else text, end="\n")
        elif self._live:
            self._write("", end="")

    def _show(self, end: str) -> None:
        spent = time.monotonic() - self._start
        parts = [f"{self._label}: {self._done}/{self._total}" if self._total else f"{self._label}: {self._done}"]
        if self._done and self._total > self._done:
            parts.append(f"{_duration(spent / self._done * (self._total - self._done))} left")
        if self._note:
            parts.append(self._note)
        self._write(", ".join(parts), end)

    def _write(self, text: str, end: str) -> None:
        sys.stderr.write(("\r\x1b[2K" if self._live else "") + text + end)
        sys.stderr.flush()


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds // 60:.0f} min {seconds % 60:02.0f} s"
