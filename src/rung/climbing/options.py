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
    """The options of a climb."""

    budget_seconds: float | None = None  # rungs that are expected to exceed it are skipped; None for no limit
    rungs: tuple[str, ...] = ()  # names of the rungs to try; empty for the task's own choice or the default
    seed: int = 0  # of everything random
    engine: str = "auto"  # which engine runs the model
    out: Path = Path("runs")  # folder for run folders
    resume: bool = False  # continue the latest run of the same climb, if there is one


DEFAULTS = ClimbOptions()


def parse_duration(text: str | float) -> float:
    """The seconds of `90`, `90s`, `10m`, `1.5h` or `1h30m`; raise ConfigError (`bad-option`) for other text."""
    if not isinstance(text, str):
        return float(text)
    found = re.fullmatch(r"(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s?)?", text.strip())
    try:
        if found is None or not any(found.groups()):
            raise ValueError(text)
        hours, minutes, seconds = (float(part or 0) for part in found.groups())
    except ValueError:
        hint = "write `90s`, `10m`, `1.5h` or `1h30m`"
        raise ConfigError("bad-option", f"invalid duration {text!r}", hint=hint) from None
    return 3600 * hours + 60 * minutes + seconds


def chosen_rungs(task: Task, options: ClimbOptions) -> tuple[str, ...]:
    """The rungs to try: the command's choice, else the task's, else the default; without the excluded ones."""
    names = options.rungs or tuple(task.constraints.rungs or ()) or default_names()
    return tuple(name for name in names if name not in (task.constraints.exclude or ()) and name != "zero-shot")
