"""Many clients of many owners on one server: every answer checked, latencies, and a drain in the middle.

    python -m benchmarks.serve_load --clients 32 --owners 16 --seconds 60

Starts `foreword serve` with keys on the real base model. Each client streams with its owner's key from its
owner's prefix, and asks again as soon as it is answered. Then every text is compared with what `generate`
writes offline. At last the server gets SIGTERM while all clients are in the middle of a text: none that was
begun may be lost. Prints JSON objects.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import openai
import torch

from foreword import BaseModel, Prefix, generate
from foreword.research.bench.generation import PROMPTS, make_prefix
from foreword.store import PrefixStore

TOKENS = (8, 16, 24, 32)
"""Most new tokens of a request; clients take them in turns."""


@dataclass(frozen=True)
class Answer:
    """One request and what came of it; times in seconds, from the request on."""

    owner: str
    prompt: str
    tokens: int
    text: str
    finish: str | None
    first: float
    whole: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="smollm2-135m-instruct")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--owners", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60.0)
    given = parser.parse_args()
    base = BaseModel.load(given.base, dtype=torch.float32)
    prefixes = {f"owner{number:02d}": make_prefix(base, 10, number) for number in range(given.owners)}
    with tempfile.TemporaryDirectory() as folder:
        with PrefixStore(folder) as store:
            store.put_many({f"{owner}/mine": prefix for owner, prefix in prefixes.items()})
            keys = {owner: store.create_key(owner, "reader").secret for owner in prefixes}
        command = [sys.executable, "-c", "from foreword.cli import main; main()"]
        command += ["serve", "--port", "0", "--json", "--base", given.base, "--dtype", "float32"]
        command += ["--store", folder, "--no-training"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            assert server.stdout is not None
            url = json.loads(server.stdout.readline())["url"]
            answers, begun, drained = asyncio.run(_all(url, keys, given.clients, given.seconds, server))
            status = server.wait()
        finally:
            server.kill()
    _tell_load(answers, given.seconds)
    print(json.dumps({"what": "equal to the offline answer", **_compare(base, prefixes, answers)}))
    complete = sum(answer.finish is not None for answer in drained)
    figures = {"begun": begun, "complete": complete, "server's exit status": status}
    print(json.dumps({"what": "drained in the middle", **figures}))
    print(json.dumps({"what": "of these equal to the offline answer", **_compare(base, prefixes, drained)}))


async def _all(
    url: str, keys: Mapping[str, str], clients: int, seconds: float, server: subprocess.Popen[str]
) -> tuple[list[Answer], int, list[Answer]]:
    """Answers under load; then requests that had begun when the server was told to end, and their answers."""
    owners = list(itertools.islice(itertools.cycle(keys), clients))
    connections = [
        openai.AsyncOpenAI(base_url=url, api_key=keys[owner], max_retries=0, timeout=600) for owner in owners
    ]
    await asyncio.gather(*(_ask(c, o, PROMPTS[0], 2) for c, o in zip(connections, owners, strict=True)))
    ends = time.perf_counter() + seconds
    answers: list[Answer] = []

    async def client(number: int) -> None:
        for turn in itertools.count(number):
            if time.perf_counter() >= ends:
                return
            prompt, tokens = PROMPTS[turn % len(PROMPTS)], TOKENS[turn // len(PROMPTS) % len(TOKENS)]
            answers.append(await _ask(connections[number], owners[number], prompt, tokens))

    await asyncio.gather(*map(client, range(clients)))
    begun = asyncio.Semaphore(0)
    last = [
        asyncio.create_task(_ask(connections[n], owners[n], PROMPTS[n % len(PROMPTS)], TOKENS[-1], begun))
        for n in range(clients)
    ]
    for _ in range(clients):  # every stream has its first piece
        await begun.acquire()
    server.send_signal(signal.SIGTERM)
    drained = await asyncio.gather(*last)
    return answers, clients, drained


async def _ask(
    client: openai.AsyncOpenAI, owner: str, prompt: str, tokens: int, begun: asyncio.Semaphore | None = None
) -> Answer:
    start = time.perf_counter()
    stream = await client.completions.create(
        model=f"{owner}/mine", prompt=prompt, max_tokens=tokens, temperature=0, stream=True
    )
    first, pieces, finish = 0.0, [], None
    async for chunk in stream:
        if not first:
            first = time.perf_counter() - start
            if begun is not None:
                begun.release()
        pieces.append(chunk.choices[0].text)
        finish = chunk.choices[0].finish_reason or finish
    return Answer(owner, prompt, tokens, "".join(pieces), finish, first, time.perf_counter() - start)


def _tell_load(answers: Sequence[Answer], seconds: float) -> None:
    whole, first = [answer.whole for answer in answers], [answer.first for answer in answers]
    figures = {
        "requests": len(answers),
        "complete": sum(answer.finish is not None for answer in answers),
        "requests_per_second": round(len(answers) / max(seconds, 1e-9), 2),
        "seconds": _percentiles(whole),
        "seconds_to_first_token": _percentiles(first),
    }
    print(json.dumps({"what": "load", **figures}))


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {f"p{at}": round(cuts[at - 1], 3) for at in (50, 95, 99)}


def _compare(base: BaseModel, prefixes: Mapping[str, Prefix], answers: Iterable[Answer]) -> dict[str, Any]:
    """How many texts equal what `generate` writes for the same prompt, prefix and number of tokens."""
    answers = list(answers)
    asked = sorted({(answer.tokens, answer.owner, answer.prompt) for answer in answers})
    offline: dict[tuple[int, str, str], str] = {}
    for tokens, group in itertools.groupby(asked, key=lambda each: each[0]):
        rows = list(group)
        texts = generate(
            base, [prompt for _, _, prompt in rows], [prefixes[o] for _, o, _ in rows], max_new_tokens=tokens
        )
        offline.update(zip(rows, texts, strict=True))
    equal = sum(offline[answer.tokens, answer.owner, answer.prompt] == answer.text for answer in answers)
    return {"answers": len(answers), "different requests": len(asked), "equal": equal}


if __name__ == "__main__":
    main()
