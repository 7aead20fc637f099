"""PEFT's folders become prefixes without any number changing, and what is no prefix is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from foreword import BaseModel, Example
from foreword.errors import (
    CannotRead,
    ForeignFormat,
    ForewordWarning,
    GeometryMismatch,
    NonFinitePrefix,
    UnsafePickle,
)
from foreword.interop import import_peft
from support import by_hand
from support.architectures.decoder_only import DECODER_ONLY_WORKING
from support.interop_models import CONFIGS
from support.peft_models import IDS, LENGTH, base_model, difference, logits, peft_model

peft = pytest.importorskip("peft")


@pytest.fixture
def base() -> BaseModel:
    return base_model()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder as PEFT saves it; without a look at the hub for a vocabulary that may have grown."""
    folder = tmp_path / "saved"
    peft_model().save_pretrained(folder, save_embedding_layers=False)
    return folder


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize("name", CONFIGS)
def test_an_imported_prefix_gives_the_logits_that_peft_gives(name: str, tmp_path: Path) -> None:
    model = peft_model(name)
    model.save_pretrained(tmp_path / "saved", save_embedding_layers=False)
    base = base_model(name)
    prefix = import_peft(tmp_path / "saved", base)
    assert difference(logits(base, prefix), model) < 1e-5
    assert prefix.template.style == "raw"
    assert prefix.base == base.identity


@pytest.mark.parametrize("name", CONFIGS)
def test_our_own_attention_gives_the_losses_that_peft_gives(name: str, tmp_path: Path) -> None:
    model = peft_model(name)
    model.save_pretrained(tmp_path / "saved", save_embedding_layers=False)
    base = base_model(name)
    prefix = import_peft(tmp_path / "saved", base)
    example = Example("some source ", "and its target")
    (mine,) = base.token_losses([example], prefix)
    source, target = (base.tokenizer(text)["input_ids"] for text in (example.source, example.target))
    ids = torch.tensor([source + target])
    with torch.no_grad():
        predicted = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, len(source) - 1 : -1]
    theirs = torch.nn.functional.cross_entropy(predicted, torch.tensor(target), reduction="none")
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


def test_the_numbers_are_those_of_the_cache_that_peft_makes(saved: Path, base: BaseModel) -> None:
    prefix = import_peft(saved, base)
    cache = peft_model().get_prompt(batch_size=1)
    for layer, (key, value) in enumerate(by_hand.layers_of(prefix)):
        assert torch.equal(key, cache.layers[layer].keys[0])
        assert torch.equal(value, cache.layers[layer].values[0])


def test_a_projected_prefix_is_imported_as_the_projection_made_it(tmp_path: Path, base: BaseModel) -> None:
    config = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=LENGTH, prefix_projection=True, encoder_hidden_size=8
    )
    model = peft_model(config=config)
    model.save_pretrained(tmp_path / "saved", save_embedding_layers=False)
    assert difference(logits(base, import_peft(tmp_path / "saved", base)), model) < 1e-5


@pytest.mark.parametrize("frozen", [0, 1, 3])
def test_a_cartridge_is_imported_with_its_frozen_tokens_in_front(
    frozen: int, tmp_path: Path, base: BaseModel
) -> None:
    config = peft.CartridgeConfig(task_type="CAUSAL_LM", num_virtual_tokens=LENGTH, num_frozen_tokens=frozen)
    model = peft_model(config=config)
    model.save_pretrained(tmp_path / "saved", save_embedding_layers=False)
    prefix = import_peft(tmp_path / "saved", base)
    assert prefix.length == LENGTH
    assert difference(logits(base, prefix), model) < 1e-5


def test_a_pickle_of_tensors_is_imported_like_safetensors(saved: Path, base: BaseModel) -> None:
    expected = import_peft(saved, base)
    torch.save(load_file(saved / "adapter_model.safetensors"), saved / "adapter_model.bin")
    (saved / "adapter_model.safetensors").unlink()
    assert torch.equal(import_peft(saved, base).key(), expected.key())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_data_type_stays_what_it_was(dtype: torch.dtype, saved: Path, base: BaseModel) -> None:
    tensors = load_file(saved / "adapter_model.safetensors")
    halved = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    save_file(halved, saved / "adapter_model.safetensors")
    assert import_peft(saved, base).dtype == dtype


def test_another_base_of_the_same_shape_is_said_aloud(saved: Path, base: BaseModel) -> None:
    change_config(saved, base_model_name_or_path="somebody/other")
    with pytest.warns(ForewordWarning, match="somebody/other.*tiny-llama"):
        import_peft(saved, base)


# -- what is refused -----------------------------------------------------------------------------


class Bomb:
    """Unpickled by a careless loader, it makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (open, (str(self.target), "w"))


def test_a_pickle_that_would_run_code_does_not_run_it(saved: Path, base: BaseModel, tmp_path: Path) -> None:
    target = tmp_path / "was-run"
    tensors = load_file(saved / "adapter_model.safetensors")
    torch.save({**tensors, "more": Bomb(target)}, saved / "adapter_model.bin")
    (saved / "adapter_model.safetensors").unlink()
    with pytest.raises(UnsafePickle, match="nothing of it was loaded"):
        import_peft(saved, base)
    assert not target.exists()
    torch.load(saved / "adapter_model.bin", weights_only=False)
    assert target.exists(), "the pickle is harmless, so the test above shows nothing"


@pytest.mark.parametrize(
    ("config", "method"),
    [
        (lambda: peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]), "LORA"),
        (lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), "PROMPT_TUNING"),
        (lambda: peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), "P_TUNING"),
    ],
)
def test_another_method_is_named_and_refused(
    config: Any, method: str, tmp_path: Path, base: BaseModel
) -> None:
    peft_model(config=config()).save_pretrained(tmp_path / "saved", save_embedding_layers=False)
    with pytest.raises(ForeignFormat, match=f"{method}.*PREFIX_TUNING"):
        import_peft(tmp_path / "saved", base)


def test_layers_that_peft_left_without_a_prefix_are_named_and_refused(tmp_path: Path) -> None:
    """PEFT sizes all layers by those of the largest heads: Gemma 4's layers with a window have more heads."""
    architecture = next(each for each in DECODER_ONLY_WORKING if each.name == "Gemma 4 26B-A4B, 31B")
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=LENGTH)
    model = peft.get_peft_model(architecture.model(), config)
    with pytest.warns(UserWarning, match=r"skipped \[0, 1\]"):
        model(input_ids=IDS)
    model.save_pretrained(tmp_path / "saved", save_embedding_layers=False)
    with pytest.raises(ForeignFormat, match=r"gave the layers \[0, 1\] of gemma4_text no prefix"):
        import_peft(tmp_path / "saved", architecture.base)


