"""What reviewers and users said of answers: which correction holds, and how good the answers of a trial were."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rung.feedback.database import sa
from rung.feedback.records import Correction, Verdict
from rung.feedback.schema import corrections, feedback, interactions

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Row


def correction_of(row: Row[Any]) -> Correction:
    """Return a row of the table as what it is."""
    return Correction(row.number, row.interaction, row.at, row.reviewer, row.expected, row.comment, row.undoes)


def holding(history: Sequence[Correction]) -> Correction | None:
    """Return the correction that holds: the last one that no later entry undoes."""
    undone = {entry.undoes for entry in history}
    left = [entry for entry in history if entry.expected is not None and entry.number not in undone]
    return left[-1] if left else None


def verdicts(connection: Connection, trial: str) -> list[Verdict]:
    """Return what was said of the answers of a trial that were sent, in the order in which it was first said."""
    history = _by_interaction(connection, corrections, trial)
    said = _by_interaction(connection, feedback, trial, feedback.c.source == "user")
    found = [_verdict(one, history.get(one, []), said.get(one, [])) for one in {**history, **said}]
    return sorted((one for one in found if one is not None), key=lambda one: (one.at, one.interaction))


def _by_interaction(
    connection: Connection, table: sa.Table, trial: str, *conditions: sa.ColumnElement[bool]
) -> dict[str, list[Row[Any]]]:
    statement = (
        sa.select(table)
        .join(interactions, interactions.c.id == table.c.interaction)
        .where(interactions.c.trial == trial, *conditions)
        .order_by(table.c.number)
    )
    rows: dict[str, list[Row[Any]]] = defaultdict(list)
    for row in connection.execute(statement):
        rows[row.interaction].append(row)
    return rows


def _verdict(interaction: str, history: Sequence[Row[Any]], said: Sequence[Row[Any]]) -> Verdict | None:
    """Put together what was said of one answer; None where it does not tell how good that was."""
    scored = [row for row in said if row.thumb is not None or row.score is not None]
    named = [row for row in said if row.expected is not None]
    holds = holding([correction_of(row) for row in history])
    counting = [*scored[:1], *named, *(history if holds is not None else ())]
    if not counting:
        return None
    score = None
    if scored:
        score = scored[0].score if scored[0].thumb is None else float(scored[0].thumb == "up")
    expected = holds.expected if holds is not None else named[-1].expected if named else None
    return Verdict(interaction, min(row.at for row in counting), expected, score)
