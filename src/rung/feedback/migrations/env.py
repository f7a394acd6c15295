"""Alembic runs this: migrate over the connection that `rung.feedback.database` hands in, inside its transaction."""

from alembic import context

from rung.feedback.database import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    transactional_ddl=True,  # both databases can; Alembic does not believe it of SQLite
)
context.run_migrations()
