"""Where the climbs of a task are, to show what they measured beside what the rules expected."""

from __future__ import annotations

import json
from pathlib import Path

from rung.task import Task


def latest_run(task: Task, runs: Path) -> tuple[Path, bool] | None:
    """Return the folder of the task's latest finished climb, and whether the task file is still the same."""
    found = []
    for report in runs.glob("*/report.json"):
        identity = json.loads((report.parent / "climb.json").read_text("utf-8"))
        if identity["task"] == task.name:
            found.append((report.stat().st_mtime, report.parent, identity["task_fingerprint"] == task.fingerprint()))
    if not found:
        return None
    _, folder, same = max(found)
    return folder, same