def test_a_config_that_does_not_say_the_sizes_of_layers_that_differ_is_refused(tmp_path: Path) -> None:
    peft_model("gemma4").save_pretrained(tmp_path / "saved", save_embedding_layers=False)
    for changes in ({"num_attention_heads": None}, {"num_attention_heads": 0}, {"token_dim": 33}):
        before = (tmp_path / "saved" / "adapter_config.json").read_text()
        change_config(tmp_path / "saved", **changes)
        with pytest.raises(ForeignFormat, match="the first divides the second"):
            import_peft(tmp_path / "saved", base_model("gemma4"))
        (tmp_path / "saved" / "adapter_config.json").write_text(before)


@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_a_base_of_another_shape_is_refused(name: str, saved: Path) -> None:
    with pytest.raises(GeometryMismatch, match=r"base.*trained for"):
        import_peft(saved, base_model(name))


def test_heads_that_differ_are_refused_even_when_the_width_agrees(saved: Path, base: BaseModel) -> None:
    change_config(saved, num_attention_heads=4)
    with pytest.raises(GeometryMismatch, match=r"num_attention_heads = 4.*has\) *2|has 2"):
        import_peft(saved, base)


@pytest.mark.parametrize("shape", [(5, 95), (5, 192, 1), (960,), ()])
def test_a_tensor_of_another_shape_is_refused(shape: tuple[int, ...], saved: Path, base: BaseModel) -> None:
    save_file({"prompt_embeddings": torch.zeros(shape)}, saved / "adapter_model.safetensors")
    with pytest.raises(GeometryMismatch):
        import_peft(saved, base)


def test_a_prefix_of_another_length_than_its_config_says_is_refused(saved: Path, base: BaseModel) -> None:
    change_config(saved, num_virtual_tokens=LENGTH + 1)
    with pytest.raises(GeometryMismatch, match="num_virtual_tokens = 6.*5"):
        import_peft(saved, base)


def test_a_file_that_still_holds_the_projection_is_refused(saved: Path, base: BaseModel) -> None:
    network = {"embedding.weight": torch.zeros(5, 16), "transform.0.weight": torch.zeros(8, 16)}
    save_file(network, saved / "adapter_model.safetensors")
    with pytest.raises(ForeignFormat, match=r"prefix_projection.*save_pretrained"):
        import_peft(saved, base)


def test_a_prefix_trained_together_with_other_weights_is_refused(saved: Path, base: BaseModel) -> None:
    tensors = load_file(saved / "adapter_model.safetensors")
    save_file({**tensors, "base_model.lm_head.weight": torch.zeros(3)}, saved / "adapter_model.safetensors")
    with pytest.raises(ForeignFormat, match=r"lm_head"):
        import_peft(saved, base)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(bad: float, saved: Path, base: BaseModel) -> None:
    tensors = load_file(saved / "adapter_model.safetensors")
    tensors["prompt_embeddings"][2, 7] = bad
    save_file(tensors, saved / "adapter_model.safetensors")
    with pytest.raises(NonFinitePrefix, match=r"adapter_model\.safetensors"):
        import_peft(saved, base)


def test_folders_that_hold_no_adapter_are_refused(tmp_path: Path, saved: Path, base: BaseModel) -> None:
    with pytest.raises(CannotRead, match="not there"):
        import_peft(tmp_path / "nowhere", base)
    with pytest.raises(CannotRead, match="is a file"):
        import_peft(saved / "adapter_config.json", base)
    with pytest.raises(ForeignFormat, match=r"no adapter_config\.json.*saved/"):
        import_peft(tmp_path, base)
    (saved / "adapter_model.safetensors").unlink()
    with pytest.raises(ForeignFormat, match=r"adapter_model\.safetensors, adapter_model\.bin"):
        import_peft(saved, base)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_damaged_files_are_refused(name: str, damage: str, saved: Path, base: BaseModel) -> None:
    if name.endswith(".bin"):
        torch.save(load_file(saved / "adapter_model.safetensors"), saved / name)
        (saved / "adapter_model.safetensors").unlink()
    content = (saved / name).read_bytes()
    (saved / name).write_bytes({"cut": content[: len(content) // 2], "empty": b"", "text": b"hello"}[damage])
    with pytest.raises(ForeignFormat, match=name):
        import_peft(saved, base)


@pytest.mark.parametrize("content", [[1, 2], {"prompt_embeddings": "text"}, 3])
def test_a_pickle_of_other_things_is_refused(content: Any, saved: Path, base: BaseModel) -> None:
    (saved / "adapter_model.safetensors").unlink()
    torch.save(content, saved / "adapter_model.bin")
    with pytest.raises(ForeignFormat, match="expected tensors by name"):
        import_peft(saved, base)
