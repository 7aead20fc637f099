"""Memory under one owner's flood: bounded, and another owner is answered meanwhile.

The server's address space has a limit of its own, so that a failure ends the server and not the machine.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from transformers import AutoTokenizer

from foreword.store import PrefixStore
from support.stand_ins import tiny_llama

CLIENTS = 48
ADDRESS_SPACE = 10 << 30
MOST_ABOVE_IDLE = 2 << 30
BODY = 4 << 20
SECONDS = 6.0
"""All clients have sent by then, most of them several times: what is held at once has been held."""


@dataclass
class Served:
    """A server and keys of two owners."""

    pid: int
    url: str
    keys: dict[str, str]
    told: Counter[str] = field(default_factory=Counter)

    def memory(self, what: str) -> int:
        """VmRSS or VmHWM, in bytes."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(what))

    def client(self, owner: str, timeout: float = 60) -> httpx.Client:
        headers = {"authorization": f"Bearer {self.keys[owner]}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=timeout)


@pytest.fixture(scope="module")
def base(smollm_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a real tokenizer, whose tokens have up to 81 characters, and a real window."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = AutoTokenizer.from_pretrained(smollm_path)
    tiny_llama(vocab_size=len(tokenizer), max_position_embeddings=8192).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@contextmanager
def served(base: Path, folder: Path) -> Iterator[Served]:
    """With the default limits of keys for tokens, or without, so that every body is read."""
    with PrefixStore(folder / "store") as store:
        made = {owner: store.create_key(owner, "owner") for owner in ("mallory", "alice")}
    command = [sys.executable, "-c", "from foreword.cli import main; main()", "serve", "--json"]
    command += ["--port", "0", "--base", str(base), "--store", str(folder / "store"), "--no-training"]
    command += ["--set", "limits.tokens_per_minute=none", "--set", "limits.requests_per_minute=none"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE)),
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (folder / "log").read_text()
        url = json.loads(line)["url"].removesuffix("/v1")
        found = Served(process.pid, url, {owner: key.secret for owner, key in made.items()})
        yield found
        assert process.poll() is None, (folder / "log").read_text()[-2000:]
    finally:
        process.kill()
        process.wait()


def completion(prompt: str, **more: object) -> tuple[str, dict[str, str], bytes]:
    body = {"model": "base", "prompt": prompt, "max_tokens": 1, **more}
    return "/v1/completions", {"content-type": "application/json"}, json.dumps(body).encode()


def file(path: str, content: bytes) -> tuple[str, dict[str, str], bytes]:
    kind, value = ("purpose", "fine-tune") if path == "/v1/files" else ("name", "bomb")
    head = f'--b\r\ncontent-disposition: form-data; name="{kind}"\r\n\r\n{value}\r\n'
    head += '--b\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\n'
    return (
        path,
        {"content-type": "multipart/form-data; boundary=b"},
        head.encode() + content + b"\r\n--b--\r\n",
    )


FLOODS: dict[str, Callable[[int], tuple[str, dict[str, str], bytes]]] = {
    # Every second one just below what a bound by characters refuses: it must be tokenized.
    "prompts": lambda number: completion("x1 " * ((BODY - 200 if number % 2 else 660_000) // 3)),
    "token ids": lambda number: (
        "/v1/completions",
        {"content-type": "application/json"},
        b'{"model":"base","prompt":[%s1]}' % (b"1," * (BODY // 2 - 40)),
    ),
    "a million faults": lambda number: (
        "/v1/completions",
        {"content-type": "application/json"},
        b'{"model":"base","prompt":[[%s"a"]]}' % (b'"a",' * (BODY // 4 - 40)),
    ),
    "training files": lambda number: file("/v1/files", b'{"source":"a","target":"b"}\n' * 2_000_000),
    "prefix files": lambda number: file("/v1/prefixes", b"\xff" * (60 << 20)),
}


@pytest.mark.real_model
@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_of_one_owner_takes_little_memory_and_leaves_others_served(
    name: str, base: Path, tmp_path: Path
) -> None:
    with served(base, tmp_path) as server:
        model = _ask(server, "alice")
        idle = server.memory("VmRSS")
        path, headers, _ = FLOODS[name](0)
        bodies = [
            FLOODS[name](number)[2].replace(b'"base"', b'"%s"' % model.encode(), 1) for number in (0, 1)
        ]
        ends, statuses = time.monotonic() + SECONDS, Counter[int]()
        lock = threading.Lock()

        def flood(number: int) -> None:
            with server.client("mallory", timeout=3 * SECONDS) as client:
                while time.monotonic() < ends:
                    try:
                        status = client.post(path, content=bodies[number % 2], headers=headers).status_code
                    except httpx.TimeoutException:  # its own turn may take long; only others' must not
                        status = 0
                    with lock:
                        statuses[status] += 1

        with ThreadPoolExecutor(CLIENTS) as threads:
            flooding = [threads.submit(flood, number) for number in range(CLIENTS)]
            answered = 0
            while answered == 0 or time.monotonic() < ends:
                _ask(server, "alice")  # within the client's 60 s
                answered += 1
            for each in flooding:
                each.result()
        above = server.memory("VmHWM") - idle
        print(f"{name}: {above >> 20} MB above idle; {answered} answers meanwhile; {dict(statuses)}")
        assert not {500, 503} & set(statuses), statuses
        assert above < MOST_ABOVE_IDLE
        _ask(server, "alice")


def _ask(server: Served, owner: str) -> str:
    """A list and a text; the base's name."""
    with server.client(owner) as client:
        listed = client.get("/v1/models")
        assert listed.status_code == 200
        model = str(listed.json()["data"][0]["id"])
        answer = client.post("/v1/completions", json={"model": model, "prompt": "hello", "max_tokens": 2})
        assert answer.status_code == 200, answer.text
    return model
