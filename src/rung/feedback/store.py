"""The store of interactions, feedback, corrections and promotions. Corrections are history: added, never changed."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rung.errors import DataError
from rung.feedback.database import PATIENCE, Database, sa
from rung.feedback.defaults import STORE
from rung.feedback.interaction import Interaction
from rung.feedback.queries import case_rows, count, suggestions
from rung.feedback.records import EVERYTHING, Case, Correction, Feedback, Filter, Promotion, Verdict
from rung.feedback.schema import corrections, feedback, interactions, promotions
from rung.feedback.verdicts import correction_of, holding, verdicts

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Row

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")  # PostgreSQL keeps no NUL, and neither database a lone surrogate


class Store:
    """One store, for any number of threads and processes. Every call is one transaction."""

    def __init__(self, location: str | Path = STORE, *, patience: float = PATIENCE) -> None:
        """Open a store, making or migrating it where needed.

        Args:
            location: the path of an SQLite file, or a URL such as postgresql://user:password@host/name.
            patience: for how many seconds a lost connection or a held lock is tried again.

        Raises:
            MachineError: it cannot be opened; see `rung.feedback.database`.
        """
        self.database = Database(location, patience=patience)

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

    def cases(self, which: Filter = EVERYTHING, *, limit: int | None = None, offset: int = 0) -> list[Case]:
        """Return cases, the most suspicious first, and of equally suspicious ones the newest."""

        def work(connection: Connection) -> list[Case]:
            rows = case_rows(connection, which, limit, offset)
            known = suggestions(connection, [row.interaction.id for row in rows])
            return [
                Case(row.interaction, row.expected, row.reviewer, row.reasons, known.get(row.interaction.id))
                for row in rows
            ]

        return self.database.run("read", work)

    def count(self, which: Filter = EVERYTHING) -> int:
        """Return how many cases there are."""
        return self.database.run("read", lambda c: count(c, which))

    def case(self, id: str) -> Case:  # noqa: A002
        """Return the case of one interaction.

        Raises:
            DataError: `no-such-interaction`.
        """

        def work(connection: Connection) -> Case | None:
            rows = case_rows(connection, EVERYTHING, None, 0, id=id)
            known = suggestions(connection, [id])
            return Case(rows[0].interaction, *rows[0][1:], known.get(id)) if rows else None

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

    def verdicts(self, trial: str) -> list[Verdict]:
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
            DataError: `no-such-interaction`, `empty-correction` or `reviewer-missing`.
        """
        if not expected.strip():
            raise DataError(
                "empty-correction", f"the expected response to {id} is empty", hint="write what was expected"
            )
        _need_reviewer(reviewer)
        return self._add(corrections, id, _entry(id, reviewer, comment, expected=expected))

    def undo(self, id: str, reviewer: str, comment: str = "") -> int:  # noqa: A002
        """Undo the correction that holds, by a new entry; the one before it holds again.

        Raises:
            DataError: `no-such-interaction`, `nothing-to-undo` or `reviewer-missing`.
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
        raise DataError("reviewer-missing", "a correction needs the reviewer's name", hint="give --reviewer NAME")


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
