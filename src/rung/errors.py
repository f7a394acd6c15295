"""Every error that Rung raises on purpose.

    RungError
    ├── ConfigError         the task file or the command is wrong            exit code 2
    │   └── DataError       a data file or a row of it is wrong              exit code 2
    ├── MachineError        the machine lacks something                      exit code 3
    │   ├── ModelError      a model cannot be found, trusted or loaded
    │   ├── EngineError     a model cannot be run
    │   └── ArtifactError   an artifact folder is damaged or does not fit
    ├── TrainingError       training ran and failed (NaN loss, no supervised tokens)
    ├── PreemptedError      the machine is taken back; the work goes on later   exit code 75
    └── ThresholdError      a result is below the bar the user set           exit code 1

Each has a stable code (`rung explain CODE` says more), one sentence, the place where it happened, and a hint.
"""

from __future__ import annotations

import difflib
import gc
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Location:
    """A place in a file: 1-based line and column, and the text of that line for the caret."""

    file: str
    line: int | None = None
    column: int | None = None
    text: str | None = None

    def __str__(self) -> str:
        return ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)


class RungError(Exception):
    """Base of all. `str(error)` is one line; `error.render()` is what the command line prints."""

    exit_code: ClassVar[int] = 3

    def __init__(self, code: str, message: str, *, hint: str = "", where: Location | None = None) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.hint = hint
        self.where = where

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message

    def render(self) -> str:
        """The full text: `error[code]: message`, the line with a caret, and the hint."""
        lines = [f"error[{self.code}]: {self.message}"]
        if self.where is not None:
            lines.append(f"  --> {self.where}")
            if self.where.text is not None and self.where.line is not None:
                gutter = str(self.where.line)
                lines.append(f"   {gutter} | {self.where.text}")
                if self.where.column is not None:
                    lines.append(f"   {' ' * len(gutter)} | {' ' * (self.where.column - 1)}^")
        if self.hint:
            lines.append(f"hint: {self.hint}")
        return "\n".join(lines)


class ConfigError(RungError):
    """The task file or the command is wrong."""

    exit_code = 2


class DataError(ConfigError):
    """A data file, or a row of it, is wrong."""


class MachineError(RungError):
    """The machine lacks something: a library, memory, a file, the network."""

    exit_code = 3


class ModelError(MachineError):
    """A model cannot be found, trusted or loaded."""


class EngineError(MachineError):
    """A model cannot be run."""


class ArtifactError(MachineError):
    """An artifact folder is damaged, or does not fit the model or template it was made with."""


class TrainingError(RungError):
    """Training started and failed: NaN loss, no supervised tokens, out of memory."""


class PreemptedError(RungError):
    """A signal asked the work to end; its state is kept, and the same command goes on from there."""

    exit_code = 75  # EX_TEMPFAIL: schedulers put the job back in the queue


class ThresholdError(RungError):
    """A measured result is below the bar that the user set."""

    exit_code = 1


def suggest(name: str, known: Sequence[str]) -> str:
    """Suggest the nearest known name, or list the known ones."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(map(repr, known)) or 'none'}"


@contextmanager
def needed_by(what: str, *, extra: str = "local", error: type[MachineError] = MachineError) -> Iterator[None]:
    """A context for imports that an extra provides.

    No garbage is collected meanwhile: large libraries leave millions of objects and no garbage, and their imports take
    an eighth less without it.

    Args:
        what: the feature that needs them, for the message.
        extra: the extra of the package `rung` that installs them.
        error: the class of the error.

    Raises:
        MachineError: `missing-extra`: a library is not installed.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    except ImportError as missing:
        raise error("missing-extra", f"{what} needs {missing.name}", hint=install_command(extra)) from missing
    finally:
        if collects:
            gc.enable()


@cache
def install_command(extra: str) -> str:
    """The command that adds an extra, from where this package came: a folder, a wheel, a repository or the index."""
    import json
    import shlex
    from importlib import metadata
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    wanted = f"rung[{extra}]"
    try:
        origin = json.loads(metadata.distribution("rung").read_text("direct_url.json") or "{}")
    except metadata.PackageNotFoundError:  # the source is on the path, and nothing is installed
        origin = {}
    url = origin.get("url", "")
    if origin.get("dir_info", {}).get("editable"):
        return f"uv pip install -e {shlex.quote(f'{url2pathname(urlsplit(url).path)}[{extra}]')}"
    if url:
        version_control = origin.get("vcs_info", {})
        address = f"{version_control['vcs']}+{url}@{version_control['commit_id']}" if version_control else url
        wanted = f"{wanted} @ {address}"
    return f"uv pip install {shlex.quote(wanted)}"


# What every error code means: `rung explain CODE` prints from `explanations.md`.

_PARAGRAPH = r"(\S[^\n]*(?:\n[^\n]+)*)\n"
_ENTRY = re.compile(
    rf"\n{_PARAGRAPH}\n\*\*Why:\*\* {_PARAGRAPH}\n\*\*Fix:\*\* {_PARAGRAPH}(?:\n```\n((?:[^`\n]*\n)+)```\n)?\n?"
)


@dataclass(frozen=True, slots=True)
class Explanation:
    """One error code.

    Attributes:
        meaning: what happened, in one line.
        why: why Rung stops.
        fix: what to do.
        example: the right form (a command, or lines of a file), or nothing.
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
    """The entry of every code, in alphabetical order."""
    return parse(resources.files("rung").joinpath("explanations.md").read_text("utf-8"))


def parse(text: str) -> dict[str, Explanation]:
    """Read entries: a heading `## CODE`, what it means, `**Why:**`, `**Fix:**` and an example in a fenced block.

    The lines of a paragraph are joined; text before the first heading is skipped.

    Raises:
        ValueError: an entry has another form, or a code has two entries.
    """
    _, *parts = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)
    entries: dict[str, Explanation] = {}
    for code, body in zip(parts[::2], parts[1::2], strict=True):
        if code in entries:
            raise ValueError(f"the code {code} has two entries")
        if (match := _ENTRY.fullmatch(body)) is None:
            raise ValueError(f"the entry of {code} is not: meaning, **Why:**, **Fix:**, and maybe an example")
        meaning, why, fix, example = match.groups(default="")
        meaning, why, fix = (part.replace("\n", " ") for part in (meaning, why, fix))
        entries[code] = Explanation(meaning, why, fix, example.rstrip("\n"))
    return entries
