"""What a job has used so far, so that one that is cancelled or given up is counted, too."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    for name, kind in (("used_steps", sa.Integer), ("used_tokens", sa.BigInteger)):
        op.add_column("job", sa.Column(name, kind, nullable=False, server_default="0"))
