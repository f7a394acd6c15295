"""The store of interactions, feedback, corrections and promotions. Corrections are history: added, never changed."""

from __future__ import annotations

import json
import re
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from rung.errors import DataError
from rung.feedback.database import PATIENCE, StoreDatabase, corrections, feedback, interactions, promotions, sa
from rung.feedback.records import (
    EVERYTHING,
    FINISHED,
    REASONS,
    SPACE,
    STORE,
    CaseFilter,
    Correction,
    Feedback,
    Interaction,
    JudgedAnswer,
    Promotion,
    Reason,
    ReviewCase,
)

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Row


# --------------------
# Cases by SQL: which correction holds, and why an answer is suspicious.


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
    which: CaseFilter,
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


def count(connection: Connection, which: CaseFilter) -> int:
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


def _joined(which: CaseFilter) -> tuple[sa.Select[Any], sa.FromClause, dict[Reason, Condition]]:
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


def _conditions(which: CaseFilter, holds: sa.FromClause, reasons: dict[Reason, Condition]) -> list[Condition]:
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


# --------------------
# What reviewers and users said of answers: which correction holds, and how good the answers of a trial were.


def correction_of(row: Row[Any]) -> Correction:
    """Return a row of the table as what it is."""
    return Correction(row.number, row.interaction, row.at, row.reviewer, row.expected, row.comment, row.undoes)


def holding(history: Sequence[Correction]) -> Correction | None:
    """Return the correction that holds: the last one that no later entry undoes."""
    undone = {entry.undoes for entry in history}
    left = [entry for entry in history if entry.expected is not None and entry.number not in undone]
    return left[-1] if left else None


def verdicts(connection: Connection, trial: str) -> list[JudgedAnswer]:
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


def _verdict(interaction: str, history: Sequence[Row[Any]], said: Sequence[Row[Any]]) -> JudgedAnswer | None:
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
    return JudgedAnswer(interaction, min(row.at for row in counting), expected, score)


_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")  # PostgreSQL keeps no NUL, and neither database a lone surrogate


