"""PEFT's methods: LoRA in a copy of the model, prefix and prompt tuning as prefixes.

PEFT makes the modules and their beginnings. The pass, the batches and the decoding are those of the other
methods; losses and gradients are those of PEFT's own forward pass (tested).

Shapes: P prefix length, E embedding size.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from foreword.base.base_model import BaseModel
from foreword.base.prefix_batch import KeyValues
from foreword.errors import UnsupportedArchitecture
from foreword.interop.conversion import from_flat
from foreword.research.baselines.fine_tuning import Weights, sharing_copy
from foreword.research.baselines.prefix import Prefixed
from foreword.research.baselines.protocol import AdapterInputs, check_decoder_only
from foreword.training.embedding import compile_embeddings, starting_embeddings
from foreword.training.settings import DEFAULT_WORDS, Initialization

PROJECTION_WIDTH = 512
"""Of PEFT's network with `prefix_projection`: the paper's for tables."""

SCALE = 2
"""LoRA's alpha over its rank."""


def lora(rank: int | None) -> Callable[[AdapterInputs], Weights]:
    """LoRA in the modules that PEFT chooses for the architecture; rank None: as many numbers as a prefix."""

    def begin(inputs: AdapterInputs) -> Weights:
        from peft import get_peft_model

        base, config = inputs.base, _lora_config(rank or equal_rank(inputs.base, inputs.length))
        check_decoder_only(base, "PEFT's methods")
        with _seeded(inputs.seed), _refusals(base):
            model = get_peft_model(sharing_copy(base), config).get_base_model()
        model.eval()
        return Weights(base, model, [weight for weight in model.parameters() if weight.requires_grad])

    return begin


def equal_rank(base: BaseModel, length: int) -> int:
    """The largest rank at which LoRA trains no more numbers than a prefix of `length` has; at least 1."""
    from peft import inject_adapter_in_model

    with _seeded(0), _refusals(base):
        model = inject_adapter_in_model(_lora_config(1), sharing_copy(base))
    per_rank: int = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    return max(1, int(base.geometry.parameters(length)) // per_rank)


def peft_prefix(*, projection: bool) -> Callable[[AdapterInputs], Prefixed]:
    """PEFT's prefix tuning, as PEFT begins it: directly from N(0, 1), or through its network."""

    def begin(inputs: AdapterInputs) -> Prefixed:
        from peft import PrefixTuningConfig

        config = PrefixTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=inputs.length,
            prefix_projection=projection,
            encoder_hidden_size=PROJECTION_WIDTH if projection else None,
        )
        encoder = PeftEncoder(inputs.base, *_prompt_encoder(inputs, config), embeds=False)
        return Prefixed(inputs.base, encoder, inputs.base.template)

    return begin


def prompt_tuning(inputs: AdapterInputs) -> Prefixed:
    """PEFT's prompt tuning: input embeddings, from the same words that our prefixes begin with."""
    from peft import PromptTuningConfig

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=inputs.length)
    encoder, tokens_P = _prompt_encoder(inputs, config)
    words = Initialization("words", DEFAULT_WORDS)
    with torch.no_grad():  # what PEFT's own TEXT does, which reads the tokenizer from a folder again
        encoder.embedding.weight.copy_(
            starting_embeddings(inputs.base, words, inputs.length, inputs.rows, inputs.seed)
        )
    compiled = PeftEncoder(inputs.base, encoder, tokens_P, embeds=True)
    return Prefixed(inputs.base, compiled, inputs.base.template)


class PeftEncoder(nn.Module):
    """PEFT's encoder: its numbers are keys and values in the layout of PEFT's cache, or (`embeds`) embeddings
    `[P, E]`, of which one pass of the base model makes keys and values."""

    def __init__(self, base: BaseModel, encoder: nn.Module, tokens_P: torch.Tensor, *, embeds: bool) -> None:
        super().__init__()
        self.encoder, self.base, self.embeds = encoder, base, embeds
        self.register_buffer("tokens_P", tokens_P)

    def forward(self) -> KeyValues:
        """Keys and values `[L, H, P, D]`."""
        numbers = self.encoder(self.tokens_P)
        if self.embeds:
            return compile_embeddings(self.base, numbers)
        sizes = self.base.geometry.streams["decoder"]
        return {"decoder": from_flat(numbers, sizes, where="PEFT's encoder")}


def _lora_config(rank: int) -> Any:
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=SCALE * rank, lora_dropout=0.0)


def _prompt_encoder(inputs: AdapterInputs, config: Any) -> tuple[Any, torch.Tensor]:
    from peft import get_peft_model

    check_decoder_only(inputs.base, "PEFT's methods")
    with _seeded(inputs.seed), _refusals(inputs.base):
        model = get_peft_model(sharing_copy(inputs.base), config)
    return model.prompt_encoder["default"], model.prompt_tokens["default"]


@contextlib.contextmanager
def _refusals(base: BaseModel) -> Iterator[None]:
    """What PEFT does not know of an architecture, as an error of ours.

    Raises:
        UnsupportedArchitecture: with PEFT's own words.
    """
    try:
        yield
    except (ValueError, NotImplementedError) as error:
        raise UnsupportedArchitecture(
            f"PEFT has no such method for {base.name}: {error}. Leave the method out"
        ) from error


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """PEFT draws from torch's global generator: seeded here, and left as it was for everybody else."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        yield
