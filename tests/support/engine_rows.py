"""Rows for an engine, and the tokens that they must get."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import cast

from foreword import BaseModel
from foreword.serving.engine.local import LocalEngine
from foreword.serving.engine.protocol import Row, Sampling, Token
from support.by_hand import greedy, layers_of
from support.stand_ins import random_prefix


def greedy_rows(base: BaseModel) -> list[Row]:
    """Long and short prompts of three owners, with prefixes and without; no token ends them."""
    return [
        Row(
            tuple(range(3, 4 + size)),
            random_prefix(base, 1 + place, seed=place) if place % 3 else None,
            f"owner {place % 3}",
            Sampling(6 + 3 * place, temperature=0.0),
            frozenset(),
        )
        for place, size in enumerate((1, 40, 7, 60, 2, 12))
    ]


def greedy_tokens(base: BaseModel, row: Row) -> list[int]:
    """The row's tokens, from a computation without a cache."""
    prefix = None if row.prefix is None else layers_of(row.prefix)
    return greedy(base.model, row.prompt_ids, prefix, row.sampling.max_tokens, row.end_ids)


async def tokens_of(engine: LocalEngine, row: Row) -> list[int]:
    """What the engine says."""
    return [token.token_id async for token in engine.stream(row)]


async def leave_early(engine: LocalEngine, row: Row) -> None:
    """A client that goes away after three tokens."""
    stream = cast("AsyncGenerator[Token, None]", engine.stream(row))
    for _ in range(3):
        await anext(stream)
    await stream.aclose()
