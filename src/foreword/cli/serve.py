"""foreword serve: the OpenAI API over one base model and any number of prefixes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from foreword.cli import options as common
from foreword.cli import output
from foreword.errors import UsageError

STORE, ADDRESS, OPERATION = "Store", "Address", "Operation"
EXAMPLE = "  foreword serve --no-keys\n  foreword serve --config server.toml --host 0.0.0.0 --port 8000"


def serve(
    base: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Alias, folder or Hugging Face id; default smollm2-135m-instruct.",
            rich_help_panel=common.MODEL,
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1, mps.", rich_help_panel=common.MODEL),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="auto, float32, bfloat16, float16.", rich_help_panel=common.MODEL),
    ] = None,
    quantization: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Quantize the weights: int8 or nf4.", rich_help_panel=common.MODEL),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Engine that generates: local or vllm.", rich_help_panel=common.MODEL
        ),
    ] = None,
    engine_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="URL of a running vLLM; without, one is started.",
            rich_help_panel=common.MODEL,
        ),
    ] = None,
    vllm_line: Annotated[
        bool,
        typer.Option(
            "--vllm-line",
            help="Print the command that starts such a vLLM, and exit.",
            rich_help_panel=common.MODEL,
        ),
    ] = False,
    store: Annotated[
        str | None,
        typer.Option(
            envvar="FOREWORD_STORE",
            metavar="PLACE",
            help="Folder of the store, or URL of its database.",
            rich_help_panel=STORE,
        ),
    ] = None,
    blobs: Annotated[
        str | None,
        typer.Option(
            envvar="FOREWORD_STORE_BLOBS",
            metavar="PLACE",
            help="Where a database's files are: folder or URL.",
            rich_help_panel=STORE,
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Address to listen on; default 127.0.0.1.", rich_help_panel=ADDRESS
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port; default 8000; 0 takes a free one.", rich_help_panel=ADDRESS)
    ] = None,
    no_keys: Annotated[
        bool,
        typer.Option(
            "--no-keys",
            help="Require no API key; for your own machine, on a loopback address only.",
            rich_help_panel=ADDRESS,
        ),
    ] = False,
    no_training: Annotated[
        bool,
        typer.Option(
            "--no-training",
            help="Accept jobs, but leave training to other servers.",
            rich_help_panel=OPERATION,
        ),
    ] = False,
    config: Annotated[
        Path | None, typer.Option(help="Settings in TOML; see docs/serve.md.", rich_help_panel=OPERATION)
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Any other setting, such as limits.jobs=2; repeatable.",
            rich_help_panel=OPERATION,
        ),
    ] = None,
    json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print one JSON object when the server is ready.", rich_help_panel=common.OUTPUT
        ),
    ] = False,
) -> None:
    """Serve the OpenAI API: chat with prefixes, upload examples, train new ones.

    Settings come from the file, then FOREWORD_SERVE_... in the environment, then these options; the
    later wins. SIGTERM or Ctrl-C finishes what runs and writes checkpoints; a second one ends at once.
    """
    from foreword.serving import config as settings

    flags = {
        **common.pairs(setting, "--set"),
        **{
            name: value
            for name, value in {
                "base": base,
                "device": device,
                "dtype": dtype,
                "quantization": quantization,
                "engine": engine or ("vllm" if engine_url or vllm_line else None),
                "engine_url": engine_url,
                "store": store,
                "blobs": blobs,
                "host": host,
                "port": port,
                "keys": False if no_keys else None,
                "training": False if no_training else None,
            }.items()
            if value is not None
        },
    }
    chosen = settings.read(config, os.environ, flags)
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
