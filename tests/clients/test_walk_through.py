"""OpenAI's walk-through of fine-tuning, from the upload to the answers, against a whole server that trains."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foreword import PrefixStore
from support.saved_bases import TOOL_TEMPLATE, save_tiny
from support.served_processes import ServedProcess

HERE = Path(__file__).parent
ENVIRONMENT = Path(os.environ.get("VENV_CLIENTS", HERE.parents[1] / ".venv-clients"))


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The variables that say where the server is."""
    folder = tmp_path_factory.mktemp("served")
    base = save_tiny(folder / "tiny", TOOL_TEMPLATE, max_position_embeddings=1024)
    with PrefixStore(folder / "store") as store:
        key = store.create_key("alice", "owner").secret
    arguments = ["--port", "0", "--base", str(base), "--store", str(folder / "store")]
    arguments += ["--set", "trainer_threads=1", "--set", "drain_seconds=30"]
    process = ServedProcess(arguments, folder / "log", pause=None)
    try:
        yield {"OPENAI_BASE_URL": process.url, "OPENAI_API_KEY": key, "MODEL": process.base}
    finally:
        process.stop()


def told(environment: dict[str, str], what: str) -> Any:
    """What the program says of its run."""
    command = [str(ENVIRONMENT / "bin" / "python"), str(HERE / "walk_through.py"), what]
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, capture_output=True, text=True, env={**variables, **environment}, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_supervised_then_preferences_then_answers(environment: dict[str, str]) -> None:
    found = told(environment, "fine_tuning")
    assert found["models"] == ["alice/polite@1", "alice/politer@1"]
    assert found["steps"] == [0, 1, 2, 3, 4]
    assert found["losses"]
    assert found["events"] == ["the job is done: alice/polite@1"]
    assert found["response"] == found["streamed"] == found["chat"]


def test_a_file_with_tools_becomes_a_model_whose_calls_parse(environment: dict[str, str]) -> None:
    assert told(environment, "tools") == {"model": "alice/painter@1", "name": "paint", "keys": ["colour"]}
