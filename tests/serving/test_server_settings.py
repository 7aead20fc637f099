"""A server's setting is defined once: file, environment, flags, the command's options and the page come from it."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from foreword.base.options import ModelOptions
from foreword.cli.options import Given, with_options
from foreword.errors import UsageError
from foreword.serving import config
from foreword.serving.config import ENVIRONMENT, Configuration, Limits, read
from foreword.validation import Setting, setting, settings_of

DOCS = Path(__file__).parents[2] / "docs"
TABLES = ("limits", "key_limits")
OTHERS: dict[str, Any] = {
    "dtype": "bfloat16",  # float16 goes without training alone
    "engine": "vllm",
    "owner": "alice",
    "engine_url": "http://127.0.0.1:1",
    "keys": True,
    "cors_origins": "http://localhost:3000",
}
"""Values for settings that do not take any."""
NEEDED = {"engine_url": {"engine": "vllm"}, "engine_arguments": {"engine": "vllm"}}


@dataclasses.dataclass(frozen=True)
class Extended(Configuration):
    """A server with one more setting."""

    added: int = setting(7, ge=1, le=9, section="Added", help="What a test added")


def page() -> Any:
    specification = importlib.util.spec_from_file_location("settings_page", DOCS / "make_server_settings.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def other_value(each: Setting) -> Any:
    """A value that is not the default."""
    default, kinds = each.default, each.alternatives
    if each.name in OTHERS:
        return OTHERS[each.name]
    if each.choices:
        return each.choices[-1]
    if bool in kinds:
        return not default
    if int in kinds or float in kinds:
        return 8 if default != 8 else 9
    return "something"


def in_toml(value: Any) -> str:
    return (
        str(value).lower()
        if isinstance(value, bool)
        else str(value)
        if isinstance(value, int)
        else f'"{value}"'
    )


SCALARS = [each for each in settings_of(Extended) if each.name not in TABLES]


@pytest.mark.parametrize("where", ["file", "environment", "flags"])
@pytest.mark.parametrize("each", SCALARS, ids=lambda each: each.name)
def test_every_setting_is_taken_from_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, each: Any, where: str
) -> None:
    monkeypatch.setattr(config, "Configuration", Extended)
    values = {**NEEDED.get(each.name, {}), each.name: other_value(each)}
    path = tmp_path / "server.toml"
    path.write_text("".join(f"{name} = {in_toml(value)}\n" for name, value in values.items()))
    variables = {f"{ENVIRONMENT}{name.upper()}": str(value) for name, value in values.items()}
    flags = {name: str(value) for name, value in values.items()}
    found = {
        "file": lambda: read(path, {}, {}),
        "environment": lambda: read(None, variables, {}),
        "flags": lambda: read(None, {}, flags),
    }[where]()
    assert getattr(found, each.name) == values[each.name]


def test_how_a_base_is_loaded_is_set_as_for_every_command() -> None:
    of_the_server = {each.name: each for each in settings_of(Configuration)}
    for each in settings_of(ModelOptions):
        assert of_the_server[each.name] == each
    with pytest.raises(UsageError, match="dtype is 'float64'; expected auto, float32, bfloat16 or float16"):
        read(None, {f"{ENVIRONMENT}DTYPE": "float64"}, {})


@pytest.mark.parametrize("name", [each.name for each in settings_of(Limits)])
def test_every_limit_is_taken_from_everywhere(tmp_path: Path, name: str) -> None:
    path = tmp_path / "server.toml"
    path.write_text(f"[limits]\n{name} = 3\n[key_limits.ab]\n{name} = 4\n")
    variables = {
        f"{ENVIRONMENT}LIMITS__{name.upper()}": "3",
        f"{ENVIRONMENT}KEY_LIMITS__AB__{name.upper()}": "4",
    }
    flags = {f"limits.{name}": "3", f"key_limits.ab.{name}": "4"}
    for found in (read(path, {}, {}), read(None, variables, {}), read(None, {}, flags)):
        assert (getattr(found.limits, name), getattr(found.key_limits["ab"], name)) == (3, 4)


def options_of(kind: Any) -> dict[str, str]:
    """The settings' options and their help, as a command made of them has them."""
    app = typer.Typer(add_completion=False)
    taken: list[dict[str, Any]] = []

    def one(given: Any) -> None:
        taken.append(given)

    one.__annotations__["given"] = Given[kind]
    app.command()(with_options(one))
    found = {option.name: option.help for option in typer.main.get_command(app).params}
    assert CliRunner().invoke(app, []).exit_code == 0
    assert taken == [{}]  # what was not given must not win over the file
    return found


def test_the_command_has_an_option_for_every_setting() -> None:
    options = options_of(Extended)
    assert set(options) == {each.name for each in SCALARS}
    assert options["added"] == "What a test added; default 7."
    result = CliRunner().invoke(_app(), ["serve", "--help"])
    for each in SCALARS:
        assert each.name == "added" or each.option in result.stdout, each.name


def _app() -> Any:
    from foreword.cli import app

    return app


def test_an_option_is_no_default_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not given on the command line is the file's; what is given wins, --set by its name."""
    seen: list[Configuration] = []

    def stop(configuration: Configuration, **_: Any) -> None:
        seen.append(configuration)

    from foreword.serving import serve

    monkeypatch.setattr(serve, "serve", stop)
    for name in ("FOREWORD_STORE", "FOREWORD_STORE_BLOBS"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "server.toml"
    path.write_text("port = 1\nkeys = false\ntraining = false\ntrainer_threads = 2\nrows = 3\n")
    words = ["serve", "--config", str(path), "--training", "--trainer-threads", "none", "--set", "rows=4"]
    assert CliRunner().invoke(_app(), words).exit_code == 0
    (found,) = seen
    assert (found.port, found.keys, found.training, found.trainer_threads, found.rows) == (
        1,
        False,
        True,
        None,
        4,
    )


def test_the_page_is_made_from_the_definitions() -> None:
    written = (DOCS / "server-settings.md").read_text(encoding="utf-8")
    assert written == page().render(), "run: python docs/make_server_settings.py"


def test_the_page_has_every_setting_with_its_default() -> None:
    text = page().render(Extended)
    rows = dict(re.findall(r"^\| `([\w.]+)` \| ([^|]+) \|", text, re.MULTILINE))
    assert set(rows) == {each.name for each in SCALARS} | {"key_limits"} | {
        f"limits.{each.name}" for each in settings_of(Limits)
    }
    assert rows["added"] == "7"
    assert rows["port"] == "8000"
    assert rows["limits.tokens_per_minute"] == "200000"
    assert "| What a test added (1 to 9) |" in text
