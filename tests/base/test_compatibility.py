"""What can't carry a prefix is refused by name when it is loaded, never served wrongly, in 16 bits too."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from foreword import BaseModel, Example
from foreword.encoding import encode_example
from foreword.errors import UnsupportedArchitecture
from support.architectures.decoder_only import DECODER_ONLY_WORKING
from support.architectures.encoder_decoder import ENCODER_DECODER_WORKING
from support.architectures.hybrids import HYBRID_WORKING
from support.architectures.refused import REFUSED
from support.architectures.zoo import EXPERTS, Architecture
from support.by_hand_attention import token_losses
from support.stand_ins import byte_tokenizer, random_prefix, tiny_llama

WORKING = DECODER_ONLY_WORKING + HYBRID_WORKING + ENCODER_DECODER_WORKING
BY_TYPE = {each.model_type: each for each in WORKING}


CHANGED = [each for each in REFUSED if each.changed]


@pytest.mark.parametrize("architecture", [e for e in REFUSED if not e.changed], ids=lambda each: each.name)
def test_refused_in_memory_and_from_a_folder(architecture: Architecture, tmp_path: Path) -> None:
    model = architecture.model()
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    refuse(model, architecture.refused)
    with pytest.raises(UnsupportedArchitecture):
        BaseModel.load(tmp_path, device="cpu", dtype="bfloat16")


@pytest.mark.parametrize("architecture", CHANGED, ids=lambda each: each.name)
def test_what_newer_releases_of_transformers_changed_is_refused_or_right(architecture: Architecture) -> None:
    model = architecture.model()
    if not model._can_set_attn_implementation():  # of its own code
        refuse(model, architecture.refused)
        return
    base = BaseModel(model, byte_tokenizer(), name="changed")
    example, prefix = Example("a source", "a target"), random_prefix(base, 3)
    (found,) = base.token_losses([example], prefix)
    row, _ = encode_example(example, base.tokenizer, prefix.template)
    with torch.no_grad():
        expected = token_losses(base.model, row.source_ids, row.target_ids, prefix.tensors)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def refuse(model: Any, match: str | None) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        with pytest.raises(UnsupportedArchitecture, match=match):
            BaseModel(model.to(dtype), byte_tokenizer(), name="refused")


def test_a_model_that_counts_positions_on_its_own_is_refused() -> None:
    model = tiny_llama()
    rotary = model.model.rotary_emb.forward
    model.model.rotary_emb.forward = lambda hidden, position_ids: rotary(
        hidden, torch.arange(hidden.shape[1])[None]
    )
    refuse(model, "counts positions")


def test_a_model_that_makes_its_own_mask_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama import modeling_llama

    def all_open(config: Any, inputs_embeds: torch.Tensor, **_: Any) -> torch.Tensor:
        tokens = inputs_embeds.shape[1]
        return torch.ones(1, 1, tokens, tokens, dtype=torch.bool)

    monkeypatch.setattr(modeling_llama, "create_causal_mask", all_open)
    refuse(tiny_llama(), "fails with a prefix in front|makes masks on its own")


def test_a_model_that_carries_text_beside_attention_is_refused() -> None:
    model = tiny_llama()
    layer = model.model.layers[1]
    plain = layer.mlp.forward
    # A token sees the one in front of it, as with a convolution.
    layer.mlp.forward = lambda hidden: plain(hidden + 0.5 * hidden.roll(1, dims=1))
    refuse(model, "Something beside attention carries the text")


def test_a_layer_that_computes_attention_itself_is_refused() -> None:
    model = tiny_llama()

    class Own(nn.Module):
        def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
            return hidden_states.cumsum(1), None

    model.model.layers[1].self_attn = Own()
    refuse(model, "2 of 3 decoder")


def test_an_idle_stream_of_an_encoder_decoder_is_refused() -> None:
    model = BY_TYPE["bart"].model()
    for layer in model.model.decoder.layers:
        nn.init.zeros_(layer.encoder_attn.out_proj.weight)
    refuse(model, "a prefix in encoder, cross attention changes nothing")


def test_a_decoder_that_is_not_causal_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.bart import modeling_bart

    monkeypatch.setattr(
        modeling_bart,
        "create_causal_mask",
        lambda **options: modeling_bart.create_bidirectional_mask(
            **{name: value for name, value in options.items() if name != "position_ids"}
        ),
    )
    refuse(BY_TYPE["bart"].model(), "changed by the tokens behind it")


def test_a_running_sum_beside_attention_is_refused() -> None:
    """Of each token's own states and a share of those in front of it: less than what attention carries."""
    model = tiny_llama()
    for layer in model.model.layers:
        plain = layer.mlp.forward
        layer.mlp.forward = lambda hidden, plain=plain: (own := plain(hidden)) + 0.3 * (own.cumsum(1) - own)
    refuse(model, "Something beside attention carries the text")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model_type", ["llama", "mixtral", "gemma2", "gpt_oss", "bart", "t5"])
def test_sixteen_bits_are_no_reason_to_refuse(model_type: str, dtype: torch.dtype) -> None:
    whole, half = BY_TYPE[model_type].base, BY_TYPE[model_type].model().to(dtype)
    assert BaseModel(half, byte_tokenizer(), name="half").positions == whole.positions


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
DEEP = {"num_hidden_layers": 32, "num_attention_heads": 8, "hidden_size": 64, "initializer_range": 0.02}


@pytest.mark.parametrize(
    ("model_type", "more"),
    [
        ("llama", {"rope_parameters": LLAMA3}),
        ("qwen3_moe", {**EXPERTS, "num_experts": 16, "num_experts_per_tok": 4}),
        ("gemma3_text", {"num_hidden_layers": 18, "sliding_window": 512, "query_pre_attn_scalar": 8}),
    ],
)
def test_depth_is_no_reason_to_refuse_in_sixteen_bits(model_type: str, more: dict[str, Any]) -> None:
    """As deep as models that people run, where rounding adds up, and with as small weights."""
    half = Architecture("deep", model_type, {**DEEP, **more}).model().to(torch.bfloat16)
    BaseModel(half, byte_tokenizer(), name="deep")


@pytest.mark.parametrize(
    "name",
    [
        *("gpt2", "llama", "mixtral", "gemma3_text", "deepseek_v3", "gpt_oss", "cohere2", "bart"),
        *("gemma4_text", "qwen3_next", "granitemoehybrid", "lfm2"),
    ],
)
def test_sizes_are_the_same_without_weights(name: str) -> None:
    base = BY_TYPE[name].base
    with torch.device("meta"):
        model = type(base.model)._from_config(copy.deepcopy(base.model.config), dtype=torch.bfloat16)
    found = BaseModel(model, base.tokenizer, name="without weights")
    assert found.geometry == base.geometry
    assert found.positions == base.positions
    assert (found.max_positions, found.takes_positions) == (base.max_positions, base.takes_positions)


def test_what_no_trial_shows_is_refused_without_weights_too() -> None:
    config = copy.deepcopy(BY_TYPE["llama4_text"].base.model.config)
    config.attn_temperature_tuning = True
    with torch.device("meta"):
        model = type(BY_TYPE["llama4_text"].base.model)._from_config(config, dtype=torch.bfloat16)
    with pytest.raises(UnsupportedArchitecture, match="attn_temperature_tuning"):
        BaseModel(model, byte_tokenizer(), name="without weights")
