"""The store of interactions, feedback, corrections and promotions. Corrections are only added, never changed."""

from __future__ import annotations

import json
import re
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from rung.errors import DataError
from rung.feedback.database import StoreDatabase, corrections, damaged, feedback, interactions, promotions, sa
from rung.feedback.records import (
    EVERYTHING,
    FINISHED,
    REASONS,
    SPACE,
    CaseFilter,
    Correction,
    DayCount,
    Feedback,
    Interaction,
    JudgedAnswer,
    Opinions,
    Promotion,
    Reason,
    ReviewCase,
)

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Row

Condition = sa.ColumnElement[bool]
StoredRecord = TypeVar("StoredRecord", Interaction, Feedback, Correction, Promotion)
_WEIGHTS = {name: 2**position for position, name in enumerate(reversed(REASONS))}
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")  # PostgreSQL stores no NUL, and neither database a lone surrogate
_CHUNK = 500  # ids in one statement; databases limit the number of parameters


class FeedbackStore(StoreDatabase):
    """One store, for any number of threads and processes. Every call is one transaction."""

    # ---- interactions and cases

    def record(self, rows: Sequence[Interaction]) -> None:
        """Store interactions, all or none. Known ids keep their first version."""
        if rows:
            values = [
                _storable({name: getattr(row, name) for name in Interaction.__slots__})
                | {"inputs": json.dumps(dict(row.inputs))}  # ASCII only, so any text can be stored
                for row in rows
            ]
            # One prepared statement for many rows: several rows in one statement would be compiled each time.
            self.run("capture", lambda c: c.execute(self._insert_new(interactions, "id"), values))

    def cases(self, which: CaseFilter = EVERYTHING, *, limit: int | None = None, offset: int = 0) -> list[ReviewCase]:
        """Find cases, the most suspicious first; among equally suspicious ones the newest first."""
        reasons = _reasons(which.low_confidence)
        weight = sum((sa.case((reasons[name], _WEIGHTS[name]), else_=0) for name in REASONS), sa.literal(0))
        statement = self._selected(which, reasons).order_by(weight.desc(), interactions.c.at.desc(), interactions.c.id)
        if limit is not None or offset:
            statement = statement.limit(2**62 if limit is None else limit).offset(offset)

        def work(connection: Connection) -> list[ReviewCase]:
            rows = connection.execute(statement).all()
            suggestions = _suggestions(connection, [row.id for row in rows])
            return [
                ReviewCase(
                    _record(Interaction, row), row.expected, row.reviewer,
                    tuple(name for name in REASONS if getattr(row, _flag(name))), suggestions.get(row.id),
                )
                for row in rows
            ]  # fmt: skip

        return self.run("read", work)

    def count(self, which: CaseFilter = EVERYTHING) -> int:
        """How many cases a filter selects."""
        cases = self._selected(which, _reasons(which.low_confidence)).subquery()
        statement = sa.select(sa.func.count()).select_from(cases)
        return self.run("read", lambda connection: connection.execute(statement).scalar_one())

    def daily(self, task: str | None = None, *, days: int) -> list[DayCount]:
        """Count the answers of each of the last days on which there were any, the oldest first."""
        reasons = _reasons(CaseFilter().low_confidence)
        cases = _select(CaseFilter(task=task), reasons).subquery()
        day = sa.func.date(cases.c.at)
        wrong = sa.func.trim(cases.c.expected, SPACE) != sa.func.trim(cases.c.actual, SPACE)  # none without a review
        counted = (sa.func.sum(sa.case((condition, 1), else_=0)) for condition in (
            sa.or_(*(cases.c[_flag(name)] for name in reasons)), wrong,
        ))  # fmt: skip
        statement = sa.select(day, sa.func.count(), *counted).group_by(day).order_by(day.desc()).limit(days)
        rows = self.run("read", lambda connection: connection.execute(statement).all())
        return [DayCount(date.fromisoformat(str(at)), *map(int, counts)) for at, *counts in reversed(rows)]

    def _selected(self, which: CaseFilter, reasons: dict[Reason, Condition]) -> sa.Select[Any]:
        statement = _select(which, reasons)
        if not which.contested:
            return statement
        contested = [each.interactions for each in self.opinions(which.task).values() if each.contested]
        return statement.where(interactions.c.id.in_(frozenset().union(*contested)))

    def case(self, id: str) -> ReviewCase:  # noqa: A002
        """The case of one interaction; an unknown id is a DataError, `no-such-interaction`, as in the calls below."""
        cases = self.cases(CaseFilter(id=id))
        if not cases:
            raise _unknown(id)
        return cases[0]

    def details(self, id: str) -> dict[str, Any]:  # noqa: A002
        """A case with its feedback, its history and the answers of other artifacts, as JSON values."""
        return self.case(id).as_dict() | {
            "feedback": [{**asdict(entry), "at": entry.at and entry.at.isoformat()} for entry in self.feedback(id)],
            "history": [{**asdict(entry), "at": entry.at.isoformat()} for entry in self.history(id)],
            "shadowed_by": [
                {name: getattr(shadow, name) for name in ("artifact", "actual", "confidence")}
                for shadow in self.shadows(id)
            ],
        }

    def shadows(self, id: str) -> list[Interaction]:  # noqa: A002
        """The answers that challengers gave in the shadow of an interaction, oldest first."""
        return self._interactions(interactions.c.shadows == id)

    # ---- trials

    def in_trial(self, trial: str) -> list[Interaction]:
        """Every interaction of a trial, shadows included, oldest first."""
        return self._interactions(interactions.c.trial == trial)

    def judged(self, trial: str) -> list[JudgedAnswer]:
        """The answers of a trial that users or reviewers judged, in the order in which they were first judged."""

        def work(connection: Connection) -> list[JudgedAnswer | None]:
            entries: dict[str, list[Correction]] = defaultdict(list)
            opinions: dict[str, list[Feedback]] = defaultdict(list)
            for table in (corrections, feedback):
                of_trial = sa.select(table).join(interactions, interactions.c.id == table.c.interaction)
                for row in connection.execute(of_trial.where(interactions.c.trial == trial).order_by(table.c.number)):
                    if table is corrections:
                        entries[row.interaction].append(_record(Correction, row))
                    elif row.source == "user":
                        opinions[row.interaction].append(_record(Feedback, row))
            return [_judged(id, entries[id], opinions[id]) for id in {*entries, *opinions}]  # noqa: A001

        judged = (answer for answer in self.run("read", work) if answer is not None)
        return sorted(judged, key=lambda answer: (answer.at, answer.interaction))

    def _interactions(self, condition: Condition) -> list[Interaction]:
        chosen = sa.select(interactions).where(condition)
        return self._records(Interaction, chosen.order_by(interactions.c.at, interactions.c.id))

    def _records(self, kind: type[StoredRecord], statement: sa.Select[Any]) -> list[StoredRecord]:
        return [_record(kind, row) for row in self.run("read", lambda c: c.execute(statement).all())]

    # ---- feedback and corrections

    def add_feedback(self, given: Feedback) -> int:
        """Store feedback durably; return its number."""
        values = {**asdict(given), "at": given.at or datetime.now(UTC), "comment": self.redact(given.comment)}
        values["expected"] = self.redact(given.expected or "").strip() or None
        del values["number"]
        return self._add(feedback, given.interaction, values)

    def feedback(self, id: str) -> list[Feedback]:  # noqa: A002
        """The feedback on one answer, oldest first."""
        return self._records(Feedback, _entries(feedback, id))

    def thumbs(self, task: str) -> list[tuple[Interaction, bool | None]]:
        """The answers with thumbs of users, oldest first, and whether they are up; None where users disagree."""
        given = sa.and_(feedback.c.source == "user", feedback.c.thumb.is_not(None))
        by_answer = sa.select(feedback.c.interaction, feedback.c.thumb).where(given).distinct()
        found: dict[str, list[bool]] = defaultdict(list)
        for id, thumb in self.run("read", lambda c: c.execute(by_answer).all()):  # noqa: A001
            found[id].append(thumb == "up")
        judged = sa.exists().where(feedback.c.interaction == interactions.c.id, given)
        rows = self._interactions(sa.and_(interactions.c.task == task, judged))
        return [(row, found[row.id][0] if len(found[row.id]) == 1 else None) for row in rows]

    def sources(self) -> dict[str, set[str]]:
        """Which sources gave feedback on each interaction."""
        statement = sa.select(feedback.c.interaction, feedback.c.source).distinct()
        sources: dict[str, set[str]] = defaultdict(set)
        for id, source in self.run("read", lambda c: c.execute(statement).all()):  # noqa: A001
            sources[id].add(source)
        return sources

    def correct(self, id: str, expected: str, reviewer: str, comment: str = "") -> int:  # noqa: A002
        """Store the expected response durably, and return the entry's number; the actual response confirms the answer.

        An empty response, or an empty name of the reviewer, is a DataError, `missing-field`.
        """
        if not expected.strip():
            raise DataError("missing-field", f"the expected response to {id} is empty", hint="write what was expected")
        return self._add(corrections, id, _entry(id, reviewer, self.redact(comment), self.redact(expected)))

    def opinions(self, task: str | None = None, input_id: str | None = None) -> dict[tuple[str, str], Opinions]:
        """What each reviewer expects, by task and hash of the input; for one task or one input where they are given."""
        undoing = corrections.alias("undoing")
        statement = (
            sa.select(interactions.c.task, interactions.c.input_id, corrections)
            .join(interactions, interactions.c.id == corrections.c.interaction)
            .where(corrections.c.expected.is_not(None), ~sa.exists().where(undoing.c.undoes == corrections.c.number))
            .order_by(corrections.c.number)
        )
        if task is not None:
            statement = statement.where(interactions.c.task == task)
        if input_id is not None:
            statement = statement.where(interactions.c.input_id == input_id)
        words: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
        ids: dict[tuple[str, str], set[str]] = defaultdict(set)
        for row in self.run("read", lambda c: c.execute(statement).all()):
            key = row.task, row.input_id
            words[key].pop(row.reviewer, None)  # so that the latest word comes last
            words[key][row.reviewer] = row.expected
            ids[key].add(row.interaction)
        return {key: Opinions(said, frozenset(ids[key])) for key, said in words.items()}

    def undo(self, id: str, reviewer: str, comment: str = "") -> int:  # noqa: A002
        """Undo the reviewer's own last correction that holds, by adding an entry; those of others stay.

        Raises:
            DataError: `no-such-interaction`, `nothing-to-undo` or `missing-field`.
        """

        def undoes(connection: Connection) -> dict[str, Any]:
            rows = connection.execute(_entries(corrections, id)).all()
            current = in_force([_record(Correction, row) for row in rows], reviewer.strip())
            if current is None:
                problem = f"{id} has no correction of {reviewer.strip()} that holds"
                hint = "`rung failures show` lists them; correct it instead of undoing somebody else's"
                raise DataError("nothing-to-undo", problem, hint=hint)
            return {"undoes": current.number}

        return self._add(corrections, id, _entry(id, reviewer, self.redact(comment), None), undoes)

    def history(self, id: str) -> list[Correction]:  # noqa: A002
        """Every correction and undoing of an interaction, oldest first."""
        return self._records(Correction, _entries(corrections, id))

    def _add(
        self, table: sa.Table, id: str, values: dict[str, Any],  # noqa: A002
        more: Callable[[Connection], dict[str, Any]] = lambda connection: {},
    ) -> int:  # fmt: skip
        """Insert one row for an interaction, with the columns that `more` reads in the same transaction."""
        values = _storable(values) | {"token": uuid.uuid4().hex}  # the token makes a retry harmless

        def work(connection: Connection) -> int:
            if connection.execute(sa.select(interactions.c.id).where(interactions.c.id == id)).one_or_none() is None:
                raise _unknown(id)
            known = connection.execute(sa.select(table.c.number).where(table.c.token == values["token"])).scalar()
            if known is not None:
                return int(known)
            row = values | more(connection)
            return int(connection.execute(sa.insert(table).values(row).returning(table.c.number)).scalar_one())

        return self.run("durable", work)

    def purge(self, before: datetime) -> int:
        """Delete interactions from before a moment, with their feedback and corrections; return how many they were."""
        old = sa.select(interactions.c.id).where(interactions.c.at < before)

        def work(connection: Connection) -> int:
            for table in (feedback, corrections):
                connection.execute(sa.delete(table).where(table.c.interaction.in_(old)))
            return connection.execute(sa.delete(interactions).where(interactions.c.at < before)).rowcount

        count = self.run("durable", work)
        self.compact()
        return count

    # ---- promotions

    def add_promotion(self, promotion: Promotion) -> None:
        """Store a promotion durably; a known one is left as it is."""
        values = {**asdict(promotion), "evidence": json.dumps(promotion.evidence)}
        self.run("durable", lambda c: c.execute(self._insert_new(promotions, "token"), [values]))

    def promotions(self, task: str | None = None) -> list[Promotion]:
        """The promotions and rollbacks of a task, or of all tasks, oldest first."""
        statement = sa.select(promotions).order_by(promotions.c.number)
        return self._records(Promotion, statement if task is None else statement.where(promotions.c.task == task))

    def fixed(self, task: str | None = None) -> set[str]:
        """The failures that some promoted artifact fixed; later artifacts are checked on them."""
        evidence = [promotion.evidence for promotion in self.promotions(task)]
        return {interaction for values in evidence for interaction in values.get("failures", {}).get("fixed", ())}

    def _insert_new(self, table: sa.Table, key: str) -> Any:
        """An insert that leaves rows with a known key as they are; each dialect has its own."""
        from sqlalchemy.dialects import postgresql, sqlite

        dialect = sqlite if self.dialect == "sqlite" else postgresql
        return dialect.insert(table).on_conflict_do_nothing(index_elements=[key])


