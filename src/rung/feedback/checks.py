"""Looking for suspicious answers: those that break the task's rules, and those that another artifact contradicts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from rung.artifact.artifact import Artifact
from rung.artifact.parts import Generate
from rung.data.examples import mismatch
from rung.data.rows import Example
from rung.feedback.records import CaseFilter, Feedback, Interaction
from rung.feedback.store import FeedbackStore
from rung.progress import QUIET, Progress

BATCH = 32


@dataclass(frozen=True, slots=True)
class CheckCounts:
    """How many unreviewed interactions were looked at, and how many were newly found invalid or contradicted."""

    looked_at: int
    invalid: int
    disagreed: int


def check(
    store: FeedbackStore, artifact: Artifact, fingerprint: str, *, compare: bool = True, progress: Progress = QUIET
) -> CheckCounts:
    """Look at the unreviewed interactions of an artifact's task, and keep what is found as feedback.

    What was found before is not found again, and no artifact answers an interaction twice.

    Args:
        store: where interactions are, and findings go.
        artifact: of the task; it knows the rules of its answers, and answers itself.
        fingerprint: of the artifact.
        compare: also have it answer; a stronger artifact's disagreement is worth a look.
        progress: told of every batch.
    """
    cases = store.cases(CaseFilter(task=artifact.shape.task, reviewed=False))
    known, source = store.sources(), f"artifact:{fingerprint}"
    invalid = disagreed = 0
    for case in cases:
        id, problem = case.interaction.id, invalidity(artifact, case.interaction.actual)  # noqa: A001
        if problem and "check" not in known.get(id, ()):
            store.add_feedback(Feedback(id, comment=problem, source="check"))
            invalid += 1
    others = [
        case.interaction for case in cases
        if case.interaction.artifact != fingerprint and source not in known.get(case.interaction.id, ())
    ]  # fmt: skip
    if compare and others:
        progress.start("answering again", len(others))
        for first in range(0, len(others), BATCH):
            part = others[first : first + BATCH]
            disagreed += _disagreements(store, artifact, source, part)
            progress.advance(len(part))
        progress.finish(f"{disagreed} disagreements")
    return CheckCounts(len(cases), invalid, disagreed)


def invalidity(artifact: Artifact, actual: str) -> str:
    """Return why an answer breaks the rules of the artifact's task, or nothing."""
    kind = artifact.shape.kind
    if not actual.strip():
        return "the answer is empty"
    if kind == "category" and actual.strip() not in artifact.shape.labels:
        return "the answer is none of the labels"
    if kind == "json":
        try:
            value = json.loads(actual)
        except (ValueError, RecursionError):
            return "the answer is not valid JSON"
        schema = artifact.decoder.json_schema if isinstance(artifact.decoder, Generate) else None
        if schema and (problem := mismatch(value, json.loads(schema))):
            return f"the answer does not fit the schema: {problem}"
    return ""


def _disagreements(store: FeedbackStore, artifact: Artifact, source: str, asked: Sequence[Interaction]) -> int:
    rows = [Example(one.input_id, one.inputs, (), one.id) for one in asked]
    found = 0
    for one, answer in zip(asked, artifact.answer(rows, full=False), strict=True):
        # Agreement is kept too: it says that the answer was looked at.
        store.add_feedback(Feedback(one.id, expected=answer.text, source=source))
        found += answer.text.strip() != one.actual.strip()
    return found
