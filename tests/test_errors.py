"""Errors: what a message may quote of what others wrote, and how long it may be."""

from __future__ import annotations

from foreword.errors import LONGEST_MESSAGE, UnknownField, UsageError, WrongBaseModel


def test_a_long_message_keeps_its_beginning_and_what_to_do() -> None:
    error = UsageError(f"labels are {'x' * 100_000}; expected text. Shorten them")
    assert len(str(error)) <= LONGEST_MESSAGE
    assert str(error).startswith("labels are xxx")
    assert str(error).endswith("expected text. Shorten them")


def test_advice_is_behind_what_was_found_and_both_are_bounded() -> None:
    error = WrongBaseModel("y" * 100_000, advice="take another", remedy="other weights")
    assert str(error).endswith("; take another")
    assert len(error.found) <= LONGEST_MESSAGE
    assert len(UnknownField("z" * 100_000, "source").found) <= LONGEST_MESSAGE


def test_a_message_can_be_printed_whatever_it_quotes() -> None:
    assert str(UsageError("größer")) == "größer"
    assert str(UsageError("half \ud83d of one")) == "half \\ud83d of one"
