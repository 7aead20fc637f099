"""Windows: a token near the prefix and one far beyond the window feel it alike, in generation too.

Two rules of positions: a prefix that is seen from wherever the text is, and one that windowed layers never
see from farther than their window reaches.
"""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
import torch

from foreword import BaseModel, Example, Prefix, generate, train
from foreword.base.attention import AttentionContext, attention_context
from foreword.base.batch import Layout
from foreword.base.gradient_checkpointing import gradient_checkpointing
from foreword.base.loss import target_losses
from foreword.base.prefix_batch import PrefixBatch
from foreword.encoding import encode_example
from foreword.errors import UsageError
from foreword.training.run_log import Progress
from support.architectures.decoder_only import DECODER_ONLY_WORKING
from support.architectures.zoo import WINDOW, Architecture
from support.by_hand import by_place
from support.by_hand_attention import greedy, logits, token_losses, within_window
from support.stand_ins import random_prefix

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
        if hasattr(module, "foreword_layer"):
            module.register_forward_pre_hook(
                lambda m, args, kwargs: masks.append(kwargs.get("attention_mask")), with_kwargs=True
            )
    ids = torch.tensor([base.tokenizer(LONG)["input_ids"]])
    with attention_context(AttentionContext()):
        base.model(input_ids=ids, use_cache=False)
    for module in base.model.modules():
        module._forward_pre_hooks.clear()
    seen = {
        int((mask[0, 0, -1] if mask.dtype == torch.bool else mask[0, 0, -1] == 0).sum()) for mask in masks
    }
    assert min(seen) <= WINDOW
    assert len(masks) == base.model.config.get_text_config().num_hidden_layers


@torch.no_grad()
def test_the_prefix_has_the_same_effect_near_and_far(architecture: Architecture) -> None:
    base = architecture.base
    prefix = random_prefix(base, 3)
    stacked = PrefixBatch.stack([prefix], base.device)
    for text in ("ab", LONG):
        ids = base.tokenizer(text)["input_ids"]
        positions = torch.arange(3, 3 + len(ids))[None]
        with attention_context(AttentionContext(prefixes=stacked)):
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


REACHING = [each for each in WINDOWED if each.model_type != "llama4_text"]  # whose windows are chunks


@pytest.fixture(params=REACHING, ids=str)
def reaching(request: pytest.FixtureRequest) -> Architecture:
    return request.param  # type: ignore[no-any-return]


def _near(base: BaseModel, length: int, seed: int = 0) -> Prefix:
    return dataclasses.replace(
        random_prefix(base, length, seed=seed), positions="text-after-prefix-within-window"
    )


def test_every_windowed_architecture_keeps_its_prefixes_within_reach(reaching: Architecture) -> None:
    assert reaching.base.positions == "text-after-prefix-within-window"


@pytest.mark.parametrize("layout", ["flat", "right", "left"])
def test_a_prefix_within_reach_is_seen_from_the_end_of_the_window(
    reaching: Architecture, layout: Layout
) -> None:
    """Rows of both rules and without a prefix, short and long, one prefix longer than the window."""
    base = reaching.base
    far = random_prefix(base, 3)
    prefixes = [_near(base, 3), far, None, _near(base, 2, seed=1), _near(base, WINDOW + 2, seed=2)]
    examples = [Example(text, "an answer") for text in (LONG, LONG, LONG, "a", LONG[:9])]
    found = base.token_losses(examples, prefixes, layout=layout)
    for example, prefix, losses in zip(examples, prefixes, found, strict=True):
        template = prefix.template if prefix else base.template
        row, _ = encode_example(example, base.tokenizer, template)
        tensors = prefix.tensors if prefix else None
        near = within_window(base.model) if prefix and prefix is not far else contextlib.nullcontext()
        with near, torch.no_grad():
            expected = token_losses(base.model, row.source_ids, row.target_ids, tensors)
        torch.testing.assert_close(losses, expected, rtol=1e-5, atol=2e-5)


