"""The trial that an interaction belongs to, and the interaction that it shadows."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the columns; existing rows belong to no trial."""
    op.add_column("interactions", sa.Column("trial", sa.String(32), nullable=False, server_default=""))
    op.add_column("interactions", sa.Column("shadows", sa.String(80), nullable=False, server_default=""))
    op.create_index("interactions_by_trial", "interactions", ["trial"])
    op.create_index("interactions_by_shadowed", "interactions", ["shadows"])
