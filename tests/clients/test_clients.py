"""Client libraries as people use them, against a whole server with keys: two turns, a stream, errors by status.

Each library runs in a process of its own (in_python.py, node/in_node.mjs), in the environment of `make test-clients`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from foreword import PrefixStore
from support.saved_bases import save_tiny
from support.served_processes import ServedProcess

HERE = Path(__file__).parent
ENVIRONMENT = Path(os.environ.get("VENV_CLIENTS", HERE.parents[1] / ".venv-clients"))
REFUSED = {"key": 401, "model": 404, "value": 400}
WITH_TOOLS = {**REFUSED, "tools": 400}
IN_PYTHON = {
    **dict.fromkeys(("openai", "litellm", "langchain", "pydantic_ai", "instructor"), WITH_TOOLS),
    "llama_index": {**REFUSED, "value": None},  # which the library itself refuses
    "llm": {"key": 401, "model": 404},
}
IN_NODE = ("openai", "langchain", "ai")


@dataclass(frozen=True)
class Served:
    """A server, and a conversation with it that no library took part in."""

    url: str
    key: str
    model: str
    first: str
    second: str

    @property
    def environment(self) -> dict[str, str]:
        return {"BASE_URL": self.url, "API_KEY": self.key, "MODEL": self.model}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    base = save_tiny(folder / "tiny", max_position_embeddings=512)
    with PrefixStore(folder / "store") as store:
        key = store.create_key("alice", "owner").secret
    arguments = ["--port", "0", "--base", str(base), "--store", str(folder / "store"), "--no-training"]
    process = ServedProcess(arguments, folder / "log", pause=None)
    try:
        history: list[Any] = [{"role": "user", "content": "Name a colour"}]
        first = ask(process, key, history)
        history += [{"role": "assistant", "content": first}, {"role": "user", "content": "Another"}]
        second = ask(process, key, history)
        assert first.strip(), "the tiny model says nothing; nothing would be compared"
        yield Served(process.url, key, process.base, first, second)
    finally:
        process.stop()


def ask(process: ServedProcess, key: str, messages: list[Any]) -> str:
    body = {"model": process.base, "messages": messages, "temperature": 0, "max_tokens": 6}
    headers = {"Authorization": f"Bearer {key}"}
    answer = httpx.post(f"{process.url}/chat/completions", json=body, headers=headers, timeout=60)
    return str(answer.raise_for_status().json()["choices"][0]["message"]["content"])


def check(served: Served, command: list[str], errors: dict[str, int]) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **served.environment}, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["first"], told["second"]) == (served.first, served.second)
    assert told["stream"] == served.first
    assert told["errors"] == errors


@pytest.mark.parametrize("library", IN_PYTHON)
def test_a_library_for_python(served: Served, library: str) -> None:
    command = [str(ENVIRONMENT / "bin" / "python"), str(HERE / "in_python.py"), library]
    check(served, command, IN_PYTHON[library])


@pytest.mark.parametrize("library", IN_NODE)
def test_a_library_for_node(served: Served, library: str) -> None:
    if not (HERE / "node" / "node_modules").is_dir():
        pytest.skip("no node or npm on this machine: the libraries for it are not installed")
    check(served, ["node", str(HERE / "node" / "in_node.mjs"), library], WITH_TOOLS)


def curl(served: Served, *arguments: str) -> tuple[int, Any]:
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    command = ["curl", "-sS", "-w", "\n%{http_code}", "-H", f"Authorization: Bearer {served.key}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    text, _, status = done.stdout.rpartition("\n")
    return int(status), text


def test_curl(served: Served) -> None:
    chat, json_type = f"{served.url}/chat/completions", ["-H", "Content-Type: application/json"]
    body = {"model": served.model, "temperature": 0, "max_tokens": 6}
    first = [{"role": "user", "content": "Name a colour"}]
    status, text = curl(served, chat, *json_type, "-d", json.dumps({**body, "messages": first}))
    message = json.loads(text)["choices"][0]["message"]
    assert (status, message["content"]) == (200, served.first)
    again = [*first, message, {"role": "user", "content": "Another"}]
    status, text = curl(served, chat, *json_type, "-d", json.dumps({**body, "messages": again}))
    assert (status, json.loads(text)["choices"][0]["message"]["content"]) == (200, served.second)
    status, text = curl(
        served, "-N", chat, *json_type, "-d", json.dumps({**body, "messages": first, "stream": True})
    )
    assert (status, text.rstrip().endswith("data: [DONE]")) == (200, True)
    status, text = curl(served, chat, "-d", json.dumps({**body, "messages": first}))
    assert (status, "Content-Type: application/json" in json.loads(text)["error"]["message"]) == (415, True)
    assert curl(served, "-I", f"{served.url}/models")[0] == 200
