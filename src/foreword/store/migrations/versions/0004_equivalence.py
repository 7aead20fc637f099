"""Bases whose prefixes were declared to run on another base, such as a quantised copy of the same weights."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "equivalence",
        sa.Column("trained", sa.String(64), primary_key=True),
        sa.Column("other", sa.String(64), primary_key=True),
        sa.Column("declared", sa.String(32), nullable=False),
        sa.Column("declared_by", sa.String(160), nullable=False),
        sa.Column("loss_difference", sa.Float, nullable=False),
        sa.Column("facts", sa.JSON, nullable=False),
    )
    op.create_index("equivalence_by_other", "equivalence", ["other"])
