"""vLLM with prefixes beside plain vLLM with longer prompts and beside its own multi-LoRA, in turns.

    python -m benchmarks.serve_vllm                # needs the environment of make test-vllm
    python -m benchmarks.serve_vllm --vary         # also ways that differ in one thing: where the time goes

Starts one vLLM for each: with Foreword's connector, plain, and with LoRA adapters; the same threads, data
type, block size and space for keys and values. Of many owners each has a prefix of P virtual tokens, P tokens
of text in front of its prompts, or an adapter. All requests of a round are sent at once, with texts that no
round has seen; every answer has the same number of tokens. Prints a page in Markdown.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import shlex
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch

from benchmarks.vllm_ways import (
    LARGE_BLOCKS,
    LORA,
    PLAIN,
    PREFIXES,
    RANK,
    SECRET,
    Way,
    make_ways,
    save_adapter,
)
from foreword import BaseModel
from foreword.models import resolve
from foreword.research.bench import report
from foreword.research.bench.generation import make_prefix
from foreword.research.bench.timing import Spread, spread
from foreword.research.environment import describe_machine
from foreword.serving.vllm import launch, ticket
from foreword.serving.vllm.door import HEADER, signature_of
from foreword.serving.vllm.process import VllmProcess

COUNTERS = {
    "prompt": "vllm:prompt_tokens_total",
    "cached": "vllm:prefix_cache_hits_total",
    "loaded": "vllm:external_prefix_cache_hits_total",
    "first": "vllm:time_to_first_token_seconds_sum",
    "steps": "vllm:iteration_tokens_total_count",
}


@dataclass(frozen=True)
class RoundFigures:
    """What a way's round took.

    Attributes:
        tokens: new ones a second.
        first: mean time to the first token, in seconds.
        counted: of vLLM's own counters, see `COUNTERS`.
    """

    tokens: float
    first: float
    counted: Mapping[str, float]

    @property
    def computed(self) -> float:
        """Tokens of prompts that went through the model: neither in the cache nor loaded."""
        return self.counted["prompt"] - self.counted["cached"] - self.counted["loaded"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="smollm2-135m-instruct")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--owners", type=int, default=16)
    parser.add_argument("--length", type=int, default=40, help="P, and tokens that plain prompts are longer")
    parser.add_argument("--prompt", type=int, default=24, help="tokens of a request's own text")
    parser.add_argument("--tokens", type=int, default=32, help="new ones of each request")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--vary", action="store_true", help="also ways that differ in one thing")
    parser.add_argument("--no-lora", dest="lora", action="store_false")
    parser.add_argument("--arguments", default="", help="more for every vLLM, such as --enforce-eager")
    given = parser.parse_args()
    base = BaseModel.load(given.base, dtype=torch.float32)
    prefixes = [make_prefix(base, given.length, number) for number in range(given.owners)]
    machine = describe_machine(base) | {"threads": given.threads}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as servers:
        for prefix in prefixes:
            (Path(folder) / f"{prefix.digest}.prefix").write_bytes(prefix.to_bytes())
        adapters = [save_adapter(base, Path(folder), number) for number in range(given.owners)]
        ways = make_ways(base, prefixes, given)
        commands = _commands(given, folder, adapters)
        chosen = {way.server: commands[way.server] for way in ways}
        more = ["--max-model-len", "1024", "--max-num-seqs", str(given.requests)]
        more += shlex.split(given.arguments)
        urls = servers.enter_context(running(given.base, chosen, more, threads=given.threads))
        turns = _in_turns(ways, urls, given)
    print(report.markdown(_report(given, machine, ways, turns)))


# -- requests -------------------------------------------------------------------------------------


def _commands(given: Any, folder: str, adapters: Sequence[Path]) -> dict[str, list[str]]:
    """Arguments of each vLLM, the same but for what it is measured for."""
    prefixes, plain = arguments_of_both(folder)
    lora = ["--enable-lora", "--max-loras", str(given.owners), "--max-lora-rank", str(RANK)]
    lora += ["--lora-modules", *(f"{path.name}={path}" for path in adapters)]
    return {
        PREFIXES: prefixes,
        PLAIN: plain,
        LORA: [*plain, *lora],
        LARGE_BLOCKS: [*plain, "--block-size", "128"],
    }


def arguments_of_both(folder: str) -> tuple[list[str], list[str]]:
    """Arguments of a vLLM with the connector, which reads prefixes of `folder`, and of a plain one."""
    common = launch.arguments(["--host", "127.0.0.1"], dtype="float32")
    plain = common[: common.index("--middleware")]
    connector = {**launch.CONNECTOR, "kv_connector_extra_config": {"folder": folder}}
    return [*common, "--kv-transfer-config", json.dumps(connector)], plain


@contextlib.contextmanager
def running(
    base: str, commands: Mapping[str, list[str]], more: Sequence[str], *, threads: int, gibibytes: int = 1
) -> Iterator[dict[str, str]]:
    """All of them at once, idle but for the one whose turn it is; their URLs.

    Args:
        more: arguments for all.
        gibibytes: of each, for keys and values.
    """
    path = str(resolve(base).path)
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": str(gibibytes),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(threads),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_API_KEY": ticket.api_key(SECRET),
        ticket.SECRET: SECRET,
    }
    processes = {}
    try:
        for name, arguments in commands.items():
            port = _free_port()
            whole = [*launch.program(path), *arguments, "--port", str(port), *more]
            processes[name] = VllmProcess(whole, environment, f"http://127.0.0.1:{port}")
        for process in processes.values():
            process.wait()
        yield {name: process.url for name, process in processes.items()}
    finally:
        for process in processes.values():
            process.close()


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def _in_turns(ways: Sequence[Way], urls: Mapping[str, str], given: Any) -> dict[str, list[RoundFigures]]:
    found: dict[str, list[RoundFigures]] = {way.name: [] for way in ways}
    for number in range(-1, given.rounds):  # the first to warm up
        for way in ways:
            turn = asyncio.run(_turn(urls[way.server], way.bodies(number), given.tokens))
            if number >= 0:
                found[way.name].append(turn)
            line = {"way": way.name, "round": number, "tokens_per_second": round(turn.tokens, 1)}
            print(json.dumps(line), file=sys.stderr, flush=True)
    return found


async def _turn(url: str, bodies: Sequence[dict[str, Any]], tokens: int) -> RoundFigures:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits, trust_env=False) as client:

        async def ask(content: bytes) -> None:
            headers = {
                "content-type": "application/json",
                "authorization": f"Bearer {ticket.api_key(SECRET)}",
                HEADER: signature_of(SECRET, content),
            }
            response = await client.post("/v1/completions", content=content, headers=headers)
            assert response.status_code == 200, response.text
            assert response.json()["usage"]["completion_tokens"] == tokens, response.text

        contents = [json.dumps(body).encode() for body in bodies]
        before = await _counters(client)
        start_time = time.perf_counter()
        await asyncio.gather(*map(ask, contents))
        seconds = time.perf_counter() - start_time
        after = await _counters(client)
    counted = {name: after[name] - before[name] for name in after}
    return RoundFigures(tokens * len(bodies) / seconds, counted["first"] / len(bodies), counted)


async def _counters(client: httpx.AsyncClient) -> dict[str, float]:
    """vLLM's own, once they stand still."""
    seen: list[dict[str, float]] = [{}]
    while len(seen) < 3 or seen[-1] != seen[-2]:
        await asyncio.sleep(0.1)
        text = (await client.get("/metrics")).text
        found = {
            name: re.findall(rf"^{re.escape(counter)}\{{[^}}]*\}} (\S+)$", text, re.MULTILINE)
            for name, counter in COUNTERS.items()
        }
        seen.append({name: sum(map(float, values)) for name, values in found.items()})
    return seen[-1]


