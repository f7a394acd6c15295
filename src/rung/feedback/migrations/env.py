"""Alembic runs this: migrate over the connection that `rung.feedback.database` hands in, inside its transaction."""

from alembic import context

from rung.feedback.database import METADATA

if hasattr(context, "config"):  # whoever merely imports the modules of the package migrates nothing
    context.configure(
        connection=context.config.attributes["connection"],
        target_metadata=METADATA,
        transactional_ddl=True,  # both databases support it; Alembic's default for SQLite is wrong
    )
    context.run_migrations()
