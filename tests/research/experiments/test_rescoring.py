"""Rescoring: figures of the texts as they were written, whatever characters they have."""

from __future__ import annotations

from pathlib import Path

import pytest

from foreword import files
from foreword.errors import DamagedCheckpoint
from foreword.evaluation import Prediction, score
from foreword.evaluation.metrics import meteor
from foreword.research.experiments import trials
from foreword.research.experiments.measure import rescore, score_key
from foreword.research.experiments.results import Results
from support.trials import small_plan

ODD = ["a\u2028b c", "d\u2029e", "f\x85g h", "i\x0bj\x0ck\x1cl", "plain words"]
"""With characters at which some readers end a line, and JSON does not."""


def test_no_character_of_a_text_ends_its_line(tmp_path: Path) -> None:
    plan = small_plan(sizes=(4,), subsets=1)
    results = Results(tmp_path, "low-data", {})
    trial = next(plan.trials())
    results.add(trial.key, figures={"measured": {"loss": 1.0}})
    lines = [trials._line("measured", Prediction(text, (text + "!",), text)) for text in ODD]
    (tmp_path / "outputs").mkdir()
    path = tmp_path / "outputs" / trial.outputs
    files.write_text(path, "".join(lines))
    rescore(results, plan, ["plain"], tmp_path, lambda *_: None)
    expected = score(["plain"], ODD, [[text + "!"] for text in ODD])["plain"]
    found = results.records[score_key("plain", trial)]["figures"]["measured"]
    assert found == {f"plain {name}": pytest.approx(value) for name, value in expected.items()}
    path.write_bytes(path.read_bytes()[:-20])
    fresh = Results(tmp_path / "fresh", "low-data", {})
    fresh.add(trial.key, figures={"measured": {"loss": 1.0}})
    (tmp_path / "outputs").rename(tmp_path / "fresh" / "outputs")
    with pytest.raises(DamagedCheckpoint, match=f"line {len(ODD)} of .* is not as it was written"):
        rescore(fresh, plan, ["plain"], tmp_path / "fresh", lambda *_: None)


def test_meteor_is_started_once_for_all_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []

    class Stand:
        """METEOR without Java: counts how often it is started."""

        def __init__(self) -> None:
            started.append(self)

        def score(self, texts: list[str], references: list[list[str]]) -> float:
            return 0.5

        def close(self) -> None:
            assert started == [self]

    monkeypatch.setattr(meteor, "Meteor", Stand)
    plan = small_plan(sizes=(4,), subsets=2)
    results = Results(tmp_path, "low-data", {})
    (tmp_path / "outputs").mkdir()
    for trial in plan.trials():
        results.add(trial.key, figures={"measured": {"loss": 1.0}})
        line = trials._line("measured", Prediction("a b c", ("a b c d",), "a b c"))
        files.write_text(tmp_path / "outputs" / trial.outputs, line)
    rescore(results, plan, ["webnlg"], tmp_path, lambda *_: None)
    scored = [piece for name, piece in results.records.items() if name.startswith("webnlg figures")]
    assert len(scored) == len(list(plan.trials())) > 1
    assert all(piece["figures"]["measured"]["webnlg METEOR"] == 0.5 for piece in scored)
    assert len(started) == 1