class FeedbackStore:
    """One store, for any number of threads and processes. Every call is one transaction."""

    def __init__(self, location: str | Path = STORE, *, patience: float = PATIENCE) -> None:
        """Open a store, making or migrating it where needed.

        Args:
            location: the path of an SQLite file, or a URL such as postgresql://user:password@host/name.
            patience: for how many seconds a lost connection or a held lock is tried again.

        Raises:
            MachineError: it cannot be opened; see `rung.feedback.database`.
        """
        self.database = StoreDatabase(location, patience=patience)

    @property
    def name(self) -> str:
        """The place as it may be shown."""
        return self.database.name

    def close(self) -> None:
        """Close every connection."""
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    # ---- interactions

    def record(self, rows: Sequence[Interaction]) -> None:
        """Keep interactions, all or none. Those whose id is known are left as they are."""
        if rows:
            values = [_interaction_values(row) for row in rows]
            # One prepared statement and many rows: several rows in one statement would be compiled anew each time.
            self.database.run("capture", lambda c: c.execute(self._insert_new(interactions, "id"), values))

    def interaction(self, id: str) -> Interaction:  # noqa: A002
        """Return one interaction.

        Raises:
            DataError: `no-such-interaction`.
        """
        statement = sa.select(interactions).where(interactions.c.id == id)
        row = self.database.run("read", lambda c: c.execute(statement).one_or_none())
        if row is None:
            raise _unknown(id)
        return _interaction(row)

    def cases(self, which: CaseFilter = EVERYTHING, *, limit: int | None = None, offset: int = 0) -> list[ReviewCase]:
        """Return cases, the most suspicious first, and of equally suspicious ones the newest."""

        def work(connection: Connection) -> list[ReviewCase]:
            rows = case_rows(connection, which, limit, offset)
            known = suggestions(connection, [row.interaction.id for row in rows])
            return [
                ReviewCase(row.interaction, row.expected, row.reviewer, row.reasons, known.get(row.interaction.id))
                for row in rows
            ]

        return self.database.run("read", work)

    def count(self, which: CaseFilter = EVERYTHING) -> int:
        """Return how many cases there are."""
        return self.database.run("read", lambda c: count(c, which))

    def case(self, id: str) -> ReviewCase:  # noqa: A002
        """Return the case of one interaction.

        Raises:
            DataError: `no-such-interaction`.
        """

        def work(connection: Connection) -> ReviewCase | None:
            rows = case_rows(connection, EVERYTHING, None, 0, id=id)
            known = suggestions(connection, [id])
            return ReviewCase(rows[0].interaction, *rows[0][1:], known.get(id)) if rows else None

        found = self.database.run("read", work)
        if found is None:
            raise _unknown(id)
        return found

    def shadows(self, id: str) -> list[Interaction]:  # noqa: A002
        """Return the answers that artifacts gave in the shadow of an interaction, in order."""
        return self._interactions(interactions.c.shadows == id)

    # ---- trials

    def in_trial(self, trial: str) -> list[Interaction]:
        """Return every interaction of a trial, those in the shadow of others included, in order."""
        return self._interactions(interactions.c.trial == trial)

    def verdicts(self, trial: str) -> list[JudgedAnswer]:
        """Return what was said of the answers of a trial, in the order in which it was first said."""
        return self.database.run("read", lambda c: verdicts(c, trial))

    def _interactions(self, condition: sa.ColumnElement[bool]) -> list[Interaction]:
        statement = sa.select(interactions).where(condition).order_by(interactions.c.at, interactions.c.id)
        return [_interaction(row) for row in self.database.run("read", lambda c: c.execute(statement).all())]

    # ---- feedback and corrections

    def add_feedback(self, given: Feedback) -> int:
        """Keep feedback durably; return its number.

        Raises:
            DataError: `no-such-interaction`.
        """
        values = {**asdict(given), "at": given.at or datetime.now(UTC)}
        del values["number"]
        return self._add(feedback, given.interaction, values)

    def feedback(self, id: str) -> list[Feedback]:  # noqa: A002
        """Return what was said of one answer, in order."""
        statement = sa.select(feedback).where(feedback.c.interaction == id).order_by(feedback.c.number)
        rows = self.database.run("read", lambda c: c.execute(statement).all())
        return [
            Feedback(r.interaction, r.thumb, r.score, r.comment, r.expected, r.source, r.key, r.at, r.number)
            for r in rows
        ]

    def sources(self) -> dict[str, set[str]]:
        """Return who said something of which interaction."""
        statement = sa.select(feedback.c.interaction, feedback.c.source).distinct()
        found: dict[str, set[str]] = {}
        for row in self.database.run("read", lambda c: c.execute(statement).all()):
            found.setdefault(row.interaction, set()).add(row.source)
        return found

    def correct(self, id: str, expected: str, reviewer: str, comment: str = "") -> int:  # noqa: A002
        """Say what was expected; the same as the actual response says that it was right. Durable when this returns.

        Returns:
            Number of the entry.

        Raises:
            DataError: `no-such-interaction` or `missing-field`.
        """
        if not expected.strip():
            raise DataError("missing-field", f"the expected response to {id} is empty", hint="write what was expected")
        _need_reviewer(reviewer)
        return self._add(corrections, id, _entry(id, reviewer, comment, expected=expected))

    def undo(self, id: str, reviewer: str, comment: str = "") -> int:  # noqa: A002
        """Undo the correction that holds, by a new entry; the one before it holds again.

        Raises:
            DataError: `no-such-interaction`, `nothing-to-undo` or `missing-field`.
        """
        _need_reviewer(reviewer)
        values = _entry(id, reviewer, comment, expected=None)

        def undoes(connection: Connection) -> dict[str, Any]:
            holds = holding(_corrections(connection, id))
            if holds is None:
                raise DataError("nothing-to-undo", f"{id} has no correction", hint="`rung failures show` lists them")
            return {"undoes": holds.number}

        return self._add(corrections, id, values, undoes)

    def history(self, id: str) -> list[Correction]:  # noqa: A002
        """Return every entry of an interaction's history, in order."""
        return self.database.run("read", lambda c: _corrections(c, id))

    def _add(
        self,
        table: sa.Table,
        id: str,  # noqa: A002
        values: dict[str, Any],
        more: Callable[[Connection], dict[str, Any]] = lambda connection: {},
    ) -> int:
        """Insert one row that belongs to an interaction, with what `more` finds in the same transaction.

        Its token makes a second try harmless.
        """
        values = {name: _storable(value) for name, value in values.items()} | {"token": uuid.uuid4().hex}

        def work(connection: Connection) -> int:
            exists = sa.select(interactions.c.id).where(interactions.c.id == id)
            if connection.execute(exists).one_or_none() is None:
                raise _unknown(id)
            known = connection.execute(sa.select(table.c.number).where(table.c.token == values["token"])).scalar()
            if known is not None:
                return int(known)
            row = values | more(connection)
            return int(connection.execute(sa.insert(table).values(row).returning(table.c.number)).scalar_one())

        return self.database.run("durable", work)

    # ---- promotions

    def add_promotion(self, made: Promotion) -> None:
        """Keep a promotion durably; one that is known is left as it is."""
        values = {**asdict(made), "evidence": json.dumps(made.evidence)}
        self.database.run("durable", lambda c: c.execute(self._insert_new(promotions, "token"), [values]))

    def promotions(self, task: str | None = None) -> list[Promotion]:
        """Return the promotions and rollbacks of a task, or of all, in order."""
        statement = sa.select(promotions).order_by(promotions.c.number)
        if task is not None:
            statement = statement.where(promotions.c.task == task)
        rows = self.database.run("read", lambda c: c.execute(statement).all())
        return [
            Promotion(
                r.token, r.at, r.task, r.kind, r.artifact, r.folder, r.below, r.reviewer, json.loads(r.evidence)
            )
            for r in rows
        ]  # fmt: skip

    def fixed(self, task: str | None = None) -> set[str]:
        """Return the failures that some promoted artifact has fixed: every later one is checked on them."""
        return {one for made in self.promotions(task) for one in made.evidence.get("failures", {}).get("fixed", ())}

    def _insert_new(self, table: sa.Table, key: str) -> Any:
        """Return an insert that leaves rows whose key is known as they are; each dialect has its own."""
        from sqlalchemy.dialects import postgresql, sqlite

        dialect = sqlite if self.database.dialect == "sqlite" else postgresql
        return dialect.insert(table).on_conflict_do_nothing(index_elements=[key])


