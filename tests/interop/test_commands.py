"""foreword import and foreword export, as a person and as a machine use them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from foreword import BaseModel, Prefix
from foreword.cli import exports, imports
from foreword.errors import GeometryMismatch, NonFinitePrefix, OutputExists
from support.interop_models import build
from support.original_checkpoints import PrefixTuning, save
from support.stand_ins import LETTERS, byte_tokenizer, random_prefix

FIXTURES = Path(__file__).parent / "fixtures"


def run(app: object, *arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base model on disk, as the commands load it."""
    monkeypatch.setenv("FOREWORD_CACHE", str(tmp_path / "cache"))
    build("gpt2").save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def prefix(folder: Path, tmp_path: Path) -> Prefix:
    prefix = random_prefix(BaseModel.load(folder), 4)
    prefix.save(tmp_path / "mine.prefix")
    return prefix


def test_a_prefix_goes_to_peft_and_comes_back(folder: Path, prefix: Prefix, tmp_path: Path) -> None:
    out = run(exports.app, "peft", tmp_path / "mine.prefix", tmp_path / "peft", "--base", folder, "--json")
    assert out.exit_code == 0, out.output
    assert json.loads(out.stdout)["digest"] == prefix.digest
    back = run(
        imports.app, "peft", tmp_path / "peft", "--base", folder, "--out", tmp_path / "back.prefix", "--json"
    )
    assert back.exit_code == 0, back.output
    loaded = Prefix.load(tmp_path / "back.prefix")
    assert json.loads(back.stdout)["digest"] == loaded.digest
    assert torch.equal(loaded.key(), prefix.key())
    assert torch.equal(loaded.value(), prefix.value())


def test_a_checkpoint_of_the_original_code_becomes_a_prefix_file(folder: Path, tmp_path: Path) -> None:
    checkpoint = save(PrefixTuning(3, 4, 8), tmp_path / "checkpoint")
    done = run(imports.app, "prefix-tuning", checkpoint, "--base", folder, "--out", tmp_path / "p")
    assert done.exit_code == 0, done.output
    assert "length=4" in done.stdout
    assert Prefix.load(tmp_path / "p").length == 4


def test_a_folder_of_adapters_becomes_a_prefix_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREWORD_CACHE", str(tmp_path / "cache"))
    base = tmp_path / "base"
    base.mkdir()
    for file in (FIXTURES / "llama" / "base").iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    byte_tokenizer(LETTERS).save_pretrained(base)
    done = run(
        imports.app, "adapters", FIXTURES / "llama" / "prefix", "--base", base, "--out", tmp_path / "p"
    )
    assert done.exit_code == 0, done.output
    assert Prefix.load(tmp_path / "p").length == 3


def test_an_import_that_fails_writes_nothing(folder: Path, prefix: Prefix, tmp_path: Path) -> None:
    run(exports.app, "peft", tmp_path / "mine.prefix", tmp_path / "peft", "--base", folder)
    file = tmp_path / "peft" / "adapter_model.safetensors"
    tensor = load_file(file)["prompt_embeddings"]
    for bad, error in ((tensor[:, :-1].clone(), GeometryMismatch), (tensor * float("nan"), NonFinitePrefix)):
        save_file({"prompt_embeddings": bad}, file)
        (tmp_path / "out").mkdir(exist_ok=True)
        done = run(imports.app, "peft", tmp_path / "peft", "--base", folder, "--out", tmp_path / "out" / "p")
        assert isinstance(done.exception, error)
        assert list((tmp_path / "out").iterdir()) == []


def test_a_file_that_is_there_is_noticed_before_the_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "p").write_text("mine")
    done = run(imports.app, "peft", tmp_path, "--base", tmp_path / "no-model", "--out", tmp_path / "p")
    assert isinstance(done.exception, OutputExists)
    assert (tmp_path / "p").read_text() == "mine"


@pytest.mark.parametrize(
    ("app", "command"),
    [
        *((imports.app, name) for name in ("peft", "adapters", "prefix-tuning", "hub")),
        *((exports.app, name) for name in ("peft", "hub")),
    ],
)
def test_every_command_shows_an_example(app: object, command: str) -> None:
    kind = "import" if app is imports.app else "export"
    assert f"Example: foreword {kind} {command} " in run(app, command, "--help").stdout
