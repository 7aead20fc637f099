"""Starting: the vLLM engine that a configuration asks for."""

from __future__ import annotations

import os
import secrets

import httpx

from foreword.base.base_model import BaseModel
from foreword.errors import EngineStopped, UsageError
from foreword.models import resolve
from foreword.serving import logs
from foreword.serving.config import Configuration
from foreword.serving.loading import open_base
from foreword.serving.vllm import command, ticket
from foreword.serving.vllm.engine import SERVED_NAME, VllmEngine, check_base
from foreword.serving.vllm.process import VllmProcess, free_port
from foreword.serving.vllm.pulse import Pulse, answers


def make_vllm_engine(configuration: Configuration, base: BaseModel) -> VllmEngine:
    """An engine on the vLLM that `engine_url` names, or on one that is started here and ends with the engine.

    The base's weights are vLLM's to hold from then on: here they are let go.

    Raises:
        UsageError: no secret for a vLLM that runs already, a vLLM without what the line says, or no `vllm`
            command.
        EngineStopped: vLLM does not take requests.
        UnsupportedArchitecture: see `VllmEngine`.
    """
    check_base(base)  # before minutes are spent on starting
    process = None
    if configuration.engine_url is not None:
        secret, url = ticket.secret_of(os.environ), configuration.engine_url
        if not answers(url):
            raise EngineStopped(f"no vLLM answers at {url}; start one with:\n{line(configuration, base)}")
    else:
        secret = os.environ.get(ticket.SECRET) or secrets.token_hex(32)
        process = _start(configuration, base, secret)
        url = process.url
    try:
        window = _window_of(url, secret)
    except BaseException:
        if process is not None:
            process.close()
        raise
    pulse = Pulse(url)

    def close() -> None:
        pulse.close()
        if process is not None:
            process.close()

    engine = VllmEngine(base, url, secret, window=window, is_up=pulse.beats, on_close=close)
    _let_weights_go(base)
    return engine


def line(configuration: Configuration, base: BaseModel) -> str:
    """The shell line that starts a vLLM for this configuration."""
    return command.line(configuration, _model(configuration), command.dtype_of(base))


def vllm_line(configuration: Configuration) -> str:
    """As `line`. Raises as `BaseModel.load`, and UnsupportedArchitecture as `VllmEngine`."""
    base = open_base(configuration)
    check_base(base)
    return line(configuration, base)


def _start(configuration: Configuration, base: BaseModel, secret: str) -> VllmProcess:
    port = free_port()
    arguments = command.arguments(
        host="127.0.0.1",
        port=port,
        dtype=command.dtype_of(base),
        more=command.more_arguments(configuration),
    )
    settings = command.environment(configuration, secret)
    process = VllmProcess([*command.program(_model(configuration)), *arguments], settings, port)
    process.wait(configuration.engine_seconds)
    return process


def _window_of(url: str, secret: str) -> int:
    """Positions of a request, which `--max-model-len` can make fewer than the base has.

    Raises:
        UsageError: a vLLM that takes another key, or has no model of the name in the line.
        EngineStopped: it does not answer.
    """
    same_line = "start it with the line that `foreword serve --vllm-line` prints, with the same secret"
    try:
        headers = {"authorization": f"Bearer {ticket.api_key(secret)}"}
        answer = httpx.get(f"{url.rstrip('/')}/v1/models", headers=headers, timeout=30, trust_env=False)
        answer.raise_for_status()
        models = {each["id"]: each for each in answer.json()["data"]}
    except httpx.HTTPStatusError as error:
        raise UsageError(
            f"vLLM at {url} answers {error.response.status_code} to the gateway's key; {same_line}"
        ) from error
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise EngineStopped(
            f"what answers at {url} is no vLLM ({type(error).__name__}); {same_line}"
        ) from error
    if SERVED_NAME not in models:
        raise UsageError(f"vLLM at {url} serves {', '.join(models)}, not {SERVED_NAME}; {same_line}")
    return int(models[SERVED_NAME]["max_model_len"])


def _model(configuration: Configuration) -> str:
    return str(resolve(configuration.base, notify=lambda note: logs.event("base model", note=note)).path)


def _let_weights_go(base: BaseModel) -> None:
    """The gateway needs tokenizer, sizes and fingerprint, which is read while there are weights."""
    _ = base.identity
    base.model.to("meta")
