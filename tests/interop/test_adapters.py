"""adapters: what it saved, and the logits that it computed, were recorded by make_adapters_fixtures.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from foreword import BaseModel
from foreword.base.attention import AttentionContext, attention_context
from foreword.base.prefix_batch import PrefixBatch
from foreword.errors import (
    CannotRead,
    ForeignFormat,
    GeometryMismatch,
    NonFinitePrefix,
    UnsafePickle,
    WrongBaseModel,
)
from foreword.interop import import_adapters
from foreword.prefix import Prefix
from support.stand_ins import LETTERS, byte_tokenizer

FIXTURES = Path(__file__).parent / "fixtures"
DECODERS = ["llama", "llama-yarn", "mistral"]
ENCODER_DECODERS = ["bart", "bart-ejected", "bart-decoder-only"]


def base_model(name: str, **changes: Any) -> BaseModel:
    kind = AutoModelForSeq2SeqLM if name in (*ENCODER_DECODERS, "t5") else AutoModelForCausalLM
    model = kind.from_pretrained(FIXTURES / name / "base", attn_implementation="eager", **changes)
    return BaseModel(model, byte_tokenizer(LETTERS), name=name)


def logits(base: BaseModel, prefix: Prefix | None, expected: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the base computes for the recorded token ids, the prefix at its attention."""
    inputs: dict[str, Any] = {k: v for k, v in expected.items() if k.endswith("input_ids")}
    if base.takes_positions:
        start, length = 0 if prefix is None else prefix.length, inputs["input_ids"].shape[1]
        inputs["position_ids"] = torch.arange(start, start + length)[None]
    state = AttentionContext(prefixes=PrefixBatch.stack([prefix], base.device))
    with torch.no_grad(), attention_context(state):
        return base.model(**inputs, use_cache=False).logits


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A copy of what adapters saved for the tiny LLaMA."""
    return Path(shutil.copytree(FIXTURES / "llama" / "prefix", tmp_path / "saved"))


def change(folder: Path, inner: dict[str, Any] | None = None, **outer: Any) -> None:
    file = folder / "adapter_config.json"
    described = json.loads(file.read_text())
    described["config"] |= inner or {}
    file.write_text(json.dumps(described | outer))


def change_tensors(folder: Path, changes: Any) -> None:
    file = folder / "pytorch_adapter.bin"
    torch.save({name: changes(tensor.clone()) for name, tensor in torch.load(file).items()}, file)


@pytest.mark.parametrize("name", DECODERS + ENCODER_DECODERS)
def test_an_imported_prefix_gives_the_logits_that_adapters_gave(name: str) -> None:
    base = base_model(name)
    expected = load_file(FIXTURES / name / "expected.safetensors")
    prefix = import_adapters(FIXTURES / name / "prefix", base)
    torch.testing.assert_close(logits(base, None, expected), expected["without"], atol=1e-5, rtol=0)
    found = (logits(base, prefix, expected) - expected["logits"]).abs().max()
    print(f"{name}: logits differ by at most {found:.1e}")
    assert found < 1e-5
    assert (expected["logits"] - expected["without"]).abs().max() > 1
    assert prefix.template.style == "raw"


@pytest.mark.parametrize("name", DECODERS)
def test_keys_taken_as_they_are_would_be_wrong(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rotation by P is what makes the test above pass."""
    monkeypatch.setattr("foreword.interop.adapters.text_from_zero_to_after", lambda key, base: key)
    base = base_model(name)
    expected = load_file(FIXTURES / name / "expected.safetensors")
    prefix = import_adapters(FIXTURES / name / "prefix", base)
    assert (logits(base, prefix, expected) - expected["logits"]).abs().max() > 0.01


@pytest.mark.parametrize(
    ("name", "streams"),
    [("bart", ("decoder", "encoder", "cross")), ("bart-decoder-only", ("decoder",)), ("llama", ("decoder",))],
)
def test_every_stream_that_was_trained_is_imported_and_no_other(name: str, streams: tuple[str, ...]) -> None:
    prefix = import_adapters(FIXTURES / name / "prefix", base_model(name))
    assert prefix.streams == streams
    assert {prefix.stream_length(stream) for stream in streams} == {3}


