"""foreword serve: the OpenAI API over one base model and any number of prefixes."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from foreword.cli import options as common
from foreword.cli import output
from foreword.errors import UsageError
from foreword.serving import config as server
from foreword.validation import Setting, settings_of

OPERATION = "Operation"
EXAMPLE = "  foreword serve --no-keys\n  foreword serve --config server.toml --host 0.0.0.0 --port 8000"
VARIABLES = {"store": "FOREWORD_STORE", "blobs": "FOREWORD_STORE_BLOBS"}
"""Of settings that other commands have, too: as for those, the variable stands for the option."""

VllmLine = Annotated[
    bool,
    typer.Option(
        "--vllm-line",
        help="Print the command that starts such a vLLM, and exit.",
        rich_help_panel=server.ENGINE,
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Settings in TOML; see docs/server-settings.md.", rich_help_panel=OPERATION
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="A setting by its name, such as limits.jobs=2; repeatable.",
        rich_help_panel=OPERATION,
    ),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json", help="Print one JSON object when the server is ready.", rich_help_panel=common.OUTPUT
    ),
]


def serve(
    config: Config = None,
    setting: Set = None,
    vllm_line: VllmLine = False,
    json: Json = False,
    **flags: Any,
) -> None:
    """Serve the OpenAI API: chat with prefixes, upload examples, train new ones.

    Settings come from the file, then FOREWORD_SERVE_... in the environment, then these options; the
    later wins. SIGTERM or Ctrl-C finishes what runs and writes checkpoints; a second one ends at once.
    """
    if flags["engine"] is None and (flags["engine_url"] or vllm_line):
        flags["engine"] = "vllm"
    given = {name: value for name, value in flags.items() if value is not None}
    chosen = server.read(config, os.environ, {**common.pairs(setting, "--set"), **given})
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


def _options(kind: Any) -> Iterator[inspect.Parameter]:
    """An option for each setting that is one value; tables such as limits are given with --set.

    Values stay text, so that "none" is one, and the settings' own checks say what was expected. The default
    is left to the configuration: an option that was not given must not win over the file.
    """
    for each in settings_of(kind):
        kinds = each.alternatives
        if not set(kinds) & {str, int, float, bool} and not each.choices:
            continue
        option = typer.Option(
            *([f"{each.option}/--no-{each.option.removeprefix('--')}"] if bool in kinds else []),
            envvar=VARIABLES.get(each.name),
            metavar=None if bool in kinds else each.metavar or ("N" if int in kinds else "SECONDS"),
            help=_help(each),
            rich_help_panel=each.section,
        )
        given: Any = bool | None if bool in kinds else str | None
        yield _parameter(each.name, None, Annotated[given, option])


def _parameter(name: str, default: Any, hint: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)


def _help(each: Setting) -> str:
    default = each.shown_default
    return f"{each.help}." if default is None else f"{each.help}; default {default}."


def _with_options(kind: Any) -> None:
    """Let typer see the options of the settings in front of `serve`'s own, instead of `**flags`."""
    own = {"config": Config, "setting": Set, "vllm_line": VllmLine, "json": Json}
    defaults = inspect.signature(serve).parameters
    parameters = [*_options(kind), *(_parameter(name, defaults[name].default, own[name]) for name in own)]
    serve.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    serve.__annotations__ = {each.name: each.annotation for each in parameters}


_with_options(server.Configuration)
