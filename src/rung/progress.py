"""How long operations report what they do: one protocol, and a silent implementation."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives the reports of a long operation, and prints to stderr.

    An implementation may raise only to stop the operation, as the budget of a climb does.
    """

    def say(self, text: str) -> None:
        """Report news at once, such as that something is proven."""

    def start(self, label: str, total: int | None = None) -> None:
        """Begin a step named `label` of `total` units (rows, steps, bytes), or of unknown length."""

    def advance(self, units: int = 1, note: str = "") -> None:
        """Count `units` as done; `note` is a short status such as `loss 0.42, 210 tok/s`."""

    def finish(self, note: str = "") -> None:
        """End the step; `note` is its one-line outcome."""


class Quiet:
    """A Progress that prints nothing."""

    def say(self, text: str) -> None:
        """Print nothing."""

    def start(self, label: str, total: int | None = None) -> None:
        """Print nothing."""

    def advance(self, units: int = 1, note: str = "") -> None:
        """Print nothing."""

    def finish(self, note: str = "") -> None:
        """Print nothing."""


QUIET: Progress = Quiet()
