"""Texts that people see: HTML of reports and notebooks, with everything escaped, and lines on a terminal."""

from __future__ import annotations

import html
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

# Characters that control a terminal or turn the direction of text around; line feeds and tabs are left.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def clean(text: str) -> str:
    """Replace the characters in others' text that control a terminal."""
    return _CONTROLS.sub("\ufffd", text.replace("\r\n", "\n"))


class Markup(str):
    """HTML that is escaped already."""

    __slots__ = ()


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
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def card(title: str, facts: Mapping[str, Any], *parts: str) -> str:
    """What a notebook shows of an object: a title, its facts, and further HTML; facts without a value are left out."""
    rows = [(name, value) for name, value in facts.items() if value not in (None, "", (), [], {})]
    return f"<div><b>{safe(title)}</b>{table_html((), rows) if rows else ''}{''.join(parts)}</div>"
