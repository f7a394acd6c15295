"""Find suspicious answers: those that break the task's rules, and those that another artifact contradicts."""

from __future__ import annotations

import json
from dataclasses import dataclass

from rung.artifact.artifact import Artifact
from rung.data.examples import mismatch
from rung.data.rows import Example
from rung.feedback.records import CaseFilter, Feedback
from rung.feedback.store import FeedbackStore
from rung.progress import QUIET, Progress

BATCH = 32


@dataclass(frozen=True, slots=True)
class CheckCounts:
    """How many unreviewed interactions were checked, and how many of them are newly invalid or contradicted."""

    looked_at: int
    invalid: int
    disagreed: int


def check(
    store: FeedbackStore, artifact: Artifact, fingerprint: str, *, compare: bool = True, progress: Progress = QUIET
) -> CheckCounts:
    """Check the unreviewed interactions of an artifact's task, and store the findings as feedback.

    The artifact defines which answers are valid. With `compare` it also answers itself: the disagreement of a stronger
    artifact is worth a review. A finding is stored once, and an artifact answers an interaction at most once.
    """
    cases = store.cases(CaseFilter(task=artifact.signature.task, reviewed=False))
    known, source = store.sources(), f"artifact:{fingerprint}"
    invalid = disagreed = 0
    for case in cases:
        id, problem = case.interaction.id, invalidity(artifact, case.interaction.actual)  # noqa: A001
        if problem and "check" not in known.get(id, ()):
            store.add_feedback(Feedback(id, comment=problem, source="check"))
            invalid += 1
    rows = [case.interaction for case in cases if case.interaction.artifact != fingerprint]
    rows = [row for row in rows if source not in known.get(row.id, ())]
    if compare and rows:
        progress.start("answering again", len(rows))
        for first in range(0, len(rows), BATCH):
            batch = rows[first : first + BATCH]
            examples = [Example(row.input_id, row.inputs, (), row.id) for row in batch]
            for row, answer in zip(batch, artifact.answer(examples, full=False), strict=True):
                # Agreement is stored too: it says that this artifact has answered the interaction.
                store.add_feedback(Feedback(row.id, expected=answer.text, source=source))
                disagreed += answer.text.strip() != row.actual.strip()
            progress.advance(len(batch))
        progress.finish(f"{disagreed} disagreements")
    return CheckCounts(len(cases), invalid, disagreed)


def invalidity(artifact: Artifact, actual: str) -> str:
    """Why an answer breaks the rules of the artifact's task; empty if it does not."""
    kind = artifact.signature.kind
    if not actual.strip():
        return "the answer is empty"
    if kind == "category" and actual.strip() not in artifact.signature.labels:
        return "the answer is none of the labels"
    if kind == "json":
        try:
            value = json.loads(actual)
        except (ValueError, RecursionError):
            return "the answer is not valid JSON"
        schema = artifact.decoder.answer_schema
        if schema and (problem := mismatch(value, json.loads(schema))):
            return f"the answer does not fit the schema: {problem}"
    return ""
