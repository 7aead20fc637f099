"""Two checkouts in turns: what is said of them, and that each does its own work."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from support.saved_bases import save_tiny

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def against() -> ModuleType:
    spec = importlib.util.spec_from_file_location("against", ROOT / "benchmarks" / "against.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_ratio_is_that_of_each_round(against: ModuleType) -> None:
    # Rounds of which the second and third were slow for both: ratios 1.5, 1, 0.5, whose median is 1.
    ratio, low, high, cells = against.compared([2, 20, 40], [3, 20, 20])
    assert (ratio, low, high) == (1.0, 0.75, 1.25)
    assert cells == "20.000 | 20.000"
    assert against.compared([2.0], [3.0])[:3] == (1.5, 1.5, 1.5)


def test_each_checkout_does_the_work_with_its_own_code(
    against: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = save_tiny(tmp_path / "tiny", max_position_embeddings=512)
    other = tmp_path / "other"
    shutil.copytree(
        ROOT / "src" / "foreword", other / "src" / "foreword", ignore=shutil.ignore_patterns("*.pyc")
    )
    loop, steps = other / "src" / "foreword" / "training" / "loop.py", tmp_path / "steps"
    loop.write_text(
        f"{loop.read_text()}\n\n_plain = train_step\n\n\ndef train_step(*given, **more):\n"
        f"    open({str(steps)!r}, 'a').write('.')\n    return _plain(*given, **more)\n"
    )
    options = ["--base", str(base), "--work", "step-2", "--rounds", "1", "--length", "3", "--least", "0"]
    assert against.main(["--checkout", str(other), *options]) == 0
    assert steps.read_text() == ".."  # one to warm up, one in the round; this checkout wrote none
    *_, row = capsys.readouterr().out.splitlines()
    cells = row.strip("| ").split(" | ")
    assert cells[0] == "step-2"
    assert all(float(cell) > 0 for cell in cells[1:4])


def test_a_folder_that_is_no_checkout_is_refused(against: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no checkout"):
        against._Worker(tmp_path, against.argparse.Namespace(threads=1))
