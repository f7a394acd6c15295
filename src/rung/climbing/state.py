"""A climb under way: what its stages and its end share."""

from __future__ import annotations

from dataclasses import dataclass, field

from rung.artifact.artifact import Artifact
from rung.climbing.options import ClimbOptions
from rung.climbing.store import RunStore
from rung.data.rows import Data
from rung.evaluation.result import Status
from rung.machine import Machine
from rung.progress import Progress
from rung.rungs.base import Rung
from rung.task import Task


@dataclass
class State:
    """A climb under way.

    Attributes:
        rungs: all that are tried.
        models: of the rungs, those that are raced alone before the others.
        artifacts: by name; `families` has the family of each.
        beaten: why an artifact left the race.
        out: rungs that made no artifact, and why.
        trail: names of the leaders, one stage after the other.
        tried: rung, what it took of its base, name of what it made.
    """

    task: Task
    data: Data
    options: ClimbOptions
    rungs: tuple[Rung, ...]
    models: tuple[Rung, ...]
    machine: Machine
    store: RunStore
    progress: Progress
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    families: dict[str, str] = field(default_factory=dict)
    beaten: dict[str, str] = field(default_factory=dict)
    out: dict[str, tuple[Status, str]] = field(default_factory=dict)
    trail: list[str] = field(default_factory=list)
    tried: list[tuple[str, tuple[object, ...], str]] = field(default_factory=list)

    @property
    def task_metric(self) -> str:
        """Name of the metric."""
        return self.artifacts[self.trail[0]].shape.metric
