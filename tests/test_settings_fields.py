"""A setting is defined once: its range, its default and its old names hold wherever it is given."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest

from foreword.errors import ForewordDeprecation, UsageError
from foreword.validation import (
    check_settings,
    current_names,
    flat_settings,
    setting,
    settings_of,
    takes_old_names,
)


@dataclass(frozen=True)
class Inner:
    kind: Literal["a", "b"] = setting("a", name="letter", help="Which letter")
    size: int = setting(3, ge=1, help="How large")


@takes_old_names
@dataclass(frozen=True)
class Example:
    GONE: ClassVar[Mapping[str, str]] = {"colour": "all is grey; leave it out"}

    rate: float = setting(0.5, gt=0, le=1, aliases=("speed",), help="How fast")
    port: int = setting(80, ge=0, le=65535, help="Where")
    rows: int | None = setting(None, ge=1, help="How many")
    share: float = setting(0.0, ge=0, help="Of what")
    name: str | None = setting(None, help="Whose")
    loud: bool = setting(False, help="Whether it is heard")
    inner: Inner = setting(default_factory=Inner, help="What is within")

    def __post_init__(self) -> None:
        check_settings(self)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rate": 0}, "rate is 0; expected a positive number, 1 or less"),
        ({"rate": 1.5}, "rate is 1.5; expected"),
        ({"rate": math.nan}, "rate is nan; expected"),
        ({"rate": "fast"}, "rate is 'fast'; expected a number"),
        ({"port": 65536}, "port is 65536; expected 0 to 65535"),
        ({"port": 1.5}, "port is 1.5; expected a whole number"),
        ({"port": True}, "port is True; expected a whole number"),
        ({"rows": 0}, "rows is 0; expected a positive number"),
        ({"share": -1}, "share is -1; expected zero or more"),
        ({"name": 3}, "name is 3; expected text"),
        ({"loud": "yes"}, "loud is 'yes'; expected true or false"),
    ],
)
def test_a_value_out_of_range_or_of_another_type_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Example(**given)


def test_values_at_the_ends_of_a_range_are_taken() -> None:
    made = Example(rate=1, port=0, rows=1, share=0)
    assert (made.rate, made.port, made.rows) == (1, 0, 1)


def test_choices_are_those_of_the_type() -> None:
    (kind, _) = settings_of(Inner)
    assert kind.choices == ("a", "b")
    with pytest.raises(UsageError, match="letter is 'c'; expected a or b"):
        kind.check("c")


def test_an_old_name_is_taken_with_a_word_about_the_new_one() -> None:
    with pytest.warns(ForewordDeprecation, match="speed is now called rate"):
        made: Any = Example(speed=0.25)  # type: ignore[call-arg]
    assert made.rate == 0.25
    with pytest.warns(ForewordDeprecation, match="speed is now called rate") as said:
        assert made.speed == 0.25
    assert said[0].filename == __file__  # the line that is to be changed
    with pytest.raises(UsageError, match="speed is the old name of rate, and both are given"):
        current_names(Example, {"speed": 0.25, "rate": 0.5})
    with pytest.raises(AttributeError, match="no attribute 'spede'"):
        _ = made.spede


def test_a_setting_that_is_gone_is_taken_and_does_nothing() -> None:
    with pytest.warns(ForewordDeprecation, match="colour does nothing any more.*all is grey"):
        assert Example(colour="red") == Example()  # type: ignore[call-arg]


def test_names_in_old_files_change_without_a_warning() -> None:
    assert current_names(Example, {"speed": 0.25, "colour": "red"}, warn=False) == {"rate": 0.25}


def test_settings_within_a_setting_stand_in_its_place() -> None:
    flat = flat_settings(Example)
    assert [each.name for each in flat][-3:] == ["loud", "letter", "size"]
    assert flat[-1].path == ("inner", "size")
    assert flat[-1].option == "--size"


def test_values_are_read_from_text() -> None:
    by_name = {each.name: each for each in flat_settings(Example)}
    read = {
        name: by_name[name].from_text(text)
        for name, text in {"rate": "0.5", "rows": "none", "loud": "no"}.items()
    }
    assert read == {"rate": 0.5, "rows": None, "loud": False}
    assert by_name["name"].from_text("7") == "7"
    with pytest.raises(UsageError, match="port is 'here'; expected a whole number"):
        by_name["port"].from_text("here")
