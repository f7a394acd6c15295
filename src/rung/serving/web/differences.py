"""What a correction changes, word by word."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from typing import Literal

Kind = Literal["same", "gone", "new"]
WORDS = 2000  # of both texts together; matching takes time with their product


def differences(actual: str, expected: str) -> list[tuple[Kind, str]]:
    """Return the pieces of both texts in order: those of the kinds `same` and `gone` joined are `actual`, those of
    `same` and `new` are `expected`. Texts that are too long to be matched differ as a whole.
    """  # noqa: D205
    if actual == expected:
        return [("same", actual)] if actual else []
    before, after = (re.findall(r"\w+|\s+|[^\w\s]", text) for text in (actual, expected))
    if len(before) + len(after) > WORDS:
        matched = [("replace", 0, len(before), 0, len(after))]
    else:
        matched = list(SequenceMatcher(None, before, after, autojunk=False).get_opcodes())
    pieces: list[tuple[Kind, str]] = []
    gone = new = ""
    for place, (tag, b0, b1, a0, a1) in enumerate(matched):
        old, now = "".join(before[b0:b1]), "".join(after[a0:a1])
        between = 0 < place < len(matched) - 1 and not re.search(r"\w", old)
        if tag != "equal" or between:  # a space or a comma that two changes share would only cut them up
            gone, new = gone + old, new + now
            continue
        pieces += [*_changed(gone, new), ("same", old)]
        gone = new = ""
    return [*pieces, *_changed(gone, new)]


def _changed(gone: str, new: str) -> list[tuple[Kind, str]]:
    pieces: list[tuple[Kind, str]] = [("gone", gone), ("new", new)]
    return [piece for piece in pieces if piece[1]]
