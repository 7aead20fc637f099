"""Grammars on a real vLLM: rows of several owners with schemas, calls of tools, and none, in one batch."""

from __future__ import annotations

import dataclasses
import json

import jsonschema
import pytest

from foreword import BaseModel
from foreword.grammar import compiler_of, json_grammar
from foreword.serving.engine.local import LocalEngine
from foreword.serving.engine.protocol import Row
from foreword.serving.tool_calls import ToolCallReader, ToolForm
from support.stand_ins import random_prefix
from support.vllm_servers import VllmServer, ask, row

FORM = ToolForm('<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>")
WORD = {"type": "string", "minLength": 2, "maxLength": 12}
SCHEMAS = [
    {
        "type": "object",
        "properties": {"name": WORD, "kind": {"enum": ["a", "b"]}},
        "required": ["name", "kind"],
    },
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
]
TOOLS = [("paint", SCHEMAS[0])]


@pytest.fixture(scope="module")
def rows(base: BaseModel) -> list[Row]:
    compiler = compiler_of(base.tokenizer)
    grammars = [None, *(compiler.compile(json_grammar(schema)) for schema in SCHEMAS)]
    grammars += [
        compiler.compile(FORM.grammar(TOOLS, forced=forced, several=True)) for forced in (True, False)
    ]
    return [
        dataclasses.replace(
            row(
                base,
                "the mug",
                random_prefix(base, 3 + n, seed=n) if n % 2 else None,
                owner=f"o{n}",
                max_tokens=150,
            ),
            grammar=grammar,
        )
        for n, grammar in enumerate(grammars)
    ]


def test_rows_follow_their_grammars_as_in_the_local_engine(
    server: VllmServer, base: BaseModel, rows: list[Row]
) -> None:
    texts = []
    for tokens, local in zip(server.run(base, rows), ask(lambda: LocalEngine(base), rows), strict=True):
        ids = [token.token_id for token in tokens]
        ends = [token_id for token_id in ids if token_id in base.end_ids]
        assert ids[: len(ids) - len(ends)] == [
            token.token_id for token in local if token.token_id not in base.end_ids
        ]
        assert tokens[-1].finish_reason == local[-1].finish_reason
        texts.append(base.tokenizer.decode(ids, skip_special_tokens=True))
    for text, schema in zip(texts[1:], SCHEMAS, strict=False):
        jsonschema.validate(json.loads(text), schema)
    pieces = ToolCallReader(FORM).add(texts[3], final=True)
    assert [piece.kind for piece in pieces] == ["call", "arguments"]
    jsonschema.validate(json.loads(pieces[1].text), SCHEMAS[0])
