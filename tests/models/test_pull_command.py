"""foreword pull."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from foreword.cli.options import with_options
from foreword.cli.pull import pull
from foreword.models import gguf as conversion
from foreword.models.fingerprint import fingerprint

application = typer.Typer()
application.command()(with_options(pull))


@pytest.fixture(autouse=True)
def tiny_alias(index, monkeypatch: pytest.MonkeyPatch, model_folder_of_user: Path) -> None:
    def copy(gguf: Path, folder: Path) -> None:
        for file in model_folder_of_user.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())

    module = importlib.import_module("foreword.models.resolve")  # a function has that name, too
    monkeypatch.setattr(module, "CATALOGUE", {"tiny": index.known})
    monkeypatch.setattr(conversion, "convert", copy)


def test_json_is_one_object_and_nothing_else(model_folder_of_user: Path) -> None:
    result = CliRunner().invoke(application, ["tiny", "--json"])
    assert result.exit_code == 0
    facts = json.loads(result.stdout)
    assert facts["name"] == "tiny"
    assert facts["licence"] == "be-kind"
    assert facts["source"].startswith("package index")
    assert facts["fingerprint"] == fingerprint(model_folder_of_user)
    files = [file for file in Path(facts["path"]).iterdir() if file.is_file()]
    assert facts["bytes"] == sum(file.stat().st_size for file in files)


def test_people_read_place_size_source_licence_and_fingerprint(model_folder_of_user: Path) -> None:
    result = CliRunner().invoke(application, ["tiny"])
    assert result.exit_code == 0
    for fact in ("models/tiny", "MB", "package index", "be-kind", fingerprint(model_folder_of_user)[:12]):
        assert fact in result.stdout
    assert "downloading" in result.stderr
    assert "downloading" not in result.stdout


def test_second_pull_does_nothing_unless_forced() -> None:
    CliRunner().invoke(application, ["tiny"])
    assert CliRunner().invoke(application, ["tiny"]).stderr == ""
    assert "converting" in CliRunner().invoke(application, ["tiny", "--force"]).stderr


def test_folder_is_described_too(model_folder_of_user: Path) -> None:
    result = CliRunner().invoke(application, [str(model_folder_of_user)])
    assert "not stated" in result.stdout


def test_help_shows_an_example() -> None:
    result = CliRunner().invoke(application, ["--help"])
    assert "foreword pull smollm2-135m-instruct" in result.stdout
