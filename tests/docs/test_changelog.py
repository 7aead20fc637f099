"""CHANGELOG.md: what it says of names that moved or changed is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from foreword._aliases import MOVED
from foreword.training.settings import OwnersSettings, TrainingSettings
from foreword.validation import settings_of

UNRELEASED = (Path(__file__).parents[2] / "CHANGELOG.md").read_text(encoding="utf-8").split("\n## ")[1]
ROWS = [
    [re.findall(r"`([\w.]+)`", cell) for cell in line.strip(" |").split("|")]
    for line in UNRELEASED.splitlines()
    if re.match(r"\s*\| `", line)
]
MODULES = [row for row in ROWS if row[0][0].startswith("foreword.")]
SETTINGS = [(old, new) for (old,), (new,) in (row for row in ROWS if row not in MODULES)]


@pytest.mark.parametrize(("old", "new"), MODULES, ids=str)
def test_modules_moved_to_where_it_says(old: list[str], new: list[str]) -> None:
    for number, name in enumerate(old):
        target = MOVED[name.removeprefix("foreword.")]
        expected = new[number] if len(new) == len(old) else new[0]
        assert f"foreword.{target}" == expected or target.startswith(expected.removeprefix("foreword.") + ".")


def test_every_setting_that_changed_its_name_is_there() -> None:
    changed = {
        (alias, setting.name)
        for kind in (TrainingSettings, OwnersSettings)
        for setting in settings_of(kind)
        for alias in setting.aliases
    }
    assert set(SETTINGS) == changed


def test_every_setting_that_is_gone_is_there() -> None:
    assert all(f"`{name}`" in UNRELEASED for name in TrainingSettings.GONE)
