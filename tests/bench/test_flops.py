"""The count of operations, against torch's own counter and against counting one by one."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from foreword import BaseModel
from foreword.bench import flops
from foreword.encoding import EncodedExample
from stand_ins import byte_tokenizer, tiny_llama

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
    everywhere = EncodedExample((5,), tuple(range(1, tokens + 1)))  # a target at every token
    assert everywhere.tokens == tokens
    # Nothing needs the gradient of the first layer's inputs: its queries, keys and values end there.
    hidden, heads, kv_heads, size = 32, 4, 2, 8
    unneeded = 2 * tokens * hidden * (heads + 2 * kv_heads) * size
    assert counted == 2 * flops._products(base, [everywhere]) - unneeded


def test_attention_is_counted_pair_by_pair() -> None:
    base = BaseModel(tiny_llama(), byte_tokenizer(), name="tiny-llama")
    operations = 0
    for _layer in range(3):
        for _head in range(4):
            for token in range(ROW.tokens):
                for _key in range(2 + token + 1):  # the prefix, the tokens before, itself
                    operations += 2 * 8 + 2 * 8  # query by key; weight by value
    assert flops._attention(base, [ROW], 2) == operations
    assert flops.training_step(base, [ROW, ROW], 2) == 2 * (3 * operations + 2 * flops._products(base, [ROW]))


def test_logits_are_counted_where_there_is_a_target() -> None:
    base = BaseModel(tiny_llama(), byte_tokenizer(), name="tiny-llama")
    longer = EncodedExample(ROW.source_ids[:-1], (4, *ROW.target_ids))
    assert longer.tokens == ROW.tokens
    assert flops._products(base, [longer]) - flops._products(base, [ROW]) == 2 * 32 * 97
