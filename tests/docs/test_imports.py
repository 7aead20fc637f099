"""What scripts outside the package import from it is there: they are run by hand, and seldom."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = [
    path
    for folder in ("benchmarks", "attacks", "docs", "examples", "deploy")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


def imports(source: str) -> Iterator[tuple[str, str | None]]:
    """Modules of the package that a program imports, each with a name taken from it; None: the module itself."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "foreword":
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names if alias.name.split(".")[0] == "foreword")


def missing(source: str) -> list[str]:
    """Imports of the package that fail, as `module` or `module.name`."""
    found, not_installed = [], set()
    for module, name in imports(source):
        try:
            there = importlib.import_module(module)
            if name is not None and not hasattr(there, name):
                importlib.import_module(f"{module}.{name}")
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] == "foreword":
                found.append(module if name is None else f"{module}.{name}")
            else:
                not_installed.add(error.name)
    if not_installed and not found:
        pytest.skip(f"what it imports of the package needs packages that are not installed: {not_installed}")
    return found


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_a_script_imports_is_there(path: Path) -> None:
    assert missing(path.read_text(encoding="utf-8")) == []


def test_what_is_gone_is_named() -> None:
    assert missing("import foreword.nowhere\nfrom foreword.prefix import Prefix, gone, Stream\n") == [
        "foreword.nowhere",
        "foreword.prefix.gone",
    ]
