"""Tokens of vLLM with prefixes are those of the local engine and of `foreword.generate`."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from foreword import BaseModel, generate
from foreword.base.joining import join_prefixes
from foreword.errors import GeometryMismatch, WindowExceeded
from foreword.serving.engine.protocol import Token
from foreword.serving.vllm.launch import BLOCK_SIZE
from foreword.template import RAW
from support.stand_ins import byte_tokenizer, random_prefix, tiny_llama
from support.vllm_servers import LOADED, LOCAL_HITS, VllmServer, ask, local, row

PROMPTS = [
    "hello",
    "a",
    "some longer prompt here, longer than a block of tokens",
    "xyz abc",
    "the end is",
    "q",
]
LENGTHS = [1, 5, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 2 * BLOCK_SIZE - 1, 2 * BLOCK_SIZE]


@pytest.mark.parametrize("length", LENGTHS)
def test_greedy_tokens_equal_the_local_engines(server: VllmServer, base: BaseModel, length: int) -> None:
    """Cold, with all prompts in one batch; then warm, when whole blocks are there already."""
    prefix = random_prefix(base, length, seed=length)
    rows = [row(base, prompt, prefix, max_tokens=20) for prompt in PROMPTS]
    expected = local(base, rows)
    assert server.run(base, rows) == expected
    before = server.counters()
    assert server.run(base, rows) == expected
    after = server.counters()
    blocks = length // BLOCK_SIZE * BLOCK_SIZE
    assert after[LOCAL_HITS] - before[LOCAL_HITS] >= blocks * len(rows)
    assert after[LOADED] - before[LOADED] <= (length - blocks) * len(rows)
    without = server.run(base, [row(base, prompt, max_tokens=20) for prompt in PROMPTS])
    assert without != expected


def test_texts_equal_those_of_generate(server: VllmServer, base: BaseModel) -> None:
    prefix = random_prefix(base, 37, seed=7, template=RAW)
    rows = [row(base, prompt, prefix, max_tokens=16) for prompt in PROMPTS]
    found = server.run(base, rows)
    ends = base.end_ids
    texts = [base.tokenizer.decode([t.token_id for t in told if t.token_id not in ends]) for told in found]
    assert texts == generate(base, PROMPTS, prefixes=prefix, max_new_tokens=16)


def test_joined_prefixes_give_the_local_engines_tokens(server: VllmServer, base: BaseModel) -> None:
    """The worker reads the parts, which lie in the folder, and moves their keys itself; cold, then warm."""
    parts = [random_prefix(base, length, seed=900 + length) for length in (37, 5, 41)]
    for part in parts:
        server.put(part)
    rows = []
    for some in (parts[:2], parts[1::-1], parts):
        asked = row(base, PROMPTS[2], join_prefixes(base, some), max_tokens=20)
        rows.append(dataclasses.replace(asked, joined=tuple(part.digest for part in some)))
    rows.append(row(base, PROMPTS[2], parts[0], max_tokens=20))
    expected = local(base, rows)
    assert ask(lambda: server.engine(base), rows) == expected
    assert ask(lambda: server.engine(base), rows) == expected
    assert len({tuple(told) for told in expected}) == 4


def test_rows_do_not_end_before_their_shortest_length(server: VllmServer, base: BaseModel) -> None:
    """Whatever comes third is made the end: of the same rows with and without a shortest length."""
    prefix = random_prefix(base, 21, seed=8)
    free = [row(base, prompt, prefix, max_tokens=16) for prompt in PROMPTS]
    ends = [base.end_ids | {tokens[2].token_id} for tokens in local(base, free)]
    short = [dataclasses.replace(one, end_ids=each) for one, each in zip(free, ends, strict=True)]
    assert all(len(tokens) <= 3 for tokens in server.run(base, short))
    sampling = dataclasses.replace(free[0].sampling, min_tokens=7)
    long = [dataclasses.replace(one, sampling=sampling) for one in short]
    found = server.run(base, long)
    assert found == local(base, long)
    assert all(len(tokens) > 7 or tokens[-1].finish_reason == "length" for tokens in found)


def test_sixteen_prefixes_and_none_in_one_batch(server: VllmServer, base: BaseModel) -> None:
    prefixes = [random_prefix(base, 3 + 5 * number, seed=100 + number) for number in range(16)]
    rows = [
        row(base, PROMPTS[number % len(PROMPTS)], prefix, owner=f"owner {number}", max_tokens=24)
        for number, prefix in enumerate([*prefixes, None, None])
    ]
    found = server.run(base, rows)
    assert found == local(base, rows)
    assert len({tuple(told) for told in found}) > 12


def test_an_end_token_ends_the_row_and_is_told(server: VllmServer, base: BaseModel) -> None:
    import dataclasses

    asked = row(base, "hello", random_prefix(base, 9, seed=3), max_tokens=20)
    third = server.run(base, [asked])[0][2].token_id
    ending = dataclasses.replace(asked, end_ids=frozenset({third}))
    (found,) = server.run(base, [ending])
    assert found == local(base, [ending])[0]
    assert (found[-1].token_id, found[-1].finish_reason) == (third, "stop")


def test_log_probabilities_are_the_local_engines(server: VllmServer, base: BaseModel) -> None:
    asked = row(base, "ab", random_prefix(base, 33, seed=4), logprobs=4)
    (found,), (expected,) = server.run(base, [asked]), local(base, [asked])
    assert [t.token_id for t in found] == [t.token_id for t in expected]
    for told, by_local in zip(found, expected, strict=True):
        assert told.logprob == pytest.approx(by_local.logprob, abs=1e-4)
        assert [p[0] for p in told.likeliest] == [p[0] for p in by_local.likeliest]
        assert [p[1] for p in told.likeliest] == pytest.approx([p[1] for p in by_local.likeliest], abs=1e-4)


def test_the_same_seed_gives_the_same_text(server: VllmServer, base: BaseModel) -> None:
    prefix = random_prefix(base, 20, seed=5)

    def drawn(seed: int) -> Any:
        return server.run(base, [row(base, "ab", prefix, temperature=1.3, top_p=0.9, seed=seed)])[0]

    assert drawn(2**63 - 1) == drawn(2**63 - 1) != drawn(1)


def test_the_window_ends_a_row_and_a_prompt_beyond_it_is_refused(server: VllmServer, base: BaseModel) -> None:
    prefix = random_prefix(base, 480, seed=6)
    fits, too_long = (row(base, "a" * count, prefix, max_tokens=500) for count in (20, 32))
    found, refused = server.run(base, [fits, too_long])
    assert found == local(base, [fits])[0]
    assert len(found) == 512 - 480 - 20
    assert found[-1].finish_reason == "length"
    assert isinstance(refused, WindowExceeded)


def test_a_prefix_of_another_base_is_refused(server: VllmServer, base: BaseModel) -> None:
    other = BaseModel(tiny_llama(num_hidden_layers=4), byte_tokenizer(), name="other")
    (refused,) = server.run(base, [row(base, "ab", random_prefix(other, 3))])
    assert isinstance(refused, GeometryMismatch)


def test_a_caller_who_goes_away_frees_the_row(server: VllmServer, base: BaseModel) -> None:
    import dataclasses

    running, generated = "vllm:num_requests_running", "vllm:generation_tokens_total"
    endless = dataclasses.replace(row(base, "ab", max_tokens=400), end_ids=frozenset())

    async def leave() -> list[Token]:
        engine = server.engine(base)
        stream = engine.stream(endless)
        told = [await anext(stream) for _ in range(3)]
        await stream.aclose()
        await engine.close()
        return told

    before = server.counters()[generated]
    told = asyncio.run(leave())
    assert [t.finish_reason for t in told] == [None] * 3
    assert server.counters()[running] == 0
    assert server.counters()[generated] - before < 400  # it was not written to its end