# ---- queries


def _select(which: CaseFilter, reasons: dict[Reason, Condition]) -> sa.Select[Any]:
    """Select interactions with the correction in force and a flag for each reason."""
    undoing = corrections.alias("undoing")
    undone = sa.exists().where(undoing.c.undoes == corrections.c.number)
    last = (
        sa.select(sa.func.max(corrections.c.number).label("number"))
        .where(corrections.c.expected.is_not(None), ~undone)
        .group_by(corrections.c.interaction)
        .subquery()
    )
    current = sa.select(corrections).join(last, last.c.number == corrections.c.number).subquery("current")
    table, expected = interactions.c, current.c.expected
    flags = [condition.label(_flag(name)) for name, condition in reasons.items()]
    statement: sa.Select[Any] = (
        sa.select(*interactions.columns, expected, current.c.reviewer, *flags)
        .select_from(interactions.outerjoin(current, current.c.interaction == table.id))
        .where(table.shadows == "")  # a shadow's answer was not sent, so it is not a case
    )
    for column in (table.task, table.artifact, table.split, table.trial, table.id):
        if (wanted := getattr(which, column.name)) is not None:
            statement = statement.where(column == wanted)
    if which.reason is not None:
        statement = statement.where(reasons[which.reason])
    reviewed = expected.is_not(None)
    wrong = sa.and_(reviewed, sa.func.trim(expected, SPACE) != sa.func.trim(table.actual, SPACE))
    for condition, wanted in (
        (sa.or_(*reasons.values()), which.suspicious), (reviewed, which.reviewed), (wrong, which.failure),
    ):  # fmt: skip
        if wanted is not None:
            statement = statement.where(condition if wanted else sa.not_(condition))
    if which.text is not None:
        in_json = json.dumps(which.text)[1:-1]  # the text as the JSON of the inputs spells it
        places = ((table.inputs, in_json), (table.actual, which.text), (expected, which.text))
        statement = statement.where(sa.or_(*(column.icontains(text, autoescape=True) for column, text in places)))
    return statement


