"""The options of a climb: budget, rungs, engine, folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rung.rungs import default_names
from rung.task import Task


@dataclass(frozen=True, slots=True)
class ClimbOptions:
    """The options of a climb.

    Attributes:
        budget_seconds: the climb ends within it, with what it has found so far; None for no limit.
        budget_money: the same for money, in the currency of the prices.
        rungs: names of the rungs to try; empty for the task's own choice or the default.
        seed: of everything random.
        engine: which engine runs the model.
        out: folder for run folders.
        resume: continue the latest run of the same climb, if there is one.
    """

    budget_seconds: float | None = None
    budget_money: float | None = None
    rungs: tuple[str, ...] = ()
    seed: int = 0
    engine: str = "auto"
    out: Path = Path("runs")
    resume: bool = False


DEFAULTS = ClimbOptions()


def chosen_rungs(task: Task, options: ClimbOptions) -> tuple[str, ...]:
    """The rungs to try: the command's choice, else the task's, else the default; without the excluded ones."""
    names = options.rungs or tuple(task.constraints.rungs or ()) or default_names(task)
    return tuple(name for name in names if name not in (task.constraints.exclude or ()) and name != "zero-shot")


def named_rungs(task: Task, options: ClimbOptions) -> bool:
    """Whether somebody named the rungs to try; then none of them is put off."""
    return bool(options.rungs or task.constraints.rungs)
