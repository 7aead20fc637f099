"""Grammars: every text that the masks let come to its end is valid, judged by `jsonschema`; and what is refused."""

from __future__ import annotations

import contextlib
import json
import random
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch

from foreword.errors import BadSchema, UsageError
from foreword.grammar import (
    LIMITS,
    LONGEST_SCHEMA,
    MOST_KEPT,
    Following,
    Grammar,
    GrammarCompiler,
    compiler_of,
    json_grammar,
    masks_of,
)
from support.stand_ins import PRINTABLE, byte_tokenizer

TOKENIZER = byte_tokenizer()
END = TOKENIZER.eos_token_id
WORD = {"type": "string", "maxLength": 6}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "name": {"enum": ["a", "b"]},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 1},
            },
            "required": ["name"],
        }
    },
    "$ref": "#/$defs/node",
}
SCHEMAS: list[dict[str, Any]] = [
    {"type": "object", "properties": {"a": WORD, "b": {"type": "boolean"}}, "required": ["a"]},
    {
        "type": "array",
        "items": {"type": "integer", "minimum": -3, "maximum": 40},
        "minItems": 2,
        "maxItems": 4,
    },
    {"enum": ["red", 3, None, {"x": [1]}]},
    {"type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.25},
    {"anyOf": [{"type": "null"}, {"const": {"properties": {"kept": "as it is"}}}]},
    {"type": "string", "pattern": "^[A-F]{2,4}$"},
    {"type": "string", "format": "date"},
    {"type": "object", "additionalProperties": {"type": "boolean"}, "maxProperties": 3},
    {"type": "array", "prefixItems": [{"const": 1}, WORD], "items": False},
    {
        "allOf": [
            {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]},
            {"type": "object", "properties": {"b": {"enum": [3]}}, "required": ["b"]},
        ]
    },
    TREE,
    {
        "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}],
        "discriminator": {"propertyName": "kind"},
        "$defs": {
            "cat": {"type": "object", "properties": {"kind": {"const": "cat"}}, "required": ["kind"]},
            "dog": {"type": "object", "properties": {"kind": {"enum": ["dog", "pup"]}}, "required": ["kind"]},
        },
    },
    {"type": "string", "format": "no-format", "maxLength": 3},
]


def compiled(schema: Any) -> Grammar:
    return compiler_of(TOKENIZER).compile(json_grammar(schema))


def random_text(grammar: Grammar, chance: random.Random, most: int = 400) -> str | None:
    """A text of tokens drawn among those that are allowed; None: it has not come to its end."""
    row, ids = Following(grammar.state(), frozenset({END})), list[int]()
    while len(ids) < most:
        masks = masks_of([row])
        assert masks is not None
        assert not masks.failed
        allowed = np.unpackbits(masks.bits_RW[0], bitorder="little").nonzero()[0].tolist()
        assert allowed
        # The end, where it may come, and what leads to it rather than to more of the same.
        token = END if END in allowed and chance.random() < 0.5 else chance.choice(allowed)
        if token == END:
            return str(TOKENIZER.decode(ids))
        ids.append(token)
        row.state.take(token)
        if row.state.complete:
            return str(TOKENIZER.decode(ids))
    return None


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: next(iter(schema)))
def test_every_text_that_comes_to_its_end_is_valid(schema: dict[str, Any]) -> None:
    grammar, chance = compiled(schema), random.Random(1)
    texts = [random_text(grammar, chance) for _ in range(20)]
    ended = [json.loads(text) for text in texts if text is not None]
    assert len(ended) > 10
    for value in ended:
        jsonschema.validate(value, schema)


def test_an_object_that_names_its_properties_has_no_others_unless_it_says_so() -> None:
    closed = {"type": "object", "properties": {"a": {"const": 1}}}
    texts = {random_text(compiled(closed), random.Random(seed)) for seed in range(40)}
    assert {json.dumps(json.loads(text)) for text in texts if text} <= {"{}", '{"a": 1}'}
    opened = {**closed, "additionalProperties": {"type": "null"}, "required": ["a"], "minProperties": 2}
    assert len(json.loads(random_text(compiled(opened), random.Random(1)) or "{}")) >= 2


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ('{"a": [1, 2], "b": null}', True),
        ('{"a":[1,2],"b":null}', True),
        ('{"a":  [1, 2], "b": null}', False),
        ('{ "a": [1, 2], "b": null}', False),
        ('{"a": [1, 2],\n"b": null}', False),
    ],
)
def test_a_space_may_follow_a_comma_or_a_colon_and_nothing_pads_a_text_without_end(
    text: str, taken: bool
) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"const": [1, 2]}, "b": {"type": "null"}},
        "required": ["a", "b"],
    }
    tokenizer = byte_tokenizer(PRINTABLE + "\n")
    state = compiler_of(tokenizer).compile(json_grammar(schema)).state()
    with contextlib.nullcontext() if taken else pytest.raises(BadSchema):
        for token in tokenizer(text)["input_ids"]:
            state.take(token)
    assert state.complete == taken


