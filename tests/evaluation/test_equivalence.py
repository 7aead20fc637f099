"""What prefixes lose on a quantised copy of their base, from the measurement to text through the API."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from foreword import BaseModel, Prefix, PrefixStore, generate, train
from foreword.base import base_model
from foreword.base.loading import settings_of
from foreword.errors import GeometryMismatch, UsageError, WrongBaseModel
from foreword.evaluation.equivalence import facts_of, loss_difference, losses_of
from foreword.interop.peft import export_peft
from foreword.models.fingerprint import fingerprint_of_tensors
from foreword.prefix import BaseIdentity
from foreword.serving.config import of
from foreword.serving.served_model import open_base, served_of
from foreword.serving.vllm.checks import check_base
from foreword.serving.vllm.prefixes import StoreSource
from foreword.template import RAW
from support.awq import save_awq
from support.by_hand import layers_of, token_losses
from support.command_line import Outcome, run_command, working_in
from support.saved_bases import save_tiny
from support.stand_ins import random_examples, random_prefix

EXAMPLES = random_examples(8)
BLOCK = 16


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("bases") / "plain")


@pytest.fixture(scope="module")
def rounded(plain: Path) -> Path:
    """The same model as an FP8 checkpoint, with a scale for each block of weights, as DeepSeek's are."""
    folder = plain.parent / "rounded"
    shutil.copytree(plain, folder)
    tensors = load_file(plain / "model.safetensors")
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        out, inputs = tensors[name].shape
        blocks = tensors[name].reshape(out // BLOCK, BLOCK, inputs // BLOCK, BLOCK)
        scales = blocks.abs().amax(dim=(1, 3)) / torch.finfo(torch.float8_e4m3fn).max
        values = (blocks / scales[:, None, :, None]).reshape(out, inputs)
        tensors |= {name: values.to(torch.float8_e4m3fn), f"{name}_scale_inv": scales}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    fp8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": fp8}))
    return folder


@pytest.fixture(scope="module")
def bases(plain: Path, rounded: Path) -> tuple[BaseModel, BaseModel]:
    return BaseModel.load(plain), BaseModel.load(rounded)


@pytest.fixture(scope="module")
def prefix(bases: tuple[BaseModel, BaseModel]) -> Prefix:
    return random_prefix(bases[0], 5)


def by_hand(base: BaseModel, prefix: Prefix | None) -> float:
    """The mean loss per target token, by the independent computation."""
    losses = []
    for example in EXAMPLES:
        source = base.template.source_ids(base.tokenizer, example.source)
        target = base.template.target_ids(base.tokenizer, example.target)
        layers = layers_of(prefix) if prefix is not None else None
        with torch.no_grad():
            losses.append(token_losses(base.model, source, target, layers))
    return float(torch.cat(losses).mean())


def test_the_difference_is_that_of_losses_computed_by_hand(
    plain: Path, rounded: Path, prefix: Prefix
) -> None:
    first, second = BaseModel.load(plain), BaseModel.load(rounded)
    second.equivalent |= {first.fingerprint}
    other = random_prefix(first, 3, seed=4)
    measured = [losses_of(base, EXAMPLES, [prefix, other]) for base in (first, second)]
    worst = max((by_hand(second, one) - by_hand(first, one) for one in (prefix, other)), key=abs)
    assert loss_difference(*measured) == pytest.approx(worst, abs=1e-5)
    assert abs(worst) > 1e-3  # rounding shows
    facts = facts_of(*measured)
    assert facts["losses"][0]["trained"] == pytest.approx(by_hand(first, None), abs=1e-5)
    assert [row["prefix"] for row in facts["losses"]] == [None, prefix.digest[:12], other.digest[:12]]
    alone = [losses_of(base, EXAMPLES) for base in (first, second)]
    assert loss_difference(*alone) == pytest.approx(by_hand(second, None) - by_hand(first, None), abs=1e-5)


def test_what_can_not_be_compared_is_refused(bases: tuple[BaseModel, BaseModel], tmp_path: Path) -> None:
    first = losses_of(bases[0], EXAMPLES)
    with pytest.raises(UsageError, match="on other examples"):
        loss_difference(first, losses_of(bases[1], EXAMPLES[:4]))
    smaller = BaseModel.load(save_tiny(tmp_path / "smaller", num_hidden_layers=2))
    with pytest.raises(GeometryMismatch, match="2 layers"):
        loss_difference(first, losses_of(smaller, EXAMPLES))
    other = BaseModel.load(bases[1].name)
    other.template = RAW
    with pytest.raises(UsageError, match="make other tokens"):
        loss_difference(first, losses_of(other, EXAMPLES))


def test_a_declared_base_takes_the_prefix_everywhere_and_another_does_not(
    rounded: Path, prefix: Prefix, tmp_path: Path
) -> None:
    folder = tmp_path / "store"
    configuration = of({"base": str(rounded), "store": str(folder)})
    with PrefixStore(folder) as store:
        base = open_base(configuration, store)
        source = StoreSource(str(folder), None)
        for work in (
            lambda: generate(base, ["hello"], prefix, max_new_tokens=4),
            lambda: base.token_losses(EXAMPLES[:1], prefix),
            lambda: served_of(base).check(prefix),
            lambda: check_base(prefix, base.fingerprint, source.equivalents(base.fingerprint)),
        ):
            with pytest.raises(WrongBaseModel):
                work()
        store.declare_equivalent(prefix.base.fingerprint, base.fingerprint, loss_difference=0.01)
        declared = open_base(configuration, store)
    served_of(declared).check(prefix)
    assert prefix.base.fingerprint in served_of(declared).equivalent
    # Its keys and values act as those of a prefix that says it was made for this base.
    own = random_prefix(base, 5)
    texts = [generate(declared, ["hello"], one, max_new_tokens=8) for one in (prefix, own)]
    assert texts[0] == texts[1]
    check_base(prefix, base.fingerprint, source.equivalents(base.fingerprint))
    assert source.equivalents(None) == frozenset()


def test_the_value_of_earlier_releases_still_counts(plain: Path, tmp_path: Path) -> None:
    """They took every file of weights in the folder for the base's."""
    folder = tmp_path / "model"
    shutil.copytree(plain, folder)
    second = {"tok_embeddings.weight": torch.ones(2, 2)}
    save_file(second, folder / "consolidated.safetensors")
    base = BaseModel.load(folder)
    both = {**load_file(plain / "model.safetensors"), **second}
    own = random_prefix(base, 3)
    old = dataclasses.replace(own, base=BaseIdentity("m", None, fingerprint_of_tensors(both.items())))
    (found,) = base.token_losses(EXAMPLES[:1], old)
    assert torch.equal(found, base.token_losses(EXAMPLES[:1], own)[0])
    (folder / "consolidated.safetensors").unlink()
    with pytest.raises(WrongBaseModel):
        BaseModel.load(folder).token_losses(EXAMPLES[:1], old)


def test_a_second_copy_is_read_for_prefixes_of_other_fingerprints_alone(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    monkeypatch.setattr(base_model, "former_fingerprint", lambda folder: read.append(folder))
    base = BaseModel.load(plain)
    own = random_prefix(base, 3)
    base.token_losses(EXAMPLES[:1], own)
    train(base, EXAMPLES, length=3, steps=1, start=own)
    export_peft(own, tmp_path / "peft", base)
    assert read == []
    with pytest.raises(WrongBaseModel):
        base.check_fits(dataclasses.replace(own, base=BaseIdentity("m", None, "ab" * 32)))
    assert len(read) == 1


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_checkpoint_that_bitsandbytes_saved_is_another_base_of_the_same_loss(
    tmp_path: Path, kind: str
) -> None:
    pytest.importorskip("bitsandbytes", reason="the extra `quantization` is not installed")
    plain = save_tiny(tmp_path / "plain", hidden_size=64, intermediate_size=128)
    settings = BitsAndBytesConfig(**settings_of(kind, torch.float32))
    saved = AutoModelForCausalLM.from_pretrained(plain, quantization_config=settings, device_map="cpu")
    saved.save_pretrained(tmp_path / "saved")
    BaseModel.load(plain).tokenizer.save_pretrained(tmp_path / "saved")
    base, on_load = BaseModel.load(tmp_path / "saved"), BaseModel.load(plain, quantization=kind)
    assert (base.quantization, on_load.quantization) == (kind, kind)
    prefix = random_prefix(on_load, 4)  # of the plain files: rounding while loading changes no fingerprint
    with pytest.raises(WrongBaseModel):
        base.token_losses(EXAMPLES, prefix)
    base.equivalent |= {on_load.fingerprint}
    for found, expected in zip(
        base.token_losses(EXAMPLES, prefix), on_load.token_losses(EXAMPLES, prefix), strict=True
    ):
        assert torch.equal(found, expected)


def test_files_whose_library_is_missing_are_named(tmp_path: Path) -> None:
    plain = save_tiny(tmp_path / "plain", intermediate_size=64)
    save_awq(plain, tmp_path / "awq", tmp_path / "dequantized")
    with pytest.raises(UsageError, match=r"quantised \(awq\), and what reads them is not installed"):
        BaseModel.load(tmp_path / "awq")
    assert BaseModel.load(tmp_path / "dequantized").fingerprint != BaseModel.load(plain).fingerprint


# -- the commands ----------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: Prefix) -> Callable[..., Outcome]:
    lines = [json.dumps({"source": e.source, "target": e.target}) + "\n" for e in EXAMPLES]
    (tmp_path / "dev.jsonl").write_text("".join(lines))
    prefix.save(tmp_path / "one.prefix")
    monkeypatch.setenv("FOREWORD_STORE", str(tmp_path / "store"))
    with working_in(tmp_path):
        yield run_command


def test_the_command_measures_declares_and_lists(
    run: Callable[..., Outcome],
    plain: Path,
    rounded: Path,
    bases: tuple[BaseModel, BaseModel],
    prefix: Prefix,
) -> None:
    pair = ("store", "equate", plain, rounded)
    measured = (*pair, "--data", "dev.jsonl", "--prefix", "one.prefix", "--by", "ana")
    ask = ("generate", "hello", "--prefix", "one.prefix", "--base", rounded, "--json")
    strict = run(*measured, "--tolerance", "0", "--json")
    assert strict.status == 1
    assert "Nothing was declared" in strict.json["error"]["message"]
    refused = run(*ask)
    assert (refused.status, refused.json["error"]["type"]) == (1, "WrongBaseModel")
    assert "declared equivalent: foreword store equate" in refused.json["error"]["message"]
    made = run(*measured, "--tolerance", "9", "--json").json
    expected = by_hand(bases[1], prefix) - by_hand(bases[0], prefix)
    assert made["loss_difference"] == pytest.approx(expected, abs=1e-5)
    assert (made["trained"], made["other"]) == (bases[0].fingerprint, bases[1].fingerprint)
    assert made["declared_by"] == "ana"
    assert made["facts"]["targets"] == sum(len(e.target) + 1 for e in EXAMPLES)
    assert run("store", "equivalences", "--json").json["equivalences"] == [made]
    assert "ana" in run("store", "equivalences").stdout
    assert run(*ask).json["outputs"][0]["prefix"] == "one.prefix"
    assert run(*pair, "--remove", "--json").json["removed"] is True
    assert "`foreword store equivalences` lists" in run(*pair, "--remove").stderr
    assert run(*ask).status == 1


def test_with_long_factors_the_bases_that_have_them_are_declared(
    run: Callable[..., Outcome], tmp_path: Path
) -> None:
    """The short factors of the same files are two other bases, which nobody has measured."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 32}
    rope = {"rope_type": "longrope", "rope_theta": 100.0, **factors}
    folders = [
        save_tiny(tmp_path / name, rope_parameters=rope, initializer_range=width)
        for name, width in (("one", 0.2), ("two", 0.2001))
    ]
    long = [BaseModel.load(folder, long_context=True).fingerprint for folder in folders]
    for measure in (("--data", "dev.jsonl", "--tolerance", "9"), ("--loss-difference", "0.01")):
        made = run("store", "equate", *folders, *measure, "--long-context", "--json").json
        assert [made["trained"], made["other"]] == long
        with PrefixStore(tmp_path / "store") as store:
            assert store.equivalents(long[1]) == {long[0]}
            assert store.equivalents(BaseModel.load(folders[1]).fingerprint) == frozenset()
        assert run("store", "equate", *folders, "--remove", "--long-context").status == 0
    plain = save_tiny(tmp_path / "plain-factors")
    assert run("store", "equate", plain, "cd" * 32, "--loss-difference", "0", "--long-context").status == 2


def test_a_difference_from_elsewhere_needs_no_weights_in_memory(
    run: Callable[..., Outcome], plain: Path, bases: tuple[BaseModel, BaseModel]
) -> None:
    """A machine without the GPU that the quantised base needs: names or fingerprints, and the figure."""
    made = run("store", "equate", plain, "cd" * 32, "--loss-difference", "0.02", "--json").json
    assert (made["trained"], made["other"]) == (bases[0].fingerprint, "cd" * 32)
    assert made["loss_difference"] == 0.02
    assert run("store", "equate", plain, "cd" * 32, "--loss-difference", "0.2").status == 1
    assert run("store", "equate", plain, plain, "--data", "dev.jsonl").status == 2  # the same weights
    for wrong in (
        (),
        ("--remove", "--data", "dev.jsonl"),
        ("--loss-difference", "0", "--prefix", "one.prefix"),
    ):
        assert run("store", "equate", plain, "cd" * 32, *wrong).status == 2
