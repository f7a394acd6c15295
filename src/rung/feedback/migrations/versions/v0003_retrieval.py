"""Whether retrieval found nothing relevant."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the column; it is unknown for existing rows, so these do not become suspicious."""
    op.add_column("interactions", sa.Column("missed", sa.Boolean, nullable=False, server_default=sa.false()))
