"""Generation: each row continues its prompt under its own prefix, whoever else is in the batch."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from typing import Any

import jsonschema
import pydantic
import pytest
import torch
from transformers import LogitsProcessorList, MinNewTokensLengthLogitsProcessor

from foreword import BaseModel, Template, generate
from foreword.base.kv_cache import cache_argument, prefixed_cache
from foreword.errors import BadSchema, GeometryMismatch, UsageError, WindowExceeded
from foreword.prefix import Prefix
from support.by_hand import greedy, layers_of
from support.stand_ins import VOCABULARY, random_prefix
from support.tiny_bart import tiny_bart_base

PROMPTS = ["hello", "a", "some longer prompt here", "xyz abc", "the end is"]
NEW = 10


def by_hand(base: BaseModel, prompt: str, prefix: Prefix | None, fewest: int = 0) -> str:
    template = base.template if prefix is None else prefix.template
    ids = template.source_ids(base.tokenizer, prompt)
    layers = None if prefix is None else layers_of(prefix)
    ends = base.end_ids | {template.end_id(base.tokenizer)}
    return base.tokenizer.decode(greedy(base.model, ids, layers, NEW, ends, fewest), skip_special_tokens=True)


@pytest.fixture
def mixed(tiny_base: BaseModel) -> list[Prefix | None]:
    return [
        random_prefix(tiny_base, 3),
        None,
        random_prefix(tiny_base, 9, seed=1),
        random_prefix(tiny_base, 1),
        None,
    ]


def test_greedy_tokens_equal_those_computed_by_hand(tiny_base: BaseModel, mixed: list[Prefix | None]) -> None:
    found = generate(tiny_base, PROMPTS, mixed, max_new_tokens=NEW)
    assert found == [
        by_hand(tiny_base, prompt, prefix) for prompt, prefix in zip(PROMPTS, mixed, strict=True)
    ]
    assert found != generate(tiny_base, PROMPTS, max_new_tokens=NEW)


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.9, "seed": 5, "top_p": 0.9, "top_k": 40}, {"beams": 3}]
)
def test_row_is_independent_of_its_neighbours(
    tiny_base: BaseModel, mixed: list[Prefix | None], options: dict
) -> None:
    together = generate(tiny_base, PROMPTS, mixed, max_new_tokens=NEW, **options)
    for batch_size in (1, 2):
        assert (
            generate(tiny_base, PROMPTS, mixed, max_new_tokens=NEW, batch_size=batch_size, **options)
            == together
        )


def test_beam_search_finds_the_likeliest_text(tiny_base: BaseModel) -> None:
    """With as many beams as there are texts, beam search is exhaustive: compare with all of them."""
    prefix = random_prefix(tiny_base, 3, template=Template(style="raw", end="<end>"))
    found = generate(tiny_base, ["ab"], [prefix], beams=VOCABULARY, max_new_tokens=2, length_penalty=0.0)
    from support.by_hand import logits

    ids = tiny_base.tokenizer("ab")["input_ids"]
    with torch.no_grad():
        first = logits(tiny_base.model, ids, layers_of(prefix))[-1].log_softmax(-1)
        best_score, best = first[0], []  # the end at once
        for token in range(1, VOCABULARY):
            second = logits(tiny_base.model, [*ids, token], layers_of(prefix))[-1].log_softmax(-1)
            score, last = (first[token] + second).max(-1)
            if score > best_score:
                best_score, best = score, [token, int(last)]
    assert found == [tiny_base.tokenizer.decode(best, skip_special_tokens=True)]


def test_samples_follow_the_models_distribution(tiny_base: BaseModel) -> None:
    from support.by_hand import logits

    count = 1500
    drawn = generate(
        tiny_base, ["ab"] * count, max_new_tokens=1, temperature=0.4, top_k=3, batch_size=500, raw=True
    )
    row = logits(tiny_base.model, tiny_base.tokenizer("ab")["input_ids"], None)[-1] / 0.4
    top = row.topk(3)
    shares = top.values.softmax(-1).tolist()
    found = Counter(drawn)
    for token, share in zip(top.indices.tolist(), shares, strict=True):
        text = tiny_base.tokenizer.decode([token], skip_special_tokens=True)
        spread = (share * (1 - share) / count) ** 0.5
        assert abs(found[text] / count - share) < 5 * spread + 1e-3


def test_the_same_seed_gives_the_same_samples_and_another_gives_others(tiny_base: BaseModel) -> None:
    options = {"temperature": 1.5, "max_new_tokens": NEW}
    assert generate(tiny_base, PROMPTS, **options, seed=1) == generate(tiny_base, PROMPTS, **options, seed=1)
    assert generate(tiny_base, PROMPTS, **options, seed=1) != generate(tiny_base, PROMPTS, **options, seed=2)


def test_the_template_of_the_prefix_is_applied_unless_raw_text_is_asked_for(tiny_base: BaseModel) -> None:
    arrow = random_prefix(tiny_base, 3, template=Template(separator=" ->", end="<end>"))
    plain = random_prefix(tiny_base, 3, template=Template(style="raw", end="<end>"))
    assert generate(tiny_base, ["ab"], arrow) == generate(tiny_base, ["ab ->"], plain)
    assert generate(tiny_base, ["ab ->"], arrow, raw=True) == generate(tiny_base, ["ab"], arrow)


def test_stop_texts_end_a_row_and_are_cut_off(tiny_base: BaseModel) -> None:
    whole = generate(tiny_base, PROMPTS, max_new_tokens=NEW)
    word = whole[0][3:5]
    stopped = generate(tiny_base, PROMPTS, max_new_tokens=NEW, stop=[word])
    assert stopped == [text.split(word)[0] for text in whole]


@pytest.mark.parametrize("fewest", [0, 12])
@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_rows_that_have_ended_leave_the_batch_and_change_no_other(
    tiny_base: BaseModel, mixed: list[Prefix | None], temperature: float, fewest: int
) -> None:
    prompts, prefixes = [*PROMPTS, *PROMPTS], [*mixed, *mixed[::-1]]
    options = {"temperature": temperature, "seed": 0, "max_new_tokens": 40, "min_new_tokens": fewest}
    whole = generate(tiny_base, prompts, prefixes, **options)
    stop = [whole[0][20:22], whole[1][4:6], whole[2][12:14]]
    rows = []
    hook = tiny_base.model.register_forward_pre_hook(
        lambda module, args, given: rows.append(len(given["input_ids"])), with_kwargs=True
    )
    together = generate(tiny_base, prompts, prefixes, stop=stop, **options)
    hook.remove()
    assert rows[0] == len(prompts) > rows[-1]
    assert rows == sorted(rows, reverse=True)
    assert len(set(map(len, together))) > 2
    assert together == generate(tiny_base, prompts, prefixes, stop=stop, batch_size=1, **options)
    cut = [min((text.find(word) for word in stop if word in text), default=len(text)) for text in whole]
    assert together == [text[:end] for text, end in zip(whole, cut, strict=True)]


def test_nothing_cuts_the_cache_of_a_batch_that_goes_on(tiny_base: BaseModel) -> None:
    """Where stopping is noticed a step late (MPS), transformers must not write that step into it."""
    cache = prefixed_cache(tiny_base.geometry, None, 8)
    assert not cache.is_croppable


def test_banned_texts_do_not_appear(tiny_base: BaseModel) -> None:
    whole = generate(tiny_base, PROMPTS, max_new_tokens=NEW)
    letter, pair = whole[0][0], whole[2][1:3]
    found = generate(tiny_base, PROMPTS, max_new_tokens=NEW, banned=[letter, pair])
    assert found != whole
    assert all(letter not in text and pair not in text for text in found)


def test_no_row_ends_before_its_shortest_length(tiny_base: BaseModel, mixed: list[Prefix | None]) -> None:
    """Ends are banned under every prefix until then, and not after: by hand, step by step."""
    third = generate(tiny_base, PROMPTS, mixed, max_new_tokens=NEW)[0][2]
    ending = Template(end=third)
    early = [None if one is None else dataclasses.replace(one, template=ending) for one in mixed]
    for fewest in (0, 2, 3, 6, NEW):
        found = generate(
            tiny_base, PROMPTS, early, max_new_tokens=NEW, min_new_tokens=fewest, template=ending
        )
        expected = [by_hand(tiny_base, *row, fewest) for row in zip(PROMPTS, early, strict=True) if row[1]]
        assert [text for text, prefix in zip(found, early, strict=True) if prefix] == expected
        assert min(map(len, found)) >= fewest
        assert third not in "".join(text[:fewest] for text in found)
    assert len(generate(tiny_base, PROMPTS, early, max_new_tokens=NEW)[0]) == 2  # without, it ends there


@pytest.mark.parametrize(("end", "options"), [(")", {}), ("|", {"num_beams": 4, "length_penalty": 0.5})])
def test_shortest_length_is_that_of_transformers(tiny_base: BaseModel, end: str, options: dict) -> None:
    base, ending = tiny_base, Template(style="raw", end=end)
    ids = base.tokenizer("hello", return_tensors="pt")["input_ids"]
    ends = sorted({0, *base.tokenizer(end)["input_ids"]})
    texts = {}
    for fewest in (0, 7):
        processor = MinNewTokensLengthLogitsProcessor(ids.shape[1], fewest, torch.tensor(ends))
        expected = base.model.generate(
            ids,
            max_new_tokens=12,
            eos_token_id=ends,
            do_sample=False,
            logits_processor=LogitsProcessorList([processor]),
            **options,
        )[0, ids.shape[1] :].tolist()
        cut = next((place for place, token in enumerate(expected) if token in ends), len(expected))
        found = generate(
            base,
            ["hello"],
            max_new_tokens=12,
            min_new_tokens=fewest,
            template=ending,
            beams=options.get("num_beams", 1),
            length_penalty=options.get("length_penalty", 1.0),
        )
        assert found == [base.tokenizer.decode(expected[:cut])]
        texts[fewest] = found[0]
    assert len(texts[7]) >= 7 > len(texts[0])


def test_samples_keep_to_the_shortest_length(tiny_base: BaseModel) -> None:
    ends = Template(end="e")
    options = {"temperature": 3.0, "max_new_tokens": NEW, "template": ends, "seed": 3}
    free = generate(tiny_base, ["hello"] * 40, **options)
    kept = generate(tiny_base, ["hello"] * 40, min_new_tokens=NEW, **options)
    assert min(map(len, free)) < NEW
    assert {len(text) for text in kept} == {NEW}
    assert "e" not in "".join(kept)


def test_a_full_window_ends_a_row_before_its_shortest_length(tiny_base: BaseModel) -> None:
    texts = generate(tiny_base, ["x" * 120, "ab"], max_new_tokens=20, min_new_tokens=20)
    assert [len(text) for text in texts] == [128 - 121, 20]


def test_streamed_pieces_add_up_to_the_text(tiny_base: BaseModel, mixed: list[Prefix | None]) -> None:
    whole = generate(tiny_base, PROMPTS, mixed, max_new_tokens=NEW)
    word = whole[0][4:6]
    for stop in ((), (word,)):
        pieces: dict[int, list[str]] = {}
        texts = generate(
            tiny_base,
            PROMPTS,
            mixed,
            max_new_tokens=NEW,
            stop=stop,
            on_text=lambda row, piece, into=pieces: into.setdefault(row, []).append(piece),
        )
        assert ["".join(pieces.get(row, [])) for row in range(len(texts))] == texts
    assert max(len(parts) for parts in pieces.values()) > 1


def test_an_encoder_decoder_that_begins_with_its_end_token_is_streamed() -> None:
    base = tiny_bart_base()
    pieces: dict[int, list[str]] = {}
    texts = generate(
        base,
        ["abc def", "xyz"],
        max_new_tokens=6,
        min_new_tokens=6,
        on_text=lambda row, piece: pieces.setdefault(row, []).append(piece),
    )
    assert all(len(text) >= 6 for text in texts)
    assert ["".join(pieces[row]) for row in range(2)] == texts


def test_the_window_ends_a_row_but_not_its_neighbours(tiny_base: BaseModel) -> None:
    prefix = random_prefix(tiny_base, 100)
    texts = generate(tiny_base, ["abcdefghij" * 2, "ab"], [prefix, None], max_new_tokens=40)
    assert texts[1] == generate(tiny_base, ["ab"], max_new_tokens=40)[0]
    assert texts[0] == generate(tiny_base, ["abcdefghij" * 2], prefix, max_new_tokens=128 - 100 - 21)[0]
    with pytest.raises(WindowExceeded, match="prompt 1 has 40 tokens; 28 fit"):
        generate(tiny_base, ["ab", "x" * 39], prefix)


def test_bad_calls_are_refused(tiny_base: BaseModel) -> None:
    with pytest.raises(UsageError, match="2 prefixes for 1 rows"):
        generate(tiny_base, ["a"], [None, None])
    with pytest.raises(UsageError, match="temperature is -1"):
        generate(tiny_base, ["a"], temperature=-1)
    with pytest.raises(UsageError, match="temperature is nan"):
        generate(tiny_base, ["a"], temperature=float("nan"))
    for fewest, most in ((-1, 64), (11, 10)):
        with pytest.raises(UsageError, match=f"min_new_tokens is {fewest}; .* max_new_tokens, .* {most}"):
            generate(tiny_base, ["a"], min_new_tokens=fewest, max_new_tokens=most)
    with pytest.raises(UsageError, match="exclude"):
        generate(tiny_base, ["a"], temperature=1, beams=2)
    with pytest.raises(UsageError, match="prompt 0 is empty"):
        generate(tiny_base, [""], raw=True)
    shape = (4, 2, 3, 8)
    other = Prefix(
        {"decoder.key": torch.zeros(shape), "decoder.value": torch.zeros(shape)}, tiny_base.identity
    )
    with pytest.raises(GeometryMismatch, match="4 layers"):
        generate(tiny_base, ["a"], other)


def test_no_prompts_give_no_texts(tiny_base: BaseModel) -> None:
    assert generate(tiny_base, []) == []


def test_masks_of_earlier_tokens_are_not_kept(tiny_base: BaseModel) -> None:
    from foreword.base.attention import AttentionContext, attention_context

    tiny_base.model.set_attn_implementation("foreword-eager")
    state = AttentionContext()
    with attention_context(state), torch.no_grad():
        tiny_base.model.generate(torch.randint(1, VOCABULARY, (2, 4)), max_new_tokens=12, min_new_tokens=12)
    (cache,) = state.mask_cache.values()
    assert {name: len(made) for name, made in vars(cache).items() if made} == {"additive": 1}


def test_a_cache_is_given_under_the_name_that_the_model_has_for_it() -> None:
    class Older:
        def forward(self, input_ids: Any, past_key_values: Any = None) -> None: ...

    class Newer:
        def forward(self, input_ids: Any, cache: Any = None) -> None: ...

    assert [cache_argument(model()) for model in (Older, Newer)] == ["past_key_values", "cache"]


WORDS = {
    "type": "object",
    "properties": {"kind": {"enum": ["a", "b"]}, "text": {"type": "string", "maxLength": 8}},
    "required": ["kind", "text"],
}


class Choice(pydantic.BaseModel):
    """A schema as a class."""

    right: bool


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_texts_follow_their_schemas_row_by_row(tiny_base: BaseModel, temperature: float) -> None:
    prefixes = [random_prefix(tiny_base, 3), None, random_prefix(tiny_base, 9, seed=1), None]
    prompts, schemas = ["hello", "a", "xyz abc", "q"], [WORDS, None, Choice, {"const": [1, 2]}]
    options: Any = {"max_new_tokens": 60, "temperature": temperature}
    texts = generate(tiny_base, prompts, prefixes, schema=schemas, **options)
    jsonschema.validate(json.loads(texts[0]), WORDS)
    assert texts[1] == generate(tiny_base, prompts, prefixes, **options)[1]
    Choice.model_validate_json(texts[2])
    assert json.loads(texts[3]) == [1, 2]
    for row in range(4):
        alone = generate(
            tiny_base, prompts, prefixes, schema=schemas[: row + 1] + [None] * (3 - row), **options
        )
        assert alone[row] == texts[row]


def test_one_schema_holds_for_all_rows_and_streams_are_the_same(tiny_base: BaseModel) -> None:
    streamed = ["", ""]

    def on_text(row: int, text: str) -> None:
        streamed[row] += text

    texts = generate(tiny_base, ["hello", "a"], schema=WORDS, max_new_tokens=60, on_text=on_text)
    assert streamed == texts
    for text in texts:
        jsonschema.validate(json.loads(text), WORDS)


@pytest.mark.parametrize(
    "more",
    [{"beams": 2}, {"stop": "x"}, {"banned": ["x"]}, {"min_new_tokens": 3}],
    ids=lambda more: next(iter(more)),
)
def test_what_could_break_a_schema_is_refused_beside_it(tiny_base: BaseModel, more: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"schema and {next(iter(more))} exclude"):
        generate(tiny_base, ["hello"], schema=WORDS, **more)


def test_a_schema_that_can_not_be_followed_is_named_by_its_place(tiny_base: BaseModel) -> None:
    with pytest.raises(BadSchema, match="schema 1: no text"):
        generate(tiny_base, ["hello", "a"], schema=[WORDS, False])
    with pytest.raises(UsageError, match="3 schemas for 2 prompts"):
        generate(tiny_base, ["hello", "a"], schema=[WORDS, None, None])
