"""The count of an experiment's parts on standard error says how long the rest takes at the pace so far."""

from __future__ import annotations

import pytest

from foreword.cli import output
from foreword.cli.bench import options


def test_the_time_left_follows_the_pace_since_the_first_count(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = iter([0.0, 30.0, 60.0, 90.0])
    monkeypatch.setattr(output.time, "perf_counter", lambda: next(seconds))
    count = output.Counter()
    for done in (2, 4, 6):  # two were made by an earlier start of the run: they took no time of this one
        count("trials", done, 8)
    count("trials", 8, 8)
    assert capsys.readouterr().err.splitlines() == [
        "trials 2/8",
        "trials 4/8  1 min 00 s left",
        "trials 6/8  30 s left",
        "trials 8/8",
    ]


def test_rounds_of_a_benchmark_say_how_long_the_others_take(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = iter([0.0, 10.0, 20.0])
    monkeypatch.setattr(options.time, "perf_counter", lambda: next(seconds, 20.0))
    tell = options.round_notes(2, "8 rows: ")
    tell(1)
    tell(2)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["note: 8 rows: round 1 of 2, 10 s left", "note: 8 rows: round 2 of 2"]
