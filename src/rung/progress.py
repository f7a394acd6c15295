"""What people see: the progress of long operations, and tables in reports and notebooks."""

from __future__ import annotations

import html
import importlib
import re
import shutil
import sys
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

# Characters that control a terminal or turn the direction of text around; line feeds and tabs are left.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def clean(text: str) -> str:
    """Replace the characters in others' text that control a terminal."""
    return _CONTROLS.sub("\ufffd", text.replace("\r\n", "\n"))


class Markup(str):
    """HTML that is escaped already; templates take it as it is."""

    __slots__ = ()

    def __html__(self) -> str:
        return str(self)


def safe(text: Any) -> str:
    """Escape a value's text, unless it is markup; NUL, which HTML cannot contain, becomes the replacement character."""
    return text if isinstance(text, Markup) else html.escape(str(text).replace("\0", "\ufffd"), quote=True)


def table_html(
    heads: Sequence[str], rows: Iterable[Sequence[Any]], *, best: int | None = None, why: Collection[int] = ()
) -> str:
    """A table; `best` is the number of the row to mark, `why` the columns whose text may wrap."""

    def line(tag: str, row: Sequence[Any], mark: str = "") -> str:
        cells = (f"<{tag}{' class=why' if column in why else ''}>{safe(cell)}" for column, cell in enumerate(row))
        return f"<tr{mark}>{''.join(cells)}</tr>"

    lines = [line("th", heads)] if heads else []
    lines += [line("td", row, " class=best" if number == best else "") for number, row in enumerate(rows)]
    return f'<div class="scroll" tabindex="0" role="group" aria-label="table"><table>{"".join(lines)}</table></div>'


def card(title: str, facts: Mapping[str, Any], *parts: str) -> str:
    """What a notebook shows of an object: a title, its facts, and further HTML; facts without a value are left out."""
    rows = [(name, value) for name, value in facts.items() if value not in (None, "", (), [], {})]
    return f"<div><b>{safe(title)}</b>{table_html((), rows) if rows else ''}{''.join(parts)}</div>"


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

    def board(self, lines: Sequence[str], news: str = "") -> None:
        """Show where a long operation stands, in place of the lines before; `news` is the same in one line."""


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

    def board(self, lines: Sequence[str], news: str = "") -> None:
        """Print nothing."""


QUIET: Progress = Quiet()


class _Output:
    """An output of a notebook's cell that is drawn anew in its place."""

    def __init__(self) -> None:
        self._handle: Any = None

    def draw(self, text: str, markup: str = "", *, last: bool = False) -> None:
        """Show a text, or markup where the notebook shows HTML; after the `last` one, the next begins another output.

        Nothing is begun by an empty text.
        """
        shown = {"text/plain": text} | ({"text/html": markup} if markup else {})
        if self._handle is not None:
            self._handle.update(shown, raw=True)
        elif text:  # IPython runs here, so this loads nothing new
            self._handle = importlib.import_module("IPython.display").display(shown, raw=True, display_id=True)
        if last:
            self._handle = None


