"""The folder of a run belongs to one process at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from foreword.errors import CannotWrite, OutputExists, OutputInUse
from foreword.research.experiments.results import Results, alone

HOLDING = """
import sys
from pathlib import Path
from foreword.research.experiments.results import alone
with alone(Path("run")):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_at_work_is_refused_until_its_process_is_gone(tmp_path: Path) -> None:
    program = [sys.executable, "-c", HOLDING]
    with subprocess.Popen(program, cwd=tmp_path, stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        refused = pytest.raises(OutputInUse, match="another .* is at work in .*run; wait until it ends")
        with refused, alone(tmp_path / "run"):
            pass
        other.kill()  # nothing of its own runs any more
    with alone(tmp_path / "run"):
        Results(tmp_path / "run", "trial", {}).add("one", loss=1.5)
    with alone(tmp_path / "run"):
        assert Results(tmp_path / "run", "trial", {}).records == {"one": {"loss": 1.5}}


def test_a_folder_with_other_files_gets_no_lock(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(OutputExists, match=r"holds thesis\.txt"), alone(tmp_path):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(CannotWrite, match="can't be made"), alone(tmp_path / "thesis.txt"):
        pass
