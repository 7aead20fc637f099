"""Paths that modules had in earlier releases: each leads to the module itself, and says where it is now."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from foreword import _aliases
from foreword.errors import ForewordDeprecation

SOURCE = Path(_aliases.__file__).parent
IMPORTED = [
    "fingerprint",
    "geometry",
    "parameterization",
    "bench.memory",
    "bench.rounds",
    "experiments.owners",
]


@pytest.mark.filterwarnings("ignore::foreword.errors.ForewordDeprecation")  # the package above it is imported
@pytest.mark.parametrize("old", _aliases.MOVED)
def test_an_old_path_leads_to_a_file(old: str) -> None:
    spec = importlib.util.find_spec(f"foreword.{old}")
    assert spec is not None
    assert spec.origin == importlib.util.find_spec(f"foreword.{_aliases.MOVED[old]}").origin  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore:foreword.(bench|experiments) is now:foreword.errors.ForewordDeprecation")
@pytest.mark.parametrize("old", IMPORTED)
def test_the_module_is_the_one_under_the_new_path(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    new = importlib.import_module(f"foreword.{_aliases.MOVED[old]}")
    for name in [name for name in sys.modules if name == f"foreword.{old}"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.warns(ForewordDeprecation, match=f"^foreword.{old} is now {re.escape(new.__name__)}$"):
        assert importlib.import_module(f"foreword.{old}") is new
    assert new.__spec__ is not None
    assert new.__spec__.name == new.__name__


def test_the_warning_names_the_line_of_the_import_and_comes_once() -> None:
    program = "import foreword.bench.rounds\nimport foreword.bench.rounds\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    told = [line for line in done.stderr.splitlines() if "ForewordDeprecation" in line]
    assert [line.partition(": ")[2] for line in told] == [
        "ForewordDeprecation: foreword.bench is now foreword.research.bench",
        "ForewordDeprecation: foreword.bench.rounds is now foreword.research.bench.timing",
    ]
    assert all(line.startswith("<string>:1") for line in told)


def test_a_path_given_as_a_string_is_told_to_its_caller() -> None:
    program = "import importlib\nimportlib.import_module('foreword.fingerprint')\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.startswith("<string>:2: ForewordDeprecation: foreword.fingerprint is now")


def _run(program: str) -> list[str]:
    """The deprecations that a program in a fresh interpreter meets."""
    command = [sys.executable, "-W", "always::FutureWarning", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    return [line.partition("ForewordDeprecation: ")[2] for line in lines if "ForewordDeprecation" in line]


@pytest.mark.parametrize(
    ("old", "name", "new"),
    [
        ("attention", "Attending", "base.attention.AttentionContext"),
        ("row_prefixes", "RowPrefixes", "base.prefix_batch.PrefixBatch"),
        ("store.catalogue", "Catalogue", "store.database.Database"),
        ("serving.gate", "Gate", "serving.api.middleware.RequestMiddleware"),
        ("training.learner", "Learner", "training.trainer.Trainer"),
        ("decoding", "StopOfTheRow", "sampling.StopStrings"),
        ("store.opening", "open_catalogue", "store.schema.open_to_migrate"),
    ],
)
def test_an_old_name_is_found_under_an_old_path(old: str, name: str, new: str) -> None:
    home, _, now = new.rpartition(".")
    program = f"""
from foreword.{old} import {name}
import foreword.{home}
assert {name} is foreword.{new}, {name}
"""
    assert f"{name} is now foreword.{home}.{now}" in _run(program)


def test_an_old_name_is_unknown_to_who_uses_new_paths_alone() -> None:
    assert _run("import foreword.base.attention as a\nassert not hasattr(a, 'Attending')") == []


@pytest.mark.parametrize("path", _aliases.RENAMED)
def test_every_new_name_is_there(path: str) -> None:
    for old, new in _aliases.RENAMED[path].items():
        module = importlib.import_module(f"foreword.{path}")
        assert old not in vars(module), old
        with pytest.warns(ForewordDeprecation, match=f"^{old} is now foreword."):
            found = _aliases.old_name(module.__name__, old)
        home, _, name = new.rpartition(".")
        assert found is getattr(importlib.import_module(f"foreword.{home or path}"), name)


@pytest.mark.parametrize(
    ("package", "name", "home"),
    [
        ("base", "batches_by_length", "base.batch"),
        ("serving.engine", "Sampling", "serving.engine.protocol"),
        ("serving.engine", "Engine", "serving.engine.protocol"),
        ("serving.jobs", "create_job", "serving.api.fine_tuning"),
    ],
)
def test_a_file_that_became_a_folder_keeps_its_names(package: str, name: str, home: str) -> None:
    program = f"""
import sys
import foreword.{package}
assert "foreword.{home}" not in sys.modules
from foreword.{package} import {name}
assert {name} is sys.modules["foreword.{home}"].{name}
"""
    assert set(_run(program)) == {f"{name} is now foreword.{home}.{name}"}


@pytest.mark.filterwarnings("ignore::foreword.errors.ForewordDeprecation")  # the package above it is imported
@pytest.mark.parametrize("old", _aliases.REMOVED)
def test_a_module_that_went_out_says_what_to_do(old: str) -> None:
    message = re.escape(f"foreword.{old} is gone: {_aliases.REMOVED[old]}")
    with pytest.raises(ModuleNotFoundError, match=message):
        importlib.import_module(f"foreword.{old}")
    package, _, name = old.rpartition(".")
    with pytest.raises(ModuleNotFoundError, match=message):
        exec(f"from foreword.{package} import {name}")


def test_a_module_is_found_in_a_moved_package() -> None:
    assert _run("from foreword.bench import rounds\nassert rounds.__name__.endswith('timing')") == [
        "foreword.bench is now foreword.research.bench",
        "foreword.bench.rounds is now foreword.research.bench.timing",
    ]


def test_a_moved_package_takes_its_modules_from_their_new_paths() -> None:
    program = "import foreword.bench\nfrom foreword.research.bench import memory\nassert memory.__name__"
    assert _run(program) == ["foreword.bench is now foreword.research.bench"]


def test_an_old_path_is_run_with_m() -> None:
    command = [sys.executable, "-m", "foreword.serving.trainer", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert "foreword.serving.trainer is now foreword.serving.jobs.trainer" in done.stderr
    assert "No module named" not in done.stderr
    assert "__main__" in done.stderr or "jobs/trainer.py" in done.stderr or done.returncode == 0


def test_what_never_was_a_module_is_none() -> None:
    with pytest.raises(ModuleNotFoundError, match="foreword.finger"):
        importlib.import_module("foreword.finger")


def test_the_package_itself_uses_no_old_path() -> None:
    old = "|".join(sorted((re.escape(name) for name in _aliases.MOVED), key=len, reverse=True))
    pattern = re.compile(rf"(?:from|import) foreword\.(?:{old})(?= import|$|\n)", re.MULTILINE)
    for path in SOURCE.rglob("*.py"):
        assert not pattern.findall(path.read_text(encoding="utf-8")), path
