"""The store on SQLite and on a real PostgreSQL server: what is kept, history, filters, faults."""

import os
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from rung.errors import ConfigError, DataError, MachineError
from rung.feedback.capture import Redactor
from rung.feedback.database import HEAD, METADATA
from rung.feedback.records import QUEUE, CaseFilter, Feedback, Promotion
from rung.feedback.store import FeedbackStore


def test_interactions_come_back_as_they_went_in(store, make):
    rows = [
        make(1, inputs={"text": 'é "quoted"\n', "n": 5, "turns": [{"role": "user", "content": "\U0001f600"}]}),
        make(2, confidence=None, key=None, finish="length", split="test"),
    ]
    store.record(rows)
    assert [store.case(row.id).interaction for row in rows] == rows
    store.record([make(1), make(3)])  # one that is known is left alone
    store.record([])
    assert [store.case(row.id).interaction for row in rows] == rows
    assert len(store.cases()) == 3
    with pytest.raises(DataError, match="no interaction has the id 'r9'"):
        store.case("r9")


def test_text_that_no_database_keeps_is_replaced_and_inputs_are_kept_whole(store, make):
    store.record([make(1, inputs={"text": "a\x00b\ud800c"}, actual="x\x00y\ud800")])
    kept = store.case("r1").interaction
    assert kept.inputs == {"text": "a\x00b\ud800c"}
    assert kept.actual == "x\ufffdy\ufffd"


def test_the_migrations_make_exactly_the_tables(location):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    store = FeedbackStore(location)

    def differences(connection):
        context = MigrationContext.configure(connection, opts={"compare_type": False})
        assert context.get_current_revision() == HEAD
        return compare_metadata(context, METADATA)

    assert store.run("read", differences) == []
    store.close()
    FeedbackStore(location).close()  # opened again: nothing to do


def test_a_store_of_the_first_version_is_migrated_and_keeps_its_rows(location, make):
    store = FeedbackStore(location)
    store.record([make(1)])
    store.correct("r1", "card_arrival", "Ann")

    def back(connection):
        for name in ("interactions_by_trial", "interactions_by_shadowed"):
            connection.execute(sa.text(f"drop index {name}"))
        for name in ("trial", "shadows", "missed"):
            connection.execute(sa.text(f"alter table interactions drop column {name}"))
        connection.execute(sa.text("update alembic_version set version_num = '0001'"))

    store.run("durable", back)
    store.close()
    with FeedbackStore(location) as again:
        assert again.case("r1").interaction == make(1)
        assert again.case("r1").expected == "card_arrival"


def test_a_store_of_a_newer_version_is_refused(location):
    store = FeedbackStore(location)
    store.run("durable", lambda c: c.execute(sa.text("update alembic_version set version_num = '9999'")))
    store.close()
    with pytest.raises(MachineError) as raised:
        FeedbackStore(location)
    assert raised.value.code == "store-newer"


def test_corrections_are_history_and_undo_is_a_new_entry(store, make):
    store.record([make(1)])
    first = store.correct("r1", "card_arrival", "Ann")
    second = store.correct("r1", "lost_card", "Bob", "it was stolen")
    assert store.case("r1").expected == "lost_card"
    undone = store.undo("r1", "Bob")
    assert (store.case("r1").expected, store.case("r1").reviewer) == ("card_arrival", "Ann")
    assert [(h.number, h.reviewer, h.expected, h.comment, h.undoes) for h in store.history("r1")] == [
        (first, "Ann", "card_arrival", "", None),
        (second, "Bob", "lost_card", "it was stolen", None),
        (undone, "Bob", None, "", second),
    ]
    store.undo("r1", "Ann")
    assert store.case("r1").expected is None
    with pytest.raises(DataError, match="r1 has no correction of Ann that holds"):
        store.undo("r1", "Ann")
    for expected, reviewer, code in ((" ", "Ann", "missing-field"), ("x", " ", "missing-field")):
        with pytest.raises(DataError) as raised:
            store.correct("r1", expected, reviewer)
        assert raised.value.code == code
    with pytest.raises(DataError, match="'nobody'"):
        store.correct("nobody", "x", "Ann")
    assert len(store.history("r1")) == 4