def _reasons(low_confidence: float) -> dict[Reason, Condition]:
    def has_feedback(*conditions: Condition) -> Condition:
        return sa.exists().where(feedback.c.interaction == interactions.c.id, *conditions)

    later = feedback.alias("later")
    last_word = ~sa.exists().where(
        later.c.interaction == feedback.c.interaction, later.c.number > feedback.c.number, _opinion(later)
    )
    shadow = interactions.alias("shadow")
    shadow_differs = sa.exists().where(shadow.c.shadows == interactions.c.id, shadow.c.actual != interactions.c.actual)
    other = sa.and_(feedback.c.expected.is_not(None), feedback.c.expected != interactions.c.actual)
    return {
        "bad feedback": has_feedback(
            _opinion(feedback),
            last_word,
            sa.or_(feedback.c.thumb == "down", sa.func.coalesce(feedback.c.score, 1.0) < 0.5, other),
        ),
        "invalid output": has_feedback(feedback.c.source == "check"),
        "unfinished": interactions.c.finish.not_in(FINISHED),
        "retrieval miss": interactions.c.missed,
        "disagreement": sa.or_(has_feedback(feedback.c.source.like("artifact:%"), other), shadow_differs),
        "low confidence": sa.func.coalesce(interactions.c.confidence, 1.0) < low_confidence,
    }


