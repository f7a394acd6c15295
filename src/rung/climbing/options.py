"""The options of a climb: budget, rungs, engine, folder, and the workers that share its work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rung.artifact.artifact import Artifact
from rung.climbing.store import RunStore
from rung.data.rows import Data
from rung.evaluation.result import Prediction, Split
from rung.progress import Progress
from rung.rungs import default_names
from rung.task import Task


class Crew(Protocol):
    """Workers that make and answer what a climb asks for; the climb alone decides, and writes its run folder.

    A key is what the run folder calls an artifact (`RunStore.artifact_folder`). What is asked for `ahead` may turn out
    not to be needed, so that idle workers alone do it. While a method waits it advances the progress by 0, which
    stops it when the budget is used up.
    """

    @property
    def workers(self) -> int:
        """How many jobs run at once."""

    @property
    def money(self) -> float:
        """What the workers' hours have cost, without those of this machine."""

    def fit(self, key: str, rung: str, base: str, fold: int | None, *, parts: bool, ahead: bool) -> None:
        """Have an artifact made from its base, with `parts` also after parts of its training."""

    def made(self, key: str, progress: Progress) -> Iterator[tuple[float, Artifact]]:
        """Wait for what `fit` was asked for, as `Rung.fit_in_parts` gives it; who stops early cancels it."""

    def took(self, key: str) -> tuple[float, float] | None:
        """The seconds and the money at endpoints that `fit` took; None if no worker did it."""

    def ask(self, key: str, split: Split, ids: Sequence[str], *, ahead: bool) -> None:
        """Have an artifact answer rows, once it is made."""

    def answers(self, key: str, split: Split, ids: Sequence[str], progress: Progress) -> Iterator[list[Prediction]]:
        """Wait for the answers, in the order of the rows, in batches."""

    def close(self, progress: Progress, *, done: bool) -> None:
        """End the workers; when the climb is `done`, remove what they have left."""


CrewMaker = Callable[[Task, Data, RunStore, int], Crew]  # of a run folder, and the seed
REFUSED = ("worker-mismatch", "storage-refused")  # codes of errors that end a climb, whichever arm they are met in


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
        crew: makes the workers that share the work (see `rung.cluster.crew`); None to do all in this process.
    """

    budget_seconds: float | None = None
    budget_money: float | None = None
    rungs: tuple[str, ...] = ()
    seed: int = 0
    engine: str = "auto"
    out: Path = Path("runs")
    resume: bool = False
    crew: CrewMaker | None = None


DEFAULTS = ClimbOptions()


def chosen_rungs(task: Task, options: ClimbOptions) -> tuple[str, ...]:
    """The rungs to try: the command's choice, else the task's, else the default; without the excluded ones."""
    names = options.rungs or tuple(task.constraints.rungs or ()) or default_names(task)
    return tuple(name for name in names if name not in (task.constraints.exclude or ()) and name != "zero-shot")


def named_rungs(task: Task, options: ClimbOptions) -> bool:
    """Whether somebody named the rungs to try; then none of them is put off."""
    return bool(options.rungs or task.constraints.rungs)