# -- the report -----------------------------------------------------------------------------------


def _report(
    given: Any, machine: Mapping[str, Any], ways: Sequence[Way], turns: Mapping[str, Sequence[RoundFigures]]
) -> report.Report:
    prefixes = turns[ways[0].name]
    return report.Report(
        title=f"vLLM {_version()}: {given.requests} requests at once behind {given.owners} prefixes",
        command=shlex.join(["python", "-m", "benchmarks.serve_vllm", *sys.argv[1:]]),
        environment={name: str(value) for name, value in machine.items()},
        notes=[
            f"{given.base}, P = {given.length}, new texts of {given.prompt} tokens, "
            f"{given.tokens} new tokens; {given.rounds} rounds in turns after one to warm up.",
            "Medians, quartiles in brackets. Ratio: tokens/s with prefixes over this way's, round by round.",
            "Computed: tokens of prompts that went through the model; the others were in vLLM's cache, or "
            "loaded by the connector. Medians of a round.",
        ],
        columns=[
            "way",
            "tokens/s",
            "ratio",
            "to the first token, s",
            "computed",
            "cached",
            "loaded",
            "steps",
        ],
        rows=[
            [
                way.name,
                _spread(turn.tokens for turn in turns[way.name]),
                _spread(
                    own.tokens / turn.tokens for own, turn in zip(prefixes, turns[way.name], strict=True)
                ),
                _spread(turn.first for turn in turns[way.name]),
                statistics.median(turn.computed for turn in turns[way.name]),
                *(
                    statistics.median(turn.counted[name] for turn in turns[way.name])
                    for name in ("cached", "loaded", "steps")
                ),
            ]
            for way in ways
        ],
    )


def _spread(values: Iterable[float]) -> Spread:
    return spread(list(values))


def _version() -> str:
    import vllm

    return str(vllm.__version__)


if __name__ == "__main__":
    main()
