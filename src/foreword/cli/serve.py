"""foreword serve: the OpenAI API over one base model and any number of prefixes."""

from __future__ import annotations

import os
from pathlib import Path

import typer

from foreword.cli import output
from foreword.cli.options import Given, json_option, pairs
from foreword.errors import UsageError
from foreword.serving import config as server
from foreword.validation import setting

OPERATION = "Operation"
EXAMPLE = "  foreword serve --no-keys\n  foreword serve --config server.toml --host 0.0.0.0 --port 8000"


def serve(
    given: Given[server.Configuration],
    config: Path | None = setting(
        None, section=OPERATION, help="Settings in TOML; see docs/server-settings.md"
    ),
    settings: list[str] | None = setting(
        None,
        name="set",
        metavar="NAME=VALUE",
        section=OPERATION,
        help="A setting by its name, such as limits.jobs=2; repeatable",
    ),
    vllm_line: bool = setting(
        False, section=server.ENGINE, help="Print the command that starts such a vLLM, and exit"
    ),
    json: bool = json_option(help="Print one JSON object when the server is ready"),
) -> None:
    """Serve the OpenAI API: chat with prefixes, upload examples, train new ones.

    Settings come from the file, then FOREWORD_SERVE_... in the environment, then these options; the
    later wins. SIGTERM or Ctrl-C finishes what runs and writes checkpoints; a second one ends at once.
    """
    if "engine" not in given and ("engine_url" in given or vllm_line):
        given["engine"] = "vllm"
    chosen = server.read(config, os.environ, {**pairs(settings, "--set"), **given})
    # What is wrong with the settings is said before the slow part.
    try:
        from foreword.serving.serve import serve as run
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "uvicorn", "prometheus_client", "sqlalchemy"):
            raise
        raise UsageError(
            f"serving needs {error.name}; install it with: pip install 'foreword[serve]'"
        ) from error

    if vllm_line:
        from foreword.serving.vllm.launch import vllm_line as line_of

        typer.echo(line_of(chosen))
        return

    def announce(url: str, name: str) -> None:
        if json:
            output.json_object({"url": f"{url}/v1", "base": name, "pid": os.getpid()})
            return
        typer.echo(f"serving {name} at {url}/v1")
        if chosen.keys:
            typer.echo("callers need a key: foreword store keys make OWNER")
        else:
            typer.echo("no key is asked for: any program on this machine may call")

    run(chosen, announce=announce)
