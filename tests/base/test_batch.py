"""Rows that begin alike under one prefix share tokens, and nothing of what they compute changes."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import pytest
import torch

from foreword import BaseModel, Example, train
from foreword.base.batch import Batch, pack_rows, take
from foreword.base.loss import target_losses
from foreword.base.prefix_batch import PrefixBatch, StreamBlock
from foreword.encoding import EncodedExample
from foreword.errors import ForewordDeprecation
from support.architectures.decoder_only import DECODER_ONLY_WORKING
from support.by_hand import layers_of, token_losses
from support.stand_ins import byte_tokenizer, random_prefix

ALIKE = [
    Example("a source that repeats: ", "one target"),
    Example("another source: ", "of its own"),
    Example("a source that repeats: ", "one tarred road"),
    Example("a source that repeats: ", "one target"),
    Example("a source", " that repeats: one"),
]


def test_the_tokens_of_a_beginning_are_laid_out_once() -> None:
    layout = pack_rows([(5, 6, 7), (5, 6, 8, 9), (5,), (6, 7)], [0, 0, 0, 0])
    assert layout.tokens[2] == layout.tokens[0][:1] == layout.tokens[1][:1]
    assert layout.tokens[0][:2] == layout.tokens[1][:2]
    assert not {*layout.tokens[3]} & {*layout.tokens[0], *layout.tokens[1]}
    assert sorted({token for row in layout.tokens for token in row}) == list(range(7))
    assert len(layout.token_positions) == 7


@pytest.mark.parametrize("kinds", [(0, 1), (None, None), (0, None)])
def test_rows_of_different_kinds_share_nothing(kinds: tuple[int | None, ...]) -> None:
    layout = pack_rows([(5, 6), (5, 6)], kinds)
    assert not {*layout.tokens[0]} & {*layout.tokens[1]}


def test_to_rows_and_back_is_the_identity() -> None:
    layout = pack_rows([(5, 6, 7), (5, 6, 8, 9), (5,), (6, 7)], [0, 0, 0, 0])
    states_1HND = torch.randn(1, 2, 7, 3)
    rows_BHTD = layout.to_rows(states_1HND)
    assert torch.equal(rows_BHTD[0, :, :2], rows_BHTD[1, :, :2])
    assert torch.equal(layout.to_flat(rows_BHTD.transpose(1, 2)), states_1HND.transpose(1, 2))


def test_losses_equal_those_of_rows_alone(tiny_base: BaseModel) -> None:
    one, two = random_prefix(tiny_base, 4), random_prefix(tiny_base, 7, seed=1)
    examples = [*ALIKE, *ALIKE, *ALIKE]
    prefixes = [one] * len(ALIKE) + [None] * len(ALIKE) + [two] * len(ALIKE)
    found = tiny_base.token_losses(examples, prefixes)
    for example, prefix, losses in zip(examples, prefixes, found, strict=True):
        source = tiny_base.template.source_ids(tiny_base.tokenizer, example.source)
        target = tiny_base.template.target_ids(tiny_base.tokenizer, example.target)
        layers = None if prefix is None else layers_of(prefix)
        expected = token_losses(tiny_base.model, source, target, layers)
        torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)


def test_gradients_equal_those_of_rows_alone(tiny_base: BaseModel) -> None:
    rows = [EncodedExample((5, 6, 7, 8), (9, 10, 0)), EncodedExample((5, 6, 7, 8), (9, 11, 12, 0))]
    start = random_prefix(tiny_base, 5)

    def gradients(parts: list[list[EncodedExample]]) -> list[torch.Tensor]:
        key, value = (start.tensors[f"decoder.{p}"].clone().requires_grad_() for p in ("key", "value"))
        for part in parts:
            blocks = {"decoder": StreamBlock(key[None], value[None], (5,))}
            prefixes = PrefixBatch(blocks=blocks, of_row=(0,) * len(part))  # type: ignore[arg-type]
            batch = tiny_base.batch(part, prefixes, "flat")
            assert batch.inputs["input_ids"].shape[1] == (8 if len(part) == 2 else part[0].tokens)
            target_losses(tiny_base.model, batch, prefixes).sum().backward()
        return [key.grad, value.grad]

    for shared, apart in zip(gradients([rows]), gradients([[row] for row in rows]), strict=True):
        torch.testing.assert_close(shared, apart, rtol=1e-5, atol=1e-5)


def test_an_infix_is_not_shared_with(tiny_base: BaseModel) -> None:
    template = dataclasses.replace(tiny_base.template, placement="infix")
    infix = random_prefix(tiny_base, 4, template=template)
    together = tiny_base.token_losses(ALIKE, infix)
    for example, losses in zip(ALIKE, together, strict=True):
        (alone,) = tiny_base.token_losses([example], infix)
        torch.testing.assert_close(losses, alone, rtol=1e-5, atol=1e-5)


def test_by_source_is_still_taken_and_changes_nothing(tiny_base: BaseModel) -> None:
    examples = [Example(f"source {n % 2}: ", f"target {n}") for n in range(8)]
    options = {"steps": 4, "batch_size": 4, "length": 2}
    expected = train(tiny_base, examples, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ForewordDeprecation)
        found = train(tiny_base, examples, **options, by_source=True)
    assert torch.equal(found.key(), expected.key())


def test_what_is_taken_many_times_has_its_gradients_summed_in_float32() -> None:
    states = torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True)
    index = torch.tensor([0] * 1000 + [1])
    gradient = torch.ones(1001, 3, dtype=torch.bfloat16)
    take(states, index).backward(gradient)
    assert states.grad is not None
    assert states.grad.tolist() == [[1000.0] * 3, [1.0] * 3]


def gradient_of_prefixes(base: BaseModel, rows: list[EncodedExample], of_row: list[int]) -> torch.Tensor:
    """Of the summed losses, by the keys and values of float32 prefixes, flattened."""
    blocks = [random_prefix(base, 3, seed=seed, scale=0.3).tensors for seed in range(1 + max(of_row))]
    key, value = (
        torch.stack([block[f"decoder.{part}"] for block in blocks]).requires_grad_()
        for part in ("key", "value")
    )
    prefixes = PrefixBatch({"decoder": StreamBlock(key, value, (3,) * len(blocks))}, tuple(of_row))
    target_losses(base.model, base.batch(rows, prefixes, "flat"), prefixes).sum().backward()
    assert key.grad is not None
    assert value.grad is not None
    assert key.grad.dtype == torch.float32
    return torch.cat([key.grad.flatten(), value.grad.flatten()])


@pytest.mark.parametrize("model_type", ["llama", "granite"])
def test_shared_tokens_of_many_rows_lose_no_gradient_in_bfloat16(model_type: str) -> None:
    """Of 1000 rows with one beginning no more is lost than rounding does to a few; granite scales its logits."""
    architecture = next(each for each in DECODER_ONLY_WORKING if each.model_type == model_type)
    half, whole = (
        BaseModel(architecture.model().to(torch.bfloat16), byte_tokenizer(), name="t") for _ in range(2)
    )
    whole.model.float()
    source = tuple(half.tokenizer("a source: ")["input_ids"])

    def error(count: int) -> float:
        rows = [EncodedExample(source, (5 + n % 90, 7)) for n in range(count)]
        of_row = [n % 2 for n in range(count)]
        found, expected = (gradient_of_prefixes(base, rows, of_row) for base in (half, whole))
        if count > 2:  # several rows have one prefix: their gradients are summed before anything is rounded
            assert not torch.equal(found, found.bfloat16().float())
        return float((found - expected).norm() / expected.norm())

    assert error(1000) < 3 * max(error(2), error(4))


def test_rows_behind_a_long_prefix_are_read_a_few_at_a_time(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = [Example(f"Number {number}", "one two") for number in range(7)]
    prefix = random_prefix(tiny_base, 40)
    whole = tiny_base.token_losses(examples, prefix)
    rows: list[int] = []

    def losses(model: Any, batch: Batch, *given: Any) -> torch.Tensor:
        rows.append(len(batch.targets))
        return target_losses(model, batch, *given)

    monkeypatch.setattr("foreword.base.base_model.target_losses", losses)
    monkeypatch.setattr("foreword.base.batch.PREFIX_TOKENS", 100)
    for mine, theirs in zip(tiny_base.token_losses(examples, prefix), whole, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert rows == [2, 2, 2, 1]
    tiny_base.token_losses(examples)
    assert rows[4:] == [7]