class TerminalProgress:
    """Shows one step with its time left and a note: live on a terminal, a line every ten seconds elsewhere.

    On a terminal a board stands above the step; elsewhere its news is a line every ten seconds. In a notebook the step
    is a bar, and the board and the bar each have an output that is drawn in place; no widgets are needed.
    """

    INTERVAL_LIVE = 0.2
    INTERVAL_LOG = 10.0

    def __init__(self) -> None:
        self._live = sys.stderr.isatty() or _in_notebook()
        self._label, self._total, self._done, self._note = "", 0, 0, ""
        self._start = self._shown = time.monotonic()
        self._nested = 0
        self._board: list[str] = []
        self._drawn = 0  # lines of the board on the screen, above the cursor
        self._told = -self.INTERVAL_LOG
        self._outputs = (_Output(), _Output()) if _in_notebook() else None  # for the board, and for the bar

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._line(text)

    def start(self, label: str, total: int | None = None) -> None:
        """Begin a step; a counted step inside a step (embedding during scoring) stays silent.

        A step of unknown length (a download, an export) may take minutes, so it is announced wherever it begins. On a
        terminal a counted step shows at once, too: its first unit may take long.
        """
        self._nested += 1
        if self._nested == 1:
            self._label, self._total, self._done, self._note = label, total or 0, 0, ""
            self._start = self._shown = time.monotonic()
        outermost = self._live and self._nested == 1
        if total is None and not outermost:
            self._line(f"{label} ...")
        elif outermost:
            self._status(f"{label} ..." if total is None else f"{label}: 0/{total}")

    def advance(self, units: int = 1, note: str = "") -> None:
        """Count units as done."""
        if self._nested != 1:
            return
        self._done += units
        self._note = note or self._note
        now = time.monotonic()
        if now - self._shown >= (self.INTERVAL_LIVE if self._live else self.INTERVAL_LOG):
            self._shown, spent = now, now - self._start
            done = str(self._done) if self._done else _duration(spent)
            parts = [f"{self._label}: {self._done}/{self._total}" if self._total else f"{self._label}: {done}"]
            if self._done and self._total > self._done:
                parts.append(f"{_duration(spent / self._done * (self._total - self._done))} left")
            (self._status if self._live else self._line)(", ".join([*parts, self._note] if self._note else parts))

    def finish(self, note: str = "") -> None:
        """End the step; on a terminal its line stays, with the time it took."""
        self._nested -= 1
        if self._nested:
            return
        took = time.monotonic() - self._start
        if took >= 1.0:
            count = self._done or self._total
            text = f"{self._label}: {count} in {_duration(took)}" if count else f"{self._label}: {_duration(took)}"
            self._line(f"{text}, {note}" if note else text, of_step=True)
        elif self._live:
            self._status("")

    def board(self, lines: Sequence[str], news: str = "") -> None:
        """Draw the board anew, on a terminal below what was said; elsewhere print the news, if it is time for it."""
        if self._outputs:
            self._outputs[0].draw("\n".join(map(clean, lines)), last=not lines)
        elif sys.stderr.isatty():
            width = shutil.get_terminal_size().columns - 1  # a line that wraps could not be erased
            self._board = [clean(line)[:width] for line in lines]
            self._write("", end="")
        elif news and (now := time.monotonic()) - self._told >= self.INTERVAL_LOG:
            self._told = now
            self._write(news, end="\n")

    def _status(self, text: str) -> None:
        """Show how far the step is, in place of what was shown of it before; no text removes that."""
        if self._outputs is None:
            self._write(text, end="")
            return
        text = clean(text)
        value = f' max="{self._total}" value="{min(self._done, self._total)}"' if self._total else ""
        bar = f'<progress aria-label="{safe(self._label)}"{value}></progress> {safe(text)}' if text else ""
        self._outputs[1].draw(text, bar)

    def _line(self, text: str, *, of_step: bool = False) -> None:
        """Print a line that stays; one that ends the step stands, in a notebook, where its bar was."""
        if self._outputs is None:
            self._write(text, end="\n")
        elif of_step:
            self._outputs[1].draw(clean(text), last=True)
        else:
            sys.stderr.write(clean(text) + "\n")
            sys.stderr.flush()

    def _write(self, text: str, end: str) -> None:
        wipe, line = "\r\x1b[2K", clean(text) + end
        if self._drawn or self._board:
            wipe = (f"\r\x1b[{self._drawn}A" if self._drawn else "\r") + "\x1b[J"
            board, self._drawn = "".join(f"{each}\n" for each in self._board), len(self._board)
            line = line + board if end else board + line[: shutil.get_terminal_size().columns - 1]
        sys.stderr.write((wipe if self._live else "") + line)
        sys.stderr.flush()


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 60 else f"{seconds // 60:.0f} min {seconds % 60:02.0f} s"


def default_progress() -> Progress:
    """What a call from Python reports to: shown where a person watches, in a terminal or a notebook, else silent."""
    return TerminalProgress() if sys.stderr.isatty() or _in_notebook() else QUIET


def _in_notebook() -> bool:
    shell = sys.modules.get("IPython")
    return shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell"
