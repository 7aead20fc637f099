"""A server without keys answers the person at its machine, and no web page of another site."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from foreword.serving.api.app import make_app
from support.gateways import Gateway, running, tiny_chat_base
from support.stand_ins import random_prefix


@pytest.fixture(scope="module")
def keyless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with running(tmp_path_factory.mktemp("keyless"), tiny_chat_base(), keys=False) as found:
        yield found


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with running(tmp_path_factory.mktemp("keyed"), tiny_chat_base()) as found:
        yield found


PATHS = ("/", "/v1/models", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", "/nowhere")


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ({"host": "evil.example:8000"}, "Host"),
        ({"host": "localhost.evil.example"}, "Host"),
        ({"host": "127.0.0.1@evil.example"}, "Host"),
        ({"origin": "https://evil.example"}, "https://evil.example"),
        ({"origin": "null"}, "null"),
        ({"origin": "http://127.0.0.1:1"}, "http://127.0.0.1:1"),
        ({"sec-fetch-site": "cross-site"}, "another site"),
        ({"sec-fetch-site": "same-site"}, "another site"),
    ],
)
def test_no_page_of_another_site_is_answered(keyless: Gateway, headers: dict[str, str], told: str) -> None:
    with httpx.Client(base_url=keyless.url, headers=headers) as page:
        for path in PATHS:
            answer = page.get(path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "not_allowed"), path
            assert told in answer.json()["error"]["message"]


def test_a_page_of_another_site_puts_no_prefix_and_asks_for_no_text(keyless: Gateway) -> None:
    page = {"origin": "https://evil.example", "sec-fetch-site": "cross-site"}
    upload = {"file": ("x", random_prefix(keyless.base, 2).to_bytes())}
    put = httpx.post(f"{keyless.url}/v1/prefixes", headers=page, data={"name": "victim/hot"}, files=upload)
    # A form's encoding, which a browser sends without asking first.
    asked = httpx.post(
        f"{keyless.url}/v1/completions",
        headers={**page, "content-type": "text/plain"},
        content='{"model": "tiny-llama", "prompt": "abc", "max_tokens": 3}',
    )
    assert (put.status_code, asked.status_code) == (403, 403)
    assert len(keyless.store.list()) == 0


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:{port}", "127.0.0.1:{port}", "127.8.9.1", "[::1]:80"]
)
def test_the_person_at_the_machine_is_answered(keyless: Gateway, host: str) -> None:
    host = host.format(port=keyless.url.rpartition(":")[2])
    for more in (
        {},
        {"sec-fetch-site": "none"},
        {"sec-fetch-site": "same-origin", "origin": f"http://{host}"},
        {"content-type": "text/plain"},
    ):
        assert httpx.get(f"{keyless.url}/v1/models", headers={"host": host, **more}).status_code == 200


def test_with_keys_the_key_alone_decides(keyed: Gateway) -> None:
    page = {"host": "foreword.example", "origin": "https://other.example", "sec-fetch-site": "cross-site"}
    assert httpx.get(f"{keyed.url}/v1/models", headers=page).status_code == 401
    page["authorization"] = f"Bearer {keyed.key('alice')}"
    answer = httpx.get(f"{keyed.url}/v1/models", headers=page)
    assert answer.status_code == 200
    assert "set-cookie" not in answer.headers


def test_a_websocket_of_another_site_is_not_opened(keyless: Gateway) -> None:
    app = make_app(keyless.server)

    def visit(**headers: str) -> Any:
        sent: list[Any] = []
        scope = {"type": "websocket", "path": "/v1/models", "headers": [], "query_string": b""}
        scope["headers"] = [(name.encode(), value.encode()) for name, value in headers.items()]

        async def receive() -> Any:
            return {"type": "websocket.connect"}

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(app(scope, receive, send))
        return sent

    assert visit(host="localhost", origin="https://evil.example")[0]["code"] == 1008
    assert visit(host="evil.example")[0]["code"] == 1008
    # Over a real connection, an upgrade is a request as any other.
    upgrade = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    upgrade["origin"] = "https://evil.example"
    assert httpx.get(f"{keyless.url}/docs", headers=upgrade).status_code == 403


def test_docs_are_one_page_that_loads_nothing_from_other_hosts(keyless: Gateway) -> None:
    answer = httpx.get(f"{keyless.url}/docs")
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.headers["x-content-type-options"] == "nosniff"
    text = answer.text
    assert "//" not in re.sub(r"^\s*//.*$", "", text, flags=re.M)  # no address but those relative to the page
    assert not re.search(r"\s(on\w+|style|src)=", text)  # what the policy would forbid
    assert "innerHTML" not in text
    policy = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    for tag in ("script", "style"):
        inner = text.split(f"<{tag}>")[1].split(f"</{tag}>")[0]
        digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
