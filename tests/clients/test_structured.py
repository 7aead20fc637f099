"""Objects and calls of tools through client libraries, against a whole server whose base's template has tools."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from foreword import PrefixStore
from support.saved_bases import TOOL_TEMPLATE, save_tiny
from support.served_processes import ServedProcess

HERE = Path(__file__).parent
ENVIRONMENT = Path(os.environ.get("VENV_CLIENTS", HERE.parents[1] / ".venv-clients"))
OBJECTS = {"openai": 2, "langchain": 2, "instructor": 3, "pydantic_ai": 2}
"""How many objects each library asks for, in as many ways."""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Where the server is, for the libraries."""
    folder = tmp_path_factory.mktemp("served")
    base = save_tiny(folder / "tiny", TOOL_TEMPLATE, max_position_embeddings=4096)
    with PrefixStore(folder / "store") as store:
        key = store.create_key("alice", "owner").secret
    arguments = ["--port", "0", "--base", str(base), "--store", str(folder / "store"), "--no-training"]
    process = ServedProcess(arguments, folder / "log", pause=None)
    try:
        yield {"BASE_URL": process.url, "API_KEY": key, "MODEL": process.base}
    finally:
        process.stop()


@pytest.mark.parametrize("library", OBJECTS)
def test_a_library_gets_objects_and_calls_that_it_takes(environment: dict[str, str], library: str) -> None:
    command = [str(ENVIRONMENT / "bin" / "python"), str(HERE / "structured_in_python.py"), library]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert len(told["objects"]) == OBJECTS[library]
    for each in told["objects"]:
        assert each["name"] in ("red", "green", "blue")
        assert len(each["shades"]) == 2
    assert all(call.startswith("painted ") for call in told["calls"])
