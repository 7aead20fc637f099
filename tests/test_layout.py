"""The order of the package's rooms: each imports only from those above it, and no imports form a circle.

Read from the source's import statements, those inside functions included, without importing anything.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "foreword"

ROOMS = [
    ["_version"],
    ["errors"],
    ["_aliases"],
    ["files"],
    ["validation"],
    ["reporting"],
    ["template"],
    ["prefix_file"],
    ["prefix"],
    ["examples"],
    ["encoding"],
    ["models"],
    ["store"],
    ["base"],
    ["sampling"],
    ["generation"],
    ["training"],
    ["documents"],
    ["evaluation"],
    ["interop"],
    ["serving"],
    ["serving.engine"],
    ["serving.vllm"],
    ["serving.jobs"],
    ["serving.api"],
    ["serving.studio"],
    ["serving.serve"],
    ["distributed"],
    ["research", "research.environment"],
    ["research.baselines"],
    ["research.bench"],
    ["research.experiments"],
    ["cli"],
]
"""From the top down, as docs/architecture.md has them; those that stand in one list may import each other."""


def modules() -> dict[str, Path]:
    """Every module of the package by its name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(["foreword", *path.relative_to(PACKAGE).with_suffix("").parts])
        found[name.removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imported(name: str) -> Iterator[tuple[str, int]]:
    """Modules of the package that one imports, each with its line; blocks for type checkers left out."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    for node in _walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if whole in MODULES:
                    yield whole, node.lineno
                elif node.module in MODULES:
                    yield node.module, node.lineno
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in MODULES:
                    yield alias.name, node.lineno


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if (
            isinstance(child, ast.If)
            and isinstance(child.test, ast.Name)
            and child.test.id == "TYPE_CHECKING"
        ):
            continue
        yield child
        yield from _walk(child)


def room(name: str) -> int:
    """The floor on which a module stands; the longest name that fits counts."""
    parts = name.split(".")[1:]
    for end in range(len(parts), 0, -1):
        for floor, rooms in enumerate(ROOMS):
            if ".".join(parts[:end]) in rooms:
                return floor
    raise AssertionError(f"{name} is in no room that this test and docs/architecture.md know")


INSIDE = [name for name in MODULES if name != "foreword" and not name.startswith("foreword.store.migrations")]


@pytest.mark.parametrize("name", INSIDE)
def test_a_module_imports_only_from_rooms_above_it(name: str) -> None:
    floor = room(name)
    upward = [
        f"{MODULES[name].relative_to(PACKAGE)}:{line} imports {other}"
        for other, line in imported(name)
        if other != "foreword" and room(other) > floor
    ]
    assert not upward


def test_no_imports_form_a_circle() -> None:
    reached: dict[str, set[str]] = {
        name: {other for other, _ in imported(name) if other not in ("foreword", name)} for name in MODULES
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in sorted(reached[name]):
                visit(other, (*path, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())
