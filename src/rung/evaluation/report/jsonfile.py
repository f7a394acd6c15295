"""`report.json`, and the shorter object that `--json` prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rung.evaluation.result import ClimbResult, Comparison, RungResult
from rung.models.cache import write_atomically

RUNG_KEYS = (
    "name", "metric", "score", "low", "high", "n", "split", "status", "reason", "seconds", "fit_seconds", "tokens",
    "trainable_parameters", "artifact_bytes", "artifact", "overflow_rows", "dropped_demonstrations", "retrieval",
)  # fmt: skip
COMPARISON_KEYS = ("a", "b", "delta", "low", "high", "p", "fixed", "broken", "n")


def summary(result: ClimbResult) -> dict[str, Any]:
    """What programs read: task, recommendation, rungs and comparisons."""
    return {
        "task": result.task,
        "recommended": result.recommended,
        "decision": result.decision,
        "seconds": result.seconds,
        "rungs": [{key: getattr(r, key) for key in RUNG_KEYS} for r in result.rungs],
        "comparisons": [{key: getattr(c, key) for key in COMPARISON_KEYS} for c in result.comparisons],
    }


def write(result: ClimbResult, folder: Path) -> Path:
    """Write everything to `report.json`, atomically."""
    file = folder / "report.json"
    write_atomically(file, json.dumps(result.as_dict(), ensure_ascii=False, indent=1))
    return file


def read(folder: Path) -> ClimbResult:
    """Read `report.json` back."""
    values = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    rungs = tuple(
        RungResult(**{**r, "path": tuple(r["path"]), "losses": tuple(map(tuple, r["losses"]))}) for r in values["rungs"]
    )
    comparisons = tuple(Comparison(**c) for c in values["comparisons"])
    return ClimbResult(**{**values, "rungs": rungs, "comparisons": comparisons, "notes": tuple(values["notes"])})
