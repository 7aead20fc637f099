"""The catalogue: prefixes, versions, labels, blobs, shares."""

import uuid

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def _name() -> sa.String:
    return sa.String(128).with_variant(sa.String(128, collation="C"), "postgresql")


def upgrade() -> None:
    setting = op.create_table(
        "setting",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
    op.bulk_insert(
        setting, [{"name": "store", "value": uuid.uuid4().hex}, {"name": "forgotten", "value": "0"}]
    )
    op.create_table(
        "blob",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("key", sa.String(128), nullable=False, unique=True),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("ready", sa.Boolean, nullable=False),
        sa.Column("touched", sa.String(32), nullable=False),
    )
    op.create_table(
        "prefix",
        sa.Column("owner", _name(), primary_key=True),
        sa.Column("name", _name(), primary_key=True),
        sa.Column("public", sa.Boolean, nullable=False),
        sa.Column("counter", sa.Integer, nullable=False),
        sa.Column("latest", sa.Integer),
        sa.Column("base", sa.String(256)),
    )
    op.create_index("prefix_by_base", "prefix", ["base", "owner", "name"])
    op.create_index("prefix_by_public", "prefix", ["public", "owner", "name"])
    op.create_table(
        "version",
        sa.Column("owner", _name(), primary_key=True),
        sa.Column("name", _name(), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("digest", sa.String(64), sa.ForeignKey("blob.digest"), nullable=False),
        sa.Column("created", sa.String(32), nullable=False),
        sa.Column("base", sa.String(256), nullable=False),
        sa.Column("length", sa.Integer, nullable=False),
        sa.Column("dtype", sa.String(16), nullable=False),
        sa.Column("facts", sa.JSON, nullable=False),
        sa.ForeignKeyConstraint(["owner", "name"], ["prefix.owner", "prefix.name"], ondelete="CASCADE"),
    )
    op.create_index("ix_version_digest", "version", ["digest"])
    op.create_table(
        "label",
        sa.Column("owner", _name(), primary_key=True),
        sa.Column("name", _name(), primary_key=True),
        sa.Column("label", _name(), primary_key=True),
        sa.Column("number", sa.Integer, nullable=False),
        sa.ForeignKeyConstraint(
            ["owner", "name", "number"],
            ["version.owner", "version.name", "version.number"],
            ondelete="CASCADE",
        ),
    )
    op.create_index("label_by_label", "label", ["label", "owner", "name"])
    op.create_index("label_by_version", "label", ["owner", "name", "number"])
    op.create_table(
        "share",
        sa.Column("grantee", _name(), primary_key=True),
        sa.Column("owner", _name(), primary_key=True),
        sa.Column("name", _name(), primary_key=True),
        sa.ForeignKeyConstraint(["owner", "name"], ["prefix.owner", "prefix.name"], ondelete="CASCADE"),
    )
    op.create_index("share_by_prefix", "share", ["owner", "name"])
