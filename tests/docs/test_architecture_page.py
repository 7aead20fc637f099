"""docs/architecture.md: every path and every name on it exists, and its rooms stand in the order of the layout."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "src" / "foreword"
PAGE = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
QUOTED = sorted(set(re.findall(r"`([^`]+)`", PAGE)))
PATHS = [text for text in QUOTED if "/" in text and " " not in text]
FILES = [text for text in QUOTED if re.fullmatch(r"\w+\.(py|md|jsonl)", text)]
DOTTED = [text for text in QUOTED if re.fullmatch(r"[A-Za-z_]\w*(\.\w+)+", text) and text not in FILES]
WORDS = [text for text in QUOTED if re.fullmatch(r"[A-Z]\w+", text)]
WRITTEN_AT_RUN_TIME = {"log.jsonl"}


def module_of(path: str) -> str:
    """The name, below `foreword`, of a room or a file on the page."""
    return path.removesuffix("/").removesuffix(".py").replace("/", ".")


def rooms_on_the_page() -> list[str]:
    """What the first column of the table of rooms has, in its order."""
    table = PAGE.split("## Rooms")[1].split("## ")[0]
    cells = re.findall(r"^\| (`.+?) \|", table, re.MULTILINE)
    return [module_of(name) for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def rooms_of_the_layout() -> list[str]:
    """`ROOMS` of tests/test_layout.py, read from its source: what does not exist yet is left out."""
    tree = ast.parse((REPOSITORY / "tests" / "test_layout.py").read_text(encoding="utf-8"))
    (listed,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["ROOMS"]
    )
    rooms = [room for floor in listed for room in floor]
    return [room for room in rooms if _exists(PACKAGE / room.replace(".", "/"))]


def _exists(path: Path) -> bool:
    return path.is_dir() or path.with_suffix(".py").is_file()


def test_the_page_names_enough_to_be_checked() -> None:
    assert len(PATHS) > 25
    assert len(DOTTED) > 20
    assert len(WORDS) > 5


@pytest.mark.parametrize("path", [*PATHS, *sorted(set(FILES) - WRITTEN_AT_RUN_TIME)])
def test_every_path_exists(path: str) -> None:
    places = [REPOSITORY / path, PACKAGE / path, REPOSITORY / "docs" / path]
    found = [place for place in places if place.exists()]
    assert found, f"{path} is neither in the repository nor in src/foreword"
    assert all(place.is_dir() for place in found) == path.endswith("/"), path


@pytest.mark.parametrize("name", DOTTED)
def test_every_dotted_name_exists(name: str) -> None:
    parts = name.split(".")
    depth = 0
    while depth < len(parts) and _exists(PACKAGE.joinpath(*parts[: depth + 1])):
        depth += 1
    assert depth < len(parts), f"{name} is a module; write its path"
    at = importlib.import_module(".".join(["foreword", *parts[:depth]]))
    for part in parts[depth:]:
        at = getattr(at, part)


@pytest.mark.parametrize("word", WORDS)
def test_every_class_exists(word: str) -> None:
    sources = (path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    assert any(re.search(rf"^(class )?{word}\b", source, re.MULTILINE) for source in sources)


def test_rooms_stand_in_the_order_that_imports_keep() -> None:
    layout = rooms_of_the_layout()
    page = [room for room in rooms_on_the_page() if room in layout]
    assert page == sorted(page, key=layout.index)


def test_every_room_is_on_the_page() -> None:
    page = rooms_on_the_page()
    assert len(set(page)) == len(page)
    top = {room.split(".")[0] for room in rooms_of_the_layout()}
    assert top <= {room.split(".")[0] for room in page}
    assert all(_exists(PACKAGE / room.replace(".", "/")) for room in page)


def test_every_module_beside_the_rooms_is_on_the_page() -> None:
    names = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert names - {"__init__", "__pycache__", "py"} <= {room.split(".")[0] for room in rooms_on_the_page()}
