"""Cases by SQL: which correction holds, and why an answer is suspicious."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rung.feedback.database import sa
from rung.feedback.interaction import Interaction
from rung.feedback.records import FINISHED, REASONS, SPACE, Filter, Reason
from rung.feedback.schema import corrections, feedback, interactions

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

Condition = sa.ColumnElement[bool]
_WEIGHTS = {name: 2**place for place, name in enumerate(reversed(REASONS))}


class CaseRow(NamedTuple):
    """A case without its suggestion."""

    interaction: Interaction
    expected: str | None
    reviewer: str | None
    reasons: tuple[Reason, ...]


def case_rows(
    connection: Connection,
    which: Filter,
    limit: int | None,
    offset: int,
    *,
    id: str | None = None,  # noqa: A002
) -> list[CaseRow]:
    """Return the rows of a filter, the most suspicious first, then the newest; or the one with this id."""
    statement, holds, reasons = _joined(which)
    for condition in _conditions(which, holds, reasons):
        statement = statement.where(condition)
    if id is not None:
        statement = statement.where(interactions.c.id == id)
    weight = sum((sa.case((reasons[name], _WEIGHTS[name]), else_=0) for name in REASONS), sa.literal(0))
    statement = statement.order_by(weight.desc(), interactions.c.at.desc(), interactions.c.id)
    if limit is not None:
        statement = statement.limit(limit)
    if offset:
        statement = statement.offset(offset) if limit is not None else statement.limit(2**62).offset(offset)
    return [_row(row) for row in connection.execute(statement).mappings()]


def count(connection: Connection, which: Filter) -> int:
    """Return how many cases a filter has."""
    statement, holds, reasons = _joined(which)
    for condition in _conditions(which, holds, reasons):
        statement = statement.where(condition)
    return int(connection.execute(sa.select(sa.func.count()).select_from(statement.subquery())).scalar_one())


def suggestions(connection: Connection, ids: Sequence[str]) -> dict[str, str]:
    """Return the expected response that feedback named last, of those interactions that have one; users go first.

    Where no feedback names one, it is what an artifact in their shadow answered.
    """
    found: dict[str, tuple[bool, int, str]] = {}
    for first in range(0, len(ids), 500):  # databases bound the number of parameters
        chosen = feedback.c.interaction.in_(ids[first : first + 500])
        columns = (feedback.c.interaction, feedback.c.source, feedback.c.number, feedback.c.expected)
        for row in connection.execute(sa.select(*columns).where(chosen, feedback.c.expected.is_not(None))):
            entry = (row.source == "user", row.number, row.expected)
            found[row.interaction] = max(found.get(row.interaction, entry), entry)
        behind = interactions.c.shadows.in_(ids[first : first + 500])
        for id, actual in connection.execute(sa.select(interactions.c.shadows, interactions.c.actual).where(behind)):  # noqa: A001
            found.setdefault(id, (False, 0, actual))
    return {one: entry[2] for one, entry in found.items()}


def _joined(which: Filter) -> tuple[sa.Select[Any], sa.FromClause, dict[Reason, Condition]]:
    """Return the select over interactions and the corrections that hold, these, and a condition per reason."""
    undoing = corrections.alias("undoing")
    undone = sa.exists().where(undoing.c.undoes == corrections.c.number)
    last = (
        sa.select(sa.func.max(corrections.c.number).label("number"))
        .where(corrections.c.expected.is_not(None), ~undone)
        .group_by(corrections.c.interaction)
        .subquery()
    )
    holds = (
        sa.select(corrections.c.interaction, corrections.c.expected, corrections.c.reviewer)
        .join(last, last.c.number == corrections.c.number)
        .subquery("holds")
    )
    reasons = _reasons(which.low_confidence)
    flags = [condition.label(name.replace(" ", "_")) for name, condition in reasons.items()]
    statement = sa.select(interactions, holds.c.expected, holds.c.reviewer, *flags).select_from(
        interactions.outerjoin(holds, holds.c.interaction == interactions.c.id)
    )
    statement = statement.where(interactions.c.shadows == "")  # what no client was sent is no case
    return statement, holds, reasons


def _reasons(low_confidence: float) -> dict[Reason, Condition]:
    def said(*conditions: Condition) -> Condition:
        return sa.exists().where(feedback.c.interaction == interactions.c.id, *conditions)

    shadow = interactions.alias("shadow")
    answered_otherwise = sa.exists().where(
        shadow.c.shadows == interactions.c.id, shadow.c.actual != interactions.c.actual
    )
    other = sa.and_(feedback.c.expected.is_not(None), feedback.c.expected != interactions.c.actual)
    return {
        "bad feedback": said(
            feedback.c.source == "user",
            sa.or_(feedback.c.thumb == "down", sa.func.coalesce(feedback.c.score, 1.0) < 0.5, other),
        ),
        "invalid output": said(feedback.c.source == "check"),
        "unfinished": interactions.c.finish.not_in(FINISHED),
        "retrieval miss": interactions.c.missed,
        "disagreement": sa.or_(said(feedback.c.source.like("artifact:%"), other), answered_otherwise),
        "low confidence": sa.func.coalesce(interactions.c.confidence, 1.0) < low_confidence,
    }


def _conditions(which: Filter, holds: sa.FromClause, reasons: dict[Reason, Condition]) -> list[Condition]:
    table, expected = interactions.c, holds.c.expected
    found: list[Condition] = [
        column == wanted
        for column, wanted in (
            (table.task, which.task),
            (table.artifact, which.artifact),
            (table.split, which.split),
            (table.trial, which.trial),
        )
        if wanted is not None
    ]
    if which.reason is not None:
        found.append(reasons[which.reason])
    wrong = sa.and_(expected.is_not(None), sa.func.trim(expected, SPACE) != sa.func.trim(table.actual, SPACE))
    for wanted, condition in (
        (which.suspicious, sa.or_(*reasons.values())),
        (which.reviewed, expected.is_not(None)),
        (which.failure, wrong),
    ):
        if wanted is not None:
            found.append(condition if wanted else sa.not_(condition))
    if which.text is not None:
        inner = json.dumps(which.text)[1:-1]  # as it stands in the JSON of the inputs
        found.append(
            sa.or_(
                table.inputs.icontains(inner, autoescape=True),
                table.actual.icontains(which.text, autoescape=True),
                expected.icontains(which.text, autoescape=True),
            )
        )
    return found


def _row(row: sa.RowMapping) -> CaseRow:
    values = {column.name: row[column.name] for column in interactions.columns}
    interaction = Interaction(**{**values, "inputs": json.loads(values["inputs"])})
    reasons = tuple(name for name in REASONS if row[name.replace(" ", "_")])
    return CaseRow(interaction, row["expected"], row["reviewer"], reasons)
