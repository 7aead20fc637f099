"""Documents in the engines: exact keys and values beside the text in the prompt, and many requests at once.

Parts `exact-serving` and `serving` of benchmarks/documents.py; with vLLM in the environment of
`make test-vllm`. A vLLM with the connector and a plain one are started once, and take turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
import shlex
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.documents import Bench, Results, read_questions
from benchmarks.serve_vllm import arguments_of_both, running
from benchmarks.vllm_ways import PLAIN, PREFIXES, SECRET
from foreword import BaseModel, Example, Prefix, compile_document
from foreword.documents.exact import document_ids
from foreword.encoding import encode_example
from foreword.reporting.markdown import table
from foreword.serving.engine.local import LocalEngine
from foreword.serving.engine.protocol import Engine, Row, Sampling
from foreword.serving.vllm.engine import VllmEngine

COMPARED_TOKENS = 24
"""Greedy ones of each answer that are compared."""

LOOK_SECONDS = 0.1
"""Between two looks at how much of vLLM's cache is held."""


@dataclass(frozen=True)
class Servers:
    """The vLLMs that run.

    Attributes:
        folder: where the one with the connector reads prefixes.
        urls: by name.
    """

    folder: Path
    urls: dict[str, str]

    def engine(self, base: BaseModel, name: str) -> VllmEngine:
        """Rows to one of them."""
        return VllmEngine(base, self.urls[name], SECRET)

    def put(self, prefix: Prefix) -> None:
        """Where the connector finds it."""
        path = self.folder / f"{prefix.digest}.prefix"
        if not path.exists():
            path.write_bytes(prefix.to_bytes())


@contextlib.contextmanager
def servers(given: Any) -> Iterator[Servers]:
    """A vLLM with the connector and a plain one."""
    with tempfile.TemporaryDirectory() as folder:
        connected, plain = arguments_of_both(folder)
        more = ["--max-model-len", "4096", "--max-num-seqs", str(given.requests)]
        more += shlex.split(given.vllm_arguments)
        commands = {PREFIXES: connected, PLAIN: plain}
        with running(given.base, commands, more, threads=given.threads, gibibytes=given.cache_gib) as urls:
            yield Servers(Path(folder), urls)


def measure(bench: Bench, results: Results, given: Any) -> None:
    """What the results do not have yet of one of the two parts."""
    if given.part == "serving":
        _measure_serving(bench, results, given)
        return
    for engine in given.engines:
        keys = [{"part": given.part, "engine": engine, "document": name} for name in given.documents]
        keys = [key for key in keys if not results.has(key)]
        if not keys:
            continue
        with servers(given) if engine == "vllm" else contextlib.nullcontext() as started:
            for key in keys:
                results.once(key, lambda: _exact(bench, key["document"], started, given))  # noqa: B023


# -- one request: exact keys and values beside the text ---------------------------------------------


def _exact(bench: Bench, name: str, started: Servers | None, given: Any) -> dict[str, Any]:
    """Whether answers are the same, and how long the first token takes when nothing is cached."""
    base, document, ids = bench.base, bench.document(name), text_ids(bench, name)
    examples = read_questions(name, "test").examples[: given.compared]

    def rows(prefix: Prefix | None, tokens: int, owner: str) -> list[Row]:
        return [
            _row(base, document, example, prefix, ids if prefix is None else (), tokens, owner)
            for example in examples
        ]

    async def compared() -> tuple[list[list[int]], list[list[int]], dict[str, list[float]]]:
        # One engine for all rounds: what it does once, at its start, is no part of a request.
        behind = _engine(base, started, PREFIXES)
        plain = behind if started is None else _engine(base, started, PLAIN)
        try:
            answers = []
            for engine, prefix in ((behind, document), (plain, None)):
                asked = rows(prefix, COMPARED_TOKENS, "compared")
                # One at a time, so that what shares a batch can't differ.
                answers.append([(await _ask(engine, row)).ids for row in asked])
            seconds: dict[str, list[float]] = {"exact": [], "text": []}
            for number in range(-1, given.rounds):  # the first to warm up
                # Another file in each round: no engine has read it, no cache holds it.
                fresh = dataclasses.replace(document, labels={"round": str(number)})
                path = folder / f"{fresh.digest}.prefix"
                path.write_bytes(fresh.to_bytes())
                owner = f"round {number}"
                begin = time.perf_counter()
                read = Prefix.load(path) if started is None else fresh
                exact = await _ask(behind, rows(read, 1, owner)[0], begin)
                text = await _ask(plain, rows(None, 1, owner)[0])
                path.unlink()
                if number >= 0:
                    seconds["exact"].append(exact.first)
                    seconds["text"].append(text.first)
            return answers[0], answers[1], seconds
        finally:
            await behind.close()
            if plain is not behind:
                await plain.close()

    with contextlib.ExitStack() as stack:
        if started is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            folder = started.folder
            started.put(document)
        exact, text, seconds = asyncio.run(compared())
    ratios = [late / soon for soon, late in zip(seconds["exact"], seconds["text"], strict=True)]
    return {
        "tokens": document.length,
        "megabytes": round(sum(tensor.nbytes for tensor in document.tensors.values()) / 1e6, 1),
        "answers": len(exact),
        "answers_equal": sum(one == other for one, other in zip(exact, text, strict=True)),
        "rounds": given.rounds,
        "first_exact": round(statistics.median(seconds["exact"]), 4),
        "first_text": round(statistics.median(seconds["text"]), 4),
        "times_sooner": round(statistics.median(ratios), 2),
    }


