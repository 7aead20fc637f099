"""The `llm` command-line tool, told of the server as of any OpenAI-compatible endpoint."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

from foreword import BaseModel, PrefixStore
from support.saved_bases import save_tiny
from support.served_processes import ServedProcess, served
from support.stand_ins import random_prefix


def llm(folder: Path, *arguments: str) -> str:
    """What the tool prints."""
    done = subprocess.run(
        [sys.executable, "-m", "llm", *arguments],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "LLM_USER_PATH": str(folder)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tell_llm(folder: Path, server: ServedProcess, model: str) -> None:
    folder.mkdir()
    entry = {"model_id": "mine", "model_name": model, "api_base": server.url}
    (folder / "extra-openai-models.yaml").write_text(yaml.safe_dump([entry]))


def test_llm_streams_and_waits_for_the_same_text_of_a_prefix(tmp_path: Path) -> None:
    tiny = save_tiny(tmp_path / "tiny", max_position_embeddings=512)
    with PrefixStore(tmp_path / "store") as store:
        store.put("local/mine", random_prefix(BaseModel.load(tiny), 4))
    with served(tmp_path, tiny) as server:
        tell_llm(tmp_path / "llm", server, "local/mine")
        options = ("-m", "mine", "-o", "temperature", "0", "-o", "max_tokens", "12", "--no-log")
        streamed = llm(tmp_path / "llm", *options, "hello there")
        whole = llm(tmp_path / "llm", *options, "--no-stream", "hello there")
        client = server.client()
        asked = {"messages": [{"role": "user", "content": "hello there"}], "temperature": 0, "max_tokens": 12}
        answer = client.chat.completions.create(model="local/mine", **asked)
        bare = client.chat.completions.create(model=server.base, **asked)
    expected = answer.choices[0].message.content
    assert expected
    assert streamed.removesuffix("\n") == whole.removesuffix("\n") == expected
    assert bare.choices[0].message.content != expected
