"""A vLLM with the connector, as the gateway starts it, and the engine on it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from foreword import BaseModel, Prefix
from foreword.serving.engine.local import LocalEngine
from foreword.serving.engine.protocol import Row, Sampling, Token
from foreword.serving.vllm import launch, ticket
from foreword.serving.vllm.door import HEADER, signature_of
from foreword.serving.vllm.engine import VllmEngine
from foreword.serving.vllm.prefixes import STORE, FolderSource, Source, StoreSource
from foreword.serving.vllm.process import VllmProcess

SECRET = "a secret of the tests, long enough to be taken"
START_SECONDS = 300.0
CPU = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
PREEMPTIONS = "vllm:num_preemptions_total"
LOCAL_HITS = "vllm:prefix_cache_hits_total"
LOADED = "vllm:external_prefix_cache_hits_total"
"""Tokens, in vLLM's own counters: found in its cache, and got from the connector."""


def free_port() -> int:
    """A port of this machine that nothing listens on now."""
    with socket.socket() as probing:
        probing.bind(("127.0.0.1", 0))
        return int(probing.getsockname()[1])


@dataclass
class VllmServer:
    """One that runs."""

    url: str
    folder: Path
    process: VllmProcess
    source: Source

    def engine(self, base: BaseModel) -> VllmEngine:
        return VllmEngine(base, self.url, SECRET, read=self.source.get)

    def run(self, base: BaseModel, rows: list[Row]) -> list[Any]:
        """All rows asked for at once: tokens, or the error, of each."""
        for prefix in {row.prefix for row in rows if row.prefix is not None}:
            self.put(prefix)
        return ask(lambda: self.engine(base), rows)

    def put(self, prefix: Prefix) -> Path:
        path = self.folder / f"{prefix.digest}.prefix"
        if not path.exists():
            path.write_bytes(prefix.to_bytes())
        return path

    def post(self, body: dict[str, Any], *, signed: bool = False, key: str | None = None) -> httpx.Response:
        """Straight to vLLM, past the gateway; unless told otherwise with its key."""
        content = json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        headers["authorization"] = f"Bearer {ticket.api_key(SECRET) if key is None else key}"
        if signed:
            headers[HEADER] = signature_of(SECRET, content)
        return httpx.post(f"{self.url}/v1/completions", content=content, headers=headers, timeout=120)

    def counters(self) -> dict[str, float]:
        """vLLM's own, once it has nothing to do and they stand still."""
        seen: list[dict[str, float]] = [{}]
        while len(seen) < 3 or seen[-1] != seen[-2]:
            time.sleep(0.1)
            text = httpx.get(f"{self.url}/metrics").text
            found = re.findall(r"^(vllm:\w+)\{[^}]*\} ([0-9.e+-]+)$", text, re.MULTILINE)
            seen.append({name: float(value) for name, value in found})
        return seen[-1]


@contextlib.contextmanager
def serving(
    model: Path, folder: Path, *more: str, door: bool = True, store: bool = False, **extra: Any
) -> Iterator[VllmServer]:
    """Serve prefixes of a folder, or of the store in it, until the block ends."""
    port = free_port()
    place = {} if store else {"folder": str(folder)}
    connector = {**launch.CONNECTOR, "kv_connector_extra_config": {**place, **extra}}
    arguments = launch.arguments(["--host", "127.0.0.1", "--port", str(port)], dtype="float32")
    arguments += ["--enforce-eager", "--enable-prompt-tokens-details", "--max-num-seqs", "32"]
    arguments += ["--kv-transfer-config", json.dumps(connector), *more]
    if not door:
        at = arguments.index("--middleware")
        del arguments[at : at + 2]
    environment = {**CPU, ticket.SECRET: SECRET, "VLLM_API_KEY": ticket.api_key(SECRET)}
    environment |= {STORE: str(folder)} if store else {}
    command = [*launch.program(str(model)), *arguments]
    process = VllmProcess(command, environment, f"http://127.0.0.1:{port}", start_seconds=START_SECONDS)
    try:
        process.wait()
        source = StoreSource(str(folder), None) if store else FolderSource(folder)
        yield VllmServer(process.url, folder, process, source)
    finally:
        process.close()


def row(
    base: BaseModel, prompt: str, prefix: Prefix | None = None, *, owner: str = "alice", **sampling: Any
) -> Row:
    settings = {"max_tokens": 12, "temperature": 0.0, **sampling}
    return Row(tuple(base.tokenizer(prompt)["input_ids"]), prefix, owner, Sampling(**settings), base.end_ids)


def ask(make: Callable[[], Any], rows: list[Row]) -> list[Any]:
    async def tokens_of(engine: Any, asked: Row) -> list[Token]:
        return [token async for token in engine.stream(asked)]

    async def all_of_them() -> list[Any]:
        engine = make()
        try:
            asking = (tokens_of(engine, asked) for asked in rows)
            return await asyncio.gather(*asking, return_exceptions=True)
        finally:
            await engine.close()

    return asyncio.run(all_of_them())


def local(base: BaseModel, rows: list[Row]) -> list[Any]:
    """What the local engine says."""
    return ask(lambda: LocalEngine(base), rows)
