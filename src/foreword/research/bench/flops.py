"""FLOPs: what work with frozen weights has to compute, counted on real tokens.

A product of a weight `[O, I]` with one token is 2·O·I operations forward, and as many backward for the
gradient of its input; a frozen weight needs no gradient of its own, which saves the third that is usual
(2, 4 and 6 operations per weight and token: Kaplan et al. 2020, section 2.1, counts 2 forward and 4
backward). Attention of a token to one key is 4·D operations of each head forward (query by key, weight by
value) and 8·D backward. Logits are counted where there is a target, padding nowhere. Softmax, norms and
activations are not counted: they are not matrix products. It is the work of rows that share nothing: what
rows begin with in common, Foreword computes once, and its share of the limit is so much the higher.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from foreword.base.base_model import BaseModel
from foreword.encoding import EncodedExample
from foreword.errors import UnsupportedArchitecture

OVERLOOKED = 0.01
"""Share of a model's matrices that may belong to no product that is counted here: small convolutions."""


def training_step(base: BaseModel, rows: Sequence[EncodedExample], length: int) -> int:
    """Operations of one step of a decoder-only base behind prefixes of `length` (P).

    The backward pass of the first layer's inputs is counted, though nothing needs it: less than a
    hundredth of the whole in a model of thirty layers.
    """
    return 3 * _attention(base, [row.tokens for row in rows], length) + 2 * _products(
        base, sum(row.tokens for row in rows), sum(len(row.target_ids) for row in rows)
    )


def generation(base: BaseModel, prompts: Sequence[int], length: int, new_tokens: int) -> int:
    """Operations of `new_tokens` after prompts of so many tokens each, behind prefixes of `length` (P).

    Keys and values are cached, and the last new token is read by nobody.
    """
    read = [tokens + new_tokens - 1 for tokens in prompts]
    return _attention(base, read, length) + _products(base, sum(read), new_tokens * len(prompts))


def weight_bytes(base: BaseModel) -> int:
    """What one forward pass has to read at least: every weight of a product, once."""
    return sum(weight.nbytes for weight in [*_weights(base), _head(base)])


def weights_of(base: BaseModel) -> Iterator[tuple[str, nn.Module]]:
    """Names and modules of all products but the logits."""
    head = base.model.get_output_embeddings()
    for name, module in base.model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not head:
            yield name, module


def check_countable(base: BaseModel) -> None:
    """See that the model's weights are those of products that are counted here.

    Raises:
        UnsupportedArchitecture: they are not, as those of experts that only some tokens meet.
    """
    embeddings = (m.weight for m in base.model.modules() if isinstance(m, nn.Embedding))
    counted = {id(weight) for weight in (*_weights(base), _head(base), *embeddings)}
    numbers = {
        id(p): p.numel() for p in base.model.parameters() if p.dim() > 1
    }  # norms and biases are vectors
    missed = sum(number for own, number in numbers.items() if own not in counted)
    if missed > OVERLOOKED * sum(numbers.values()):
        raise UnsupportedArchitecture(
            f"{base.name}: {missed} of {sum(numbers.values())} weights belong to no linear layer, so what "
            "they compute can't be counted; take a base whose every token meets the same linear layers"
        )


def _products(base: BaseModel, texts: int, targets: int) -> int:
    inner = sum(int(weight.numel()) for weight in _weights(base))
    return 2 * inner * texts + 2 * int(_head(base).numel()) * targets


def _attention(base: BaseModel, texts: Sequence[int], length: int) -> int:
    config = base.model.config.get_text_config(decoder=True)
    geometry = base.geometry.streams["decoder"]
    pairs = sum(tokens * (tokens + 1) // 2 + tokens * length for tokens in texts)
    sizes = geometry.key_dim + geometry.value_dim
    return int(2 * sizes * config.num_attention_heads * geometry.layers * pairs)


def _weights(base: BaseModel) -> list[Any]:
    return [module.weight for _, module in weights_of(base)]


def _head(base: BaseModel) -> Any:
    return base.model.get_output_embeddings().weight
