"""Report and picture say what the figures say."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import pytest

from foreword.research.experiments import plots
from foreword.research.experiments.report_personalization import make_matrix, summary
from foreword.research.experiments.statistics import Column


def columns(own: float, other: float, count: int = 8) -> list[Column]:
    names = [f"owner {number}" for number in range(count)]
    return [
        Column(
            owner=name,
            examples=3,
            tokens=12,
            none=6.0,
            shared=2.0,
            under={each: own if each == name else other for each in names},
        )
        for name in names
    ]


def test_the_summary_says_what_held_and_what_did_not() -> None:
    none, shared, others, place = summary(columns(own=3.0, other=3.25)).splitlines()
    assert "against no prefix: held: the own prefix is better" in none
    assert "3.000 lower on average (± 0.000 over owners), and lower for 8 of 8 owners" in none
    assert "against the shared prefix: did not hold: the own prefix is worse" in shared
    assert "1.000 higher on average" in shared
    assert "lower for 0 of 8 owners" in shared
    assert "against the other owners' prefixes: held" in others
    assert "lowest loss for 8 of 8 owners" in place


def test_the_summary_does_not_settle_what_chance_could_show() -> None:
    none, _, others, few, _ = summary(columns(own=3.0, other=3.0, count=4)).splitlines()
    assert few == "- 4 owners are too few to settle anything, even if all of them agree."
    assert "against no prefix: not settled by these owners" in none
    assert "probability 0.12" in none
    assert "against the other owners' prefixes: not settled" in others
    assert "lower for 0 of 4 owners (4 equal)" in others


def test_rows_of_the_matrix_are_prefixes_and_columns_are_examples() -> None:
    names = ("a", "b")
    first = Column("a", 1, 4, none=9.0, shared=3.0, under={"a": 1.0, "b": 5.0})
    second = Column("b", 1, 4, none=8.0, shared=2.5, under={"a": 4.0, "b": 2.0})
    values, row_names, column_names = make_matrix([first, second])
    assert tuple(column_names) == names
    assert row_names == ["a", "b", "shared prefix", "no prefix"]
    assert values == [[0.0, 2.0], [4.0, 0.0], [2.0, 0.5], [8.0, 6.0]]


def test_a_cell_is_red_where_it_is_worse_than_own_and_blue_where_better(tmp_path: Path) -> None:
    def colours(value: float) -> tuple[int, int]:
        values = [[0.0, value], [value, 0.0]]
        plots.draw(values, ["a", "b"], ["a", "b"], tmp_path / "matrix.png")
        pixels = matplotlib.image.imread(tmp_path / "matrix.png")[:, : 3 * 140]  # without the colour bar
        red, blue = pixels[:, :, 0], pixels[:, :, 2]
        return int((red > blue + 0.2).sum()), int((blue > red + 0.2).sum())

    worse_red, worse_blue = colours(1.0)
    assert worse_red > 1000 > worse_blue
    better_red, better_blue = colours(-1.0)
    assert better_blue > 1000 > better_red


@pytest.mark.parametrize("count", [2, 31])
def test_the_picture_is_drawn_for_few_and_many(tmp_path: Path, count: int) -> None:
    plots.draw(*make_matrix(columns(own=3.0, other=3.5, count=count)), tmp_path / "matrix.png")
    assert (tmp_path / "matrix.png").read_bytes().startswith(b"\x89PNG")


def test_names_that_look_like_formulas_are_drawn_as_they_are(tmp_path: Path) -> None:
    names = [r"$\frac{$", "x" * 300]
    plots.draw([[0.0, 1.0], [1.0, 0.0]], names, names, tmp_path / "matrix.png")
    height, width, _ = matplotlib.image.imread(tmp_path / "matrix.png").shape
    assert height < 2000
    assert width < 2000


def test_one_value_far_off_does_not_pale_the_others() -> None:
    assert plots._limit([1.0] * 99 + [50.0]) == 1.0
    assert plots._limit([0.0] * 99 + [50.0]) == 50.0
    assert plots._limit([0.0]) > 0
