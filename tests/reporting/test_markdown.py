"""Markdown tables hold any text, in columns of words and of figures."""

from __future__ import annotations

from foreword.reporting.markdown import table


def test_words_stand_left_and_figures_right() -> None:
    rows = [["a", "1.0", "2"], ["b", "3.0", "4"]]
    drawn = table(["owner", "loss", "steps"], rows)
    assert drawn == "| owner | loss | steps |\n| --- | ---: | ---: |\n| a | 1.0 | 2 |\n| b | 3.0 | 4 |\n"
    drawn = table(["way", "note", "seconds"], [["x", "y", "1"]], words=2)
    assert drawn.splitlines()[1] == "| --- | --- | ---: |"
    assert table(["way", "note"], [["x", ""]], words=2) == "| way | note |\n| --- | --- |\n| x |  |\n"


def test_names_can_not_break_a_table() -> None:
    drawn = table(["owner", "loss"], [["a|b\nc", "1.0"]])
    assert drawn.splitlines()[2:] == [r"| a\|b c | 1.0 |"]
