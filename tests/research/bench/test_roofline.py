"""The count of operations, against torch's own counter and against counting one by one."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM

from foreword import BaseModel
from foreword.encoding import EncodedExample
from foreword.errors import UnsupportedArchitecture
from foreword.research.bench import roofline
from foreword.research.bench.timing import waiting_for
from support.stand_ins import byte_tokenizer, tiny_llama

ROW = EncodedExample((5, 6, 7, 8, 9), (1, 2, 3))


def test_products_are_those_that_torch_counts() -> None:
    """Forward and backward of one row, a prefix that needs gradients in front, logits everywhere."""
    model = tiny_llama().requires_grad_(False)
    tokens = 7
    cache = DynamicCache()
    leaves = []
    for layer in range(3):
        key, value = (torch.randn(1, 2, 4, 8, requires_grad=True) for _ in range(2))
        leaves += [key, value]
        cache.update(key, value, layer)
    with FlopCounterMode(display=False) as counter:
        logits = model(input_ids=torch.arange(1, tokens + 1)[None], past_key_values=cache).logits
        logits.sum().backward()
    assert all(leaf.grad is not None for leaf in leaves)
    counted = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "mm" in str(op))
    base = BaseModel(model, byte_tokenizer(), name="tiny-llama")
    # Nothing needs the gradient of the first layer's inputs: its queries, keys and values end there.
    hidden, heads, kv_heads, size = 32, 4, 2, 8
    unneeded = 2 * tokens * hidden * (heads + 2 * kv_heads) * size
    assert counted == 2 * roofline._products(base, tokens, tokens) - unneeded


def test_attention_is_counted_pair_by_pair() -> None:
    base = BaseModel(tiny_llama(), byte_tokenizer(), name="tiny-llama")
    operations = 0
    for _layer in range(3):
        for _head in range(4):
            for token in range(ROW.tokens):
                for _key in range(2 + token + 1):  # the prefix, the tokens before, itself
                    operations += 2 * 8 + 2 * 8  # query by key; weight by value
    assert roofline._attention(base, [ROW.tokens], 2) == operations
    products = roofline._products(base, ROW.tokens, len(ROW.target_ids))
    assert roofline.training_step(base, [ROW, ROW], 2) == 2 * (3 * operations + 2 * products)


def test_logits_are_counted_where_there_is_a_target() -> None:
    base = BaseModel(tiny_llama(), byte_tokenizer(), name="tiny-llama")
    longer = EncodedExample(ROW.source_ids[:-1], (4, *ROW.target_ids))
    assert longer.tokens == ROW.tokens
    more = roofline.training_step(base, [longer], 2) - roofline.training_step(base, [ROW], 2)
    assert more == 2 * (2 * 32 * 97)


def test_attention_backward_is_twice_its_forward_as_torch_counts() -> None:
    query, key, value = (torch.randn(1, 2, 5, 8, requires_grad=True) for _ in range(3))
    with FlopCounterMode(display=False) as forward:
        weights = (query @ key.transpose(-1, -2)).softmax(-1)
        output = weights @ value
    with FlopCounterMode(display=False) as backward:
        output.sum().backward()
    assert backward.get_total_flops() == 2 * forward.get_total_flops()


def test_generation_reads_each_token_once_and_predicts_the_new_ones() -> None:
    """Against torch's counter over a prompt and then one token after the other."""
    model = tiny_llama().requires_grad_(False)
    prompt, new = 5, 3
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        cache = DynamicCache()
        ids = torch.arange(1, prompt + 1)[None]
        for _ in range(new):
            logits = model(input_ids=ids, past_key_values=cache, logits_to_keep=1).logits
            ids = logits.argmax(-1)
    counted = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "mm" in str(op))
    base = BaseModel(model, byte_tokenizer(), name="tiny-llama")
    assert (
        roofline.generation(base, [prompt], 0, new) - roofline._attention(base, [prompt + new - 1], 0)
        == counted
    )


@pytest.mark.parametrize("tied", [True, False])
def test_a_pass_reads_every_weight_of_a_product_once(tied: bool) -> None:
    base = BaseModel(tiny_llama(tie_word_embeddings=tied), byte_tokenizer(), name="tiny-llama")
    linear = sum(m.weight.numel() for m in base.model.model.modules() if isinstance(m, torch.nn.Linear))
    assert roofline.weight_bytes(base) == 4 * (linear + 97 * 32)


def test_the_layers_of_gpt2_are_counted_though_they_are_no_linear_ones() -> None:
    sizes = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    model = GPT2LMHeadModel(GPT2Config(**sizes, eos_token_id=0, bos_token_id=0)).requires_grad_(False)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.arange(1, 8)[None])
    counted = sum(
        n for op, n in counter.get_flop_counts()["Global"].items() if "mm" in str(op) and "bmm" not in str(op)
    )
    base = BaseModel(model, byte_tokenizer(), name="tiny-gpt2")
    roofline.check_countable(base)
    assert roofline._products(base, 7, 7) == counted


def test_weights_that_only_some_tokens_meet_are_refused() -> None:
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4}
    model = MixtralForCausalLM(MixtralConfig(**sizes, **heads, eos_token_id=0, bos_token_id=None))
    base = BaseModel(model, byte_tokenizer(), name="tiny-mixtral")
    with pytest.raises(UnsupportedArchitecture, match="belong to no linear layer"):
        roofline.check_countable(base)
    roofline.check_countable(BaseModel(tiny_llama(), byte_tokenizer(), name="tiny-llama"))


def test_a_device_is_measured_at_sizes_of_its_kind_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta device stands for a GPU: work there returns at once, and only who waits knows that it is done."""
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    cuda = torch.device("cuda", 1)
    waiting_for(cuda)()
    assert waited == [cuda]
    monkeypatch.setattr(roofline, "waiting_for", lambda device: lambda: waited.append(device))
    meta = torch.device("meta")
    limits = roofline.measure(torch.bfloat16, meta, rounds=2)
    assert waited[1:] == [meta] * 5  # after what warms up, and after each of two ways twice
    sizes = roofline.sizes_for(meta)
    assert sizes == roofline.sizes_for(cuda)
    _, operations = roofline.products(torch.bfloat16, meta, count=3)
    _, moved = roofline.copies(meta)
    assert operations == 3 * 2 * sizes.square**3
    assert moved == 2 * sizes.copies * sizes.copied  # read and written
    assert limits.flops > 0
    assert limits.bandwidth > 0


def test_products_are_made_in_the_type_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(roofline.SIZES, "cpu", roofline.Sizes(16, 1 << 10, 2, 1e3))
    made: list[torch.dtype] = []
    plain = torch.mm
    monkeypatch.setattr(torch, "mm", lambda one, two: made.append(one.dtype) or plain(one, two))
    work, operations = roofline.products(torch.bfloat16, torch.device("cpu"), count=2)
    work(0)
    assert made == [torch.bfloat16] * 2
    assert operations == 2 * 2 * 16**3
