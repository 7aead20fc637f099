"""Each test of the store gets an empty one, on every kind of database and blobs that it asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from foreword.prefix import Prefix
from foreword.store import PrefixStore
from support.stores import Place, make_prefix


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest) -> Place:
    return request.getfixturevalue(f"{request.param}_place")


@pytest.fixture(params=["sqlite", "postgres", "s3"])
def every_place(request: pytest.FixtureRequest) -> Place:
    return request.getfixturevalue(f"{request.param}_place")


@pytest.fixture
def store(place: Place) -> Iterator[PrefixStore]:
    with place.open() as opened:
        yield opened


@pytest.fixture
def sqlite_store(sqlite_place: Place) -> Iterator[PrefixStore]:
    with sqlite_place.open() as opened:
        yield opened


@pytest.fixture
def prefixes() -> Callable[..., Prefix]:
    return make_prefix
