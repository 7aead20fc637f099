"""Every name of `foreword.store` is there, and those of records need no database library."""

from __future__ import annotations

import subprocess
import sys

import pytest

import foreword.store


@pytest.mark.parametrize("name", foreword.store.__all__)
def test_every_name_can_be_imported(name: str) -> None:
    assert getattr(foreword.store, name) is not None


@pytest.mark.parametrize(
    ("program", "absent"),
    [
        (
            "import foreword.store; foreword.store.Version, foreword.store.Description",
            ("sqlalchemy", "alembic"),
        ),
        ("import foreword.store.names", ("sqlalchemy", "alembic")),
        ("import foreword.store.blobs; foreword.store.blobs.open_blobs('somewhere')", ("fsspec", "s3fs")),
    ],
)
def test_what_is_not_needed_is_not_imported(program: str, absent: tuple[str, ...]) -> None:
    command = f"import sys; {program}; print(*(name for name in {absent!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