def test_the_queue_has_every_reason_and_the_worst_first(store, make):
    store.record(
        [
            make(1),
            make(2, confidence=0.4),
            make(3, finish="length"),
            make(4),
            make(5),
            make(6),
            make(7, task="other", confidence=None, finish="tool_calls"),
            make(8),
            make(9, missed=True),
        ]
    )
    store.add_feedback(Feedback("r4", thumb="down", comment="wrong"))
    store.add_feedback(Feedback("r5", expected="card_arrival", source="artifact:b"))
    store.add_feedback(Feedback("r5", expected="lost_card"))
    store.add_feedback(Feedback("r5", expected="age_limit", source="artifact:c"))
    store.add_feedback(Feedback("r6", comment="no such label", source="check"))
    store.add_feedback(Feedback("r8", thumb="up", score=0.5, expected="age_limit"))
    queue = {case.interaction.id: case.reasons for case in store.cases(QUEUE)}
    assert list(queue.items()) == [
        ("r5", ("bad feedback", "disagreement")),
        ("r4", ("bad feedback",)),
        ("r6", ("invalid output",)),
        ("r3", ("unfinished",)),
        ("r9", ("retrieval miss",)),
        ("r2", ("low confidence",)),
    ]
    assert store.case("r5").suggestion == "lost_card"  # a user's goes before an artifact's later one
    store.correct("r4", "age_limit", "Ann")  # reviewed, and it was right
    store.correct("r5", " lost_card\n", "Ann")
    assert [c.interaction.id for c in store.cases(QUEUE)] == ["r6", "r3", "r9", "r2"]
    assert [c.interaction.id for c in store.cases(CaseFilter(failure=True))] == ["r5"]
    assert [c.interaction.id for c in store.cases(CaseFilter(reviewed=True))] == ["r5", "r4"]
    assert [c.failure for c in store.cases(CaseFilter(reviewed=True))] == [True, False]
    assert {c.interaction.id for c in store.cases(CaseFilter(failure=False))} == {
        f"r{i}" for i in (1, 2, 3, 4, 6, 7, 8, 9)
    }
    assert [c.interaction.id for c in store.cases(CaseFilter(task="other"))] == ["r7"]
    assert [c.interaction.id for c in store.cases(CaseFilter(reason="disagreement"))] == ["r5"]
    unsure = CaseFilter(low_confidence=0.95, reason="low confidence")
    assert [c.interaction.id for c in store.cases(unsure, limit=2)] == ["r5", "r4"]
    assert [c.interaction.id for c in store.cases(CaseFilter(suspicious=False), limit=1, offset=1)] == ["r7"]
    assert [c.interaction.id for c in store.cases(CaseFilter(reason="retrieval miss"))] == ["r9"]
    assert len(store.cases(offset=3)) == 6


def test_text_is_found_as_it_is_written_and_wildcards_are_text(store, make):
    store.record([make(1, inputs={"text": "Größe 100%_x"}), make(2, actual="MÜLLER 50%"), make(3)])
    store.correct("r3", "the%one", "Ann")
    for text, found in (("Größe", ["r1"]), ("100%_", ["r1"]), ("%", ["r3", "r2", "r1"]), ("50%", ["r2"]),
                        ("THE%", ["r3"]), ("100__", [])):  # fmt: skip
        assert [c.interaction.id for c in store.cases(CaseFilter(text=text))] == found, text


def test_feedback_needs_its_interaction_and_is_kept_in_order(store, make):
    store.record([make(1)])
    number = store.add_feedback(Feedback("r1", score=0.25, comment="so so", key="k2"))
    two = store.add_feedback(Feedback("r1", thumb="up"))
    assert number < two
    assert [(f.number, f.score, f.thumb, f.comment, f.key) for f in store.feedback("r1")] == [
        (number, 0.25, None, "so so", "k2"),
        (two, None, "up", "", None),
    ]
    with pytest.raises(DataError, match="'r2'"):
        store.add_feedback(Feedback("r2", thumb="up"))


def test_promotions_are_kept_once_and_know_what_was_fixed(store):
    promotion = Promotion(
        "t1", datetime(2026, 1, 1, tzinfo=UTC), "intents", "promote", "f", "x/y", None, "Ann",
        {"p": 0.01, "failures": {"fixed": ["r1", "r2"]}},
    )  # fmt: skip
    other = replace(promotion, token="t2", task="other", kind="rollback", below="t1", evidence={"reason": "worse"})
    store.add_promotion(promotion)
    store.add_promotion(promotion)
    store.add_promotion(other)
    assert store.promotions("intents") == [promotion]
    assert store.promotions() == [promotion, other]
    assert store.fixed() == store.fixed("intents") == {"r1", "r2"}
    assert store.fixed("other") == set()


