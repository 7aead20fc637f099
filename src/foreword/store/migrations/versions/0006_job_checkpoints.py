"""Checkpoints of jobs among the store's files, so that a job goes on where another machine left it."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    name = sa.String(128).with_variant(sa.String(128, collation="C"), "postgresql")
    op.create_table(
        "job_checkpoint",
        sa.Column("job", sa.String(40), sa.ForeignKey("job.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("owner", name, nullable=False),
        sa.Column("digest", sa.String(64), sa.ForeignKey("blob.digest"), nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("created", sa.String(32), nullable=False),
    )
    op.create_index("ix_job_checkpoint_digest", "job_checkpoint", ["digest"])
    op.create_index("job_checkpoint_by_owner", "job_checkpoint", ["owner"])
