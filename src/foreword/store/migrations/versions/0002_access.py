"""API keys and the audit table."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def _name() -> sa.String:
    return sa.String(128).with_variant(sa.String(128, collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "api_key",
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("secret", sa.String(64), nullable=False),
        sa.Column("owner", _name()),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("note", sa.String(256)),
        sa.Column("created", sa.String(32), nullable=False),
        sa.Column("revoked", sa.String(32)),
    )
    op.create_index("ix_api_key_owner", "api_key", ["owner"])
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("at", sa.String(32), nullable=False),
        sa.Column("who", sa.String(160), nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("owner", _name()),
        sa.Column("target", sa.String(300)),
        sa.Column("digest", sa.String(64)),
    )
    op.create_index("audit_by_owner", "audit", ["owner", "id"])
