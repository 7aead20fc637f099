"""Settings of a server as they were written in files, the environment and flags mean what they meant."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from upgrade import runs, surface

FOLDER = surface.FIXTURES / "settings"
EXPECTED = surface.recorded("settings/expected.json")
PLACES = ("foreword.serving.config", "foreword.serving.configuration")
"""Where the settings are read: no public name, so a later place is to be added here, and nothing else."""
RENAMED: dict[str, str] = {}
"""Old to new, for settings that were renamed: the old name must still be read, and gives the new one's value."""


def read(path: Path | None, environment: Mapping[str, str], flags: Mapping[str, Any]) -> dict[str, Any]:
    for place in PLACES:
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError:
            continue
        found = module.read(path, environment, flags).to_json()
        return json.loads(json.dumps(found))  # type: ignore[no-any-return]
    raise AssertionError(f"the settings are read in none of {PLACES}; name the new place here")


def check(found: dict[str, Any], before: dict[str, Any]) -> None:
    for name, value in before.items():
        now = found[RENAMED.get(name, name)]
        if name == "key_limits":
            for key, limits in value.items():
                assert {limit: now[key][limit] for limit in limits} == limits
        elif name == "limits":
            assert {limit: now[limit] for limit in value} == value
        else:
            assert now == value, name


def test_defaults_are_what_they_were() -> None:
    check(read(None, {}, {}), EXPECTED["defaults"])


@pytest.mark.parametrize("name", ["local", "vllm"])
def test_a_file_with_every_key_is_read(name: str) -> None:
    check(read(FOLDER / f"{name}.toml", {}, {}), EXPECTED[name])


@pytest.mark.parametrize("name", ["local", "vllm"])
def test_every_variable_of_the_environment_is_read(name: str) -> None:
    check(read(None, surface.recorded(f"settings/{name}-environment.json"), {}), EXPECTED[name])


@pytest.mark.parametrize("name", ["local", "vllm"])
def test_every_setting_is_taken_as_a_flag(name: str) -> None:
    flags = dict(flag.split("=", 1) for flag in surface.recorded(f"settings/{name}-flags.json"))
    check(read(None, {}, flags), EXPECTED[name])


@pytest.mark.parametrize("way", ["file", "environment", "flags"])
def test_foreword_serve_takes_them_all(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    for name in [name for name in os.environ if name.startswith("FOREWORD_S")]:
        monkeypatch.delenv(name)
    words = ["serve"]
    if way == "file":
        words += ["--config", str(FOLDER / "local.toml")]
    elif way == "flags":
        words += [w for flag in surface.recorded("settings/local-flags.json") for w in ("--set", flag)]
    else:
        for name, value in surface.recorded("settings/local-environment.json").items():
            monkeypatch.setenv(name, value)
    # All settings are taken, and then there is no such base.
    assert runs.call(words) != 0
    told = capsys.readouterr().err
    assert "no-such-base" in told
    assert "no setting" not in told
