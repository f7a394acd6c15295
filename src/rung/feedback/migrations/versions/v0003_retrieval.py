"""Whether nothing relevant was found in the documents."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; of what is there already it is not known, and so not held against it."""
    op.add_column("interactions", sa.Column("missed", sa.Boolean, nullable=False, server_default=sa.false()))
