"""Answers that follow JSON schemas: what libraries cost, how many end and are valid, what the mask costs.

    python -m benchmarks.structured libraries                     # needs llguidance and xgrammar
    python -m benchmarks.structured answers --texts 500           # the local engine
    python -m benchmarks.structured answers --texts 500 --vllm    # in the environment of `make test-vllm`
    python -m benchmarks.structured speed --rounds 5              # --vllm as well

`libraries` compiles each of `SCHEMAS` with both libraries for the base's tokenizer, and makes the mask in
front of every token of a text that follows it. `answers` starts `foreword serve` with prefixes of several
owners and the base alone, and asks with `--rows` clients at once for texts over all schemas, judged by
`jsonschema`. `speed` asks for such texts, and for as many tokens of each without a schema, in turns. Prints
JSON objects.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import openai
import torch

from foreword import BaseModel
from foreword.grammar import GrammarCompiler, json_grammar
from foreword.research.bench.generation import make_prefix
from foreword.serving.served_model import served_of
from foreword.store import PrefixStore

OWNERS = ("alice", "bob", "carol")
LONGEST = 400
"""New tokens of a text at most; of those that end, few are half as long."""


def text(most: int = 40, **more: Any) -> dict[str, Any]:
    return {"type": "string", "minLength": 1, "maxLength": most, **more}


def whole(least: int, most: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": least, "maximum": most}


def several(items: dict[str, Any], least: int = 1, most: int = 4) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def fields(optional: Sequence[str] = (), **properties: Any) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


PERSON = fields(
    name=text(), age=whole(0, 120), email=text(30, pattern="^[a-z]{1,12}@[a-z]{1,10}\\.(com|org)$")
)
SCHEMAS: dict[str, dict[str, Any]] = {
    "sentiment": fields(sentiment={"enum": ["positive", "negative", "neutral"]}, sure={"type": "boolean"}),
    "person": PERSON,
    "people": fields(people=several(PERSON, 1, 3)),
    "address": fields(street=text(), number=whole(1, 9999), city=text(20), zip=text(5, pattern="^[0-9]{5}$")),
    "order": fields(
        id=text(8, pattern="^[A-Z]{2}-[0-9]{4}$"),
        lines=several(
            fields(item=text(20), count=whole(1, 20), price={"type": "number", "minimum": 0, "maximum": 999})
        ),
        paid={"type": "boolean"},
    ),
    "date": fields(title=text(), start={"type": "string", "format": "date"}, days=whole(1, 30)),
    "coordinates": fields(latitude=whole(-90, 90), longitude=whole(-180, 180), exact={"type": "boolean"}),
    "numbers": several({"type": "number", "minimum": -10, "maximum": 10, "multipleOf": 0.25}, 3, 6),
    "matrix": several(several(whole(0, 9), 3, 3), 3, 3),
    "tags": fields(tags=several({"enum": ["new", "sale", "used", "rare"]}, 0, 3)),
    "colours": fields(colour={"enum": ["rot", "grün", "weiß", "中性", "žlutá", "🙂"]}, why=text(30)),
    "unicode": fields(**{"größe": whole(1, 50), "名前": text(20), "prénom": text(20)}),
    "optional": fields(
        ("note", "link"),
        name=text(20),
        note=text(30),
        link={"type": "string", "format": "uri", "maxLength": 40},
    ),
    "nullable": fields(
        value={"anyOf": [whole(0, 100), {"type": "null"}]},
        reason={"type": ["string", "null"], "maxLength": 30},
    ),
    "shape": {
        "anyOf": [
            fields(kind={"const": "circle"}, radius=whole(1, 99)),
            fields(kind={"const": "box"}, width=whole(1, 99), height=whole(1, 99)),
        ]
    },
    "tree": {
        "$defs": {
            "node": fields(
                name=text(10), children={"type": "array", "items": {"$ref": "#/$defs/leaf"}, "maxItems": 3}
            ),
            "leaf": fields(name=text(10)),
        },
        "$ref": "#/$defs/node",
    },
    "nested": fields(
        a=fields(b=fields(c=fields(d={"enum": [1, 2, 3]}, e=text(10)))), f=several({"type": "boolean"}, 2, 2)
    ),
    "ratings": fields(
        ratings={
            "type": "object",
            "properties": {n: whole(1, 5) for n in ("food", "price", "service")},
            "required": ["food", "price", "service"],
            "additionalProperties": False,
        },
        total=whole(1, 5),
    ),
    "call": fields(
        function={"enum": ["search", "open", "close"]},
        arguments=fields(("limit",), query=text(30), limit=whole(1, 50)),
    ),
    "pair": {"type": "array", "prefixItems": [text(20), whole(0, 9)], "items": False, "minItems": 2},
}
"""Nested, enumerations, arrays, numbers, letters of many scripts; every text is bounded, as a form's are."""
PROMPTS = (
    "Describe a coffee shop in the north of the city.",
    "A customer ordered two lamps and one chair, and is not happy.",
    "Gib mir ein Beispiel mit Umlauten: Größe, Übung, Straße.",
    "Make up the next entry of the list.",
)


