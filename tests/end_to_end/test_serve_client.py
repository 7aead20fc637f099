"""Your own fine-tuning server, with the demo's data and nothing but the `openai` package as client."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.saved_bases import save_tiny
from support.served_processes import served

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "examples" / "serve_client.py"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "tiny", max_position_embeddings=512)


def test_the_example_uploads_trains_chats_streams_and_deletes(tiny: Path, tmp_path: Path) -> None:
    with served(tmp_path, tiny) as server:
        done = subprocess.run(
            [sys.executable, str(SCRIPT), server.url, "--steps", "20"],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        client = server.client()
        assert [model.id for model in client.models.list()] == ["tiny"]
        assert [file.purpose for file in client.files.list()] == ["fine-tune-results"]
        assert [job.status for job in client.fine_tuning.jobs.list()] == ["succeeded"]
    lines = done.stdout.splitlines()
    assert "   step 20 of 20: training loss=" in done.stdout
    assert "   the job is done: local/triage@1" in lines
    chatted = lines[lines.index("3. Chat with local/triage@1.") + 1]
    streamed = lines[lines.index("4. The same, streamed.") + 1]
    assert chatted.strip()
    assert streamed.rstrip() == chatted.rstrip()


def test_the_example_needs_nothing_but_the_openai_package() -> None:
    tree = ast.parse(SCRIPT.read_text())
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in found}
    assert {name.split(".")[0] for name in names if name} - sys.stdlib_module_names == {"openai"}
