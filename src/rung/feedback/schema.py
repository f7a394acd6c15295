"""The tables of the store. `migrations/` makes them; a test holds the two together."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

HEAD = "0003"  # the newest migration


class Moment(sa.types.TypeDecorator[datetime]):
    """A point in time, in UTC on every database; SQLite keeps no time zone."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        """Turn what is stored into UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value} has no time zone")
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        """Return what was stored, in UTC."""
        del dialect
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


METADATA = sa.MetaData()

interactions = sa.Table(
    "interactions",
    METADATA,
    sa.Column("id", sa.String(80), primary_key=True),
    sa.Column("at", Moment, nullable=False),
    sa.Column("task", sa.Text, nullable=False),
    sa.Column("artifact", sa.String(64), nullable=False),
    sa.Column("model", sa.String(64), nullable=False),
    sa.Column("system", sa.Text, nullable=False),
    sa.Column("template", sa.Text, nullable=False),
    sa.Column("template_version", sa.String(64), nullable=False),
    sa.Column("inputs", sa.Text, nullable=False),  # JSON
    sa.Column("input_id", sa.String(16), nullable=False),
    sa.Column("prompt_sha256", sa.String(64), nullable=False),
    sa.Column("actual", sa.Text, nullable=False),
    sa.Column("confidence", sa.Float),
    sa.Column("prompt_tokens", sa.Integer, nullable=False),
    sa.Column("completion_tokens", sa.Integer, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("key", sa.Text),
    sa.Column("finish", sa.Text, nullable=False),
    sa.Column("split", sa.String(5), nullable=False),
    sa.Column("trial", sa.String(32), nullable=False, server_default=""),
    sa.Column("shadows", sa.String(80), nullable=False, server_default=""),
    sa.Column("missed", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Index("interactions_by_task", "task", "at"),
    sa.Index("interactions_by_trial", "trial"),
    sa.Index("interactions_by_shadowed", "shadows"),
)

# `source` is `user`, `check` (the answer breaks the task's rules) or `artifact:FINGERPRINT` (what another one answers).
feedback = sa.Table(
    "feedback",
    METADATA,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("token", sa.String(32), nullable=False, unique=True),
    sa.Column("interaction", sa.String(80), sa.ForeignKey("interactions.id"), nullable=False, index=True),
    sa.Column("at", Moment, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("thumb", sa.String(4)),
    sa.Column("score", sa.Float),
    sa.Column("comment", sa.Text, nullable=False),
    sa.Column("expected", sa.Text),
    sa.Column("key", sa.Text),
)

# Rows are only ever added: what holds is the last correction that no later row undoes.
corrections = sa.Table(
    "corrections",
    METADATA,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("token", sa.String(32), nullable=False, unique=True),
    sa.Column("interaction", sa.String(80), sa.ForeignKey("interactions.id"), nullable=False, index=True),
    sa.Column("at", Moment, nullable=False),
    sa.Column("reviewer", sa.Text, nullable=False),
    sa.Column("expected", sa.Text),
    sa.Column("comment", sa.Text, nullable=False),
    sa.Column("undoes", sa.Integer, sa.ForeignKey("corrections.number"), index=True),
)

promotions = sa.Table(
    "promotions",
    METADATA,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("token", sa.String(32), nullable=False, unique=True),
    sa.Column("at", Moment, nullable=False),
    sa.Column("task", sa.Text, nullable=False, index=True),
    sa.Column("kind", sa.String(8), nullable=False),
    sa.Column("artifact", sa.String(64), nullable=False),
    sa.Column("folder", sa.Text, nullable=False),
    sa.Column("below", sa.String(32)),
    sa.Column("reviewer", sa.Text, nullable=False),
    sa.Column("evidence", sa.Text, nullable=False),  # JSON
)
