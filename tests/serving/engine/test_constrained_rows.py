"""Rows that follow grammars in the running batch, beside rows that follow none."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import Any

import jsonschema
import pytest

from foreword import BaseModel
from foreword.errors import BadSchema
from foreword.grammar import LIMITS, compiler_of, json_grammar
from foreword.serving.engine.local import LocalEngine
from foreword.serving.engine.protocol import Row, Sampling, Token
from support.stand_ins import random_prefix

WORD = {"type": "string", "minLength": 2, "maxLength": 12}
SCHEMAS: list[dict[str, Any]] = [
    {
        "type": "object",
        "properties": {"name": WORD, "kind": {"enum": ["a", "b"]}},
        "required": ["name", "kind"],
    },
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    {"enum": ["red", "green"]},
]


def row(base: BaseModel, prompt: str, schema: Any = None, *, length: int = 0, **sampling: Any) -> Row:
    grammar = None if schema is None else compiler_of(base.tokenizer).compile(json_grammar(schema))
    settings = {"max_tokens": 60, "temperature": 0.0, **sampling}
    prefix = random_prefix(base, length, seed=length) if length else None
    ids = tuple(base.tokenizer(prompt)["input_ids"])
    return Row(ids, prefix, f"owner {length}", Sampling(**settings), base.end_ids, grammar=grammar)


def run(base: BaseModel, rows: list[Row], **settings: int) -> tuple[list[Any], int]:
    """Tokens, or the error, of each; and how often a row was put out."""

    async def tokens_of(engine: LocalEngine, row: Row) -> list[Token]:
        return [token async for token in engine.stream(row)]

    async def all_of_them() -> tuple[list[Any], int]:
        engine = LocalEngine(base, **settings)
        try:
            given = (tokens_of(engine, row) for row in rows)
            found = await asyncio.gather(*given, return_exceptions=True)
            return found, int(engine.measurements()["preemptions"])
        finally:
            await engine.close()

    return asyncio.run(all_of_them())


def ids_of(tokens: list[Token]) -> list[int]:
    return [token.token_id for token in tokens]


@pytest.fixture
def mixed(tiny_base: BaseModel) -> list[Row]:
    """Of several owners: each schema greedy and sampled, and rows that follow none."""
    rows = []
    for number, schema in enumerate([*SCHEMAS, None]):
        rows.append(row(tiny_base, "ab" * (number + 1), schema, length=number))
        rows.append(row(tiny_base, "q" * 9, schema, length=7 + number, temperature=1.5, seed=number))
    return rows


def test_what_ends_by_itself_is_valid_and_rows_do_not_touch_each_other(
    tiny_base: BaseModel, mixed: list[Row]
) -> None:
    found, _ = run(tiny_base, mixed)
    alone = [run(tiny_base, [each])[0][0] for each in mixed]
    assert [ids_of(tokens) for tokens in found] == [ids_of(tokens) for tokens in alone]
    free = [dataclasses.replace(each, grammar=None) for each in mixed]
    unbound, _ = run(tiny_base, free)
    for number, (tokens, other) in enumerate(zip(found, unbound, strict=True)):
        if mixed[number].grammar is None:
            assert ids_of(tokens) == ids_of(other)
            continue
        assert tokens[-1].finish_reason == "stop"
        text = tiny_base.tokenizer.decode(ids_of(tokens), skip_special_tokens=True)
        jsonschema.validate(json.loads(text), SCHEMAS[number // 2])
        assert ids_of(tokens) != ids_of(other)


def test_a_row_that_is_put_out_comes_back_to_the_same_place_in_its_grammar(
    tiny_base: BaseModel, mixed: list[Row]
) -> None:
    found, preemptions = run(tiny_base, mixed, max_held=64)
    assert preemptions > 0
    assert [ids_of(each) for each in found] == [ids_of(each) for each in run(tiny_base, mixed)[0]]


def test_a_text_that_may_not_go_on_ends_without_another_token(tiny_base: BaseModel) -> None:
    (tokens,), _ = run(tiny_base, [row(tiny_base, "hello", {"const": True})])
    assert tiny_base.tokenizer.decode(ids_of(tokens)) == "true"
    assert [token.finish_reason for token in tokens] == [None, None, None, "stop"]
    (cut,), _ = run(tiny_base, [row(tiny_base, "hello", {"const": True}, max_tokens=3)])
    assert [token.finish_reason for token in cut] == [None, None, "length"]


def test_log_probabilities_are_the_models_own_before_the_mask(tiny_base: BaseModel) -> None:
    bound = row(tiny_base, "hello", {"const": True}, logprobs=3)
    free = dataclasses.replace(bound, grammar=None)
    (tokens, others), _ = run(tiny_base, [bound, free])
    assert tokens[0].likeliest == others[0].likeliest
    assert tokens[0].token_id not in [token_id for token_id, _ in tokens[0].likeliest]
    assert tokens[0].logprob < tokens[0].likeliest[-1][1]


def test_a_grammar_that_asks_for_too_much_ends_its_own_row(
    tiny_base: BaseModel, mixed: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = run(tiny_base, mixed)
    monkeypatch.setitem(LIMITS, "step_max_items", 1)
    heavy = row(tiny_base, "hello", {"enum": ["heavy", {"a": ["to", "follow"]}]})
    found, _ = run(tiny_base, [*mixed, heavy])
    assert isinstance(found[-1], BadSchema)
    assert [ids_of(each) for each in found[:-1]] == [ids_of(each) for each in expected]
