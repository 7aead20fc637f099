"""Alembic's entry: run the scripts on the connection, and in the transaction, that `schema.py` opened."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    # SQLite can roll table changes back too, which Alembic does not assume.
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
