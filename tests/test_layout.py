"""The order of the package's rooms, the size of its files, and that no code stands twice.

Each room imports only from those above it, and no imports form a circle: read from the source's import statements,
those inside functions included, without importing anything. What only re-exports (`__init__.py`), what a database's
history fixes (migrations) and old names (_aliases.py) do not count as files.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.duplicates import duplicates

PACKAGE = Path(__file__).parents[1] / "src" / "foreword"

ROOMS = [
    ["_version"],
    ["errors"],
    ["_aliases"],
    ["files"],
    ["validation"],
    ["reporting"],
    ["template"],
    ["prefix_sizes"],
    ["prefix_file"],
    ["prefix"],
    ["examples"],
    ["encoding"],
    ["models"],
    ["store"],
    ["base"],
    ["grammar"],
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


FILES = [
    path
    for name, path in MODULES.items()
    if path.name not in ("__init__.py", "_aliases.py") and "migrations" not in path.parts
]
LINES = {
    path.relative_to(PACKAGE).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES
}

MOST_FILES = 230
LONGEST = 600  # lines
MEDIAN = 150  # lines
SMALL = 60  # lines
MOST_SMALL_FILES = 11
COPIED_LINES = 13

SMALL_FILES = {
    "_version.py": "the build reads the release from it without importing anything",
    "base/options.py": "help and configuration read it, and must not import torch",
    "cli/pull.py": "a file for each command, imported when it is called",
    "reporting/markdown.py": "tables for every page that commands write, below all rooms that write one",
    "serving/vllm/process_guard.py": "a program of its own, started by path, that imports nothing heavy",
    "training/batch_sampler.py": "order of examples, which the loop, many owners and checkpoints share",
}
"""Why each file below `SMALL` lines is one of its own."""

COPIES: dict[tuple[str, str], str] = {}
"""Pairs of files that may share a run of `COPIED_LINES` lines or more, each with the reason."""


def test_there_are_no_more_files_than_a_reader_can_look_over() -> None:
    assert len(FILES) <= MOST_FILES, "more source files than that; join those that hold one thing"


def test_half_of_the_files_are_long_enough_to_be_worth_opening() -> None:
    median = sorted(LINES.values())[len(LINES) // 2]
    assert median >= MEDIAN, "lines of the median source file; join those that hold one thing"


def test_no_file_is_too_long_to_be_read_at_once() -> None:
    too_long = {name: lines for name, lines in LINES.items() if lines > LONGEST}
    assert not too_long, f"more than {LONGEST} lines; split each where it holds two things"


def test_every_small_file_has_a_reason_and_there_are_few() -> None:
    small = {name: lines for name, lines in LINES.items() if lines < SMALL}
    unknown = {name: lines for name, lines in small.items() if name not in SMALL_FILES}
    assert not unknown, f"below {SMALL} lines; join each with the file it belongs to, or give its reason here"
    assert SMALL_FILES.keys() == small.keys(), "a file is listed as small, and is gone or has grown"
    assert len(small) <= MOST_SMALL_FILES


def test_no_run_of_lines_stands_twice() -> None:
    longest: dict[tuple[str, ...], str] = {}
    for pair in duplicates(FILES, COPIED_LINES):
        files = tuple(line.path.relative_to(PACKAGE).as_posix() for line in (pair.first[0], pair.second[0]))
        if files not in COPIES and files[::-1] not in COPIES:
            longest.setdefault(files, str(pair).replace(f"{PACKAGE}/", ""))
    assert not longest, "alike but for names and values:\n" + "\n".join(longest.values())


def test_lines_are_found_again_under_other_names_and_tables_of_values_are_not(tmp_path: Path) -> None:
    code = 'def mean(values, digits=3):\n    """Of all."""\n    total = sum(values)\n    return round(total / 2, digits)\n'
    table = "TABLE = {\n" + '    "a": 1,\n' * 9 + "}\n"
    first, second = tmp_path / "first.py", tmp_path / "second.py"
    first.write_text(f"import os\n{code}{table}")
    renamed = code.replace("values", "rows").replace("mean", "middle").replace("3", "4")
    second.write_text(f"from pathlib import Path\n\nFIRST = 1\n\n\n{renamed.replace('Of all.', 'Of rows.')}")
    (found,) = duplicates([first, second], 3)
    assert str(found) == f"{first}:2-5 ~ {second}:6-9 (3 lines)"
