"""Help: fast, complete, in step with the documentation and with the code."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foreword.cli.app import COMMANDS, load

REPOSITORY = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "sqlalchemy", "fastapi", "numpy", "sacrebleu", "matplotlib")


def test_help_of_any_command_imports_neither_torch_nor_a_database_library() -> None:
    program = (
        "import sys, foreword.cli as cli\n"
        "from foreword.cli.app import COMMANDS\n"
        "for arguments in (['--help'], *([name, '--help'] for name in COMMANDS)):\n"
        "    try: cli.app(arguments)\n"
        "    except SystemExit as end: assert not end.code, arguments\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_list_of_commands_says_what_each_command_says() -> None:
    for name, summary in COMMANDS.items():
        assert load(name).help.splitlines()[0] == summary


def paths(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """A command and, of a group, all that is below it."""
    yield path
    for name, below in getattr(command, "commands", {}).items():
        yield from paths(below, (*path, name))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_shows_an_example_of_its_own(run: Any, name: str) -> None:
    for path in paths(load(name), (name,)):
        shown = run(*path, "--help")
        assert shown.status == 0
        _, *examples = shown.stdout.split("Example:")
        assert examples, f"foreword {' '.join(path)} has none"
        assert re.search(rf"foreword {' '.join(path)}(?![\w-])", examples[0]), (
            f"none of foreword {' '.join(path)}"
        )


def test_the_walk_over_commands_goes_below_groups() -> None:
    found = {path for name in COMMANDS for path in paths(load(name), (name,))}
    assert {("pull",), ("bench", "quality"), ("store", "keys", "make"), ("import", "hub")} <= found


def test_defaults_in_the_help_of_train_are_those_of_training() -> None:
    from foreword.training import TrainingSettings
    from foreword.training.parameterization import ParameterizationSettings

    settings = {**dataclasses.asdict(TrainingSettings()), "init": str(TrainingSettings().init)}
    settings |= {
        "parameterization": ParameterizationSettings().kind,
        "width": ParameterizationSettings().width,
    }
    said = {}
    for option in load("train").params:
        if option.name in settings and (found := re.search(r"default ([\w.+-]*\w)", option.help or "")):
            said[option.name] = found[1]
    assert len(said) >= 9
    assert said == {name: str(settings[name]) for name in said}


@pytest.mark.parametrize("page", ["cli", "settings"])
def test_a_page_that_is_made_from_the_code_is_in_step_with_it(page: str) -> None:
    written = (REPOSITORY / "docs" / f"{page}.md").read_text()
    assert written == script_of(page).render(), f"run: python docs/make_{page}.py"


def script_of(page: str) -> Any:
    """The script that makes a page."""
    path = REPOSITORY / "docs" / f"make_{page}.py"
    specification = importlib.util.spec_from_file_location(f"make_{page}", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_version(run: Any) -> None:
    from foreword import __version__

    assert run("--version").stdout == f"foreword {__version__}\n"