def _unknown(id: str) -> DataError:  # noqa: A002
    return DataError(
        "no-such-interaction", f"no interaction has the id {id!r}",
        hint="ids are those of the responses; `rung failures list` shows what was captured",
    )  # fmt: skip


def _need_reviewer(reviewer: str) -> None:
    if not reviewer.strip():
        raise DataError("missing-field", "a correction needs the reviewer's name", hint="give --reviewer NAME")


def _storable(value: Any) -> Any:
    return _UNSTORABLE.sub("\ufffd", value) if isinstance(value, str) else value


def _entry(id: str, reviewer: str, comment: str, expected: str | None) -> dict[str, Any]:  # noqa: A002
    return {
        "interaction": id, "at": datetime.now(UTC), "reviewer": reviewer.strip(), "expected": expected,
        "comment": comment, "undoes": None,
    }  # fmt: skip


def _interaction_values(row: Interaction) -> dict[str, Any]:
    values = {name: _storable(getattr(row, name)) for name in Interaction.__slots__ if name != "inputs"}
    return {**values, "inputs": json.dumps(dict(row.inputs))}  # ASCII only: whatever the text holds, it can be stored


def _interaction(row: Row[Any]) -> Interaction:
    values = {column.name: getattr(row, column.name) for column in interactions.columns}
    return Interaction(**{**values, "inputs": json.loads(values["inputs"])})


def _corrections(connection: Connection, id: str) -> list[Correction]:  # noqa: A002
    statement = sa.select(corrections).where(corrections.c.interaction == id).order_by(corrections.c.number)
    return [correction_of(row) for row in connection.execute(statement)]


# --------------------
# Cases as JSON values, for the command line, the API and the pages.


def case_values(case: ReviewCase) -> dict[str, Any]:
    """Return a case as JSON values."""
    row = case.interaction
    values = {name: getattr(row, name) for name in type(row).__slots__}
    return {
        **values, "at": row.at.isoformat(), "inputs": dict(row.inputs), "expected": case.expected,
        "reviewer": case.reviewer, "reviewed": case.reviewed, "failure": case.failure, "reasons": list(case.reasons),
        "suggestion": case.suggestion,
    }  # fmt: skip


def details(store: FeedbackStore, id: str) -> dict[str, Any]:  # noqa: A002
    """Return a case with its feedback, its history and what other artifacts answered, as JSON values."""
    said = [{**asdict(one), "at": one.at.isoformat() if one.at else None} for one in store.feedback(id)]
    history = [{**asdict(one), "at": one.at.isoformat()} for one in store.history(id)]
    shadows = [
        {"artifact": one.artifact, "actual": one.actual, "confidence": one.confidence} for one in store.shadows(id)
    ]
    return {**case_values(store.case(id)), "feedback": said, "history": history, "shadowed_by": shadows}
