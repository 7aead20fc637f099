"""Memory that runs out costs time, never an answer or the engine; `tests/faults` tries every place of a step."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch

from foreword import BaseModel
from foreword.base.device_memory import is_out_of_memory
from foreword.base.ragged_cache import RaggedCache, RowBlock
from foreword.errors import EngineOutOfMemory
from foreword.serving.engine.local import LocalEngine
from foreword.serving.engine.protocol import Row, Sampling, Token
from support.engine_rows import greedy_rows, greedy_tokens, leave_early, tokens_of

ALLOCATOR = "[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory: error code 12"
ERRORS = [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError(ALLOCATOR)]


def test_an_error_of_memory_is_known_by_its_type_or_its_words() -> None:
    assert all(map(is_out_of_memory, ERRORS))
    assert not any(map(is_out_of_memory, [RuntimeError("sizes differ"), ValueError("not enough memory")]))


def test_memory_that_runs_out_while_a_client_leaves_ends_no_other_row(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, release, failed = greedy_rows(tiny_base), RaggedCache.release, []

    def fails(self: RaggedCache, *given: Any) -> None:
        if len(failed) < 3:
            failed.append(1)
            raise MemoryError
        release(self, *given)

    async def ask() -> tuple[list[Any], bool]:
        engine = LocalEngine(tiny_base)
        monkeypatch.setattr(RaggedCache, "release", fails)
        found = await asyncio.gather(
            leave_early(engine, rows[3]), *(tokens_of(engine, row) for row in rows[:3])
        )
        ready = engine.ready()
        await engine.close()
        return found[1:], ready

    found, ready = asyncio.run(ask())
    assert found == [greedy_tokens(tiny_base, row) for row in rows[:3]]
    assert len(failed) == 3
    assert ready


def test_a_row_for_which_memory_never_suffices_is_told_so_and_the_others_end(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, layer = greedy_rows(tiny_base), RowBlock.layer

    def no_more_than_64_columns(self: RowBlock, *given: Any) -> Any:
        if self.room > 64:
            raise MemoryError
        return layer(self, *given)

    monkeypatch.setattr(RowBlock, "layer", no_more_than_64_columns)
    long = Row((5,) * 70, None, "owner 1", Sampling(5, temperature=0.0), frozenset())
    short = [row for row in rows if row.prefix_length + len(row.prompt_ids) + row.sampling.max_tokens < 64]

    async def ask() -> tuple[list[Any], bool]:
        engine = LocalEngine(tiny_base)
        found = await asyncio.gather(
            tokens_of(engine, long), *(tokens_of(engine, row) for row in short), return_exceptions=True
        )
        ready = engine.ready()
        await engine.close()
        return found, ready

    (failed, *found), ready = asyncio.run(ask())
    assert isinstance(failed, EngineOutOfMemory)
    assert "a text of 70 tokens" in str(failed)
    assert found == [greedy_tokens(tiny_base, row) for row in short]
    assert len(found) > 3
    assert ready


@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_a_row_that_is_put_out_and_read_again_goes_on_as_if_nothing_had_been(
    tiny_base: BaseModel, temperature: float
) -> None:
    """Seeds, log-probabilities and shortest lengths too; room for one or two of the rows at a time."""
    asked = [
        Row(row.prompt_ids, row.prefix, row.owner, sampling, frozenset({7, 9, 11}))
        for place, row in enumerate(greedy_rows(tiny_base))
        for sampling in [Sampling(40, temperature=temperature, seed=place, logprobs=2, min_tokens=20)]
    ]

    async def ask(max_held: int) -> tuple[list[list[Token]], float]:
        engine = LocalEngine(tiny_base, max_held=max_held, step_tokens=32)

        async def tokens(row: Row) -> list[Token]:
            return [token async for token in engine.stream(row)]

        found = await asyncio.gather(*map(tokens, asked))
        count = engine.measurements()["preemptions"]
        await engine.close()
        return found, count

    (plenty, none), (scarce, some) = asyncio.run(ask(65_536)), asyncio.run(ask(150))
    assert none == 0
    assert some >= 2
    for one, other in zip(plenty, scarce, strict=True):
        assert [token.token_id for token in one] == [token.token_id for token in other]
        assert [token.finish_reason for token in one] == [token.finish_reason for token in other]
        assert [token.logprob for token in one] == pytest.approx([token.logprob for token in other], abs=1e-4)
