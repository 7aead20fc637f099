"""Configuration: a file, the environment, flags; the later wins, and mistakes are named."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from foreword.errors import BadName, CannotRead, UsageError
from foreword.serving.config import Configuration, Limits, of, read


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "server.toml"
    path.write_text(
        'base = "a"\nport = 1\nrows = 5\n[limits]\njobs = 1\ntokens_per_minute = "none"\n[key_limits.0a]\njobs = 9\n'
    )
    return path


def test_a_byte_order_mark_is_no_part_of_the_file(file: Path) -> None:
    plain = read(file, {}, {})
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert read(file, {}, {}) == plain


def test_the_later_source_wins(file: Path) -> None:
    environment = {
        "FOREWORD_SERVE_PORT": "2",
        "FOREWORD_SERVE_ROWS": "6",
        "FOREWORD_SERVE_LIMITS__JOBS": "2",
        "OTHER": "x",
    }
    found = read(file, environment, {"port": 3, "limits.stored_bytes": "77", "device": None})
    assert (found.base, found.rows, found.port, found.device) == ("a", 6, 3, "auto")
    assert found.limits == Limits(600, None, 2, 77)
    assert found.key_limits == {"0a": Limits(600, None, 9, 77)}


@pytest.mark.parametrize(("text", "value"), [("true", True), ("0", False), ("no", False), ("YES", True)])
def test_the_environment_can_say_yes_and_no(text: str, value: bool) -> None:
    assert read(None, {"FOREWORD_SERVE_TRAINING": text}, {}).training is value


def test_a_configuration_survives_the_way_to_the_trainer(file: Path) -> None:
    found = read(file, {}, {"checkpoints": "x"})
    assert of(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"prot": 1}, "'prot' is no setting"),
        ({"port": "high"}, "the flags: port is 'high'; expected a whole number"),
        ({"port": 70000}, "expected 0 to 65535"),
        ({"port": True}, "expected a whole number"),
        ({"rows": 0}, "rows is 0; expected a positive number"),
        ({"drain_seconds": "nan"}, "drain_seconds"),
        ({"limits.job": "1"}, "limits.job is no setting"),
        ({"limits.jobs": "0"}, "limits.jobs is 0; expected a positive number, or none"),
        ({"limits": 3}, "limits is 3; expected a table"),
        ({"limits": "3", "limits.jobs": "1"}, "limits is '3'; expected a table"),
        ({"limits.jobs": "1", "limits": "3"}, "limits is '3'; expected a table"),
        ({"key_limits": "3"}, "key_limits is '3'; expected a table"),
        ({"keys": "false", "host": "0.0.0.0"}, "without keys"),
        ({"keys": False, "host": "example.org"}, "without keys"),
        ({"keys": False, "host": "::"}, "without keys"),
        ({"engine": "tgi"}, "engine is 'tgi'; expected local or vllm"),
        ({"dtype": "float16"}, "dtype is float16, and training is on"),
        ({"dtype": "float16", "engine": "vllm"}, "dtype is float16, and training is on"),
        ({"trainer_threads": "0"}, "trainer_threads is 0; expected a positive number, or none"),
        ({"base": None, "keys": "perhaps"}, "keys is 'perhaps'; expected true or false"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read(None, {}, settings)


def test_a_server_without_training_may_have_float16() -> None:
    assert of({"dtype": "float16", "training": False}).dtype == "float16"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
def test_loopback_needs_no_keys(host: str) -> None:
    assert Configuration(host=host, keys=False).host == host


def test_toml_without_end_is_named(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text("a = " + "[" * 5000)
    with pytest.raises(UsageError, match="is not TOML"):
        read(file, {}, {})


def test_files_that_are_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(CannotRead, match="expected a TOML file"):
        read(tmp_path / "none.toml", {}, {})
    (tmp_path / "bad.toml").write_text("port = \n")
    with pytest.raises(UsageError, match="is not TOML"):
        read(tmp_path / "bad.toml", {}, {})
    with pytest.raises(UsageError, match="FOREWORD_SERVE|environment"):
        read(None, {"FOREWORD_SERVE_PROT": "1"}, {})
    with pytest.raises(BadName):
        read(None, {}, {"owner": "../x"})


def test_the_command_refuses_before_it_loads_anything(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from foreword.cli import app

    result = CliRunner().invoke(app, ["serve", "--no-keys", "--host", "0.0.0.0", "--json"])
    assert result.exit_code == 2
    assert "without keys" in json.loads(result.stdout)["error"]["message"]
    result = CliRunner().invoke(app, ["serve", "--set", "rows=-1", "--json"])
    assert (result.exit_code, "rows is -1" in result.stdout) == (2, True)


@pytest.mark.parametrize("where", ["file", "the environment", "the flags"])
def test_a_mistake_is_said_with_the_place_where_it_stands(tmp_path: Path, where: str) -> None:
    path = tmp_path / "server.toml"
    path.write_text("rows = 0" if where == "file" else "rows = 1")
    environment = {"FOREWORD_SERVE_ROWS": "x"} if where == "the environment" else {}
    flags = {"limits.jobs": "many"} if where == "the flags" else {}
    messages = {
        "file": f"{path}: rows is 0; expected a positive number",
        "the environment": "the environment: rows is 'x'; expected a whole number",
        "the flags": "the flags: limits.jobs is 'many'; expected a whole number, or none",
    }
    with pytest.raises(UsageError, match=f"^{re.escape(messages[where])}$"):
        read(path, environment, flags)