def _opinion(table: sa.FromClause) -> Condition:
    """Whether a user said how good an answer was; a comment alone says nothing of that."""
    said = sa.or_(table.c.thumb.is_not(None), table.c.score.is_not(None), table.c.expected.is_not(None))
    return sa.and_(table.c.source == "user", said)


def _flag(reason: Reason) -> str:
    return reason.replace(" ", "_")


def _suggestions(connection: Connection, ids: Sequence[str]) -> dict[str, str]:
    """The latest expected response of a user, else the latest answer of another artifact, else that of a shadow.

    A user who later finds the answer good, or takes the feedback back, expects no other response.
    """
    suggestions: dict[str, str] = {}
    for first in range(0, len(ids), _CHUNK):
        chunk = ids[first : first + _CHUNK]
        shadows = sa.select(interactions.c.shadows, interactions.c.actual).where(interactions.c.shadows.in_(chunk))
        later = feedback.alias("later")
        content = sa.or_(later.c.thumb.in_(("up", "none")), later.c.score >= 0.5)
        withdrawn = sa.exists().where(
            later.c.interaction == feedback.c.interaction, later.c.number > feedback.c.number,
            later.c.source == "user", feedback.c.source == "user", later.c.expected.is_(None), content,
        )  # fmt: skip
        expected = (
            sa.select(feedback.c.interaction, feedback.c.expected)
            .where(feedback.c.interaction.in_(chunk), feedback.c.expected.is_not(None), ~withdrawn)
            .order_by(feedback.c.source == "user", feedback.c.number)
        )
        for statement in (shadows, expected):
            suggestions.update((id, text) for id, text in connection.execute(statement))  # noqa: A001
    return suggestions


