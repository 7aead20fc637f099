"""The compose files and images of earlier deployments start what there is."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from upgrade import surface

FOLDER = surface.FIXTURES / "deploy"
TEXTS = {path.name: path.read_text() for path in sorted(FOLDER.iterdir())}


def services() -> dict[str, dict[str, Any]]:
    return {
        f"{name}: {service}": content
        for name, text in TEXTS.items()
        if name.endswith(".yaml")
        for service, content in yaml.safe_load(text)["services"].items()
    }


def lines() -> list[list[str]]:
    """What the image's entry point, `foreword`, is called with."""
    found = [
        given["command"]
        for given in services().values()
        if given.get("image") == "foreword" and "command" in given
    ]
    return [*found, ["serve"]]


@pytest.mark.parametrize("words", lines(), ids=" ".join)
def test_a_service_s_command_is_a_command(words: list[str]) -> None:
    surface.parse(words)


def named(pattern: str) -> set[str]:
    return {found for text in TEXTS.values() for found in re.findall(pattern, text)}


@pytest.mark.parametrize("module", sorted(named(r"python3? -m (foreword[\w.]*)")))
def test_a_module_that_is_run_can_be_run(module: str) -> None:
    assert importlib.util.find_spec(module) is not None
    source = Path(importlib.util.find_spec(module).origin or "").read_text()  # type: ignore[union-attr]
    assert "__main__" in source or module.endswith("__main__")


@pytest.mark.parametrize("path", sorted(named(r"--middleware (foreword[\w.]*)")))
def test_a_middleware_is_where_it_was(path: str) -> None:
    module, name = path.rsplit(".", 1)
    assert isinstance(getattr(importlib.import_module(module), name), type)


@pytest.mark.parametrize("module", sorted(named(r'"kv_connector_module_path": "([\w.]*)"')))
def test_the_connector_is_where_it_was(module: str) -> None:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    (name,) = named(r'"kv_connector": "(\w+)"')
    library = importlib.util.find_spec("vllm")  # a folder of that name among the tests has no origin
    if library is not None and library.origin is not None:
        assert hasattr(importlib.import_module(module), name)
        return
    # Without vLLM it can't be imported: the name is in the file, defined or taken from where it is now.
    assert re.search(rf"^class {name}\b|import .*\b{name}\b", Path(spec.origin or "").read_text(), flags=re.M)


def test_the_patterns_find_what_they_are_for() -> None:
    assert len(lines()) >= 3
    assert named(r"python3? -m (foreword[\w.]*)")
    assert named(r"--middleware (foreword[\w.]*)")
