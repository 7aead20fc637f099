"""Files and prefix files that are none: the line, the reason, and nothing kept."""

from __future__ import annotations

import dataclasses
import re

import httpx
import pytest
import torch

from foreword import Prefix
from foreword.template import Template
from support.gateways import Gateway
from support.refusals import error
from support.stand_ins import random_prefix

EXAMPLES = b'{"source": "a", "target": "b"}\n' * 3


@pytest.mark.parametrize(
    ("content", "line", "why"),
    [
        (EXAMPLES + b'{"source": "a"}\n', 4, "no field 'target'"),
        (EXAMPLES + b"{not json}\n", 4, "not JSON"),
        (EXAMPLES + b'{"source": "a", "target": ""}\n', 4, "target is empty"),
        (b'{"source": "a", "target": "\xff"}\n', 1, "not UTF-8"),
        (b'{"messages": [{"role": "user", "content": "x"}]}\n', 1, "no message of the assistant"),
        (b'{"messages": [{"role": "tool", "content": "x"}]}\n', 1, "no message of the assistant"),
        (EXAMPLES + b'{"source": 3, "target": "b"}', 4, "a number"),
    ],
)
def test_a_bad_line_of_an_upload_is_named(http: httpx.Client, content: bytes, line: int, why: str) -> None:
    files = {"file": ("mine.jsonl", content)}
    found = error(http.post("/v1/files", data={"purpose": "fine-tune"}, files=files), 400)
    assert found["message"].startswith(f"'mine.jsonl', line {line}: ")
    assert why in found["message"]
    assert "/tmp" not in found["message"]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\x1f\x8b\x08", b"PK\x03\x04zip"])
def test_a_file_without_examples_is_refused(http: httpx.Client, content: bytes) -> None:
    files = {"file": ("mine.jsonl", content)}
    error(http.post("/v1/files", data={"purpose": "fine-tune"}, files=files), 400)


def test_uploads_without_a_file_or_for_another_purpose_are_refused(http: httpx.Client) -> None:
    files = {"file": ("mine.jsonl", EXAMPLES)}
    assert (
        error(http.post("/v1/files", data={"purpose": "assistants"}, files=files), 400)["param"] == "purpose"
    )
    assert error(http.post("/v1/files", data={"purpose": "fine-tune"}), 400)["param"] == "file"
    assert error(http.post("/v1/files", files=files), 400)["param"] == "purpose"
    error(
        http.post("/v1/files", content=b"--x\r\nbroken", headers={"content-type": "multipart/form-data"}), 400
    )
    found = error(http.post("/v1/files", files={"file": ("x", b"x" * (3 << 20))}), 413)
    assert found["code"] == "request_too_large"


@pytest.mark.parametrize("content", [b"", b"not a prefix", b"\x08\0\0\0\0\0\0\0{}      ", b"{" * 10_000])
def test_what_is_no_prefix_file_is_refused(http: httpx.Client, content: bytes) -> None:
    response = http.post("/v1/prefixes", data={"name": "new"}, files={"file": ("x", content)})
    error(response, 400)


@pytest.mark.parametrize(
    "name", ["../x", "alice/../x", "alice/x/y", "a b", "/etc/passwd", "alice/x@1", ".", "é"]
)
def test_names_that_are_none_are_refused(gateway: Gateway, http: httpx.Client, name: str) -> None:
    content = gateway.store.get("alice/one").to_bytes()
    error(http.post("/v1/prefixes", data={"name": name}, files={"file": content}), 400)


def test_nobody_writes_below_another_owner(gateway: Gateway, http: httpx.Client) -> None:
    content = gateway.store.get("alice/one").to_bytes()
    found = error(http.post("/v1/prefixes", data={"name": "bob/new"}, files={"file": content}), 403)
    assert found["type"] == "permission_error"


def large(prefix: Prefix, number: float, dtype: torch.dtype) -> Prefix:
    return dataclasses.replace(
        prefix, tensors={name: t.to(dtype) * number for name, t in prefix.tensors.items()}
    )


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("no room", "no room for text"),
        ("infix", "is an infix"),
        ("unknown end", "no token '<other end>'"),
        ("unknown start", "no token '<s>'"),
        ("overflow", "infinite in float32"),
        ("long template", "its template alone|tokens around a text"),
        ("other sizes", "key/value heads"),
        ("other weights", "take a prefix that was trained for this server's base"),
    ],
)
def test_what_this_server_can_not_run_is_refused_at_the_upload(
    gateway: Gateway, http: httpx.Client, what: str, words: str
) -> None:
    base = gateway.base
    plain = random_prefix(base, 3)
    template = base.template
    made = {
        "no room": lambda: random_prefix(base, 255),
        "infix": lambda: dataclasses.replace(
            plain, template=dataclasses.replace(template, placement="infix")
        ),
        "unknown end": lambda: dataclasses.replace(
            plain, template=dataclasses.replace(template, end="<other end>")
        ),
        "unknown start": lambda: dataclasses.replace(
            plain, template=Template(style="raw", source_tokens=(("<s>",), ()))
        ),
        "overflow": lambda: large(plain, 1e300, torch.float64),
        "long template": lambda: dataclasses.replace(plain, template=Template(separator="x" * 300)),
        "other sizes": lambda: Prefix({n: t[:, :1] for n, t in plain.tensors.items()}, base.identity),
        "other weights": lambda: dataclasses.replace(
            plain, base=dataclasses.replace(base.identity, fingerprint="cd" * 32)
        ),
    }[what]()
    found = error(
        http.post("/v1/prefixes", data={"name": "new"}, files={"file": ("x", made.to_bytes())}), 400
    )
    assert re.search(words, found["message"]), found
    assert found["param"] == "file"
    for advice in ("PrefixStore", "load the base", "foreword "):  # of Python and of the command line
        assert advice not in found["message"]


def test_text_where_a_file_belongs_is_named(http: httpx.Client) -> None:
    found = error(http.post("/v1/prefixes", files={"name": (None, "new"), "file": (None, "text")}), 400)
    assert found["param"] == "file"
    assert "expected a file" in found["message"]
    assert "class" not in found["message"]


def test_a_path_that_ends_with_a_slash_is_not_sent_elsewhere(http: httpx.Client) -> None:
    error(http.get("/v1/files/"), 404)
