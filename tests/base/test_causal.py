"""Kernels without a mask compute what those with one compute, and only where the mask says nothing else."""

from __future__ import annotations

import pytest
import torch

from foreword import BaseModel
from foreword.base import attention
from foreword.prefix import Prefix
from foreword.template import Template
from support.stand_ins import random_examples, random_prefix


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(queries, keys) of every call; the way for GPUs is open on the CPU meanwhile."""
    seen: list[tuple[int, int]] = []
    plain = attention.attend_causally

    def counted(query: torch.Tensor, key: torch.Tensor, *rest: object) -> torch.Tensor:
        seen.append((query.shape[2], key.shape[2]))
        return plain(query, key, *rest)

    monkeypatch.setattr(attention, "attend_causally", counted)
    monkeypatch.setattr(attention, "CAUSAL_DEVICES", {"cpu"})
    return seen


def losses(base: BaseModel, prefixes: list[Prefix | None], layout: str) -> torch.Tensor:
    return torch.cat(base.token_losses(random_examples(len(prefixes)), prefixes, layout=layout))


@pytest.mark.parametrize("lengths", [(4, 4, 4), (5, 5, 5), (1, 1, 1)])
def test_rows_with_prefixes_of_one_length_need_no_mask(
    tiny_base: BaseModel, calls: list, monkeypatch: pytest.MonkeyPatch, lengths: tuple[int, ...]
) -> None:
    prefixes = [random_prefix(tiny_base, length, seed=n) for n, length in enumerate(lengths)]
    found = losses(tiny_base, prefixes, "flat")
    layers = tiny_base.geometry.streams["decoder"].layers
    assert len(calls) == layers
    assert all(keys == queries + lengths[0] for queries, keys in calls)
    monkeypatch.setattr(attention, "CAUSAL_DEVICES", set())
    torch.testing.assert_close(found, losses(tiny_base, prefixes, "flat"), rtol=1e-5, atol=1e-6)
    assert len(calls) == layers


@pytest.mark.parametrize(
    ("lengths", "layout"),
    [((4, 5, 4), "flat"), ((4, 0, 4), "flat"), ((4, 4, 4), "left"), ((4, 4, 4), "right")],
)
def test_other_rows_keep_their_mask(
    tiny_base: BaseModel,
    calls: list,
    monkeypatch: pytest.MonkeyPatch,
    lengths: tuple[int, ...],
    layout: str,
) -> None:
    prefixes = [random_prefix(tiny_base, n, seed=n) if n else None for n in lengths]
    found = losses(tiny_base, prefixes, layout)
    assert not calls
    monkeypatch.setattr(attention, "CAUSAL_DEVICES", set())
    torch.testing.assert_close(found, losses(tiny_base, prefixes, layout), rtol=1e-5, atol=1e-6)


def test_an_infix_keeps_its_mask(tiny_base: BaseModel, calls: list) -> None:
    infix = random_prefix(tiny_base, 4, template=Template(placement="infix"))
    losses(tiny_base, [infix] * 3, "flat")
    assert not calls


def test_output_and_gradients_are_those_computed_by_hand_with_a_mask() -> None:
    generator = torch.Generator().manual_seed(0)
    heads, keys, size = 4, 9, 8
    query = torch.randn(2, heads, keys - 3, size, generator=generator)
    shared = torch.randn(2, 2, 2, keys, size, generator=generator)
    found = []
    for masked in (False, True):
        both = shared.clone().requires_grad_()
        if masked:
            mask = torch.ones(keys - 3, keys, dtype=torch.bool).tril(3)
            weights = (query @ both[0].repeat_interleave(2, 1).mT * 0.3).masked_fill(~mask, -torch.inf)
            output = (weights.softmax(-1) @ both[1].repeat_interleave(2, 1)).transpose(1, 2)
        else:
            output = attention.attend_causally(query, both[0], both[1], 0.3)
        (gradient,) = torch.autograd.grad((output * output.cos()).sum(), both)
        found.append((output.detach(), gradient))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
