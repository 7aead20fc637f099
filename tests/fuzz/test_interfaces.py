"""The attacks' files at every door, and the OpenAPI document against what the server answers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fuzz import attacks
from support.command_line import run_command
from support.gateways import Gateway, running, tiny_chat_base
from support.refusals import error
from support.stand_ins import random_prefix


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    none = dict.fromkeys(("requests_per_minute", "tokens_per_minute", "jobs", "stored_bytes"), "none")
    settings: dict[str, Any] = {"limits": none, "default_max_tokens": 4}
    with running(tmp_path_factory.mktemp("gateway"), tiny_chat_base(), **settings) as found:
        found.store.put("alice/one", random_prefix(found.base, 5))
        found.server.limiter.refusal_wait = lambda who: 0.0  # type: ignore[method-assign]  # many have no key
        yield found


def test_no_attack_is_uploaded(gateway: Gateway) -> None:
    headers = {"Authorization": f"Bearer {gateway.key('alice')}"}
    with httpx.Client(base_url=gateway.url, headers=headers, timeout=60) as client:
        for name, content in attacks.files():
            answer = client.post("/v1/prefixes", data={"name": name}, files={"file": ("x", content)})
            assert error(answer, 400)["code"] == "invalid_prefix", name
    assert [f"{version.owner}/{version.name}" for version in gateway.store.each(owner="alice")] == [
        "alice/one"
    ]


def test_no_attack_is_shown_or_put_from_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "attack.prefix"
    for name, content in attacks.files():
        file.write_bytes(content)
        for command in (
            ["store", "show", str(file)],
            ["store", "put", "alice/x", str(file), "--store", str(tmp_path / "store")],
        ):
            done = run_command(*command)
            assert done.status == 1, (name, command, done.stderr)
            assert done.stderr.strip(), (name, command)


def test_the_openapi_document_is_what_is_answered(gateway: Gateway, tmp_path: Path) -> None:
    pytest.importorskip("schemathesis", reason="no schemathesis: install foreword[dev]")
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{gateway.url}/openapi.json"]
    command += ["--header", f"Authorization: Bearer {gateway.key('alice')}", "--seed", "1", "-n", "20"]
    # What can't be said in a schema (a file that holds examples, fields that exclude each other) is refused.
    command += ["--exclude-checks", "positive_data_acceptance"]
    command += ["--phases", "examples,coverage,fuzzing,stateful"]
    given = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    paths = [str(Path(__file__).parents[1]), *map(os.path.abspath, given)]  # it runs in another folder
    plain = {
        **os.environ,
        "NO_COLOR": "1",
        "COLUMNS": "200",
        "PYTHONPATH": os.pathsep.join(paths),
    }
    plain["SCHEMATHESIS_HOOKS"] = "fuzz.schemathesis_hooks"
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=plain, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    summary = re.sub(r" +", " ", done.stdout)
    print(summary[-1500:])
    assert re.search(r"Selected: (\d+)/\1\s+Tested: \1\n", summary), summary[
        -2000:
    ]  # every operation there is
    assert re.search(r"Stateful", summary), summary[-2000:]
