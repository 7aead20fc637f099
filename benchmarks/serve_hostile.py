"""A hostile owner floods a server in one way after another; another owner asks every second.

    python -m benchmarks.serve_hostile --seconds 30                      # every case
    python -m benchmarks.serve_hostile --case prompts --case rows --limits none
    python -m benchmarks.serve_hostile --results hostile.jsonl           # goes on where it was stopped

Starts `foreword serve` with keys, its address space bounded, for each case anew. First as many well-behaved
clients of a neighbour ask as the flood has, then the flood comes from a process of low priority, as from
other machines. For each case: seconds of the other owner's requests beside both, their ratio at p95, its 503s
and lost requests, and the server's peak memory above idle. Prints JSON objects, and a table at the end.
Attackers have the default limits of a key; `--limits none` takes them away, so that only shares and pools are
left.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from foreword import BaseModel
from foreword.reporting.markdown import table
from foreword.research.bench.generation import PROMPTS, make_prefix
from foreword.store import PrefixStore

TOKENS = 8
"""New tokens of each request of the owner who asks every second, and of a well-behaved neighbour."""
MEMORY_GB = 12
"""Address space of the server, of which torch alone takes some."""
BATCH = 32
"""Rows of the local engine's batch."""


@dataclass(frozen=True)
class Attacker:
    """One client of the flood."""

    http: httpx.AsyncClient
    base: str
    number: int

    async def complete(self, **body: Any) -> str:
        """The status of a request for text, read to its end."""
        body = {"model": self.base, "max_tokens": TOKENS, **body}
        return str((await self.http.post("/v1/completions", json=body)).status_code)

    async def raw(self, content: bytes, path: str = "/v1/completions") -> str:
        """The status of a body that is sent as it is."""
        headers = {"content-type": "application/json"}
        return str((await self.http.post(path, content=content, headers=headers)).status_code)

    async def upload(self, path: str, content: bytes) -> str:
        """The status of an uploaded file."""
        fields = {"purpose": "fine-tune"} if path == "/v1/files" else {"name": f"n{self.number}"}
        answer = await self.http.post(path, data=fields, files={"file": ("x", content)})
        return str(answer.status_code)


async def well_behaved(attacker: Attacker) -> str:
    """What a neighbour asks."""
    return await attacker.complete(prompt=PROMPTS[attacker.number % len(PROMPTS)])


