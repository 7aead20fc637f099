"""Many clients of many owners on one server: every answer checked, latencies, and a drain in the middle.

    python -m benchmarks.serve_load --clients 32 --owners 16 --seconds 60
    python -m benchmarks.serve_load --against ../before --rounds 5     # beside another checkout, in turns
    python -m benchmarks.serve_load --vllm --rounds 5                  # beside vLLM, in its environment

Starts `foreword serve` with keys on the real base model. Each client streams with its owner's key from its
owner's prefix, and asks again as soon as it is answered. Then every text is compared with what `generate`
writes offline. At last the server gets SIGTERM while all clients are in the middle of a text: none that was
begun may be lost. Prints JSON objects.

With `--against` or `--vllm`, servers take the same load in turns, each from a start of its own, and the order
changes from round to round. Answers are checked in every round. The last line has, for each figure, the
median and the quartiles of the rounds' ratios: requests a second of this checkout's local engine over the
other's, and the other's seconds to the first token over this one's, so that above 1 this one is better.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
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


@dataclass(frozen=True)
class Way:
    """A server to be measured.

    Attributes:
        checkout: whose code serves.
        engine: by which engine.
    """

    name: str
    checkout: Path
    engine: str = "local"


HERE = Path(__file__).resolve().parents[1]
PREPARE = "--prepare"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="smollm2-135m-instruct")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--owners", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--against", type=Path, help="folder of another checkout, to be measured in turns")
    parser.add_argument("--vllm", action="store_true", help="measure this checkout with vLLM, too, in turns")
    parser.add_argument("--vllm-arguments", default="", help="more for vLLM, as in a shell")
    parser.add_argument("--rounds", type=int, default=5, help="of all servers, where there are several")
    given = parser.parse_args()
    base = BaseModel.load(given.base, dtype=torch.float32)
    prefixes = {owner: make_prefix(base, 10, number) for number, owner in enumerate(_owners(given.owners))}
    ways = [Way("this", HERE)]
    ways += [Way("other", given.against.resolve())] if given.against else []
    ways += [Way("vllm", HERE, "vllm")] if given.vllm else []
    if len(ways) > 1:
        _compare_ways(ways, base, prefixes, given)
        return
    with _served(ways[0], given) as (server, url, keys):
        answers, rate = asyncio.run(_load(url, keys, given.clients, given.seconds))
        begun, drained = asyncio.run(_drain(url, keys, given.clients, server))
        status = server.wait()
    _tell_load(answers, rate)
    print(json.dumps({"what": "equal to the offline answer", **_compare(base, prefixes, answers)}))
    complete = sum(answer.finish is not None for answer in drained)
    figures = {"begun": begun, "complete": complete, "server's exit status": status}
    print(json.dumps({"what": "drained in the middle", **figures}))
    print(json.dumps({"what": "of these equal to the offline answer", **_compare(base, prefixes, drained)}))


def _owners(count: int) -> list[str]:
    return [f"owner{number:02d}" for number in range(count)]


def _compare_ways(
    ways: Sequence[Way], base: BaseModel, prefixes: Mapping[str, Prefix], given: argparse.Namespace
) -> None:
    """Rounds of all ways, and how the first compares with each other one."""
    rounds: dict[str, list[Mapping[str, float]]] = {way.name: [] for way in ways}
    for number in range(given.rounds):
        for way in ways if number % 2 else reversed(ways):
            with _served(way, given) as (_, url, keys):
                answers, rate = asyncio.run(_load(url, keys, given.clients, given.seconds))
            first = _percentiles([answer.first for answer in answers])
            figures = {
                "requests a second": rate,
                "seconds to the first token, p50": first["p50"],
                "seconds to the first token, p95": first["p95"],
            }
            rounds[way.name].append(figures)
            told = {name: round(value, 3) for name, value in figures.items()} | _compare(
                base, prefixes, answers
            )
            print(json.dumps({"what": way.name, "round": number + 1, **told}), flush=True)
    this, *others = ways
    for other in others:
        ratios = {}
        for name in rounds[this.name][0]:
            better = [
                ours[name] / its[name] if name.startswith("requests") else its[name] / ours[name]
                for ours, its in zip(rounds[this.name], rounds[other.name], strict=True)
            ]
            low, middle, high = statistics.quantiles(
                better * (1 + (len(better) == 1)), n=4, method="inclusive"
            )
            ratios[name] = {"median": round(middle, 2), "quartiles": [round(low, 2), round(high, 2)]}
        print(json.dumps({"what": f"times as good as {other.name}", **ratios}))


@contextlib.contextmanager
def _served(
    way: Way, given: argparse.Namespace
) -> Iterator[tuple[subprocess.Popen[str], str, dict[str, str]]]:
    """A server with a store that its own checkout has made; its process, address and keys by owner."""
    environment = {**os.environ, "PYTHONPATH": str(way.checkout / "src")}
    with tempfile.TemporaryDirectory() as folder:
        # -P: not the folder of this file, whose modules have the names of others.
        prepare = [sys.executable, "-P", __file__, PREPARE, folder, given.base, str(given.owners)]
        keys = json.loads(subprocess.run(prepare, env=environment, check=True, stdout=subprocess.PIPE).stdout)
        command = [sys.executable, "-P", "-c", "from foreword.cli import main; main()"]
        command += ["serve", "--port", "0", "--json", "--base", given.base, "--dtype", "float32"]
        command += ["--store", folder, "--no-training", "--engine", way.engine]
        if way.engine == "vllm" and given.vllm_arguments:
            command += ["--set", f"engine_arguments={given.vllm_arguments}"]
        server = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        try:
            assert server.stdout is not None
            told = json.loads(server.stdout.readline())
            if "url" not in told:
                raise SystemExit(f"{way.name} did not start: {told}")
            yield server, told["url"], keys
            server.send_signal(signal.SIGTERM)
            server.wait(60)  # vLLM ends with its server
        finally:
            server.kill()


def _prepare(folder: str, base_name: str, owners: str) -> None:
    """Make the store of a server, and say the keys of its owners."""
    base, names = BaseModel.load(base_name, dtype=torch.float32), _owners(int(owners))
    with PrefixStore(folder) as store:
        store.put_many({f"{owner}/mine": make_prefix(base, 10, number) for number, owner in enumerate(names)})
        print(json.dumps({owner: store.create_key(owner, "reader").secret for owner in names}))


def _connected(url: str, keys: Mapping[str, str], clients: int) -> list[tuple[openai.AsyncOpenAI, str]]:
    """So many clients, and whose each is."""
    owners = itertools.islice(itertools.cycle(keys), clients)
    return [
        (openai.AsyncOpenAI(base_url=url, api_key=keys[owner], max_retries=0, timeout=600), owner)
        for owner in owners
    ]


async def _load(
    url: str, keys: Mapping[str, str], clients: int, seconds: float
) -> tuple[list[Answer], float]:
    """Answers of clients who ask again as soon as they are answered, for so many seconds; how many a second.

    What is under way at the end is answered, too, and is not counted: of a slow server it would be more.
    """
    connected = _connected(url, keys, clients)
    await asyncio.gather(*(_ask(client, owner, PROMPTS[0], 2) for client, owner in connected))
    ends = time.perf_counter() + seconds
    answers: list[Answer] = []
    in_time = 0

    async def ask_again(number: int) -> None:
        nonlocal in_time
        for turn in itertools.count(number):
            if time.perf_counter() >= ends:
                return
            prompt, tokens = PROMPTS[turn % len(PROMPTS)], TOKENS[turn // len(PROMPTS) % len(TOKENS)]
            answers.append(await _ask(*connected[number], prompt, tokens))
            in_time += time.perf_counter() < ends

    await asyncio.gather(*map(ask_again, range(clients)))
    return answers, in_time / seconds


async def _drain(
    url: str, keys: Mapping[str, str], clients: int, server: subprocess.Popen[str]
) -> tuple[int, list[Answer]]:
    """Requests that had begun when the server was told to end, and their answers."""
    begun = asyncio.Semaphore(0)
    last = [
        asyncio.create_task(_ask(client, owner, PROMPTS[number % len(PROMPTS)], TOKENS[-1], begun))
        for number, (client, owner) in enumerate(_connected(url, keys, clients))
    ]
    for _ in range(clients):  # every stream has its first piece
        await begun.acquire()
    server.send_signal(signal.SIGTERM)
    return clients, list(await asyncio.gather(*last))


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


def _tell_load(answers: Sequence[Answer], rate: float) -> None:
    whole, first = [answer.whole for answer in answers], [answer.first for answer in answers]
    figures = {
        "requests": len(answers),
        "complete": sum(answer.finish is not None for answer in answers),
        "requests_per_second": round(rate, 2),
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
    if sys.argv[1:2] == [PREPARE]:
        _prepare(*sys.argv[2:])
    else:
        main()