def text_ids(bench: Bench, name: str) -> tuple[int, ...]:
    """The tokens of a document as it stands in a prompt."""
    return tuple(document_ids(bench.base, bench.document(name).template, bench.text(name)))


def _row(
    base: BaseModel,
    document: Prefix,
    example: Example,
    prefix: Prefix | None,
    front: Sequence[int],
    tokens: int,
    owner: str,
) -> Row:
    """A question behind a prefix, or behind the tokens in `front`."""
    question = encode_example(example, base.tokenizer, document.template)[0].source_ids
    return Row((*front, *question), prefix, owner, Sampling(tokens, temperature=0.0), base.end_ids)


def _engine(base: BaseModel, started: Servers | None, server: str) -> Engine:
    return LocalEngine(base) if started is None else started.engine(base, server)


@dataclass(frozen=True)
class Answer:
    """Tokens of one request, and seconds until the first."""

    ids: list[int]
    first: float


async def _ask(engine: Engine, row: Row, begin: float | None = None) -> Answer:
    begin = time.perf_counter() if begin is None else begin
    first, ids = 0.0, []
    async for token in engine.stream(row):
        first = first or time.perf_counter() - begin
        ids.append(token.token_id)
    return Answer(ids, first)


# -- many requests about several documents ------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """How documents are at hand: as prefixes of a kind or as text, and whether vLLM has them in its cache."""

    name: str
    prefixes: str | None
    warm: bool


WAYS = (
    Way("prefixes, warm", "matched", True),
    Way("prefixes, cold", "matched", False),
    Way("exact prefixes, warm", "exact", True),
    Way("exact prefixes, cold", "exact", False),
    Way("text, warm", None, True),
    Way("text, cold", None, False),
)


