"""From names to folders."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from foreword.errors import CannotRead, DownloadFailed, UnknownModel
from foreword.models import CATALOGUE, resolve
from foreword.models.cache_dir import cache_folder


def test_folder_is_itself(model_folder_of_user: Path) -> None:
    model = resolve(str(model_folder_of_user))
    assert model.path == model_folder_of_user.resolve()
    assert (model.source, model.revision) == ("folder", None)
    assert resolve(model_folder_of_user).path == model.path


def test_relative_folder_is_found(model_folder_of_user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model_folder_of_user.parent)
    assert resolve(model_folder_of_user.name).path == model_folder_of_user.resolve()


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (["config.json", "m.gguf"], "GGUF"),
        (["m.gguf"], "GGUF"),
        (["config.json", "pytorch_model.bin"], "pickles"),
        (["config.json"], "no safetensors"),
        (["model.safetensors"], "no config.json"),
        (["config.json", "consolidated.safetensors"], "no model.safetensors"),
        ([], "no config.json"),
    ],
)
def test_folder_that_is_no_model_says_what_is_wrong(tmp_path: Path, files: list[str], told: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in files:
        (folder / name).touch()
    with pytest.raises(CannotRead, match=told):
        resolve(str(folder))


def test_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CannotRead, match="is a file"):
        resolve(str(tmp_path / "model.safetensors"))


def test_slip_in_an_alias_is_met_with_the_right_one() -> None:
    with pytest.raises(UnknownModel, match=r"Did you mean smollm2-135m-instruct\?"):
        resolve("smolm2-135m-instrukt")


@pytest.mark.parametrize(
    "name",
    [
        "nothing-like-it",
        "",
        "a b",
        "./absent",
        "/absent/folder",
        "a/b/c",
        "~/absent",
        "~nobody/x",
        "x" * 5000,
        "a\0b",
        "a..b",
    ],
)
def test_unknown_name_lists_the_aliases(name: str) -> None:
    with pytest.raises(UnknownModel) as failure:
        resolve(name)
    assert all(alias in str(failure.value) for alias in CATALOGUE)


def test_alias_is_not_pulled_when_that_is_not_allowed() -> None:
    with pytest.raises(DownloadFailed, match="foreword pull gemma3-270m"):
        resolve("gemma3-270m", pull_missing=False)
    assert not cache_folder().exists()


def test_cache_is_where_the_variable_says(own_cache: Path) -> None:
    assert cache_folder() == own_cache


def test_cache_is_the_systems_without_the_variable(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FOREWORD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder().name == "foreword"
    assert not cache_folder().exists()


def test_catalogue_is_consistent() -> None:
    for alias, known in CATALOGUE.items():
        assert alias == known.alias
        for member in (*known.parts, *known.notices):
            assert len(member.sha256) == len(member.wheel_sha256) == 64
        assert known.disk_bytes > sum(part.wheel_bytes for part in known.parts)


@pytest.mark.real_model
def test_smollm_is_found_again_at_once(smollm_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(shutil, "disk_usage", None)  # whoever starts a pull stumbles here
    model = resolve("smollm2-135m-instruct", pull_missing=False)
    assert model.path == smollm_path
    assert model.licence == "apache-2.0"
