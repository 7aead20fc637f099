"""The keys and values that training starts from: random ones, or the model's own for a text.

The model's own come from one forward pass, read where the attention function sees them: behind the rotary
embedding, at positions from 0.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import torch

from foreword.base.attention import capture_kv
from foreword.base.base_model import BaseModel
from foreword.base.prefix_batch import KeyValues
from foreword.encoding import EncodedExample
from foreword.errors import UsageError
from foreword.prefix_sizes import Stream, stream_of
from foreword.training.settings import Initialization

RANDOM_SCALE = 0.02
"""Standard deviation of random keys and values.

N(0, 1), PEFT's default, lifts the loss of a frozen model far above that without a prefix; at 0.02
the prefix begins as a weak attention sink with almost no value. Measured in docs/defaults.md.
"""


def initial_key_values(
    base: BaseModel,
    initialization: Initialization,
    length: int | Mapping[Stream, int],
    examples: Sequence[EncodedExample],
    seed: int,
) -> KeyValues:
    """Keys and values by place (prefix_sizes.py) to start from, float32 on the CPU.

    Args:
        length: P, of all streams of the base, or of those that shall begin.

    Raises:
        UsageError: a text without tokens.
    """
    lengths = length if isinstance(length, Mapping) else dict.fromkeys(base.geometry.streams, length)
    if initialization.kind == "random":
        return _random(base, lengths, seed)
    longest = max(lengths.values())
    source_ids, target_ids = starting_ids(base, initialization, longest, examples, seed)
    key_values = activations(base, source_ids, target_ids, longest)
    return {
        place: (key[..., :own, :], value[..., :own, :])
        for stream, own in lengths.items()
        for place, (key, value) in key_values.items()
        if stream_of(place) == stream
    }


def starting_ids(
    base: BaseModel,
    initialization: Initialization,
    length: int,
    examples: Sequence[EncodedExample],
    seed: int,
) -> tuple[list[int], list[int]]:
    """The first `length` tokens of an initialisation from text: of the source, and of a decoder's own text.

    Raises:
        UsageError: a text without tokens.
    """
    if initialization.kind == "demonstrations":
        source_ids, target_ids = _demonstrations(examples, length, seed, apart=base.is_encoder_decoder)
    else:
        ids = base.tokenizer(initialization.text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise UsageError(f"init text {initialization.text!r} has no tokens")
        if base.template.begin:  # such models expect it first: it is their attention sink
            ids = [base.tokenizer.bos_token_id, *ids]
        repeated = (ids * (length // len(ids) + 1))[:length]
        source_ids, target_ids = repeated, repeated
    if base.is_encoder_decoder:  # so does its decoder
        target_ids = [base.start_id, *target_ids][:length]
    base.check_ids([*source_ids, *target_ids], "what training starts from")
    return source_ids, target_ids


@torch.no_grad()
def activations(
    base: BaseModel, source_ids: Sequence[int], target_ids: Sequence[int], length: int
) -> KeyValues:
    """The base model's own keys and values, by place, at the first `length` tokens of a text.

    Args:
        source_ids: the text of a decoder-only model, or of the encoder.
        target_ids: the decoder's text of an encoder-decoder.
    """
    inputs = {"input_ids": torch.tensor([list(source_ids)], device=base.device)}
    if base.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.tensor([list(target_ids)], device=base.device)
        # Said outright: some take a start token that is also the padding token for padding.
        inputs["decoder_attention_mask"] = torch.ones_like(inputs["decoder_input_ids"])
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return capture_kv(base.model, inputs, length)[1]


def _random(base: BaseModel, lengths: Mapping[Stream, int], seed: int) -> KeyValues:
    generator = torch.Generator().manual_seed(seed)

    def draw(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * RANDOM_SCALE

    shapes = base.geometry.shapes(lengths)
    return {place: (draw(key_shape), draw(value_shape)) for place, (key_shape, value_shape) in shapes.items()}


def _demonstrations(
    examples: Sequence[EncodedExample], length: int, seed: int, *, apart: bool
) -> tuple[list[int], list[int]]:
    """Token ids of shuffled training examples, source and target, until there are enough.

    Args:
        apart: targets are read by a decoder of their own, and do not follow the sources.
    """
    order = list(range(len(examples)))
    random.Random(seed).shuffle(order)
    source_ids: list[int] = []
    target_ids: list[int] = []
    while min(len(source_ids), len(target_ids)) < length:  # repeats when the examples are few
        for index in order:
            example = examples[index]
            source_ids.extend(example.source_ids if apart else (*example.source_ids, *example.target_ids))
            target_ids.extend(example.target_ids)
            if min(len(source_ids), len(target_ids)) >= length:
                break
    return source_ids[:length], target_ids[:length]
