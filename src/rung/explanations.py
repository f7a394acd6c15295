"""What every error code means: `rung explain CODE` prints from `explanations.md`, which holds one entry per code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

_PARAGRAPH = r"(\S[^\n]*(?:\n[^\n]+)*)\n"
_ENTRY = re.compile(
    rf"\n{_PARAGRAPH}\n\*\*Why:\*\* {_PARAGRAPH}\n\*\*Fix:\*\* {_PARAGRAPH}(?:\n```\n((?:[^`\n]*\n)+)```\n)?\n?"
)


@dataclass(frozen=True, slots=True)
class Explanation:
    """One error code.

    Attributes:
        meaning: what happened, in one line.
        why: why Rung stops instead of going on.
        fix: what to do.
        example: what it looks like when right (a command, or lines of a file), or nothing.
    """

    meaning: str
    why: str
    fix: str
    example: str = ""

    def __str__(self) -> str:
        lines = [self.meaning, "", f"Why it is an error: {self.why}", "", f"What to do: {self.fix}"]
        if self.example:
            lines += ["", "Example:", *(f"  {line}" for line in self.example.splitlines())]
        return "\n".join(lines)


@cache
def explanations() -> Mapping[str, Explanation]:
    """Return the entry of every code, in the order of the file, which is alphabetical."""
    return parse(resources.files("rung").joinpath("explanations.md").read_text("utf-8"))


def parse(text: str) -> dict[str, Explanation]:
    """Read entries: a heading `## CODE`, what it means, `**Why:**`, `**Fix:**` and an example in a fenced block.

    Lines of a paragraph are joined; what stands before the first heading is not read.

    Raises:
        ValueError: an entry has another form, or a code two entries.
    """
    _, *parts = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)
    entries: dict[str, Explanation] = {}
    for code, body in zip(parts[::2], parts[1::2], strict=True):
        if code in entries:
            raise ValueError(f"the code {code} has two entries")
        if (found := _ENTRY.fullmatch(body)) is None:
            raise ValueError(f"the entry of {code} is not: meaning, **Why:**, **Fix:**, and maybe an example")
        meaning, why, fix, example = found.groups(default="")
        meaning, why, fix = (part.replace("\n", " ") for part in (meaning, why, fix))
        entries[code] = Explanation(meaning, why, fix, example.rstrip("\n"))
    return entries
