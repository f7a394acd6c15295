"""The options of a climb: budget, rungs, engine, folder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from rung.errors import ConfigError
from rung.rungs import default_names
from rung.task import Task


@dataclass(frozen=True, slots=True)
class ClimbOptions:
    """The options of a climb.

    Attributes:
        budget_seconds: rungs that are expected to exceed it are skipped; None for no limit.
        rungs: names of the rungs to try; empty for the task's own choice or the default.
        seed: of everything random.
        engine: which engine runs the model.
        out: folder for run folders.
        resume: continue the latest run of the same climb, if there is one.
    """

    budget_seconds: float | None = None
    rungs: tuple[str, ...] = ()
    seed: int = 0
    engine: str = "auto"
    out: Path = Path("runs")
    resume: bool = False


DEFAULTS = ClimbOptions()


def parse_duration(text: str | float) -> float:
    """The seconds of `90`, `90s`, `10m`, `1.5h` or `1h30m`.

    Raises:
        ConfigError: `bad-option`: the text is not a duration.
    """
    if not isinstance(text, str):
        return float(text)
    found = re.fullmatch(r"(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s?)?", text.strip())
    try:
        if found is None or not any(found.groups()):
            raise ValueError(text)
        hours, minutes, seconds = (float(part or 0) for part in found.groups())
    except ValueError:
        raise ConfigError(
            "bad-option", f"invalid duration {text!r}", hint="write `90s`, `10m`, `1.5h` or `1h30m`"
        ) from None
    return 3600 * hours + 60 * minutes + seconds


def chosen_rungs(task: Task, options: ClimbOptions) -> tuple[str, ...]:
    """The rungs to try: the command's choice, else the task's, else the default; without the excluded ones."""
    names = options.rungs or tuple(task.constraints.rungs or ()) or default_names()
    return tuple(name for name in names if name not in (task.constraints.exclude or ()) and name != "zero-shot")
