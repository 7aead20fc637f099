"""Reports: what is written is what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from foreword.errors import CannotWrite, OutputExists
from foreword.research.bench.report import FILES, Panel, Report, check_folder, write
from foreword.research.bench.timing import Spread

REPORT = Report(
    title="Digging",
    command="foreword bench dig",
    environment={"device": "spade"},
    limits={"holes": "3 a day"},
    notes=("One hole a round.",),
    columns=("way", "seconds", "times", "note"),
    rows=[("ours", Spread(2.0, 1.5, 3.0), 0.12345, None), ("theirs", Spread(4.0, 4.0, 4.0), 7, "slow")],
)


def test_a_report_comes_back_from_its_files_as_it_was(tmp_path: Path) -> None:
    check_folder(tmp_path / "new" / "folder")
    page, data = write(REPORT, tmp_path / "new" / "folder")
    told = json.loads(data.read_text())
    assert told == {
        "title": "Digging",
        "command": "foreword bench dig",
        "environment": {"device": "spade"},
        "limits": {"holes": "3 a day"},
        "notes": ["One hole a round."],
        "rows": [
            {
                "way": "ours",
                "seconds": {"median": 2.0, "low": 1.5, "high": 3.0},
                "times": 0.12345,
                "note": None,
            },
            {
                "way": "theirs",
                "seconds": {"median": 4.0, "low": 4.0, "high": 4.0},
                "times": 7,
                "note": "slow",
            },
        ],
    }
    lines = page.read_text().splitlines()
    assert "- holes: 3 a day" in lines
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert table == [
        ["way", "seconds", "times", "note"],
        ["---", "---:", "---:", "---:"],
        ["ours", "2.00 (1.50 to 3.00)", "0.123", ""],
        ["theirs", "4.00 (4.00 to 4.00)", "7", "slow"],
    ]


def test_only_what_there_is_to_draw_is_drawn(tmp_path: Path) -> None:
    points = [Spread(1, 1, 1), Spread(2, 1, 4)]
    panels = [
        Panel("a step", "rows", "seconds", [1, 2], points, [1, 2]),
        Panel("b", "c", "d", [1, 2], points),
    ]
    drawn = Report(**{**vars(REPORT), "panels": panels, "ratios": {"ours": Spread(2, 1, 3)}})
    check_folder(tmp_path / "plain")
    assert [path.name for path in write(REPORT, tmp_path / "plain")] == ["report.md", "report.json"]
    written = write(drawn, tmp_path)
    assert [path.name for path in written[2:]] == ["ratios.png", "curves.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written[2:])


def test_a_folder_that_can_not_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWrite, match="choose another"):
        check_folder(tmp_path / "file")


@pytest.mark.parametrize("name", FILES)
def test_a_report_is_never_written_over_another(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("precious")
    with pytest.raises(OutputExists, match=name):
        check_folder(tmp_path)
