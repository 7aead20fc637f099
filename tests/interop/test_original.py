"""The original code's checkpoints, made and read here as gpt2/train_control.py and seq2seq/prefixTuning.py do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BartConfig, BartForConditionalGeneration, DynamicCache

from foreword import BaseModel
from foreword.base.attention import AttentionContext, attention_context
from foreword.base.prefix_batch import PrefixBatch
from foreword.errors import CannotRead, ForeignFormat, GeometryMismatch, NonFinitePrefix, UnsafePickle
from foreword.interop import import_prefix_tuning
from support import by_hand
from support.interop_models import VOCABULARY, build
from support.original_checkpoints import LENGTH, MIDDLE, PrefixTuning, save
from support.stand_ins import byte_tokenizer

IDS = torch.randint(1, VOCABULARY, (1, 9), generator=torch.Generator().manual_seed(5))


def gpt2_logits(base: BaseModel, past_key_values: Any) -> torch.Tensor:
    cache = DynamicCache()
    for layer, (key, value) in enumerate(past_key_values):
        cache.update(key, value, layer)
    base.model.set_attn_implementation("eager")
    with torch.no_grad():
        return base.model(input_ids=IDS, past_key_values=cache).logits[0]


@pytest.fixture
def base() -> BaseModel:
    return BaseModel(build("gpt2"), byte_tokenizer(), name="tiny-gpt2")


@pytest.fixture
def module() -> PrefixTuning:
    torch.manual_seed(2)
    return PrefixTuning(3, 4, 8)


@pytest.mark.parametrize("deep", [False, True])
def test_an_imported_checkpoint_gives_the_logits_of_its_past_key_values(
    deep: bool, base: BaseModel, tmp_path: Path
) -> None:
    module = PrefixTuning(3, 4, 8, deep=deep)
    prefix = import_prefix_tuning(save(module, tmp_path / "checkpoint"), base)
    assert prefix.length == LENGTH
    with torch.no_grad():
        mine = by_hand.logits(base.model, IDS[0].tolist(), by_hand.layers_of(prefix))
        theirs = gpt2_logits(base, module.get_prompt())
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


def test_the_file_alone_will_do_as_well(base: BaseModel, module: PrefixTuning, tmp_path: Path) -> None:
    folder = save(module, tmp_path / "checkpoint")
    from_folder, from_file = (import_prefix_tuning(p, base) for p in (folder, folder / "pytorch_model.bin"))
    assert torch.equal(from_folder.key(), from_file.key())


@pytest.mark.parametrize("form", ["flat", "words"])
def test_a_prefix_trained_without_the_network_is_imported(
    form: str, base: BaseModel, module: PrefixTuning, tmp_path: Path
) -> None:
    """init_shallow: get_prompt_p2 keeps it flat, get_prompt_p2_shallow as the cache of some words."""
    with torch.no_grad():
        past_key_values = module.get_prompt()
        cached = torch.cat(past_key_values, dim=0)
    states = cached if form == "words" else cached.permute(1, 3, 0, 2, 4).flatten()
    torch.save({"control_trans": states.clone()}, tmp_path / "shallow.bin")
    prefix = import_prefix_tuning(tmp_path / "shallow.bin", base)
    for layer, (key, value) in enumerate(by_hand.layers_of(prefix)):
        assert torch.equal(key, past_key_values[layer][0, 0])
        assert torch.equal(value, past_key_values[layer][1, 0])


def bart(encoder_layers: int = 3) -> BaseModel:
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=VOCABULARY,
        d_model=32,
        encoder_layers=encoder_layers,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=64,
        init_std=0.15,
    )
    return BaseModel(BartForConditionalGeneration(config).eval(), byte_tokenizer(), name="tiny-bart")


@pytest.mark.parametrize("encoder_layers", [2, 3])
def test_each_network_of_bart_becomes_its_stream(encoder_layers: int, tmp_path: Path) -> None:
    torch.manual_seed(2)
    module = PrefixTuning(3, 4, 8, sets=("", "_enc", "2"))
    prefix = import_prefix_tuning(save(module, tmp_path / "checkpoint"), bart(encoder_layers))
    for stream, suffix, layers in (
        ("decoder", "", 3),
        ("encoder", "_enc", encoder_layers),
        ("cross", "2", 3),
    ):
        made = module.get_prompt(suffix)
        assert prefix.key(stream).shape == (layers, 4, LENGTH, 8)
        for layer in range(layers):
            torch.testing.assert_close(prefix.key(stream)[layer], made[layer][0, 0].detach())
            torch.testing.assert_close(prefix.value(stream)[layer], made[layer][1, 0].detach())


def test_an_imported_bart_prefix_gives_the_logits_of_keys_put_in_front_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Independent of our attention: torch.cat before transformers' own, as the original's modeling_bart does."""
    torch.manual_seed(2)
    module, base = PrefixTuning(3, 4, 8, sets=("", "_enc", "2")), bart()
    prefix = import_prefix_tuning(save(module, tmp_path / "checkpoint"), base)
    source, target = IDS, IDS[:, :5]
    inputs = {"input_ids": source, "decoder_input_ids": target, "use_cache": False}
    with (
        torch.no_grad(),
        attention_context(AttentionContext(prefixes=PrefixBatch.stack([prefix], base.device))),
    ):
        mine = base.model(**inputs).logits

    plain = bart().model
    plain.set_attn_implementation("eager")
    from transformers.models.bart import modeling_bart

    own, parts = modeling_bart.eager_attention_forward, {}
    for index in range(3):
        parts[plain.model.decoder.layers[index].self_attn] = module.get_prompt("")[index]
        parts[plain.model.decoder.layers[index].encoder_attn] = module.get_prompt("2")[index]
        parts[plain.model.encoder.layers[index].self_attn] = module.get_prompt("_enc")[index]

    def with_prefix(layer: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        key, value = (
            torch.cat([part, own], dim=2) for part, own in zip(parts[layer], (key, value), strict=True)
        )
        if mask is not None:
            mask = nn.functional.pad(mask, (LENGTH, 0))
        return own(layer, query, key, value, mask, **kwargs)

    monkeypatch.setattr(modeling_bart, "eager_attention_forward", with_prefix)
    with torch.no_grad():
        theirs = plain(**inputs).logits
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


# -- what is refused -----------------------------------------------------------------------------


def test_an_encoder_of_more_layers_than_were_made_is_refused(tmp_path: Path) -> None:
    module = PrefixTuning(3, 4, 8, sets=("", "_enc", "2"))
    with pytest.raises(ForeignFormat, match="4 encoder layers and 3"):
        import_prefix_tuning(save(module, tmp_path / "checkpoint"), bart(encoder_layers=4))


def test_a_gpt2_checkpoint_is_refused_for_bart(module: PrefixTuning, tmp_path: Path) -> None:
    with pytest.raises(ForeignFormat, match=r"lacks wte_enc\.weight"):
        import_prefix_tuning(save(module, tmp_path / "checkpoint"), bart())


def test_a_base_of_another_shape_is_refused(module: PrefixTuning, tmp_path: Path) -> None:
    base = BaseModel(build("llama"), byte_tokenizer(), name="tiny-llama")
    with pytest.raises(GeometryMismatch, match=r"\[4, 192\].*2 key/value heads"):
        import_prefix_tuning(save(module, tmp_path / "checkpoint"), base)


def test_tensors_that_do_not_fit_each_other_are_refused(
    base: BaseModel, module: PrefixTuning, tmp_path: Path
) -> None:
    module.control_trans[0] = nn.Linear(31, MIDDLE)
    with pytest.raises(ForeignFormat, match=r"control_trans\.0\.weight.*\[6, 31\]"):
        import_prefix_tuning(save(module, tmp_path / "checkpoint"), base)


def test_the_embedding_only_and_the_infix_variants_are_refused(
    base: BaseModel, module: PrefixTuning, tmp_path: Path
) -> None:
    state = module.state_dict()
    torch.save({**state, "wte2.weight": state["wte.weight"]}, tmp_path / "infix.bin")
    with pytest.raises(ForeignFormat, match="infix"):
        import_prefix_tuning(tmp_path / "infix.bin", base)
    module.control_trans[2] = nn.Linear(MIDDLE, 32)
    torch.save(module.state_dict(), tmp_path / "embedding.bin")
    with pytest.raises(ForeignFormat, match="embedding-only"):
        import_prefix_tuning(tmp_path / "embedding.bin", base)


def test_a_fine_tuned_model_is_refused(base: BaseModel, tmp_path: Path) -> None:
    with pytest.raises(ForeignFormat, match="expected control_trans"):
        import_prefix_tuning(save(build("gpt2"), tmp_path / "checkpoint"), base)


def test_values_that_are_not_finite_are_refused(
    base: BaseModel, module: PrefixTuning, tmp_path: Path
) -> None:
    nn.init.constant_(module.control_trans[2].bias, float("inf"))
    with pytest.raises(NonFinitePrefix, match=r"pytorch_model\.bin"):
        import_prefix_tuning(save(module, tmp_path / "checkpoint"), base)


def test_a_pickle_that_would_run_code_does_not_run_it(base: BaseModel, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (open, (str(tmp_path / "was-run"), "w"))

    torch.save({"wte.weight": Bomb()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UnsafePickle):
        import_prefix_tuning(tmp_path, base)
    assert not (tmp_path / "was-run").exists()


def test_paths_without_a_checkpoint_are_refused(base: BaseModel, tmp_path: Path) -> None:
    with pytest.raises(CannotRead, match="not there"):
        import_prefix_tuning(tmp_path / "nowhere", base)
    with pytest.raises(ForeignFormat, match=r"none of pytorch_model\.bin"):
        import_prefix_tuning(tmp_path, base)


@pytest.mark.parametrize(
    "name", ["wte.weight", "control_trans.0.weight", "control_trans.0.bias", "control_trans.2.bias"]
)
def test_tensors_of_other_dimensions_are_named(
    name: str, base: BaseModel, module: PrefixTuning, tmp_path: Path
) -> None:
    tensors = module.state_dict()
    for other in (tensors[name].flatten()[0], tensors[name][None, None]):
        file = tmp_path / "pytorch_model.bin"
        torch.save({**tensors, name: other}, file)
        with pytest.raises(ForeignFormat, match=rf"{re.escape(name)} is .*expected a tensor of [12] dim"):
            import_prefix_tuning(file, base)
