"""A model that is spread over devices: loaded, trained and run, with the results of one device.

No machine with several GPUs is at hand: tensors of the CPU say that they are on two devices, and an operation
across them fails (tests/support/pretend_devices.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, MistralConfig, MistralForCausalLM

from foreword import BaseModel, Prefix, generate, train
from foreword.base.loss import plain_head
from foreword.serving.engine.continuous_batch import ContinuousBatch, RunningRow
from foreword.serving.engine.protocol import Row, Sampling, Token
from support.pretend_devices import FIRST, SECOND, pretended_devices, spread
from support.stand_ins import VOCABULARY, byte_tokenizer, random_examples, random_prefix, tiny_llama

EXAMPLES = random_examples(6, longest=30)
PLACES = {
    **{"model.embed_tokens": FIRST, "model.layers.0": FIRST, "model.layers.1": SECOND},
    **{"model.norm": SECOND, "model.rotary_emb": SECOND, "lm_head": SECOND},
}
SIZES: dict[str, Any] = {
    **{"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128},
    **{"initializer_range": 0.2, "eos_token_id": 0, "bos_token_id": None, "pad_token_id": 0},
}


def llama() -> Any:
    return tiny_llama(num_hidden_layers=2)


def windowed() -> Any:
    """Layers that see the prefix from no farther than their window."""
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=12))


def capped() -> Any:
    """Eager attention, and logits that are more than the head's product."""
    torch.manual_seed(0)
    apart = {"tie_word_embeddings": False}  # tied weights are on one device
    return Gemma2ForCausalLM(Gemma2Config(**SIZES, **apart, sliding_window=16, final_logit_softcapping=5.0))


def base_of(model: Any) -> BaseModel:
    return BaseModel(model, byte_tokenizer(), name="tiny")


@pytest.fixture
def devices() -> Iterator[None]:
    with pretended_devices():
        yield


def work(base: BaseModel) -> tuple[Prefix, list[torch.Tensor], list[str]]:
    """A trained prefix, losses under prefixes of two lengths and none, greedy and sampled texts."""
    made = train(base, EXAMPLES, length=3, steps=2, batch_size=4, dev=EXAMPLES[:2])
    prefixes = [made, None, random_prefix(base, 5)]
    losses = [
        loss
        for layout in ("flat", "left")
        for loss in base.token_losses(EXAMPLES[:3], prefixes, layout=layout)  # type: ignore[arg-type]
    ]
    texts = generate(base, ["abc", "d", "ef gh"], prefixes, max_new_tokens=6)
    texts += generate(base, ["abc", "d", "ef gh"], prefixes, max_new_tokens=6, temperature=1.0, seed=3)
    return made, losses, texts


@pytest.mark.parametrize("model", [llama, windowed, capped])
def test_a_model_on_two_devices_does_what_it_does_on_one(model: Any) -> None:
    expected, losses, texts = work(base_of(model()))
    with pretended_devices():
        spread(here := model(), PLACES)
        base = base_of(here)
        assert (base.device, here.lm_head.weight.device) == (FIRST, SECOND)
        found, other_losses, other_texts = work(base)
    assert other_texts == texts
    for one, other in zip(losses, other_losses, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)
    for name, tensor in expected.tensors.items():
        torch.testing.assert_close(found.tensors[name], tensor, rtol=1e-3, atol=1e-4)
    assert found.origin.dev_loss == pytest.approx(expected.origin.dev_loss, rel=1e-4)


def tokens_of_continuous_batch(base: BaseModel) -> list[list[int]]:
    """What the local engine's batch writes for rows of several lengths, with prefixes and without, two sampled."""
    batch = ContinuousBatch(base)
    asked = (("abc", 3, 0.0), ("de fgh", 0, 1.0), ("x", 5, 1.0))
    rows = []
    for prompt, length, temperature in asked:
        ids = tuple(base.template.source_ids(base.tokenizer, prompt))
        prefix = random_prefix(base, length) if length else None
        sampling = Sampling(6, temperature=temperature, seed=1)
        rows.append(RunningRow(Row(ids, prefix, "alice", sampling, frozenset()), 6))
    for _ in range(6):
        assert all(isinstance(outcome, Token) for _, outcome in batch.step({row: row.unread for row in rows}))
    return [row.text[len(row.row.prompt_ids) :] for row in rows]


def test_the_local_engine_writes_on_two_devices_what_it_does_on_one() -> None:
    expected = tokens_of_continuous_batch(base_of(llama()))
    assert [len(each) for each in expected] == [6, 6, 6]
    with pretended_devices():
        spread(here := llama(), PLACES)
        base = base_of(here)
        assert base.cache_takes_prefixes
        assert tokens_of_continuous_batch(base) == expected


def test_losses_from_a_head_elsewhere_come_in_parts(devices: None) -> None:
    """As on one device: all logits at once would take more memory than the layers."""
    spread(model := llama(), PLACES)
    base = base_of(model)
    assert plain_head(model) is model.lm_head
    (losses,) = base.token_losses(EXAMPLES[:1])
    assert losses.device.type == "cpu"
    model.lm_head._hf_hook.offload = True  # its weight would come and go with each pass
    assert plain_head(model) is None


def test_the_pretended_devices_refuse_what_two_gpus_refuse(devices: None) -> None:
    first, second = torch.ones(2, device=FIRST), torch.ones(2, device="xpu:1")
    assert (first.device, (first + 1)[None].device, second.to(FIRST).device) == (FIRST, FIRST, FIRST)
    assert (second.cpu().device, second.double().device) == (torch.device("cpu"), SECOND)
    with pytest.raises(RuntimeError, match="expected all tensors on one device"):
        first + second
    with pytest.raises(RuntimeError, match="expected all tensors on one device"):
        first.index_select(0, torch.zeros(1, dtype=torch.long))
    weight = torch.ones(2, device=FIRST, requires_grad=True)
    (weight.to(SECOND) * second).sum().backward()
    assert weight.grad is not None
    assert weight.grad.device == FIRST
