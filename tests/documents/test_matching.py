"""Keys and values matched to a document's attention, against attention by hand.

Shapes: H key/value heads, G query heads that share one, T document tokens, N text tokens, P prefix length.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from foreword import BaseModel
from foreword.base.attention import capture_attention
from foreword.base.loss import target_losses
from foreword.base.prefix_batch import KeyValues, PrefixBatch
from foreword.documents.exact import exact_key_values
from foreword.documents.matching import RIDGE, TINY, Readers, least_squares, match_layer, matched_key_values
from foreword.encoding import EncodedExample
from foreword.errors import UnsupportedArchitecture, UsageError, WindowExceeded
from foreword.training.initialization import activations
from support.architectures.decoder_only import DECODER_ONLY_WORKING
from support.architectures.encoder_decoder import ENCODER_DECODER_WORKING
from support.architectures.hybrids import HYBRID_WORKING

ARCHITECTURES = {
    each.model_type: each for each in (*DECODER_ONLY_WORKING, *ENCODER_DECODER_WORKING, *HYBRID_WORKING)
}
_random = random.Random(5)
DOCUMENT = [_random.randrange(1, 97) for _ in range(60)]
TEXTS = [[_random.randrange(1, 97) for _ in range(12)] for _ in range(4)]


def evenly(base: BaseModel, length: int) -> KeyValues:
    """Evenly spaced keys and values of the document, moved as the matched ones are."""
    key_LHTD, value_LHTD = activations(base, DOCUMENT, DOCUMENT, len(DOCUMENT))["decoder"]
    places = torch.linspace(0, len(DOCUMENT) - 1, length).round().long()
    moved = [
        rotation.move(key_HTD, length - len(DOCUMENT))[:, places]
        for rotation, key_HTD in zip(base.key_rotations, key_LHTD, strict=True)
    ]
    return {"decoder": (torch.stack(moved), value_LHTD[:, :, places])}


def losses(base: BaseModel, key_values: KeyValues) -> torch.Tensor:
    """Of the tokens of all texts but their first, behind a prefix."""
    rows = [EncodedExample(tuple(text[:1]), tuple(text[1:])) for text in TEXTS]
    prefixes = PrefixBatch.from_tensors([key_values], [0] * len(rows))
    with torch.no_grad():
        return target_losses(base.model, base.batch(rows, prefixes, "flat"), prefixes)


@torch.no_grad()
def first_layer(base: BaseModel, text: list[int], key_values: KeyValues) -> tuple[torch.Tensor, torch.Tensor]:
    """By hand: what the first layer's attention gives a text behind a prefix, and the prefix's share of it."""
    key_HPD, value_HPD = (part[0] for part in key_values["decoder"])
    length = key_HPD.shape[1]
    inputs = {
        "input_ids": torch.tensor([text]),
        "attention_mask": torch.ones(1, len(text), dtype=torch.long),
        "position_ids": torch.arange(length, length + len(text))[None],
    }
    call = capture_attention(base.model, inputs)[1][0]
    query_HGND = call.query[0].unflatten(0, (key_HPD.shape[0], -1))
    key_H1SD, value_H1SD = (
        torch.cat([prefix, own[0]], dim=1)[:, None]
        for prefix, own in ((key_HPD, call.key), (value_HPD, call.value))
    )
    scores = query_HGND @ key_H1SD.transpose(-1, -2) / query_HGND.shape[-1] ** 0.5
    later = torch.arange(len(text))[None, :] > torch.arange(len(text))[:, None]
    scores[..., length:].masked_fill_(later, float("-inf"))
    weights = scores.softmax(-1)
    return weights @ value_H1SD, weights[..., :length].sum(-1)


def test_at_full_length_they_are_the_documents_own(tiny_base: BaseModel) -> None:
    key_values = matched_key_values(tiny_base, DOCUMENT, len(DOCUMENT))
    (text,) = TEXTS[:1]
    whole = [EncodedExample((*DOCUMENT, *text[:1]), tuple(text[1:]))]
    with torch.no_grad():
        expected = target_losses(tiny_base.model, tiny_base.batch(whole, None, "flat"), None)
    found = losses(tiny_base, key_values)[: len(text) - 1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("length", [6, 20])
def test_attention_is_nearer_to_the_documents_than_with_evenly_spaced_tokens(
    tiny_base: BaseModel, length: int
) -> None:
    exact = activations(tiny_base, DOCUMENT, DOCUMENT, len(DOCUMENT))
    matched = matched_key_values(tiny_base, DOCUMENT, length, reference=TEXTS)
    even = evenly(tiny_base, length)
    for number in (0, 1):  # outputs, and the share of the softmax
        error = {
            name: sum(
                float((first_layer(tiny_base, text, own)[number] - whole).square().sum())
                for text in TEXTS
                for whole in [first_layer(tiny_base, text, exact)[number]]
            )
            for name, own in {"matched": matched, "even": even}.items()
        }
        assert error["matched"] < 0.8 * error["even"]
    whole = losses(tiny_base, exact)
    assert (losses(tiny_base, matched) - whole).norm() < (losses(tiny_base, even) - whole).norm()


def test_they_are_keys_and_values_of_the_bases_geometry(tiny_base: BaseModel) -> None:
    found = matched_key_values(tiny_base, DOCUMENT, 7)
    expected = tiny_base.geometry.shapes({"decoder": 7})
    assert {place: tuple(part.shape for part in pair) for place, pair in found.items()} == expected
    assert {part.dtype for pair in found.values() for part in pair} == {torch.float32}


def test_the_seed_draws_the_pieces_that_are_read_again(tiny_base: BaseModel) -> None:
    document = DOCUMENT + TEXTS[0] + TEXTS[1]  # longer than one piece
    first, again, other = (matched_key_values(tiny_base, document, 9, seed=seed) for seed in (3, 3, 5))
    for one, two, three in zip(first["decoder"], again["decoder"], other["decoder"], strict=True):
        assert torch.equal(one, two)
        assert not torch.equal(one, three)


@pytest.mark.parametrize("length", [0, len(DOCUMENT) + 1])
def test_a_length_out_of_range_is_refused(tiny_base: BaseModel, length: int) -> None:
    with pytest.raises(UsageError, match=f"length is {length}.*60 tokens.*expected 1 to 60"):
        matched_key_values(tiny_base, DOCUMENT, length)


def test_a_document_that_fills_the_positions_is_refused(tiny_base: BaseModel) -> None:
    with pytest.raises(WindowExceeded, match="128 positions"):
        matched_key_values(tiny_base, DOCUMENT * 3, 9)


class LargestTensor(TorchDispatchMode):
    """The most numbers that a tensor made in it has."""

    numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        sizes = [each.numel() for each in pytree.tree_leaves(made) if isinstance(each, torch.Tensor)]
        self.numbers = max(self.numbers, *sizes, 0)
        return made


def test_a_long_document_is_read_without_a_mask_of_its_tokens_by_its_tokens(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = exact_key_values(tiny_base, DOCUMENT)["decoder"]
    monkeypatch.setattr("foreword.base.attention.LONGEST_MASK", len(DOCUMENT) - 1)
    with LargestTensor() as largest:
        found = exact_key_values(tiny_base, DOCUMENT)["decoder"]
    assert largest.numbers < len(DOCUMENT) ** 2
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_many_keys_and_few_queries_need_no_matrix_of_keys_by_keys() -> None:
    queries, tokens, length = 12, 900, 600
    generator = torch.Generator().manual_seed(3)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    readers = Readers(numbers(1, queries, 8), numbers(1, queries, 8), numbers(1, queries))
    with LargestTensor() as largest:
        match_layer(readers, numbers(1, tokens, 8), numbers(1, tokens, 8), length)
    assert largest.numbers <= queries * tokens < length * length
    weights, wanted = numbers(2, 5, 40).double(), numbers(2, 5, 3).double()
    # By hand: P * P normal equations.
    gram = weights.mT @ weights
    ridge = RIDGE * gram.diagonal(dim1=1, dim2=2).mean(1) + TINY
    expected = torch.linalg.solve(gram + ridge[:, None, None] * torch.eye(40), weights.mT @ wanted)
    torch.testing.assert_close(least_squares(weights, wanted), expected, rtol=1e-6, atol=1e-8)


def test_reference_texts_without_tokens_are_refused(tiny_base: BaseModel) -> None:
    with pytest.raises(UsageError, match="reference texts have no tokens"):
        matched_key_values(tiny_base, DOCUMENT, 9, reference=[[], []])


@pytest.mark.parametrize(
    ("model_type", "why"),
    [
        ("bart", "encoder-decoder"),
        ("lfm2", "hybrid"),
        ("gemma3_text", "2 of its layers have a sliding window and see no more than 4 tokens"),
        ("gpt2", "positions"),
    ],
)
def test_a_base_whose_attention_can_not_be_matched_is_refused_by_name(model_type: str, why: str) -> None:
    with pytest.raises(UnsupportedArchitecture, match=f"(?i){model_type}.*{why}"):
        matched_key_values(ARCHITECTURES[model_type].base, DOCUMENT[:8], 4)
