"""Rescoring: figures of the texts as they were written, whatever characters they have."""

from __future__ import annotations

from pathlib import Path

import pytest

from foreword import files
from foreword.errors import DamagedCheckpoint
from foreword.evaluation import Prediction, score
from foreword.experiments import trials
from foreword.experiments.ledger import Ledger
from foreword.experiments.rescoring import rescore, score_piece
from trials import small_plan

ODD = ["a\u2028b c", "d\u2029e", "f\x85g h", "i\x0bj\x0ck\x1cl", "plain words"]
"""With characters at which some readers end a line, and JSON does not."""


def test_no_character_of_a_text_ends_its_line(tmp_path: Path) -> None:
    plan = small_plan(sizes=(4,), subsets=1)
    ledger = Ledger(tmp_path, "low-data", {})
    trial = next(plan.trials())
    ledger.add(trial.piece, figures={"measured": {"loss": 1.0}})
    lines = [trials._line("measured", Prediction(text, (text + "!",), text)) for text in ODD]
    (tmp_path / "outputs").mkdir()
    path = tmp_path / "outputs" / trial.outputs
    files.write_text(path, "".join(lines))
    rescore(ledger, plan, ["plain"], tmp_path, lambda *_: None)
    expected = score(["plain"], ODD, [[text + "!"] for text in ODD])["plain"]
    found = ledger.pieces[score_piece("plain", trial)]["figures"]["measured"]
    assert found == {f"plain {name}": pytest.approx(value) for name, value in expected.items()}
    path.write_bytes(path.read_bytes()[:-20])
    fresh = Ledger(tmp_path / "fresh", "low-data", {})
    fresh.add(trial.piece, figures={"measured": {"loss": 1.0}})
    (tmp_path / "outputs").rename(tmp_path / "fresh" / "outputs")
    with pytest.raises(DamagedCheckpoint, match=f"line {len(ODD)} of .* is not as it was written"):
        rescore(fresh, plan, ["plain"], tmp_path / "fresh", lambda *_: None)
