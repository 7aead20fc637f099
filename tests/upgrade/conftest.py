"""The bases that the fixtures were made on, and a working directory that holds them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from foreword import BaseModel, Prefix
from upgrade import surface, tiny_base


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Old names are used here on purpose; that they are called old is tested where they are."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.filterwarnings("ignore::foreword.errors.ForewordDeprecation"))


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all bases."""
    folder = tmp_path_factory.mktemp("upgrade-bases")
    for name in tiny_base.FINGERPRINTS:
        tiny_base.save(name, folder)
    return folder


@pytest.fixture(scope="session")
def models(saved: Path) -> dict[str, BaseModel]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("FOREWORD_CACHE", str(saved / "cache"))
        patched.chdir(saved)
        return {name: tiny_base.load(name) for name in tiny_base.FINGERPRINTS}


@pytest.fixture
def here(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with the base of the command lines in it."""
    monkeypatch.setenv("FOREWORD_CACHE", str(saved / "cache"))
    (tmp_path / "tiny-llama").symlink_to(saved / "tiny-llama")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def check_result() -> Callable[[Prefix, dict[str, str], Path, dict[str, str]], None]:
    """Holds a prefix against the recorded one: every bit where arithmetic is the same, else nearly."""

    def check(prefix: Prefix, expected: dict[str, str], file: Path, machine: dict[str, str]) -> None:
        if surface.machine() == machine:
            assert surface.digest(prefix.tensors) == expected["digest"]
        before = Prefix.load(file)
        assert prefix.tensors.keys() == before.tensors.keys()
        for name, tensor in prefix.tensors.items():
            torch.testing.assert_close(tensor, before.tensors[name], rtol=1e-2, atol=1e-2)

    return check
