"""Alembic's migrations of the store; `rung.feedback.database` runs them when a store is opened."""
