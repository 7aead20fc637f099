"""Memory that runs out anywhere in a step of the local engine costs time, never an answer or the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import torch

from foreword import BaseModel
from foreword.base.ragged_cache import RaggedCache, RaggedPass, RowBlock
from foreword.serving.engine import continuous_batch
from foreword.serving.engine.continuous_batch import ContinuousBatch
from foreword.serving.engine.local import LocalEngine
from foreword.serving.engine.scheduler import Scheduler
from support.engine_rows import greedy_rows, greedy_tokens, leave_early, tokens_of

ALLOCATOR = "[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory: error code 12"
ERRORS = [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError(ALLOCATOR)]

PLACES: dict[str, tuple[Any, str]] = {
    "the prefix of a row": (continuous_batch.PrefixBatch, "stack"),
    "room for a text": (RaggedCache, "reserve_alone"),
    "a place beside others": (RaggedCache, "reserve_shared"),
    "a layer's keys and values": (RowBlock, "layer"),
    "attention": (RaggedPass, "attend"),
    "the pass": (ContinuousBatch, "_logits"),
    "the sampler": (continuous_batch, "TokenSampler"),
    "the choice of tokens": (continuous_batch, "choose_tokens"),
    "a row that leaves": (RaggedCache, "release"),
    "letting rows in": (Scheduler, "admit"),
    "handing over": (LocalEngine, "_send"),
}


FAILING_CALLS = {2, 5, 20, 31, 90, 203, 500, 901}
"""Of one place; those with an odd number fail when they have done their work."""


def failing(original: Callable[..., Any], error: Exception) -> Callable[..., Any]:
    """`original`, of which some calls fail."""
    calls = 0

    def call(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls in FAILING_CALLS:
            if calls % 2:
                original(*given, **named)
            raise error
        return original(*given, **named)

    return call


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("error", ERRORS, ids=["host", "device", "allocator"])
def test_memory_that_runs_out_anywhere_ends_no_row(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch, place: str, error: Exception
) -> None:
    where, name = PLACES[place]
    rows = greedy_rows(tiny_base)

    async def ask() -> tuple[list[list[int]], bool, list[int]]:
        engine = LocalEngine(tiny_base, step_tokens=48)
        with monkeypatch.context() as broken:
            fails = failing(getattr(where, name), error)
            broken.setattr(where, name, staticmethod(fails) if name == "stack" else fails)
            found = await asyncio.gather(
                *(tokens_of(engine, row) for row in rows), leave_early(engine, rows[3])
            )
        ready, after = engine.ready(), await tokens_of(engine, rows[0])
        await engine.close()
        return found[:-1], ready, after

    found, ready, after = asyncio.run(ask())
    assert found == [greedy_tokens(tiny_base, row) for row in rows]
    assert ready
    assert after == found[0]
