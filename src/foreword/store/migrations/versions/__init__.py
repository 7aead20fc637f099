"""Alembic scripts: each step from one release's tables to the next one's."""
