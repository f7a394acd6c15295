"""Alembic's migrations of the store; `rung.failures.database` runs them when a store is opened."""