def test_learned_positions_are_refused_because_no_keys_make_up_for_them() -> None:
    with pytest.raises(ForeignFormat, match=r"learned or other positions.*position 0"):
        import_adapters(FIXTURES / "gpt2" / "prefix", base_model("gpt2"))


def test_relative_positions_are_refused_because_adapters_counts_them_otherwise() -> None:
    with pytest.raises(ForeignFormat, match=r"relative positions"):
        import_adapters(FIXTURES / "t5" / "prefix", base_model("t5"))


def test_angles_that_depend_on_the_text_are_refused() -> None:
    base = base_model("llama")
    base.model.model.rotary_emb.rope_type = "dynamic"
    with pytest.raises(ForeignFormat, match="dynamic"):
        import_adapters(FIXTURES / "llama" / "prefix", base)


@pytest.mark.parametrize(
    ("inner", "told"),
    [
        ({"architecture": "lora"}, r"'lora'.*'prefix_tuning'"),
        ({"use_gating": True}, "gates"),
        ({"leave_out": [1]}, r"leaves out the layers \[1\]"),
        ({"prefix_length": None}, "prefix_length"),
        ({"prefix_length": 5}, "prefix_length is 5"),
    ],
)
def test_what_is_no_fixed_prefix_is_refused(inner: dict[str, Any], told: str, saved: Path) -> None:
    change(saved, inner)
    with pytest.raises(ForeignFormat, match=told):
        import_adapters(saved, base_model("llama"))


def test_another_architecture_is_refused(saved: Path) -> None:
    with pytest.raises(WrongBaseModel, match=r"'llama'.*'mistral'"):
        import_adapters(saved, base_model("mistral"))


def test_a_base_of_another_shape_is_refused(saved: Path) -> None:
    with pytest.raises(GeometryMismatch, match="1 layers"):
        import_adapters(saved, base_model("llama", num_hidden_layers=1))


def test_values_that_are_not_finite_are_refused(saved: Path) -> None:
    change_tensors(saved, lambda tensor: tensor.fill_(float("nan")))
    with pytest.raises(NonFinitePrefix, match=r"pytorch_adapter\.bin"):
        import_adapters(saved, base_model("llama"))


def test_copies_of_a_prefix_that_disagree_are_refused(saved: Path) -> None:
    file = saved / "pytorch_adapter.bin"
    first, *others = torch.load(file).items()
    torch.save({first[0]: first[1] + 1, **dict(others)}, file)
    with pytest.raises(ForeignFormat, match="another copy"):
        import_adapters(saved, base_model("llama"))


def test_tensors_of_another_method_are_refused(saved: Path) -> None:
    torch.save({"model.layers.0.self_attn.q_proj.loras.a": torch.zeros(2)}, saved / "pytorch_adapter.bin")
    with pytest.raises(ForeignFormat, match="loras"):
        import_adapters(saved, base_model("llama"))


def test_a_bottleneck_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FIXTURES / "llama-yarn" / "prefix", tmp_path / "saved"))
    file = folder / "pytorch_adapter.bin"
    torch.save({k: v for k, v in torch.load(file).items() if not k.endswith("2.bias")}, file)
    with pytest.raises(ForeignFormat, match=r"lacks control_trans\.2\.bias"):
        import_adapters(folder, base_model("llama-yarn"))


def test_a_pickle_that_would_run_code_does_not_run_it(saved: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (open, (str(tmp_path / "was-run"), "w"))

    torch.save({"bomb": Bomb()}, saved / "pytorch_adapter.bin")
    with pytest.raises(UnsafePickle):
        import_adapters(saved, base_model("llama"))
    assert not (tmp_path / "was-run").exists()


def test_folders_of_others_are_refused(saved: Path, tmp_path: Path) -> None:
    base = base_model("llama")
    with pytest.raises(CannotRead):
        import_adapters(tmp_path / "nowhere", base)
    with pytest.raises(ForeignFormat, match=r"no adapter_config\.json"):
        import_adapters(tmp_path, base)
    (saved / "adapter_config.json").write_text('{"peft_type": "PREFIX_TUNING"}')
    with pytest.raises(ForeignFormat, match="foreword import peft"):
        import_adapters(saved, base)