async def prompts(attacker: Attacker) -> str:
    """Prompts of 4 MB, and some that a bound by characters lets through."""
    size = (4 << 20) - 200 if attacker.number % 2 else 600_000
    return await attacker.complete(prompt="x1 " * (size // 3))


async def chats(attacker: Attacker) -> str:
    """Conversations of 4 MB in 2048 messages."""
    messages = [{"role": "user", "content": "y2 " * 660}] * 2000
    body = {"model": attacker.base, "messages": messages, "max_tokens": TOKENS}
    return await attacker.raw(json.dumps(body).encode(), "/v1/chat/completions")


async def token_ids(attacker: Attacker) -> str:
    """4 MB of token ids."""
    return await attacker.raw(b'{"model":"%s","prompt":[%s1]}' % (attacker.base.encode(), b"1," * 2_000_000))


async def faults(attacker: Attacker) -> str:
    """A body with a million faults."""
    return await attacker.raw(b'{"model":"x","prompt":[[%s"a"]]}' % (b'"a",' * 1_000_000))


async def rows(attacker: Attacker) -> str:
    """64 long texts a request: 33 of them would fill every waiting place."""
    return await attacker.complete(prompt="tell me everything", n=64, max_tokens=2000, min_tokens=2000)


async def long(attacker: Attacker) -> str:
    """A text that goes on as long as the window."""
    return await attacker.complete(prompt="once upon a time", max_tokens=10_000_000, min_tokens=7000)


async def long_prompts(attacker: Attacker) -> str:
    """Prompts that just fit."""
    return await attacker.complete(prompt="word " * 7500, max_tokens=1)


async def stops(attacker: Attacker) -> str:
    """Texts with sixteen stop texts of 256 characters, each a beginning of what may come."""
    stop = ["a" * 255 + chr(97 + number) for number in range(16)]
    return await attacker.complete(prompt="a" * 200, stop=stop, max_tokens=500, min_tokens=500)


async def training_files(attacker: Attacker) -> str:
    """Files of two million small examples."""
    return await attacker.upload("/v1/files", b'{"source":"a","target":"b"}\n' * 2_000_000)


async def small_files(attacker: Attacker) -> str:
    """Many small files."""
    return await attacker.upload("/v1/files", b'{"source":"a","target":"b"}\n')


async def prefix_files(attacker: Attacker) -> str:
    """60 MB that are no prefix."""
    return await attacker.upload("/v1/prefixes", b"\0" * (60 << 20))


async def header_bombs(attacker: Attacker) -> str:
    """A prefix file whose header has two million labels."""
    head = b'{"__metadata__":{%s"x":"y"}}' % b"".join(b'"%07d":"v",' % n for n in range(2_000_000))
    return await attacker.upload("/v1/prefixes", len(head).to_bytes(8, "little") + head)


async def lists(attacker: Attacker) -> str:
    """Lists, as long as they come."""
    path = ("/v1/models?limit=1000", "/v1/files?limit=1000", "/v1/fine_tuning/jobs?limit=1000")
    return str((await attacker.http.get(path[attacker.number % 3])).status_code)


async def wrong_keys(attacker: Attacker) -> str:
    """Keys that were never made."""
    key = f"fw_{os.urandom(6).hex()}_{'A' * 43}"
    return str(
        (await attacker.http.get("/v1/models", headers={"authorization": f"Bearer {key}"})).status_code
    )


async def open_paths(attacker: Attacker) -> str:
    """What needs no key."""
    return str((await attacker.http.get(("/readyz", "/metrics")[attacker.number % 2])).status_code)


async def half_heads(attacker: Attacker) -> str:
    """A head that never ends."""
    return await _trickle(attacker, b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx-a: ")


async def slow_bodies(attacker: Attacker) -> str:
    """4 MB that never come."""
    key = attacker.http.headers["authorization"].encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: %s\r\n" % key
    return await _trickle(
        attacker, head + b"content-type: application/json\r\ncontent-length: 4000000\r\n\r\n{"
    )


async def _trickle(attacker: Attacker, beginning: bytes) -> str:
    place = urlsplit(str(attacker.http.base_url))
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    try:
        writer.write(beginning)
        for _ in range(60):
            with contextlib.suppress(TimeoutError):
                return (await asyncio.wait_for(reader.read(64), 1))[9:12].decode() or "dropped"
            writer.write(b" ")
            await writer.drain()
        return "held"
    finally:
        writer.close()


Flood = Callable[[Attacker], Awaitable[str]]
CASES: dict[str, tuple[Flood, int]] = {
    "prompts": (prompts, 48),
    "chats": (chats, 48),
    "token_ids": (token_ids, 48),
    "faults": (faults, 48),
    "rows": (rows, 40),
    "long": (long, 1),
    "long_prompts": (long_prompts, 32),
    "stops": (stops, 32),
    "training_files": (training_files, 16),
    "small_files": (small_files, 16),
    "prefix_files": (prefix_files, 16),
    "header_bombs": (header_bombs, 16),
    "lists": (lists, 32),
    "wrong_keys": (wrong_keys, 32),
    "open_paths": (open_paths, 32),
    "half_heads": (half_heads, 500),
    "slow_bodies": (slow_bodies, 48),
}
"""Each flood, and how many clients it has."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="smollm2-135m-instruct")
    parser.add_argument("--case", action="append", choices=sorted(CASES), help="more than once; default: all")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each half of a case")
    parser.add_argument("--limits", choices=("default", "none"), default="default")
    parser.add_argument("--results", type=Path, help="file that is added to; cases in it are not run again")
    parser.add_argument("--flood", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.flood:
        asyncio.run(_flood(**json.loads(given.flood)))
        return
    done: list[dict[str, Any]] = []
    if given.results is not None and given.results.exists():
        done = [json.loads(line) for line in given.results.read_text().splitlines()]
    for case in given.case or CASES:
        if any((each["case"], each["limits"]) == (case, given.limits) for each in done):
            continue
        done.append({"case": case, "limits": given.limits, **_measure(given, case)})
        print(json.dumps(done[-1]), flush=True)
        if given.results is not None:
            with given.results.open("a") as file:
                file.write(json.dumps(done[-1]) + "\n")
    columns = ("case", "asked", "lost", "unavailable", "beside_neighbours_p95", "p50", "p95", "ratio")
    columns += ("peak_mb_above_idle",)
    print(table(columns, [[str(each[name]) for name in columns] for each in done]))


def _measure(given: argparse.Namespace, case: str) -> dict[str, Any]:
    """One case: the other owner beside well-behaved neighbours, then beside the flood, on one server."""
    _, clients = CASES[case]
    with _server(given.base, given.limits) as (process, url, base, keys):
        _rest(url, keys["victim"])
        idle = _memory(process.pid, "VmRSS")
        neighbours = {"case": "well_behaved", "clients": min(clients, BATCH), "key": keys["neighbour"]}
        beside = _beside(neighbours, url, base, keys["victim"], given.seconds)
        _rest(url, keys["victim"])
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # the peak begins anew
        flooded = _beside(
            {"case": case, "clients": clients, "key": keys["mallory"]},
            url,
            base,
            keys["victim"],
            given.seconds,
        )
        alive = process.poll() is None
        peak = _memory(process.pid, "VmHWM") - idle if alive else None
    p95 = _quantile(flooded["seconds"], 95)
    before = _quantile(beside["seconds"], 95)
    return {
        "asked": flooded["asked"],
        "lost": flooded["asked"] - len(flooded["seconds"]) - flooded["unavailable"],
        "unavailable": flooded["unavailable"],
        "p50": _quantile(flooded["seconds"], 50),
        "p95": p95,
        "beside_neighbours_p50": _quantile(beside["seconds"], 50),
        "beside_neighbours_p95": before,
        "ratio": round(p95 / before, 2) if p95 and before else None,
        "peak_mb_above_idle": None if peak is None else round(peak / 1024),
        "server_alive": alive,
        "flood": flooded["told"],
        "neighbours": beside["told"],
    }


@contextlib.contextmanager
def _server(base: str, limits: str) -> Iterator[tuple[subprocess.Popen[str], str, str, dict[str, str]]]:
    """A server whose memory is bounded, with keys of three owners; the one who is flooded has a prefix."""
    with tempfile.TemporaryDirectory() as folder:
        with PrefixStore(folder) as store:
            store.put("victim/mine", make_prefix(BaseModel.load(base), 10, 1))
            made = {owner: store.create_key(owner, "owner") for owner in ("victim", "neighbour", "mallory")}
        command = [sys.executable, "-c", "from foreword.cli import main; main()"]
        command += ["serve", "--port", "0", "--json", "--base", base, "--dtype", "float32"]
        command += ["--store", folder, "--no-training"]
        # A neighbour who asks in a loop is not to be stopped by its own limit.
        unlimited = ["neighbour", *(["mallory"] if limits == "none" else [])]
        lines = [f'[key_limits."{made[owner].record.id}"]' for owner in unlimited]
        text = "".join(
            f'{line}\nrequests_per_minute = "none"\ntokens_per_minute = "none"\n' for line in lines
        )
        (Path(folder) / "server.toml").write_text(text)
        command += ["--config", f"{folder}/server.toml"]
        bytes_ = MEMORY_GB << 30
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (bytes_, bytes_)),
        )
        try:
            assert process.stdout is not None
            told = json.loads(process.stdout.readline())
            yield (
                process,
                told["url"].removesuffix("/v1"),
                told["base"],
                {owner: key.secret for owner, key in made.items()},
            )
        finally:
            process.kill()
            process.wait()


def _rest(url: str, key: str) -> None:
    """Until the server answers at once, so that nothing of what was before is left."""
    for _ in range(60):
        start = time.perf_counter()
        _post(url, key, "victim/mine")
        if time.perf_counter() - start < 2:
            return
        time.sleep(1)


def _post(url: str, key: str, model: str) -> None:
    body = {"model": model, "prompt": PROMPTS[0], "max_tokens": TOKENS, "temperature": 0}
    headers = {"authorization": f"Bearer {key}"}
    httpx.post(f"{url}/v1/completions", json=body, headers=headers, timeout=120)


def _beside(flood: dict[str, Any], url: str, base: str, key: str, seconds: float) -> dict[str, Any]:
    """What the other owner sees while the flood, in a process of its own, goes on."""
    given = {**flood, "url": url, "base": base, "seconds": seconds + 5}
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.serve_hostile", "--flood", json.dumps(given)],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.nice(19),
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()  # it begins
        found = asyncio.run(_every_second(url, key, seconds))
        told, _ = process.communicate(timeout=180)
    finally:
        process.kill()
        process.wait()
    return {**found, "told": json.loads(told)}


async def _every_second(url: str, key: str, seconds: float) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {key}"}
    taken: list[float] = []
    statuses: collections.Counter[str] = collections.Counter()

    async def ask(client: httpx.AsyncClient, number: int) -> None:
        body = {"model": "victim/mine", "prompt": PROMPTS[number % len(PROMPTS)], "max_tokens": TOKENS}
        start = time.perf_counter()
        try:
            answer = await client.post("/v1/completions", json={**body, "temperature": 0})
        except httpx.HTTPError as error:
            statuses[type(error).__name__] += 1
            return
        statuses[str(answer.status_code)] += 1
        if answer.status_code == 200:
            taken.append(time.perf_counter() - start)

    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=120) as client:
        tasks = []
        for number in range(int(seconds)):
            tasks.append(asyncio.create_task(ask(client, number)))
            await asyncio.sleep(1)
        await asyncio.gather(*tasks)
    return {"asked": len(tasks), "seconds": taken, "unavailable": statuses["503"]}


async def _flood(case: str, clients: int, key: str, url: str, base: str, seconds: float) -> None:
    """Every client of a flood, again and again; prints how often it got which status."""
    attack = well_behaved if case == "well_behaved" else CASES[case][0]
    statuses: collections.Counter[str] = collections.Counter()
    limits = httpx.Limits(max_connections=None)
    headers = {"authorization": f"Bearer {key}"}
    ends = time.monotonic() + seconds

    async def client(number: int) -> None:
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=120, limits=limits) as http:
            for _ in itertools.count():
                try:
                    status = await attack(Attacker(http, base, number))
                except (httpx.HTTPError, OSError) as error:
                    status = type(error).__name__
                statuses[status] += 1
                if status != "200":
                    await asyncio.sleep(0.05)  # or a flood of refusals is all that it can do

    print("begins", flush=True)
    tasks = [asyncio.create_task(client(number)) for number in range(clients)]
    await asyncio.sleep(ends - time.monotonic())
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    print(json.dumps(statuses))


def _memory(pid: int, what: str) -> int:
    """VmRSS or VmHWM of a process, in kB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1])
    raise ValueError(what)


def _quantile(values: list[float], percent: int) -> float | None:
    if len(values) < 2:
        return round(values[0], 3) if values else None
    return round(statistics.quantiles(values, n=100, method="inclusive")[percent - 1], 3)


if __name__ == "__main__":
    main()
