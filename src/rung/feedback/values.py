"""Cases as JSON values, for the command line, the API and the pages."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rung.feedback.records import Case
from rung.feedback.store import Store


def case_values(case: Case) -> dict[str, Any]:
    """Return a case as JSON values."""
    row = case.interaction
    values = {name: getattr(row, name) for name in type(row).__slots__}
    return {
        **values, "at": row.at.isoformat(), "inputs": dict(row.inputs), "expected": case.expected,
        "reviewer": case.reviewer, "reviewed": case.reviewed, "failure": case.failure, "reasons": list(case.reasons),
        "suggestion": case.suggestion,
    }  # fmt: skip


def details(store: Store, id: str) -> dict[str, Any]:  # noqa: A002
    """Return a case with its feedback, its history and what other artifacts answered, as JSON values."""
    said = [{**asdict(one), "at": one.at.isoformat() if one.at else None} for one in store.feedback(id)]
    history = [{**asdict(one), "at": one.at.isoformat()} for one in store.history(id)]
    shadows = [
        {"artifact": one.artifact, "actual": one.actual, "confidence": one.confidence} for one in store.shadows(id)
    ]
    return {**case_values(store.case(id)), "feedback": said, "history": history, "shadowed_by": shadows}