def _measure_serving(bench: Bench, results: Results, given: Any) -> None:
    """Rounds in turns: every way in each of them, so that what else the machine does meets all alike."""
    names = given.documents[: given.serving_documents]
    keys = [
        {"part": "serving", "way": way.name, "round": number, "requests": given.requests, "about": len(names)}
        for number in range(given.rounds)
        for way in WAYS
    ]
    if all(map(results.has, keys)):
        return
    # What speed depends on is P; the prefixes that take seconds to make serve as well as studied ones.
    ratio = given.ratios[0]
    made = {
        "matched": {
            n: compile_document(bench.base, bench.text(n), method="matched", ratio=ratio) for n in names
        },
        "exact": {n: bench.document(n) for n in names},
    }
    with servers(given) as started:
        for prefix in (prefix for kind in made.values() for prefix in kind.values()):
            started.put(prefix)
        per_document = -(-given.requests // len(names))
        begun = time.time()  # a run that goes on meets the cache of an earlier one nowhere

        def turn(way: Way, number: int) -> dict[str, Any]:
            rows = []
            for place in range(given.requests):
                name = names[place % len(names)]
                examples = [e for split in ("test", "dev") for e in read_questions(name, split).examples]
                example = examples[(place // len(names) + per_document * (number + 1)) % len(examples)]
                prefix = None if way.prefixes is None else made[way.prefixes][name]
                front = text_ids(bench, name) if prefix is None else ()
                owner = f"{name} {way.name} {'' if way.warm else begun + number}"
                row = _row(bench.base, bench.document(name), example, prefix, front, given.tokens, owner)
                # Every answer has the same number of tokens.
                rows.append(dataclasses.replace(row, end_ids=frozenset()))
            server = PLAIN if way.prefixes is None else PREFIXES
            return asyncio.run(_at_once(bench.base, started, server, rows)) | {"warm": way.warm}

        for way in WAYS:  # to warm up, and to fill the cache of those that are warm
            turn(way, -1)
        for number in range(given.rounds):
            for way in WAYS:
                key = {"part": "serving", "way": way.name, "round": number}
                key |= {"requests": given.requests, "about": len(names)}
                results.once(key, lambda: turn(way, number))  # noqa: B023


async def _at_once(base: BaseModel, started: Servers, server: str, rows: Sequence[Row]) -> dict[str, Any]:
    """All rows asked for at the same time, and the most blocks that running requests hold meanwhile."""
    engine = started.engine(base, server)
    held: list[float] = []

    async def watch() -> None:
        async with httpx.AsyncClient(base_url=started.urls[server], trust_env=False) as client:
            while True:
                held.append(_blocks_held((await client.get("/metrics")).text))
                await asyncio.sleep(LOOK_SECONDS)

    begin = time.perf_counter()
    watching = asyncio.create_task(watch())
    try:
        answers = await asyncio.gather(*(_ask(engine, row, begin) for row in rows))
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await engine.close()
    seconds = time.perf_counter() - begin
    first = [answer.first for answer in answers]
    return {
        "requests_per_second": round(len(rows) / seconds, 3),
        "first_mean": round(statistics.fmean(first), 3),
        "first_last": round(max(first), 3),
        "new_tokens": sum(len(answer.ids) for answer in answers),
        "blocks_held": round(max(held)),
    }


def _blocks_held(metrics: str) -> float:
    """Blocks in use, of vLLM's own figures."""
    used = re.search(r"^vllm:kv_cache_usage_perc\{[^}]*\} (\S+)$", metrics, re.MULTILINE)
    blocks = re.search(r'^vllm:cache_config_info\{[^}]*num_gpu_blocks="(\d+)"', metrics, re.MULTILINE)
    if used is None or blocks is None:
        raise RuntimeError("vLLM's metrics do not say how much of its cache is used; look at /metrics")
    return float(used[1]) * int(blocks[1])


# -- tables ------------------------------------------------------------------------------------------


def show(rows: Sequence[dict[str, Any]]) -> str:
    """Tables of both parts."""
    pages = []
    lines = []
    for engine in ("local", "vllm"):
        found = [row for row in rows if row["part"] == "exact-serving" and row["engine"] == engine]
        if found:
            line = [engine, str(len(found)), f"{sum(row['answers_equal'] for row in found)}"]
            line.append(f"{sum(row['answers'] for row in found)}")
            line.append(f"{min(row['tokens'] for row in found)} to {max(row['tokens'] for row in found)}")
            line += [_median(found, name) for name in ("first_exact", "first_text", "times_sooner")]
            line.append(f"{min(row['times_sooner'] for row in found):.3g}")
            lines.append(line)
    if lines:
        columns = ("exact beside text", "documents", "answers equal", "of", "tokens", "first token, s")
        columns += ("with the text, s", "times sooner", "at least")
        pages.append(table(columns, lines))
    lines = []
    for way in WAYS:
        found = [row for row in rows if row["part"] == "serving" and row["way"] == way.name]
        if found:
            line = [way.name, str(len(found)), str(found[0]["requests"]), str(found[0]["about"])]
            names = ("requests_per_second", "first_mean", "first_last", "blocks_held")
            line += [_median(found, name) for name in names]
            lines.append(line)
    if lines:
        columns = ("served", "rounds", "requests", "documents", "requests/s", "first token, mean s")
        columns += ("the last one's, s", "blocks held")
        pages.append(table(columns, lines))
    return "\n".join(pages)


def _median(rows: Sequence[dict[str, Any]], name: str) -> str:
    return f"{statistics.median(row[name] for row in rows):.3g}"
