"""Interactions, feedback, corrections and promotions."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the first tables."""
    op.create_table(
        "interactions",
        sa.Column("id", sa.String(80), primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("task", sa.Text, nullable=False),
        sa.Column("artifact", sa.String(64), nullable=False),
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("system", sa.Text, nullable=False),
        sa.Column("template", sa.Text, nullable=False),
        sa.Column("template_version", sa.String(64), nullable=False),
        sa.Column("inputs", sa.Text, nullable=False),
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
    )
    op.create_index("interactions_by_task", "interactions", ["task", "at"])
    op.create_table(
        "feedback",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("token", sa.String(32), nullable=False, unique=True),
        sa.Column("interaction", sa.String(80), sa.ForeignKey("interactions.id"), nullable=False, index=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("thumb", sa.String(4)),
        sa.Column("score", sa.Float),
        sa.Column("comment", sa.Text, nullable=False),
        sa.Column("expected", sa.Text),
        sa.Column("key", sa.Text),
    )
    op.create_table(
        "corrections",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("token", sa.String(32), nullable=False, unique=True),
        sa.Column("interaction", sa.String(80), sa.ForeignKey("interactions.id"), nullable=False, index=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("reviewer", sa.Text, nullable=False),
        sa.Column("expected", sa.Text),
        sa.Column("comment", sa.Text, nullable=False),
        sa.Column("undoes", sa.Integer, sa.ForeignKey("corrections.number"), index=True),
    )
    op.create_table(
        "promotions",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("token", sa.String(32), nullable=False, unique=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("task", sa.Text, nullable=False, index=True),
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("artifact", sa.String(64), nullable=False),
        sa.Column("folder", sa.Text, nullable=False),
        sa.Column("below", sa.String(32)),
        sa.Column("reviewer", sa.Text, nullable=False),
        sa.Column("evidence", sa.Text, nullable=False),
    )