def _entries(table: sa.Table, id: str) -> sa.Select[Any]:  # noqa: A002
    return sa.select(table).where(table.c.interaction == id).order_by(table.c.number)


# ---- rows and records


def _record(kind: type[StoredRecord], row: Row[Any]) -> StoredRecord:
    values = {name: getattr(row, name) for name in kind.__match_args__}
    for name in ("inputs", "evidence"):
        if name in values:
            try:
                values[name] = json.loads(values[name])
            except ValueError as error:
                raise damaged(f"{name} of an entry: {error}") from error
    return kind(**values)


def _storable(values: dict[str, Any]) -> dict[str, Any]:
    """Replace characters that a database cannot store."""
    return {
        name: _UNSTORABLE.sub("\ufffd", value) if isinstance(value, str) else value for name, value in values.items()
    }


def in_force(entries: Sequence[Correction], reviewer: str | None = None) -> Correction | None:
    """The last correction that no entry undoes, of one reviewer or of all."""
    undone = {entry.undoes for entry in entries}
    left = [entry for entry in entries if entry.expected is not None and entry.number not in undone]
    return next((entry for entry in reversed(left) if reviewer in (None, entry.reviewer)), None)


def _judged(id: str, entries: Sequence[Correction], opinions: Sequence[Feedback]) -> JudgedAnswer | None:  # noqa: A002
    """Combine what users and reviewers said about one answer; None where that does not say how good it was."""
    scored = [opinion for opinion in opinions if opinion.thumb in ("up", "down") or opinion.score is not None]
    suggested = [opinion for opinion in opinions if opinion.expected is not None]
    current = in_force(entries)
    times = [opinion.at for opinion in (*scored[:1], *suggested) if opinion.at]
    times += [entry.at for entry in entries if current]
    if not times:
        return None
    score = None
    if scored:
        score = scored[0].score if scored[0].thumb is None else float(scored[0].thumb == "up")
    expected = current.expected if current else suggested[-1].expected if suggested else None
    return JudgedAnswer(id, min(times), expected, score)


def _entry(id: str, reviewer: str, comment: str, expected: str | None) -> dict[str, Any]:  # noqa: A002
    if not reviewer.strip():
        raise DataError("missing-field", "a correction needs the reviewer's name", hint="give --reviewer NAME")
    return {
        "interaction": id, "at": datetime.now(UTC), "reviewer": reviewer.strip(), "expected": expected,
        "comment": comment, "undoes": None,
    }  # fmt: skip


def _unknown(id: str) -> DataError:  # noqa: A002
    hint = "ids are those of the responses; `rung failures list` shows what was captured"
    return DataError("no-such-interaction", f"no interaction has the id {id!r}", hint=hint)