def test_errors_hide_the_password_and_name_the_way_on(tmp_path):
    with pytest.raises(ConfigError) as raised:
        FeedbackStore("mysql://u:secret@host/x")
    assert raised.value.code == "bad-option"
    with pytest.raises(ConfigError) as raised:
        FeedbackStore("postgresql//u:secret@://")
    assert "secret" not in raised.value.render()
    with pytest.raises(MachineError) as raised:
        FeedbackStore("postgresql://u:secret@127.0.0.1:1/x", patience=0.2)
    assert raised.value.code == "store-failed"
    assert "secret" not in raised.value.render()
    (tmp_path / "no.db").write_text("this is no database, and longer than a header of a hundred bytes. " * 3)
    with pytest.raises(MachineError) as raised:
        FeedbackStore(tmp_path / "no.db")
    assert raised.value.code == "store-failed"
    with pytest.raises(MachineError) as raised:
        FeedbackStore(tmp_path / "none" / "f.db")
    assert raised.value.code == "store-failed"


def test_a_lock_held_too_long_is_said(tmp_path, make):
    file = tmp_path / "f.db"
    store = FeedbackStore(file, patience=0.1)
    with sqlite3.connect(file) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(MachineError) as raised:
            store.record([make(1)])
        assert raised.value.code == "store-failed"
        other.rollback()
    store.record([make(1)])
    assert len(store.cases()) == 1
    store.close()
    other.close()


def test_a_purge_deletes_what_is_older_with_all_that_was_said_of_it(store, make):
    store.record([make(n, inputs={"text": f"purged secret {n}" if n < 2 else f"kept {n}"}) for n in range(4)])
    for n in range(4):
        store.correct(f"r{n}", "card_arrival", "Ann")
        store.add_feedback(Feedback(f"r{n}", "down", None, "wrong", None, "user", None))
    store.undo("r1", "Ann")
    assert store.purge(make(2).at) == 2
    assert [case.interaction.id for case in store.cases()] == ["r3", "r2"]
    assert store.history("r1") == store.feedback("r0") == []
    assert len(store.history("r2")) == len(store.feedback("r3")) == 1
    if store.dialect == "sqlite":
        assert b"purged secret" not in Path(store.name).read_bytes()
        assert b"kept 3" in Path(store.name).read_bytes()


def test_what_reviewers_and_users_write_is_redacted(location, make):
    with FeedbackStore(location, redact=Redactor().text) as store:
        store.record([make(1)])
        store.add_feedback(Feedback("r1", None, None, "ask a@b.example", "write to a@b.example", "user", None))
        store.correct("r1", "a@b.example", "Ann", "said a@b.example")
        store.undo("r1", "Ann", "not a@b.example")
        assert "b.example" not in str(store.details("r1"))
        assert [entry.expected for entry in store.history("r1")] == ["[email]", None]


def test_a_new_store_is_its_owner_s_alone(tmp_path, make):
    mask = os.umask(0)
    try:
        with FeedbackStore(tmp_path / "f.db") as store:
            store.record([make(1)])
            assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}
    finally:
        os.umask(mask)


def test_a_store_that_is_removed_or_replaced_takes_nothing_more(tmp_path, make):
    file = tmp_path / "f.db"
    with FeedbackStore(file) as store:
        store.record([make(1)])
        for change in (lambda: file.rename(tmp_path / "old.db"), file.touch):
            change()
            with pytest.raises(MachineError, match="was removed or replaced") as refused:
                store.correct("r1", "card_arrival", "Ann")
            assert refused.value.code == "store-failed"
        os.replace(tmp_path / "old.db", file)  # noqa: PTH105
        assert store.correct("r1", "card_arrival", "Ann") == 1


@pytest.mark.parametrize("column", ["inputs", "actual"])
def test_a_damaged_entry_is_an_error_of_the_store(tmp_path, make, column):
    file = tmp_path / "f.db"
    with FeedbackStore(file) as store:
        store.record([make(1)])
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(f"UPDATE interactions SET {column} = CAST(x'7BFF22' AS TEXT)")
    with FeedbackStore(file) as store, pytest.raises(MachineError) as failed:
        store.cases()
    assert failed.value.code == "store-failed"
