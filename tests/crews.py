"""A small climb whose decisions depend on no measured time, and its report without times."""

from __future__ import annotations

import json
import re
from pathlib import Path

from rung.climbing.options import ClimbOptions
from rung.climbing.run import Climb, climb
from rung.cluster.crew import ClimbCrew
from rung.cluster.executor import Executor
from rung.task import Task

SPEED = 5e10  # operations a second that the machine is taken to have
RUNGS = ("majority", "nearest-row", "tfidf-head", "calibrate")
TIMES = re.compile(
    r"seconds|created|^price_|^cost$|^lifetime|^money$|^artifact$|^tokens_per_second$|^spending$|^sha256$"
)


def run(file: Path, out: Path, executor: Executor | None = None, resume: bool = False) -> Climb:
    def crew(task, data, store, seed):
        return ClimbCrew(executor, "", task, data, store, seed)

    options = ClimbOptions(rungs=RUNGS, out=out, resume=resume, crew=None if executor is None else crew)
    return climb(Task.load(file), options=options)


def without_times(report: object) -> object:
    """The report without what depends on the speed of the machine and on where it is."""
    if isinstance(report, dict):
        return {key: without_times(value) for key, value in report.items() if not TIMES.search(key)}
    if isinstance(report, list):
        return [without_times(value) for value in report]
    return report


def report_of(climbed: Climb) -> str:
    climbed.result.write(climbed.folder)
    report = json.loads((climbed.folder / "report.json").read_text())
    return json.dumps(without_times(report), indent=1)