def test_beyond_the_window_the_two_rules_differ_and_within_it_they_do_not(reaching: Architecture) -> None:
    base = reaching.base
    near = _near(base, 2)
    far = dataclasses.replace(near, positions="text-after-prefix")
    template = dataclasses.replace(near.template, style="raw", end=None)
    near, far = (dataclasses.replace(prefix, template=template) for prefix in (near, far))
    # Positions 2 and 3 of a window of 4 see all of the prefix.
    within, beyond = Example("a", "bc"), Example(LONG, "bc")
    (one,), (other,) = (base.token_losses([within], prefix) for prefix in (near, far))
    assert torch.equal(one, other)
    (one,), (other,) = (base.token_losses([beyond], prefix) for prefix in (near, far))
    assert (one - other).abs().max() > 1e-3


def test_generation_keeps_the_prefix_within_reach_as_by_hand(reaching: Architecture) -> None:
    base = reaching.base
    new = 3 * WINDOW
    prefixes = [_near(base, 3), random_prefix(base, 6, seed=1), None, _near(base, 2, seed=2)]
    prompts = [LONG, "a", "abc", "b"]
    found = generate(base, prompts, prefixes, max_new_tokens=new)
    for prompt, prefix, text in zip(prompts, prefixes, found, strict=True):
        ids = base.template.source_ids(base.tokenizer, prompt)
        near = prefix is not None and prefix.positions != "text-after-prefix"
        with within_window(base.model) if near else contextlib.nullcontext():
            expected = greedy(base.model, ids, prefix.tensors if prefix else None, new, base.end_ids)
        assert text == base.tokenizer.decode(expected, skip_special_tokens=True)


def test_training_keeps_within_reach_and_its_loss_is_the_one_computed_by_hand(reaching: Architecture) -> None:
    base = reaching.base
    examples = [Example(LONG, "an answer"), Example("short", "another")]
    progress: list[Progress] = []
    prefix = train(
        base,
        examples,
        length=3,
        steps=1,
        batch_size=2,
        init="random",
        dev=examples,
        on_progress=progress.append,
    )
    assert prefix.positions == "text-after-prefix-within-window"
    with within_window(base.model), torch.no_grad():
        losses = []
        for example in examples:
            row, _ = encode_example(example, base.tokenizer, prefix.template)
            losses.append(token_losses(base.model, row.source_ids, row.target_ids, prefix.tensors))
    assert prefix.origin.dev_loss == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)


def test_every_number_within_reach_gets_the_gradient_computed_by_hand(reaching: Architecture) -> None:
    base = reaching.base
    row, _ = encode_example(Example(LONG, "an answer"), base.tokenizer, base.template)
    tensors = {
        name: tensor.clone().requires_grad_() for name, tensor in random_prefix(base, 3).tensors.items()
    }
    with within_window(base.model):
        token_losses(base.model, row.source_ids, row.target_ids, tensors).sum().backward()
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in tensors.items()}
    stacked = PrefixBatch.from_tensors(
        [by_place(leaves)],
        [0],
        ["prefix"],
        ["text-after-prefix-within-window"],
    )
    for checkpointing in (contextlib.nullcontext(), gradient_checkpointing(base.model)):
        for leaf in leaves.values():
            leaf.grad = None
        with checkpointing:
            target_losses(base.model, base.batch([row], stacked, "flat"), stacked).sum().backward()
        for name, leaf in leaves.items():
            expected = tensors[name].grad
            assert leaf.grad is not None
            assert expected is not None
            torch.testing.assert_close(
                leaf.grad, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max())
            )


def test_beams_keep_within_reach(reaching: Architecture) -> None:
    base = reaching.base
    prefixes = [_near(base, 3), _near(base, 2, seed=1)]
    together = generate(base, [LONG, "b"], prefixes, beams=3, max_new_tokens=8)
    alone = [
        generate(base, [prompt], [prefix], beams=3, max_new_tokens=8)[0]
        for prompt, prefix in zip([LONG, "b"], prefixes, strict=True)
    ]
    assert together == alone


def test_a_base_that_cannot_move_positions_refuses_such_a_prefix() -> None:
    base = next(each for each in DECODER_ONLY_WORKING if each.model_type == "llama").base
    assert base.positions == "text-after-prefix"
    with pytest.raises(UsageError, match="sliding window"):
        base.token_losses([Example("a", "b")], _near(base, 3))