# -- libraries -------------------------------------------------------------------------------------


def libraries(given: argparse.Namespace) -> None:
    """Time to compile each schema, and of each mask along a text that follows it."""
    base = BaseModel.without_weights(given.base)
    texts = {name: _example(base, schema) for name, schema in SCHEMAS.items()}
    for name, make in (("llguidance", _llguidance), ("xgrammar", _xgrammar)):
        start = time.perf_counter()
        begin = make(base)
        prepared = time.perf_counter() - start
        compiled, first, masks, refused = [], [], [], []
        for schema_name, schema in SCHEMAS.items():
            start = time.perf_counter()
            try:
                mask, take = begin(schema)
                compiled.append(time.perf_counter() - start)
                for number, token in enumerate(texts[schema_name]):
                    start = time.perf_counter()
                    mask()
                    (masks if number else first).append(time.perf_counter() - start)
                    if not take(token):
                        raise ValueError(f"token {number} of a valid text is not taken")
            except Exception as error:
                refused.append(f"{schema_name}: {str(error)[:90]}")
        told = {"tokenizer, ms": prepared * 1000, **_spread("compile, ms", compiled, 1e3)}
        told |= _spread("first mask, ms", first, 1e3) | _spread("mask, µs", masks, 1e6)
        rounded = {key: round(value, 2) for key, value in told.items()}
        print(json.dumps({"what": name, **rounded, "masks": len(masks), "refused": refused}), flush=True)


def _spread(name: str, seconds: Sequence[float], scale: float) -> dict[str, float]:
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {
        f"{name}, mean": statistics.mean(seconds) * scale,
        f"{name}, p50": cuts[49] * scale,
        f"{name}, p99": cuts[98] * scale,
        f"{name}, most": max(seconds) * scale,
    }


def _example(base: BaseModel, schema: Any) -> list[int]:
    """The tokens of a text that follows a schema, which was drawn among those that are allowed."""
    grammar = GrammarCompiler(base.tokenizer).compile(json_grammar(schema))
    chance = np.random.default_rng(1)
    while True:
        state, ids = grammar.state(), list[int]()
        while len(ids) < LONGEST and not state.complete:
            bits = np.zeros(grammar.mask_bytes, dtype=np.uint8)
            state.allow(bits, frozenset({grammar.end_id}))
            allowed = np.unpackbits(bits, bitorder="little").nonzero()[0]
            ids.append(int(chance.choice(allowed)))
            if ids[-1] == grammar.end_id:
                break
            state.take(ids[-1])
        written = base.tokenizer.decode([token for token in ids if token != grammar.end_id])
        with contextlib.suppress(ValueError, jsonschema.ValidationError):
            # As both libraries' usual whitespace has it, in the tokens that a model would take.
            jsonschema.validate(value := json.loads(written), schema)
            return list(base.tokenizer(json.dumps(value, ensure_ascii=False))["input_ids"])


