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
