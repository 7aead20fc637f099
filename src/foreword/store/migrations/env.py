"""Alembic's entry: run the scripts on the connection, and in the transaction, that `schema.py` opened."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()