Steps = tuple[Callable[[], object], Callable[[int], bool]]


def _llguidance(base: BaseModel) -> Callable[[Any], Steps]:
    compiler = GrammarCompiler(base.tokenizer)
    compiler.compile(json_grammar({"const": 1}))

    def begin(schema: Any) -> Steps:
        grammar = compiler.compile(json_grammar(schema))
        state, bits = grammar.state(), np.zeros(grammar.mask_bytes, dtype=np.uint8)

        def take(token: int) -> bool:
            state.take(token)
            return True

        return lambda: state.allow(bits, frozenset({grammar.end_id})), take

    return begin


def _xgrammar(base: BaseModel) -> Callable[[Any], Steps]:
    import xgrammar

    width = base.vocabulary
    info = xgrammar.TokenizerInfo.from_huggingface(base.tokenizer, vocab_size=width)
    compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)

    def begin(schema: Any) -> Steps:
        matcher = xgrammar.GrammarMatcher(compiler.compile_json_schema(json.dumps(schema)))
        bits = xgrammar.allocate_token_bitmask(1, width)
        return lambda: matcher.fill_next_token_bitmask(bits), matcher.accept_token

    return begin


# -- a server --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    """One that runs, and clients of all owners: each with the name of a model."""

    clients: list[tuple[openai.AsyncOpenAI, str]]


