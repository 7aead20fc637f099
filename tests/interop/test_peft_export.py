"""Prefixes become folders that PEFT loads, without any number changing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from foreword import BaseModel
from foreword.base.kv_cache import cache_argument
from foreword.errors import (
    CannotWrite,
    NotExportable,
    OutputExists,
    WrongBaseModel,
)
from foreword.interop import export_peft, import_peft
from support import by_hand
from support.architectures.decoder_only import DECODER_ONLY_WORKING
from support.interop_models import CONFIGS, build
from support.peft_models import IDS, LENGTH, base_model, difference, logits
from support.stand_ins import byte_tokenizer, random_prefix

peft = pytest.importorskip("peft")


@pytest.fixture
def base() -> BaseModel:
    return base_model()


@pytest.mark.parametrize("name", CONFIGS)
def test_peft_loads_an_exported_prefix_and_gives_our_logits(name: str, tmp_path: Path) -> None:
    base = base_model(name)
    prefix = random_prefix(base, LENGTH)
    export_peft(prefix, tmp_path / "folder", base)
    model = peft.PeftModel.from_pretrained(build(name), tmp_path / "folder").eval()
    found = difference(logits(base, prefix), model)
    print(f"{name}: logits differ by at most {found:.1e}")
    assert found < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_prefix_that_goes_out_and_comes_back_is_the_same_bit_for_bit(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    base = base_model(name)
    prefix = random_prefix(base, LENGTH).to(dtype)
    export_peft(prefix, tmp_path / "folder", base)
    back = import_peft(tmp_path / "folder", base)
    assert back.dtype == dtype
    for tensor in prefix.tensors:
        assert torch.equal(back.tensors[tensor], prefix.tensors[tensor])


def test_what_peft_saves_again_is_what_was_exported(tmp_path: Path, base: BaseModel) -> None:
    prefix = random_prefix(base, LENGTH)
    export_peft(prefix, tmp_path / "folder", base)
    peft.PeftModel.from_pretrained(build("llama"), tmp_path / "folder").save_pretrained(
        tmp_path / "again", save_embedding_layers=False
    )
    first, again = (load_file(tmp_path / f / "adapter_model.safetensors") for f in ("folder", "again"))
    assert torch.equal(first["prompt_embeddings"], again["prompt_embeddings"])


def test_every_field_of_the_config_is_one_that_peft_knows(tmp_path: Path, base: BaseModel) -> None:
    export_peft(random_prefix(base, LENGTH), tmp_path / "folder", base)
    written = json.loads((tmp_path / "folder" / "adapter_config.json").read_text())
    config = peft.PeftConfig.from_pretrained(tmp_path / "folder")
    assert set(written) <= set(config.to_dict())
    assert (config.peft_type, config.task_type, config.inference_mode) == ("PREFIX_TUNING", "CAUSAL_LM", True)
    assert config.base_model_name_or_path == "tiny-llama"
    assert config.num_virtual_tokens == LENGTH


@pytest.mark.skipif(
    cache_argument(LlamaForCausalLM) == "cache",
    reason="PEFT 0.21.2 hands `generate` a `past_key_values`, which this transformers leaves for its own `cache`",
)
def test_peft_generates_with_an_exported_prefix_what_we_generate(tmp_path: Path, base: BaseModel) -> None:
    prefix = random_prefix(base, LENGTH)
    export_peft(prefix, tmp_path / "folder", base)
    model = peft.PeftModel.from_pretrained(build("llama"), tmp_path / "folder").eval()
    ids = IDS[:1]
    made = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False
    )[0, ids.shape[1] :].tolist()
    expected = by_hand.greedy(base.model, ids[0].tolist(), by_hand.layers_of(prefix), 8, frozenset({0}))
    assert [token for token in made if token != 0] == expected


def test_the_base_answers_alone_while_an_exported_prefix_is_disabled(tmp_path: Path, base: BaseModel) -> None:
    export_peft(random_prefix(base, LENGTH), tmp_path / "folder", base)
    plain = build("llama")
    with torch.no_grad():
        alone = plain(input_ids=IDS).logits
        model = peft.PeftModel.from_pretrained(build("llama"), tmp_path / "folder").eval()
        with model.disable_adapter():
            torch.testing.assert_close(model(input_ids=IDS).logits, alone)
        assert (model(input_ids=IDS).logits - alone).abs().max() > 0.1


def test_the_page_beside_it_tells_the_template(tmp_path: Path, base: BaseModel) -> None:
    export_peft(random_prefix(base, LENGTH), tmp_path / "folder", base)
    page = (tmp_path / "folder" / "README.md").read_text()
    assert r'then `"\n"`, then the target' in page
    assert "<end>" in page
    assert "library_name: peft" in page


def test_a_prefix_of_an_encoder_decoder_is_not_exported(tmp_path: Path) -> None:
    from transformers import BartConfig, BartForConditionalGeneration

    config = BartConfig(vocab_size=97, d_model=16, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=16)
    model = BartForConditionalGeneration(config)
    base = BaseModel(model, byte_tokenizer(), name="tiny-bart")
    with pytest.raises(NotExportable, match="decoder, encoder, cross"):
        export_peft(random_prefix(base, LENGTH), tmp_path / "folder", base)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "why"), [("Gemma 4 26B-A4B, 31B", "get no prefix"), ("MiMo-V2-Flash", "one size for both")]
)
def test_what_peft_would_not_give_to_every_layer_is_not_exported(name: str, why: str, tmp_path: Path) -> None:
    base = next(each for each in DECODER_ONLY_WORKING if each.name == name).base
    with pytest.raises(NotExportable, match=why):
        export_peft(random_prefix(base, LENGTH), tmp_path / "folder", base)
    assert list(tmp_path.iterdir()) == []


def test_a_prefix_of_other_weights_is_not_exported(tmp_path: Path, base: BaseModel) -> None:
    with pytest.raises(WrongBaseModel):
        export_peft(random_prefix(base_model(seed=1), LENGTH), tmp_path / "folder", base)
    assert list(tmp_path.iterdir()) == []


def test_an_export_replaces_only_an_earlier_export_and_only_when_asked(
    tmp_path: Path, base: BaseModel
) -> None:
    folder = tmp_path / "folder"
    export_peft(random_prefix(base, LENGTH), folder, base)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    other = random_prefix(base, 2, seed=9)
    with pytest.raises(OutputExists, match="--overwrite"):
        export_peft(other, folder, base)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    export_peft(other, folder, base, overwrite=True)
    assert torch.equal(import_peft(folder, base).key(), other.key())
    (folder / "diary.txt").write_text("mine")
    with pytest.raises(CannotWrite, match=r"diary\.txt"):
        export_peft(other, folder, base, overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_an_export_that_fails_leaves_nothing(
    tmp_path: Path, base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CannotWrite, match="does not exist"):
        export_peft(random_prefix(base, LENGTH), tmp_path / "no" / "folder", base)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    folder = tmp_path / "folder"
    export_peft(random_prefix(base, LENGTH), folder, base)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    monkeypatch.setattr("os.fsync", full)
    for target in (folder, tmp_path / "new"):
        with pytest.raises(CannotWrite, match="No space left"):
            export_peft(random_prefix(base, 2), target, base, overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
