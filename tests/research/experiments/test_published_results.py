"""The reports in docs/results are what their `results.jsonl` say: each is made again, byte for byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from foreword.cli.reproduce.trials import EXTRAPOLATION, LOW_DATA, make_plan
from foreword.research.experiments.report_trials import make_report
from foreword.research.experiments.results import Results

PUBLISHED = Path(__file__).resolve().parents[3] / "docs/results"
PARAMETERS = 134_515_008
"""Of SmolLM2-135M-Instruct, the base model of both runs."""

OTHERS = "none,zero-shot,few-shot,top-2,lora-8,adapter,peft-prefix,peft-projection,prompt-tuning"
RUNS: dict[str, tuple[Any, dict[str, Any], int, list[str]]] = {
    "low-data": (LOW_DATA, {"task": "e2e", "others": OTHERS}, 42061, ["measured"]),
    "extrapolation": (EXTRAPOLATION, {"task": "webnlg", "sizes": "100"}, 10000, ["seen", "unseen"]),
}
"""Experiment, options of the command, training examples, groups of what is measured."""

DEFAULTS = {
    **{"quick": False, "untuned": False, "tuning_size": 100, "length": 10, "seed": 0},
    **{name: None for name in ("batch_size", "patience", "max_length", "instruction", "task", "beams")},
}


@pytest.mark.parametrize("run", RUNS)
def test_a_published_report_is_made_again_from_its_results(run: str, tmp_path: Path) -> None:
    kind, options, examples, groups = RUNS[run]
    shutil.copy(PUBLISHED / run / "results.jsonl", tmp_path)
    head = json.loads((tmp_path / "results.jsonl").read_text().partition("\n")[0])
    published = (PUBLISHED / run / "report.md").read_text()
    command = published.partition("```\n")[2].partition("\n")[0]
    results = Results(tmp_path, kind.name, head["settings"])
    plan = make_plan(kind.chosen(DEFAULTS | options), examples)
    page = make_report(
        kind.title, command, results, plan, groups, "smollm2-135m-instruct", PARAMETERS, "figures.png"
    )
    if run == "extrapolation":  # written when its summary had the same lines in another order
        page, published = ("\n".join(sorted(text.split("\n"))) for text in (page, published))
    assert page == published
    assert (tmp_path / "results.jsonl").read_bytes() == (PUBLISHED / run / "results.jsonl").read_bytes()
