"""How long operations tell what they are doing: one small protocol, and the silent one."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives what a long operation reports. Implementations print to stderr; none may raise."""

    def start(self, label: str, total: int | None = None) -> None:
        """Begin a step named `label` of `total` units (rows, steps, bytes), or of unknown length."""

    def advance(self, units: int = 1, note: str = "") -> None:
        """Count `units` as done; `note` is a short status such as `loss 0.42, 210 tok/s`."""

    def finish(self, note: str = "") -> None:
        """End the step; `note` is its one-line outcome."""


class Quiet:
    """A Progress that says nothing."""

    def start(self, label: str, total: int | None = None) -> None:
        """Say nothing."""

    def advance(self, units: int = 1, note: str = "") -> None:
        """Say nothing."""

    def finish(self, note: str = "") -> None:
        """Say nothing."""


QUIET: Progress = Quiet()
