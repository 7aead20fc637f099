"""Hybrids: a prefix enters attention alone, states stay each row's own, and what can't be so is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from foreword import BaseModel, Prefix, generate
from foreword.base.loss import target_losses
from foreword.base.prefix_batch import PrefixBatch
from foreword.encoding import EncodedExample
from foreword.errors import ForeignFormat, NotExportable, UnsupportedArchitecture
from foreword.interop import export_peft, import_peft
from foreword.research.baselines.prompting import behind
from foreword.serving.engine.local import LocalEngine
from foreword.serving.vllm.engine import check_base
from support.architectures.hybrids import HYBRID_WORKING
from support.by_hand import logits
from support.by_hand_attention import greedy, token_losses
from support.stand_ins import byte_tokenizer, random_examples, random_prefix

BY_TYPE = {each.model_type: each for each in HYBRID_WORKING}
PROMPTS = ["a", "some longer prompt here", "hello"]


def lfm2(bias: bool = False) -> Any:
    """Without a bias, or with one that its convolutions make a state of, even of padding."""
    model = BY_TYPE["lfm2"].model()
    if bias:
        for layer in model.model.layers[::2]:
            layer.conv.in_proj.bias = nn.Parameter(torch.linspace(-1, 1, layer.conv.in_proj.out_features))
    return model


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return BY_TYPE["lfm2"].base


def test_a_prefix_counts_the_attention_layers_alone(base: BaseModel, tmp_path: Path) -> None:
    assert base.is_hybrid
    assert base.model.config.num_hidden_layers == 4
    prefix = random_prefix(base, 3)
    assert prefix.key().shape == (2, 2, 3, 8)
    prefix.save(tmp_path / "hybrid.prefix")
    loaded = Prefix.load(tmp_path / "hybrid.prefix")
    assert loaded.geometry.streams["decoder"].layers == 2
    loaded.check_fits(base.identity, base.geometry)


def test_rows_never_share_a_sequence(base: BaseModel) -> None:
    """End to end, the state of a row would run on into the next one."""
    examples = random_examples(3)
    rows = [base.template.source_ids(base.tokenizer, each.source) for each in examples]
    ids_1N = torch.tensor([[token for row in rows for token in row]])
    alone_TV = logits(base.model, rows[1], None)
    packed_TV = base.model(input_ids=ids_1N).logits[0, len(rows[0]) :][: len(rows[1])]
    assert (packed_TV - alone_TV).abs().max() > 0.1  # there would be something to see
    losses = base.token_losses(examples, layout="flat")
    for mine, own in zip(losses, (base.token_losses([each])[0] for each in examples), strict=True):
        torch.testing.assert_close(mine, own, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_type", ["qwen3_next", "granitemoehybrid", "lfm2"])
def test_a_row_beside_rows_of_ten_a_hundred_and_a_thousand_times_its_length(model_type: str) -> None:
    """Longer than the chunks in which states are computed."""
    base = BY_TYPE[model_type].base
    text = (7, 8, 9, 10, 6)
    rows = [EncodedExample((5,), (7,)), *(EncodedExample((5,), text * n + text[:4]) for n in (3, 39, 399))]
    assert [len(row.source_ids) + len(row.target_ids) for row in rows] == [2, 20, 200, 2000]
    prefix = random_prefix(base, 3)
    prefixes = PrefixBatch.stack([prefix, None, prefix, None], base.device)
    with torch.no_grad():
        found = target_losses(base.model, base.batch(rows, prefixes, "flat"), prefixes)
        for row, mine, tensors in zip(
            rows, found.split([1, 19, 199, 1999]), (prefix.tensors, None), strict=False
        ):
            alone = token_losses(base.model, row.source_ids, row.target_ids, tensors)
            torch.testing.assert_close(mine, alone, rtol=1e-5, atol=1e-5)


def test_rows_of_one_length_share_a_batch_where_padding_makes_a_state() -> None:
    base = BaseModel(lfm2(bias=True), byte_tokenizer(), name="biased")
    assert not base.pads_left
    assert BY_TYPE["lfm2"].base.pads_left
    prefixes = [random_prefix(base, 3), None, random_prefix(base, 5, seed=1)]
    texts = generate(base, PROMPTS, prefixes, max_new_tokens=4)
    for prompt, prefix, text in zip(PROMPTS, prefixes, texts, strict=True):
        ids = base.template.source_ids(base.tokenizer, prompt)
        expected = greedy(base.model, ids, None if prefix is None else prefix.tensors, 4, base.end_ids)
        assert text == base.tokenizer.decode(expected, skip_special_tokens=True)
    examples = random_examples(3)
    for left, right in zip(
        base.token_losses(examples, prefixes, layout="left"),
        base.token_losses(examples, prefixes, layout="right"),
        strict=True,
    ):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)


def test_a_prefix_moves_states_through_attention_alone() -> None:
    """Where attention hands nothing on to the layers behind it, a prefix changes nothing at all."""
    base = BaseModel(lfm2(bias=True), byte_tokenizer(), name="closed")
    prefix, examples = random_prefix(base, 4), random_examples(2)

    def same() -> bool:
        pairs = zip(base.token_losses(examples, prefix), base.token_losses(examples), strict=True)
        texts = [generate(base, PROMPTS, each, max_new_tokens=6) for each in (prefix, None)]
        return all(torch.equal(one, other) for one, other in pairs) and texts[0] == texts[1]

    assert not same()
    for layer in base.model.model.layers[1::2]:
        nn.init.zeros_(layer.self_attn.out_proj.weight)
    assert same()


def refuse(model: Any, match: str) -> None:
    with pytest.raises(UnsupportedArchitecture, match=match):
        BaseModel(model, byte_tokenizer(), name="refused")


def test_a_hybrid_that_counts_positions_on_its_own_is_refused() -> None:
    model = lfm2()
    rotary = model.model.rotary_emb.forward
    model.model.rotary_emb.forward = lambda hidden, position_ids: rotary(
        hidden, torch.arange(hidden.shape[1])[None]
    )
    refuse(model, "text behind its own cache is not what it is in one pass")


def test_a_hybrid_whose_angles_depend_on_the_farthest_row_is_refused() -> None:
    model = lfm2()
    rotary = model.model.rotary_emb.forward
    model.model.rotary_emb.forward = lambda hidden, position_ids: rotary(
        hidden, position_ids * (3 if position_ids.max() > 50 else 1)
    )
    refuse(model, "is changed by what is beside it")


def test_a_hybrid_whose_state_runs_on_into_the_next_row_is_refused() -> None:
    model = lfm2()
    layer = model.model.layers[0].conv
    plain = layer.forward
    layer.forward = lambda hidden_states, **options: plain(
        hidden_states + hidden_states[:, :1].roll(1, dims=0), **options
    )
    refuse(model, "a row without a prefix is changed by what is beside it or was before")


def test_a_hybrid_that_keeps_its_state_from_one_pass_to_the_next_is_refused() -> None:
    model = lfm2()
    layer = model.model.layers[0].conv
    plain, kept = layer.forward, [torch.zeros(())]

    def forward(hidden_states: torch.Tensor, **options: Any) -> torch.Tensor:
        moved = plain(hidden_states + kept[0], **options)
        kept[0] = hidden_states.mean()
        return moved

    layer.forward = forward
    refuse(model, "changed by what is beside it or was before")


def test_an_attention_layer_of_a_hybrid_that_computes_attention_itself_is_refused() -> None:
    model = lfm2()

    class Own(nn.Module):
        def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
            return hidden_states.cumsum(1), None

    model.model.layers[3].self_attn = Own()
    refuse(model, "1 of 2 decoder attention layers")


def test_attention_without_effect_is_refused() -> None:
    model = lfm2()
    for layer in model.model.layers[1::2]:
        nn.init.zeros_(layer.self_attn.out_proj.weight)
    refuse(model, "a prefix changes nothing")


@torch.no_grad()
def test_a_texts_own_keys_and_values_do_not_stand_for_it(base: BaseModel) -> None:
    """Why a prefix that promises to stand for a text is refused: the states have not read it."""
    text, behind_it = [5, 6, 7, 8], [9, 10, 11]
    begun = base.model(input_ids=torch.tensor([[*text, *behind_it]])).logits[0, len(text) :]
    cached = base.model(input_ids=torch.tensor([text]), use_cache=True).past_key_values
    own = [(cached.layers[layer].keys[0], cached.layers[layer].values[0]) for layer in (1, 3)]
    assert (logits(base.model, behind_it, own) - begun).abs().max() > 0.1
    with pytest.raises(UnsupportedArchitecture, match="does not stand for the text"):
        behind(base, text)


def test_what_takes_no_hybrid_says_so(base: BaseModel, tmp_path: Path) -> None:
    with pytest.raises(NotExportable, match="is a hybrid"):
        export_peft(random_prefix(base, 3), tmp_path / "peft", base)
    flat_PN = torch.ones(3, 2 * 4 * 2 * 8)
    save_file({"prompt_embeddings": flat_PN}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "PREFIX_TUNING", "num_layers": 4}')
    with pytest.raises(ForeignFormat, match="which is a hybrid: PEFT puts keys and values into every layer"):
        import_peft(tmp_path, base)
    with pytest.raises(UnsupportedArchitecture, match="can't be served by vLLM .* it is a hybrid"):
        check_base(base)
    with pytest.raises(UnsupportedArchitecture, match="can't be served by the local engine"):
        LocalEngine(base)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model_type", ["qwen3_next", "granitemoehybrid", "lfm2"])
def test_sixteen_bits_are_no_reason_to_refuse(model_type: str, dtype: torch.dtype) -> None:
    BaseModel(BY_TYPE[model_type].model().to(dtype), byte_tokenizer(), name="half")
