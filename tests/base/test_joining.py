"""Joined prefixes: keys as if they had been computed at their positions, and text as transformers alone has it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from foreword import BaseModel, Example, Prefix, Template, generate
from foreword.base.attention import capture_kv
from foreword.base.joining import join_prefixes
from foreword.encoding import encode_example
from foreword.errors import (
    GeometryMismatch,
    UnsupportedArchitecture,
    UsageError,
    WindowExceeded,
    WrongBaseModel,
)
from foreword.prefix_sizes import tensor_name
from support.architectures.decoder_only import DECODER_ONLY_WORKING
from support.architectures.zoo import Architecture
from support.by_hand_attention import greedy, within_window
from support.rotary_kinds import KINDS, base_of
from support.saved_bases import save_tiny
from support.stand_ins import byte_tokenizer, random_prefix, tiny_llama
from support.tiny_bart import tiny_bart_base

WITHOUT_ROTATION = {"gpt2", "opt", "gpt_bigcode", "biogpt", "ctrl"}
FIRST, SECOND, THIRD = "one text", "another of them", "third"


def ids_of(base: BaseModel, text: str) -> list[int]:
    return base.tokenizer(text)["input_ids"]  # type: ignore[no-any-return]


@torch.no_grad()
def of_text(base: BaseModel, text: str, start: int = 0) -> Prefix:
    """The keys and values of a text that stands at position `start`, as the model computes them there."""
    ids = torch.tensor([ids_of(base, text)])
    positions = torch.arange(start, start + ids.shape[1])[None]
    inputs = {"input_ids": ids, "position_ids": positions, "attention_mask": torch.ones_like(ids)}
    _, found = capture_kv(base.model, inputs)
    tensors = {
        tensor_name(place, part): tensor
        for place, pair in found.items()
        for part, tensor in zip(("key", "value"), pair, strict=True)
    }
    return Prefix(tensors, base.identity, template=base.template, positions=base.positions)


def behind(*parts: Prefix) -> dict[str, torch.Tensor]:
    """The first whole, of each other all but the first token."""
    return {
        name: torch.cat([tensor, *(part.tensors[name][..., 1:, :] for part in parts[1:])], dim=-2)
        for name, tensor in parts[0].tensors.items()
    }


def check_as_computed_there(base: BaseModel) -> None:
    joined = join_prefixes(base, [of_text(base, text) for text in (FIRST, SECOND, THIRD)])
    second, third = len(FIRST) - 1, len(FIRST) + len(SECOND) - 2
    expected = behind(
        of_text(base, FIRST), of_text(base, SECOND, start=second), of_text(base, THIRD, start=third)
    )
    assert joined.length == len(FIRST) + len(SECOND) + len(THIRD) - 2
    for name, tensor in joined.tensors.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=2e-5)
    in_place = behind(*(of_text(base, text) for text in (FIRST, SECOND, THIRD)))
    assert any((in_place[name] - expected[name]).abs().max() > 0.05 for name in expected)


# One of each way to turn keys: which numbers are pairs, of which part of a key, in which layers.
TURNING = {
    "llama",
    "smollm3",
    "gpt_neox",
    "persimmon",
    "phi",
    "phi3",
    "phimoe",
    "stablelm",
    "cohere",
    "cohere2",
    "glm",
    "nemotron",
    "gemma3_text",
    "gemma3n_text",
    "gemma4_text",
    "deepseek_v2",
    "deepseek_v3",
    "gpt_oss",
    "llama4_text",
    "olmo2",
    "qwen3",
    "qwen3_moe",
    "nanochat",
}
ROTARY = [each for each in DECODER_ONLY_WORKING if each.model_type in TURNING]


@pytest.mark.parametrize("architecture", ROTARY, ids=str)
def test_joined_keys_are_those_computed_at_their_positions(architecture: Architecture) -> None:
    check_as_computed_there(architecture.base)


@pytest.mark.parametrize("kind", [*KINDS, "mrope"])
def test_joined_keys_are_exact_under_every_kind_of_rotary_embedding(kind: str, tmp_path: Path) -> None:
    if kind == "mrope":  # a hybrid's keys are no text's alone: those of random prefixes move all the same
        base = base_of(kind, tmp_path)
        parts = [random_prefix(base, 4, seed=seed) for seed in (1, 2)]
        joined = join_prefixes(base, parts)
        for one, other in zip(joined.key(), parts[1].key(), strict=True):
            torch.testing.assert_close(one[..., 4:, :].norm(), other[..., 1:, :].norm())
        return
    check_as_computed_there(base_of(kind, tmp_path))


@pytest.mark.parametrize(
    "architecture", [each for each in DECODER_ONLY_WORKING if each.model_type in WITHOUT_ROTATION], ids=str
)
def test_a_base_whose_keys_cannot_be_moved_is_refused(architecture: Architecture) -> None:
    base = architecture.base
    parts = [random_prefix(base, 3), random_prefix(base, 3, seed=1)]
    with pytest.raises(UnsupportedArchitecture, match=f"{architecture.model_type}.* cannot be moved"):
        base.token_losses([Example("a", "b")], [parts])


def test_a_base_that_turns_keys_in_a_way_that_is_not_known_is_refused() -> None:
    model = tiny_llama()
    base = BaseModel(model, byte_tokenizer(), name="bent")
    rotary = model.model.rotary_emb.forward

    def bent(hidden: torch.Tensor, position_ids: torch.Tensor) -> Any:
        cosines, sines = rotary(hidden, position_ids)
        return cosines, sines * torch.linspace(0.5, 1, sines.shape[-1])

    model.model.rotary_emb.forward = bent
    with pytest.raises(UnsupportedArchitecture, match="layer 0 .* differ by"):
        join_prefixes(base, [random_prefix(base, 3), random_prefix(base, 3, seed=1)])


def test_an_encoder_decoder_is_refused() -> None:
    base = tiny_bart_base()
    with pytest.raises(UnsupportedArchitecture, match="it is an encoder-decoder"):
        join_prefixes(base, [random_prefix(base, 3), random_prefix(base, 3, seed=1)])


# -- what the text behind them is --------------------------------------------------------------------


@torch.no_grad()
def by_transformers(model: Any, texts: list[list[int]], prompt: list[int], new: int) -> list[int]:
    """Greedy tokens behind several texts that do not see each other: a mask and positions, nothing else."""
    read = [token for text in texts for token in text]
    positions, hidden, rows, start = [], [], [], 0
    for number, text in enumerate(texts):
        rows.append(range(len(positions), len(positions) + len(text)))
        start = max(positions, default=0)
        if number:
            hidden.append(len(positions))  # its own first token is seen by itself alone
        positions += range(start, start + len(text))
    written: list[int] = []
    for _ in range(new):
        behind = [*prompt, *written]
        total = len(read) + len(behind)
        visible = torch.ones(total, total, dtype=torch.bool).tril()
        visible[len(read) :, hidden] = False
        for mine in rows:
            for other in rows:
                if mine is not other:
                    visible[mine.start : mine.stop, other.start : other.stop] = False
        mask = torch.zeros(total, total).masked_fill(~visible, torch.finfo(torch.float32).min)
        after = positions[-1] + 1
        logits = model(
            input_ids=torch.tensor([read + behind]),
            attention_mask=mask[None, None],
            position_ids=torch.tensor([[*positions, *range(after, after + len(behind))]]),
        ).logits
        written.append(int(logits[0, -1].argmax()))
    return written


def test_text_behind_joined_prefixes_is_that_of_transformers_alone() -> None:
    base = BaseModel(tiny_llama(), byte_tokenizer(), name="tiny-llama")
    a, b, c = (of_text(base, text) for text in (FIRST, SECOND, THIRD))
    prompts = ["what now", "x", "what now", "tell me"]
    found = generate(
        base, prompts, prefixes=[(a, b), None, [c, a, b], b], max_new_tokens=12, min_new_tokens=12
    )
    plain = tiny_llama().eval()
    plain.set_attn_implementation("eager")
    for prompt, texts, text in zip(
        prompts, [[FIRST, SECOND], [], [THIRD, FIRST, SECOND], [SECOND]], found, strict=True
    ):
        ids = base.template.source_ids(base.tokenizer, prompt)
        if not texts:
            expected = greedy(base.model, ids, None, 12, frozenset())
        else:
            expected = by_transformers(plain, [ids_of(base, each) for each in texts], ids, 12)
        assert text == base.tokenizer.decode(expected)
    assert found[0] != generate(base, prompts[:1], [a], max_new_tokens=12, min_new_tokens=12)[0]


def test_a_window_reaches_joined_prefixes_as_one_of_their_length() -> None:
    """Rows far beyond the window, in windowed layers and others, each kind with its own rotary embedding."""
    base = next(each for each in ROTARY if each.model_type == "gemma3_text").base
    assert base.positions == "text-after-prefix-within-window"
    a, b = of_text(base, FIRST), of_text(base, SECOND)
    tensors = behind(a, of_text(base, SECOND, start=len(FIRST) - 1))
    prompt = "a prompt many times as long as the window is"
    (found,) = generate(base, [prompt], prefixes=[(a, b)], max_new_tokens=8, min_new_tokens=8)
    ids = base.template.source_ids(base.tokenizer, prompt)
    with within_window(base.model):
        assert found == base.tokenizer.decode(greedy(base.model, ids, tensors, 8, frozenset()))


# -- in the arguments of public functions, and what they are ----------------------------------------


def test_prefixes_are_joined_once_for_all_rows_that_name_them(tiny_base: BaseModel) -> None:
    a, b, c = (random_prefix(tiny_base, length, seed=length) for length in (3, 4, 5))
    rows = tiny_base.per_row([(a, b), None, [a, b], (b, a), c, (c,)], 6)
    assert rows[0] is rows[2]
    assert rows[0] is not None
    assert rows[0].length == 6
    assert rows[1] is None
    assert rows[3] != rows[0]
    assert rows[4] is rows[5] is c
    examples = [Example("abc", "de"), Example("f", "gh")]
    pairs: list[Any] = [(a, b), c]
    together = tiny_base.token_losses(examples, pairs)
    one, other = tiny_base.token_losses(examples, [join_prefixes(tiny_base, [a, b]), c])
    torch.testing.assert_close(together, [one, other])
    row, _ = encode_example(examples[0], tiny_base.tokenizer, a.template)
    assert len(together[0]) == len(row.target_ids)


def test_a_joined_prefix_says_what_it_joins_and_is_the_same_again(
    tiny_base: BaseModel, tmp_path: Path
) -> None:
    a = random_prefix(tiny_base, 3, licence="MIT", created="2026-01-01T00:00:00+00:00")
    b = random_prefix(tiny_base, 4, seed=1, licence="CC0-1.0", created="2026-02-01T00:00:00+00:00")
    a = dataclasses.replace(a, report={"dev_loss": 1.0}, recipe={"together": "t"})
    joined = join_prefixes(tiny_base, [a, b])
    assert joined.recipe == {"joined": [a.digest, b.digest]}
    assert (joined.licence, joined.created, joined.report) == ("MIT AND CC0-1.0", b.created, {})
    assert joined.digest == join_prefixes(tiny_base, [a, b]).digest
    joined.save(tmp_path / "joined.prefix")
    assert Prefix.load(tmp_path / "joined.prefix") == joined
    torch.testing.assert_close(joined.value()[..., 3:, :], b.value()[..., 1:, :])


def test_keys_keep_the_type_of_their_file(tiny_base: BaseModel) -> None:
    a, b = (random_prefix(tiny_base, 3, seed=seed).to(torch.bfloat16) for seed in (1, 2))
    joined = join_prefixes(tiny_base, [a, b])
    assert joined.dtype == torch.bfloat16
    whole = join_prefixes(tiny_base, [a.to(torch.float32), b.to(torch.float32)])
    torch.testing.assert_close(joined.key(), whole.key().to(torch.bfloat16))


def test_what_can_not_be_joined_is_refused_by_name(tiny_base: BaseModel) -> None:
    a, b = random_prefix(tiny_base, 3), random_prefix(tiny_base, 70, seed=1)
    other = BaseModel(tiny_llama(seed=5), byte_tokenizer(), name="other")
    wider = BaseModel(tiny_llama(num_hidden_layers=4), byte_tokenizer(), name="wider")
    spaced = dataclasses.replace(b, template=dataclasses.replace(b.template, separator=" -> "))
    infix = dataclasses.replace(a.template, placement="infix")
    infixes = [dataclasses.replace(each, template=infix) for each in (a, b)]
    near = dataclasses.replace(b, positions="text-after-prefix-within-window")
    refusals: list[tuple[list[Prefix], type[Exception], str]] = [
        ([], UsageError, "row 0: there are no prefixes to join"),
        ([a, a], UsageError, f"{a.digest[:12]} is there twice"),
        ([a, spaced], UsageError, "template of prefix 1 has separator ' -> ', that of prefix 0"),
        (infixes, UsageError, "an infix"),
        ([a, near], UsageError, "prefix 1 has positions"),
        ([a, random_prefix(tiny_base, 1, seed=2)], UsageError, "nothing of it would be left"),
        ([a, random_prefix(other, 3)], WrongBaseModel, "prefix 1 is for other"),
        ([random_prefix(other, 3), random_prefix(other, 4)], WrongBaseModel, "trained for other"),
        ([random_prefix(wider, 3), random_prefix(wider, 4)], GeometryMismatch, "wider"),
        (
            [b, random_prefix(tiny_base, 60)],
            WindowExceeded,
            r"70 \+ 60 virtual tokens are 129 .* 128 positions",
        ),
    ]
    for parts, kind, message in refusals:
        with pytest.raises(kind, match=message):
            generate(tiny_base, ["x"], prefixes=[parts])


def test_documents_of_two_days_are_joined_where_the_day_stands_in_them(tiny_base: BaseModel) -> None:
    template = Template(style="chat", system_in_prefix=True, date="2026-11-29")
    a, b = (
        dataclasses.replace(
            random_prefix(tiny_base, 3, seed=seed),
            template=dataclasses.replace(template, date=f"2026-11-{day}"),
            template_digest=digest,
        )
        for seed, day, digest in ((0, 29, "a" * 64), (1, 30, "a" * 64))
    )
    assert join_prefixes(tiny_base, [a, b]).template.date == "2026-11-29"
    with pytest.raises(
        UsageError, match="prefix 1 has date '2026-11-30', that of prefix 0 '2026-11-29'; join"
    ):
        join_prefixes(tiny_base, [a, dataclasses.replace(b, template_digest="b" * 64)])


# -- where there are no weights ----------------------------------------------------------------------

SERVED_BY_VLLM = {
    "llama",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "smollm3",
    "phi",
    "glm4",
    "gemma",
    "olmo2",
    "cohere",
}


@pytest.mark.parametrize(
    "architecture", [each for each in ROTARY if each.model_type in SERVED_BY_VLLM], ids=str
)
def test_without_weights_the_same_prefix_is_made(architecture: Architecture, tmp_path: Path) -> None:
    architecture.base.model.config.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    from foreword.base.joining import concatenated, rotations_of

    parts = [random_prefix(architecture.base, 4, seed=seed, created="2026") for seed in (1, 2)]
    rotations = rotations_of(str(tmp_path), long_context=False)
    assert concatenated(parts, rotations).digest == join_prefixes(architecture.base, parts).digest


def test_a_gateways_base_joins_as_the_one_with_weights(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tiny")
    whole, empty = BaseModel.load(folder), BaseModel.without_weights(folder)
    parts = [random_prefix(whole, 4, seed=seed) for seed in (1, 2)]
    assert join_prefixes(empty, parts).digest == join_prefixes(whole, parts).digest
