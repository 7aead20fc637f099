"""A gateway for requests that are refused or given up, and the promise that they change nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from support.gateways import Gateway, running, tiny_chat_base
from support.refusals import state
from support.stand_ins import random_prefix


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """With small limits, and a prefix each of Alice and Bob."""
    settings: dict[str, Any] = {"body_bytes": 1 << 20, "upload_bytes": 2 << 20}
    settings["limits"] = {"requests_per_minute": "none", "tokens_per_minute": "none"}
    with running(tmp_path_factory.mktemp("gateway"), tiny_chat_base(), **settings) as found:
        found.store.put("alice/one", random_prefix(found.base, 5))
        found.store.put("bob/one", random_prefix(found.base, 5, seed=1))
        yield found


@pytest.fixture(scope="module")
def http(gateway: Gateway) -> Iterator[httpx.Client]:
    """Alice's."""
    headers = {"Authorization": f"Bearer {gateway.key('alice')}"}
    with httpx.Client(base_url=gateway.url, headers=headers, timeout=60) as client:
        yield client


@pytest.fixture(autouse=True)
def nothing_changes(gateway: Gateway) -> Iterator[None]:
    """Whatever a test sends: it leaves no prefix, file or job behind, and no row under way."""
    before = state(gateway)
    yield
    assert state(gateway) == before