@contextlib.contextmanager
def served(given: argparse.Namespace) -> Iterator[Server]:
    """A server with prefixes of several owners that take conversations."""
    base = BaseModel.load(given.base, dtype=torch.float32)
    template = served_of(base).chat_template
    with tempfile.TemporaryDirectory() as folder:
        with PrefixStore(folder) as store:
            for number, owner in enumerate(OWNERS):
                prefix = dataclasses.replace(make_prefix(base, 10, number), template=template)
                store.put(f"{owner}/mine", prefix)
            keys = {owner: store.create_key(owner, "reader").secret for owner in OWNERS}
        del base
        limits = '[limits]\nrequests_per_minute = "none"\ntokens_per_minute = "none"\n'
        (Path(folder) / "server.toml").write_text(limits)
        command = [
            sys.executable,
            "-P",
            "-c",
            "from foreword.cli import main; main()",
            "serve",
            "--port",
            "0",
        ]
        command += ["--json", "--base", given.base, "--dtype", "float32", "--store", folder, "--no-training"]
        command += ["--config", f"{folder}/server.toml", "--engine", "vllm" if given.vllm else "local"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            assert process.stdout is not None
            told = json.loads(process.stdout.readline())
            clients = [
                (
                    openai.AsyncOpenAI(base_url=told["url"], api_key=keys[owner], max_retries=0, timeout=900),
                    model,
                )
                for owner in OWNERS
                for model in (f"{owner}/mine", told["base"])
            ]
            yield Server(clients)
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        finally:
            process.kill()


@dataclass(frozen=True)
class Answer:
    """A text, why it ended, and its tokens."""

    schema: str
    text: str
    reason: str
    tokens: int


async def _ask(server: Server, number: int, *, tokens: int | None = None) -> Answer:
    """The answer to a numbered request: with its schema, or as many tokens without."""
    client, model = server.clients[number % len(server.clients)]
    name = list(SCHEMAS)[number % len(SCHEMAS)]
    prompt = PROMPTS[number // len(SCHEMAS) % len(PROMPTS)]
    prompt += f" Answer in JSON: {', '.join(_names(SCHEMAS[name]))}."
    form: Any = {"type": "json_schema", "json_schema": {"name": name, "schema": SCHEMAS[name]}}
    more: Any = {"max_tokens": LONGEST, "response_format": form}
    if tokens is not None:
        more = {"max_tokens": tokens, "extra_body": {"min_tokens": tokens}}
    answer = await client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": prompt}], temperature=0.7, seed=number, **more
    )
    choice = answer.choices[0]
    assert answer.usage is not None
    return Answer(name, choice.message.content or "", choice.finish_reason, answer.usage.completion_tokens)


def _names(schema: dict[str, Any]) -> list[str]:
    return list(schema.get("properties", {})) or [schema.get("type", "object")]


async def _all(
    server: Server, numbers: Sequence[int], rows: int, tokens: Sequence[int | None]
) -> list[Answer]:
    """Answers to all requests, with so many under way at once."""
    places = asyncio.Semaphore(rows)

    async def one(number: int, count: int | None) -> Answer:
        async with places:
            return await _ask(server, number, tokens=count)

    return await asyncio.gather(*(one(number, count) for number, count in zip(numbers, tokens, strict=True)))


def answers(given: argparse.Namespace) -> None:
    """How many texts end by themselves, and are valid."""
    with served(given) as server:
        start = time.perf_counter()
        found = asyncio.run(_fresh(server, range(given.texts), given.rows, [None] * given.texts))
        seconds = time.perf_counter() - start
    ended = [answer for answer in found if answer.reason == "stop"]
    faults = [fault for answer in ended if (fault := _fault(answer)) is not None]
    cut = [answer.schema for answer in found if answer.reason != "stop"]
    told = {
        "engine": "vllm" if given.vllm else "local",
        "texts": len(found),
        "ended by stop": len(ended),
        "share": round(len(ended) / len(found), 4),
        "valid of these": len(ended) - len(faults),
        "tokens": sum(answer.tokens for answer in found),
        "seconds": round(seconds, 1),
        "cut": {name: cut.count(name) for name in dict.fromkeys(cut)},
        "faults": faults[:5],
    }
    print(json.dumps(told, ensure_ascii=False))


def _fault(answer: Answer) -> str | None:
    try:
        jsonschema.validate(
            json.loads(answer.text), SCHEMAS[answer.schema], format_checker=jsonschema.FormatChecker()
        )
    except (ValueError, jsonschema.ValidationError) as error:
        return f"{answer.schema}: {str(error).splitlines()[0]}: {answer.text}"
    return None


def speed(given: argparse.Namespace) -> None:
    """Tokens a second with the mask over those without, in turns; as many tokens of every request."""
    with served(given) as server:
        numbers = list(range(given.texts))
        # Lengths of each request, and everything compiled and loaded.
        counts = [
            answer.tokens
            for answer in asyncio.run(_fresh(server, numbers, given.rows, [None] * len(numbers)))
        ]
        ratios = []
        for turn in range(given.rounds):
            rates = {}
            for masked in (True, False) if turn % 2 else (False, True):
                tokens = [None] * len(counts) if masked else counts
                start = time.perf_counter()
                found = asyncio.run(_fresh(server, numbers, given.rows, tokens))
                rates[masked] = sum(answer.tokens for answer in found) / (time.perf_counter() - start)
            ratios.append(rates[True] / rates[False])
            told = {"round": turn + 1, "with mask": round(rates[True], 1), "without": round(rates[False], 1)}
            print(json.dumps({**told, "ratio": round(ratios[-1], 3)}), flush=True)
    middle = statistics.median(ratios)
    print(
        json.dumps(
            {
                "engine": "vllm" if given.vllm else "local",
                "rows": given.rows,
                "ratio, median": round(middle, 3),
            }
        )
    )


async def _fresh(
    server: Server, numbers: Sequence[int], rows: int, tokens: Sequence[int | None]
) -> list[Answer]:
    """As `_all`, with connections of this event loop's own."""
    clients = [(client.copy(), model) for client, model in server.clients]
    try:
        return await _all(Server(clients), numbers, rows, tokens)
    finally:
        for client, _ in clients:
            await client.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["libraries", "answers", "speed"])
    parser.add_argument("--base", default="smollm2-135m-instruct")
    parser.add_argument("--vllm", action="store_true", help="the vLLM engine; in its own environment")
    parser.add_argument("--texts", type=int, default=40)
    parser.add_argument("--rows", type=int, default=8, help="requests at once")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    {"libraries": libraries, "answers": answers, "speed": speed}[given.what](given)


if __name__ == "__main__":
    main()
