"""Log-probabilities of a prompt's own tokens: those of a whole pass, however the prompt is read."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
import torch

from foreword import BaseModel
from foreword.errors import UsageError, WindowExceeded
from foreword.serving.engine.local import LocalEngine
from foreword.serving.engine.protocol import NO_TOKEN, Row, Token, check_row
from foreword.serving.vllm.engine import VllmEngine
from support.by_hand import layers_of, logits
from support.engine_rows import greedy_rows, greedy_tokens


def asking(row: Row, most: int | None, max_tokens: int | None = None) -> Row:
    longest = row.sampling.max_tokens if max_tokens is None else max_tokens
    sampling = dataclasses.replace(row.sampling, prompt_logprobs=most, max_tokens=longest)
    return dataclasses.replace(row, sampling=sampling)


def answers(base: BaseModel, rows: list[Row], **settings: int) -> list[list[Token]]:
    async def read(engine: LocalEngine, row: Row) -> list[Token]:
        return [token async for token in engine.stream(row)]

    async def all_of_them() -> list[list[Token]]:
        engine = LocalEngine(base, **settings)
        try:
            return await asyncio.gather(*(read(engine, row) for row in rows))
        finally:
            await engine.close()

    return asyncio.run(all_of_them())


def expect_as_by_hand(base: BaseModel, row: Row, first: Token) -> None:
    prefix = None if row.prefix is None else layers_of(row.prefix)
    with torch.no_grad():
        logprobs_TV = logits(base.model, list(row.prompt_ids), prefix).log_softmax(-1)
    most = row.sampling.prompt_logprobs or 0
    assert len(first.prompt) == len(row.prompt_ids) - 1
    for place, (own, likeliest) in enumerate(first.prompt):
        assert own == pytest.approx(float(logprobs_TV[place, row.prompt_ids[place + 1]]), abs=1e-4)
        best = logprobs_TV[place].topk(most)
        assert [value for _, value in likeliest] == pytest.approx(best.values.tolist(), abs=1e-4)


@pytest.mark.parametrize(
    "settings", [{}, {"step_tokens": 16}, {"max_rows": 1}, {"max_held": 96, "step_tokens": 16}]
)
def test_they_are_those_of_a_whole_pass_beside_rows_that_do_not_ask(
    tiny_base: BaseModel, settings: dict[str, int]
) -> None:
    """The last setting puts rows out, whose prompts are read twice."""
    rows = [
        asking(row, place % 3 if place != 1 else None) for place, row in enumerate(greedy_rows(tiny_base))
    ]
    for row, tokens in zip(rows, answers(tiny_base, rows, **settings), strict=True):
        assert [token.token_id for token in tokens] == greedy_tokens(tiny_base, row)
        assert all(token.prompt == () for token in tokens[1:])
        if row.sampling.prompt_logprobs is None:
            assert tokens[0].prompt == ()
        else:
            expect_as_by_hand(tiny_base, row, tokens[0])


def test_a_row_of_no_new_tokens_is_read_and_ends(tiny_base: BaseModel) -> None:
    rows = [asking(row, 2, 0) for row in greedy_rows(tiny_base)]
    for row, (token,) in zip(rows, answers(tiny_base, rows, step_tokens=16), strict=True):
        assert (token.token_id, token.finish_reason) == (NO_TOKEN, "length")
        expect_as_by_hand(tiny_base, row, token)


def test_a_row_of_no_new_tokens_may_fill_the_window(tiny_base: BaseModel) -> None:
    limit = tiny_base.max_text_tokens(0)
    assert limit is not None
    row = dataclasses.replace(greedy_rows(tiny_base)[0], prompt_ids=(3,) * limit)
    assert check_row(tiny_base, asking(row, 0, 0)) == 0
    with pytest.raises(WindowExceeded):
        check_row(tiny_base, row)
    with pytest.raises(WindowExceeded):
        check_row(tiny_base, asking(dataclasses.replace(row, prompt_ids=(3,) * (limit + 1)), 0, 0))


@pytest.mark.parametrize(("most", "max_tokens"), [(0, 5), (None, 0)])
def test_vllm_refuses_them_by_name(tiny_base: BaseModel, most: int | None, max_tokens: int) -> None:
    engine = VllmEngine(tiny_base, "http://127.0.0.1:1", "s" * 40)

    async def ask() -> None:
        await anext(engine.stream(asking(greedy_rows(tiny_base)[0], most, max_tokens)))  # type: ignore[call-overload]

    with pytest.raises(UsageError, match="'echo' with 'logprobs'"):
        asyncio.run(ask())