def test_a_row_may_end_only_where_its_text_is_whole_and_with_any_of_its_ends() -> None:
    """A letter is made an end of the row, too: it ends nothing inside the text."""
    letter = TOKENIZER("1")["input_ids"][0]
    row = Following(compiled({"type": "integer", "maximum": 11}).state(), frozenset({END, letter}))

    def allowed() -> set[int]:
        masks = masks_of([row])
        assert masks is not None
        return set(np.unpackbits(masks.bits_RW[0], bitorder="little").nonzero()[0].tolist())

    assert not {END, letter} & allowed()
    row.state.take(TOKENIZER("7")["input_ids"][0])
    assert {END, letter} <= allowed()


def test_masks_take_away_what_is_not_allowed_from_their_rows_alone() -> None:
    rows = [None, Following(compiled({"enum": ["a"]}).state(), frozenset({END})), None]
    masks = masks_of(rows)
    assert masks is not None
    logits_BV = torch.randn(3, len(TOKENIZER) + 5)  # a head with more columns than there are tokens
    applied_BV = masks.applied(logits_BV)
    assert torch.equal(applied_BV[[0, 2]], logits_BV[[0, 2]])
    quote = TOKENIZER('"')["input_ids"][0]
    assert applied_BV[1].isfinite().nonzero().flatten().tolist() == [quote]
    assert applied_BV[1, quote] == logits_BV[1, quote]
    assert logits_BV.isfinite().all()


LIST = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}
REFUSED = [
    (LIST, "recursive without end"),
    ({"$ref": "#"}, "recursive without end"),
    ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "recursive without end"),
    ({"anyOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"$ref": "#"}}}, "recursive without end"),
    ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "forbids"),
    (False, "no text satisfies"),
    ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum"),
    ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "nsatisfiable"),
    ({"type": "string", "minLength": 5, "maxLength": 2}, "minLength"),
    ({"not": {"type": "string"}}, "not"),
    ({"patternProperties": {f"^{n}": {} for n in range(17)}}, "17 patterns; expected at most 16"),
    ({"type": "integer", "multipleOf": 10007}, "multipleOf takes too many"),
    ({"allOf": [{"multipleOf": 7}, {"multipleOf": 997}]}, "the product of all"),
    ({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]}, "oneOf"),
    ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, "uniqueItems"),
    ({"type": "string", "pattern": "(a"}, "regex"),
    ({"type": "strin"}, "strin"),
    ({"$ref": "#/$defs/nothing"}, "nothing"),
    ({"enum": ["x" * LONGEST_SCHEMA]}, "characters; expected at most"),
    ([], "expected an object"),
    ({"enum": [float("nan")]}, "not JSON"),
    ({"enum": ["\ud800"]}, "not JSON"),
]


@pytest.mark.parametrize(("schema", "why"), REFUSED)
def test_a_schema_that_no_text_can_follow_is_refused_and_says_why(schema: Any, why: str) -> None:
    with pytest.raises(BadSchema, match=f"(?i){why}"):
        compiled(schema)


def test_recursion_that_can_end_is_followed() -> None:
    optional = {"type": "object", "properties": {"next": {"$ref": "#"}}}
    for schema in (optional, TREE, {"anyOf": [{"type": "null"}, LIST]}):
        compiled(schema)


def test_a_schema_nested_too_deeply_is_refused() -> None:
    deep: Any = {"type": "string"}
    for _ in range(5000):
        deep = {"items": deep}
    with pytest.raises(BadSchema, match="nested"):
        compiled(deep)


def test_a_schema_can_not_loosen_its_own_rules() -> None:
    with pytest.raises(BadSchema):
        compiled({"not": {"type": "string"}, "x-guidance": {"lenient": True}})


def test_what_takes_too_much_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(BadSchema, match="can't be followed"):
        patch.setitem(LIMITS, "max_grammar_size", 5)
        GrammarCompiler(TOKENIZER).compile(json_grammar(TREE))
    monkeypatch.setitem(LIMITS, "step_max_items", 1)
    with pytest.raises(BadSchema, match="any further"):
        random_text(GrammarCompiler(TOKENIZER).compile(json_grammar(TREE)), random.Random(1))


def test_letters_that_the_model_has_no_token_for_end_a_row_by_name() -> None:
    with pytest.raises(BadSchema, match="any further|no tokens for"):
        random_text(compiled({"const": "ü"}), random.Random(1))


def test_compiled_grammars_are_kept_by_owner_and_only_so_many() -> None:
    compiler = GrammarCompiler(TOKENIZER)
    text = json_grammar({"enum": [1]})
    first = compiler.compile(text, "alice")
    assert compiler.compile(text, "alice") is first
    assert compiler.compile(text, "bob") is not first
    for number in range(MOST_KEPT):
        compiler.compile(json_grammar({"enum": [number]}), "bob")
    assert compiler.compile(text, "alice") is not first
    assert compiler.compile(text, "alice").digest == first.digest


def test_a_tokenizer_that_the_library_can_not_read_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="fast tokenizer"):
        GrammarCompiler(object()).compile(json_grammar({}))


def test_an_odd_error_is_its_rows_alone_and_ends_beyond_the_tokenizer_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    beyond = 8 * len(TOKENIZER) + 64
    first, second = (Following(compiled({"enum": ["a"]}).state(), frozenset({END, beyond})) for _ in range(2))

    def fail(*_: object) -> None:
        raise IndexError("odd")

    monkeypatch.setattr(first.state, "allow", fail)
    masks = masks_of([first, second])
    assert masks is not None
    assert {place: type(error) for place, error in masks.failed.items()} == {0: IndexError}
    assert masks.bits_RW[1].any()
