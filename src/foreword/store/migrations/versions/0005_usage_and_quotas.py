"""Usage by owner and day, who has put which file, when each was last checked, tasks that one server does.

Listing reads a column instead of a header: the fingerprint of a prefix's base becomes one, and facts that are
longer than a header may be lose what their owner has written into them (the file itself keeps it).
"""

import json

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

LONGEST_FACTS = 1 << 16
BATCH = 200


def _name() -> sa.String:
    return sa.String(128).with_variant(sa.String(128, collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "usage",
        sa.Column("owner", _name(), primary_key=True),
        sa.Column("day", sa.String(10), primary_key=True),
        *(
            sa.Column(name, sa.BigInteger, nullable=False)
            for name in (
                "requests",
                "prompt_tokens",
                "completion_tokens",
                "training_steps",
                "trained_tokens",
                "stored_bytes",
            )
        ),
    )
    op.create_index("usage_by_day", "usage", ["day", "owner"])
    op.create_table(
        "task",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("holder", sa.String(40)),
        sa.Column("until", sa.String(32)),
        sa.Column("finished", sa.String(32)),
    )
    op.create_table(
        "blob_owner",
        sa.Column("owner", _name(), primary_key=True),
        sa.Column(
            "digest", sa.String(64), sa.ForeignKey("blob.digest", ondelete="CASCADE"), primary_key=True
        ),
    )
    op.create_index("ix_blob_owner_digest", "blob_owner", ["digest"])
    op.execute("INSERT INTO blob_owner (owner, digest) SELECT DISTINCT owner, digest FROM version")
    op.add_column("blob", sa.Column("checked", sa.String(32), nullable=False, server_default=""))
    op.add_column("blob", sa.Column("fault", sa.String(16)))
    op.execute("UPDATE blob SET checked = touched")  # it was whole when it was written
    op.create_index("blob_by_checked", "blob", ["checked"])
    op.create_index("blob_by_fault", "blob", ["fault"])
    op.add_column("version", sa.Column("fingerprint", sa.String(64)))
    _fill_fingerprints(op.get_bind())


def _writable(text: str) -> str:
    """Text that every database can hold: JSON has zero bytes and halves of surrogate pairs, too."""
    return text.replace("\0", "").encode(errors="replace").decode()


def _fill_fingerprints(connection: sa.Connection) -> None:
    table = sa.table(
        "version",
        *(sa.column(name) for name in ("owner", "name", "number", "fingerprint")),
        sa.column("facts", sa.JSON),
    )
    place = (table.c.owner, table.c.name, table.c.number)
    query = sa.select(*place, table.c.facts).order_by(*place).limit(BATCH)
    rows = connection.execute(query).all()
    while rows:
        for row in rows:
            fingerprint = row.facts.get("base", {}).get("fingerprint")
            values: dict[str, object] = {
                "fingerprint": None if fingerprint is None else _writable(str(fingerprint))[:64]
            }
            if len(json.dumps(row.facts)) > LONGEST_FACTS:
                values["facts"] = {**row.facts, "notes": {}}
            here = dict(zip(("owner", "name", "number"), row[:3], strict=True))
            connection.execute(
                table.update().where(*(table.c[key] == here[key] for key in here)).values(values)
            )
        last = rows[-1]
        rows = connection.execute(query.where(sa.tuple_(*place) > sa.tuple_(*last[:3]))).all()
