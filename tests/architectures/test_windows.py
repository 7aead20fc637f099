"""Windows: a token near the prefix and one far beyond the window feel it alike, in generation too."""

from __future__ import annotations

import pytest
import torch
from by_hand_attention import greedy, logits
from decoder_only import DECODER_ONLY_WORKING
from zoo import WINDOW, Architecture

from foreword import generate
from foreword.attention import Attending, attending
from foreword.row_prefixes import RowPrefixes
from stand_ins import random_prefix

WINDOWED = [each for each in DECODER_ONLY_WORKING if each.windowed]
LONG = "a prompt many times as long as the window is, and then some more of it"


@pytest.fixture(params=WINDOWED, ids=str)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    return request.param  # type: ignore[no-any-return]


@torch.no_grad()
def test_the_window_is_there(architecture: Architecture) -> None:
    """The stand-ins have windowed layers: more of the text in front is not seen by all layers."""
    base = architecture.base
    masks: list[torch.Tensor] = []
    for module in base.model.modules():
        if hasattr(module, "foreword_slot"):
            module.register_forward_pre_hook(
                lambda m, args, kwargs: masks.append(kwargs.get("attention_mask")), with_kwargs=True
            )
    ids = torch.tensor([base.tokenizer(LONG)["input_ids"]])
    with attending(Attending()):
        base.model(input_ids=ids, use_cache=False)
    for module in base.model.modules():
        module._forward_pre_hooks.clear()
    seen = {
        int((mask[0, 0, -1] if mask.dtype == torch.bool else mask[0, 0, -1] == 0).sum()) for mask in masks
    }
    assert min(seen) <= WINDOW
    assert len(masks) == base.geometry.streams["decoder"].layers


@torch.no_grad()
def test_the_prefix_has_the_same_effect_near_and_far(architecture: Architecture) -> None:
    base = architecture.base
    prefix = random_prefix(base, 3)
    stacked = RowPrefixes.stack([prefix], base.device)
    for text in ("ab", LONG):
        ids = base.tokenizer(text)["input_ids"]
        positions = torch.arange(3, 3 + len(ids))[None]
        with attending(Attending(prefixes=stacked)):
            mine = base.model(input_ids=torch.tensor([ids]), position_ids=positions, use_cache=False).logits
        expected = logits(base.model, ids[:1], ids[1:], prefix.tensors)
        torch.testing.assert_close(mine[0], expected, rtol=1e-5, atol=1e-4)
        plain = base.model(input_ids=torch.tensor([ids]), position_ids=positions, use_cache=False).logits
        assert (mine - plain)[0, -1].abs().max() > 0.01


def test_generation_goes_on_past_the_window_as_by_hand(architecture: Architecture) -> None:
    base = architecture.base
    new = 3 * WINDOW
    prefixes = [random_prefix(base, 3), random_prefix(base, 6, seed=1), None]
    prompts = [LONG, "a", "abc"]
    found = generate(base, prompts, prefixes, max_new_tokens=new)
    for prompt, prefix, text in zip(prompts, prefixes, found, strict=True):
        ids = base.template.source_ids(base.tokenizer, prompt)
        expected = greedy(base.model, ids, prefix.tensors if prefix else None, new, base.end_ids)
        assert text == base.tokenizer.decode(expected, skip_special_tokens=True)
