"""What a hostile owner may put into files and jobs: a named error that says which line or field, never a 500."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from support.gateways import Gateway, running, tiny_chat_base
from support.stores import new_database

GOOD = b'{"source": "a", "target": "b"}\n'
DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, postgres_server: str) -> Iterator[Gateway]:
    """On PostgreSQL, which holds less than SQLite does: no zero bytes, no numbers that are none."""
    folder = tmp_path_factory.mktemp("hostile")
    place = {"store": new_database(postgres_server), "blobs": str(folder / "blobs")}
    with running(folder, tiny_chat_base(), **place) as found:
        yield found


def headers(gateway: Gateway) -> dict[str, str]:
    return {"Authorization": f"Bearer {gateway.key('alice')}"}


def upload(gateway: Gateway, content: bytes, name: str = "mine.jsonl") -> httpx.Response:
    return httpx.post(
        f"{gateway.url}/v1/files",
        headers=headers(gateway),
        data={"purpose": "fine-tune"},
        files={"file": (name, content)},
    )


@pytest.mark.parametrize(
    "line",
    [
        b'{"source": "a", "target": "b", "more": ' + DEEP + b"}",
        b'{"source": ' + DEEP + b', "target": "b"}',
        b'{"source": ' + b"9" * 100_000 + b', "target": "b"}',
        b'{"source": 1e400, "target": "b"}',
        b'{"source": "a", "target": NaN}',
        b'{"source": "a", "target": "\\ud800"}',
        b'{"source": "a", "target": "b", "target": null}',
        b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 1e400}]}',
        b'{"messages": [{"role": ' + DEEP + b', "content": "a"}]}',
        b'{"messages": [{"role": "user", "content": [{"type": ' + b"[" * 900 + b"]" * 900 + b"}]}]}",
        b"\xff\xfe",
    ],
    ids=lambda line: line[:40].decode(errors="replace"),
)
def test_a_line_that_can_not_be_learned_from_is_named(gateway: Gateway, line: bytes) -> None:
    good = (
        GOOD
        if not line.startswith(b'{"messages')
        else b'{"messages": [{"role": "user", "content": "a"}, '
        + (b'{"role": "assistant", "content": "b"}]}\n')
    )
    answer = upload(gateway, good + line + b"\n" + good)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["code"] == "invalid_file"
    assert "line 2" in error["message"]
    assert len(error["message"]) < 1000


def test_text_that_a_database_can_not_hold_is_kept_in_a_file_all_the_same(gateway: Gateway) -> None:
    content = b'{"source": "a\\u0000", "target": "b\\u0000"}\n'
    answer = upload(gateway, content, "na\0me")
    assert answer.status_code == 200, answer.text
    url = f"{gateway.url}/v1/files/{answer.json()['id']}/content"
    assert httpx.get(url, headers=headers(gateway)).content == content


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("suffix", '"a\\u0000"', None),
        ("suffix", '"\\ud800"', "suffix"),
        ("metadata", '{"a": "\\ud800"}', "metadata"),
        ("metadata", '{"\\ud800": "a"}', "metadata"),
        ("seed", "9" * 400, "seed"),
        ("seed", "1e400", "seed"),
        ("hyperparameters", '{"learning_rate": 1e400}', "learning_rate"),
        ("hyperparameters", '{"learning_rate": NaN}', "learning_rate"),
        ("hyperparameters", '{"n_epochs": ' + "9" * 400 + "}", "n_epochs"),
        ("hyperparameters", '{"init": "text:\\ud800"}', "init"),
        ("template", '{"system": "\\ud800"}', "system"),
        ("training_file", '"\\u0000"', "training_file"),
        ("training_file", '"\\ud800"', "training_file"),
    ],
)
def test_a_field_that_nothing_can_be_made_of_is_named(
    gateway: Gateway, field: str, value: str, param: str
) -> None:
    fields: dict[str, Any] = {"model": '"tiny-llama"', "training_file": '"file-x"', field: value}
    if field != "training_file":
        fields["training_file"] = f'"{upload(gateway, GOOD).json()["id"]}"'
    body = "{" + ", ".join(f'"{name}": {text}' for name, text in fields.items()) + "}"
    answer = httpx.post(
        f"{gateway.url}/v1/fine_tuning/jobs",
        headers=headers(gateway) | {"content-type": "application/json"},
        content=body,
    )
    assert answer.status_code in (400, 404), answer.text
    error = answer.json()["error"]
    assert param is None or param in (error["param"] or "")


@pytest.mark.parametrize(
    "path",
    [
        "files/%00",
        "files/%00/content",
        "fine_tuning/jobs/%00",
        "fine_tuning/jobs/%00/events",
        "files?after=%00",
        "fine_tuning/jobs?after=%00",
    ],
)
def test_an_id_that_none_can_have_is_unknown(gateway: Gateway, path: str) -> None:
    answer = httpx.get(f"{gateway.url}/v1/{path}", headers=headers(gateway))
    assert answer.status_code in (400, 404), answer.text
