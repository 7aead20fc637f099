"""Every abuse in attacks/ is answered with an error by name, and soon."""

from __future__ import annotations

import re
import runpy
import sys
import time
from pathlib import Path

import pytest

from foreword import errors

FOLDER = Path(__file__).parents[1] / "attacks"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "forge")
LONGEST_SECONDS = 10


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_attack_meets_an_error_by_name(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, "forge", raising=False)
    begin = time.monotonic()
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")  # ends with status 1 if a file is taken
    assert time.monotonic() - begin < LONGEST_SECONDS
    lines = capsys.readouterr().out.splitlines()
    assert lines
    for line in lines:
        if not line.startswith("refused after"):
            found = re.match(r"(\w+): the (?:file|prefix)", line)
            assert found, line
            assert issubclass(getattr(errors, found[1]), errors.BadPrefix), line
            assert "object is not" not in line, line  # Python's words, not ours
            assert "argument after **" not in line, line


def test_what_the_attacks_start_from_is_a_good_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, "forge", raising=False)
    forge = runpy.run_path(str(FOLDER / "forge.py"))
    header, description, data = forge["parts"](forge["good_file"]())
    with pytest.raises(SystemExit):
        forge["show"](forge["assemble"](header, description, data))
