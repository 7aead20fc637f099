"""The page in the docs says what the tests show."""

from __future__ import annotations

from support.architectures.make_table import PAGE, page


def test_the_page_is_in_step_with_the_tests() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python tests/support/architectures/make_table.py"
