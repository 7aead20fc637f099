"""The settings of a server, each defined once; read from a TOML file, the environment, flags: the later wins.

A field of `Configuration` is a key of the file, a variable FOREWORD_SERVE_..., an option of `foreword serve`
and a row of docs/server-settings.md: nothing else is to be written for a new one.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from foreword.base.options import SECTION as MODEL
from foreword.base.options import ModelOptions
from foreword.errors import CannotRead, UsageError
from foreword.store.names import check_owner
from foreword.validation import Setting, check_settings, current_names, setting, settings_of

ENVIRONMENT = "FOREWORD_SERVE_"
ENGINE = "Engine"
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s,*]+")
"""As browsers write it in the header Origin, https://www.rfc-editor.org/rfc/rfc6454#section-6.1."""

_model = partial(setting, section=MODEL, metavar="NAME")
_engine = partial(setting, section=ENGINE)
_store = partial(setting, section="Store", metavar="PLACE")
_address = partial(setting, section="Address")
_requests = partial(setting, section="Requests")
_training = partial(setting, section="Training")


@dataclass(frozen=True)
class Limits:
    """What a caller may use; None is no limit."""

    requests_per_minute: int | None = setting(600, ge=1, help="Requests a minute, of each key")
    tokens_per_minute: int | None = setting(
        200_000, ge=1, help="Tokens a minute of prompts and answers, of each key"
    )
    jobs: int | None = setting(10, ge=1, help="Jobs that wait or train, of each owner")
    stored_bytes: int | None = setting(
        1 << 30, ge=1, help="Bytes of uploaded files, prefixes and jobs together, of each owner"
    )

    def __post_init__(self) -> None:
        check_settings(self)


NO_LIMITS = Limits(None, None, None, None)


@dataclass(frozen=True)
class Configuration(ModelOptions):
    """Everything that can be set; how the base model is loaded stands in `ModelOptions`."""

    base: str = _model("smollm2-135m-instruct", help="Alias, folder or Hugging Face id")
    name: str | None = _model(
        None, default_text="as in base; of a folder the last part", help="What the base is called in the API"
    )
    engine: Literal["local", "vllm"] = _engine("local", help="Engine that generates")
    engine_url: str | None = _engine(
        None, metavar="URL", help="URL of a running vLLM; without, one is started"
    )
    engine_arguments: str | None = _engine(
        None, metavar="TEXT", help="More arguments for the vLLM that is started, as in a shell"
    )
    engine_seconds: float = _engine(900.0, gt=0, help="Time for a vLLM to start")
    engine_silent_seconds: float = _engine(
        300.0,
        gt=0,
        help="A vLLM that gives no token for so long while texts wait, or does not answer, is started again",
    )
    store: str = _store(
        "prefixes", variable="FOREWORD_STORE", help="Folder of the store, or URL of its database"
    )
    blobs: str | None = _store(
        None, variable="FOREWORD_STORE_BLOBS", help="Where a database's files are: folder or URL"
    )
    checkpoints: str | None = _store(
        None,
        metavar="FOLDER",
        default_text="in the store's folder; of a database, in the user's cache folder",
        help="Folder where training on this machine keeps its checkpoints",
    )
    verify_days: float | None = _store(
        30.0,
        gt=0,
        metavar="DAYS",
        help="Check each stored file again, slowly, when it was not checked for so long",
    )
    host: str = _address("127.0.0.1", metavar="NAME", help="Address to listen on")
    port: int = _address(8000, ge=0, le=65535, help="Port; 0 takes a free one")
    connections: int = _address(
        1024, ge=1, help="Most connections; at most half of the file descriptors that the process may have"
    )
    connections_per_address: int | None = _address(
        128,
        ge=1,
        help="Most connections from one address, this machine's own aside; none behind a proxy elsewhere",
    )
    keys: bool = _address(
        True, help="Require an API key; without, for your own machine, on a loopback address only"
    )
    cors_origins: str | None = _address(
        None,
        metavar="ORIGINS",
        help="Origins whose pages may use the API, such as http://localhost:3000, with commas between; * is "
        "any, where keys are required",
    )
    owner: str = _address("local", metavar="NAME", help="Owner of all files and jobs, without keys")
    body_bytes: int = _requests(4 << 20, ge=1, help="Largest request")
    upload_bytes: int = _requests(64 << 20, ge=1, help="Largest file")
    head_seconds: float = _requests(
        10.0, gt=0, help="Time for the head of a request, from the connection's begin or the answer before"
    )
    body_seconds: float = _requests(
        30.0, gt=0, help="Time for a client to send its request; uploads have more, by their size"
    )
    write_seconds: float = _requests(
        60.0, gt=0, help="Time for a client to take a piece of the answer; then its texts are stopped"
    )
    drain_seconds: float = _requests(120.0, gt=0, help="Time for running requests after SIGTERM")
    rows: int = _requests(64, ge=1, help="Most texts of one request: prompts times n")
    waiting_rows: int = _requests(
        2048,
        ge=1,
        help="Most texts written or waiting, of all owners; an owner may hold as many as it leaves free",
    )
    default_max_tokens: int = _requests(
        512, ge=1, help="New tokens of a chat answer where the request does not say"
    )
    training: bool = _training(True, help="Train the jobs; without, other servers on the store do")
    jobs_together: int = _training(8, ge=1, help="Most jobs in one training run")
    isolated: bool = _training(
        False, help="Train each job in passes of its own, on a CPU bit for bit as if alone"
    )
    turn_seconds: float = _training(600.0, gt=0, help="Time after which a run yields to jobs that wait")
    lease_seconds: float = _training(30.0, gt=0, help="A training process silent for so long loses its jobs")
    idle_seconds: float = _training(60.0, gt=0, help="The training process ends after so long without a job")
    trainer_threads: int | None = _training(
        None, ge=1, default_text="torch's choice", help="Threads of the training process"
    )
    limits: Limits = setting(section="Limits", default_factory=Limits, help="What each caller may use")
    key_limits: Mapping[str, Limits] = setting(
        section="Limits",
        default_factory=dict,
        default_text="none",
        help="Limits of single keys, by the key's id, instead",
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.keys and not is_loopback(self.host):
            raise UsageError(
                f"host is {self.host!r}, and without keys anybody who reaches it could use everything; "
                "listen on 127.0.0.1, or leave keys on (foreword store keys make)"
            )
        for origin in self.allowed_origins:
            if not _ORIGIN.fullmatch(origin) and not (origin == "*" and self.keys):
                raise UsageError(
                    f"cors_origins has {origin!r}; expected origins such as http://localhost:3000, without a "
                    "path, or * where keys are required"
                )
        check_owner(self.owner)
        if self.engine != "vllm" and (self.engine_url or self.engine_arguments):
            raise UsageError(
                f"engine_url and engine_arguments are vLLM's, but engine is {self.engine!r}; take vllm"
            )
        if self.engine == "vllm" and self.quantization is not None:
            raise UsageError(
                f"quantization is {self.quantization!r}, which is the local engine's; take engine local, or "
                "leave it out: vLLM has its own (engine_arguments)"
            )
        if self.training and self.dtype == "float16":  # else every job would fail (trainer.check_dtype)
            raise UsageError(
                "dtype is float16, and training is on: no prefix is trained through a model in float16. Take "
                "auto, bfloat16 or float32, or turn training off: another server on the store can train"
            )
        if self.engine_url is not None and not self.engine_url.startswith(("http://", "https://")):
            raise UsageError(
                f"engine_url is {self.engine_url!r}; expected a URL such as http://127.0.0.1:8001"
            )

    @property
    def allowed_origins(self) -> tuple[str, ...]:
        """Origins whose pages may use the API: answered to preflights, and let through without keys."""
        return tuple(origin.strip() for origin in (self.cors_origins or "").split(",") if origin.strip())

    def to_json(self) -> dict[str, Any]:
        """Plain data, from which `of` makes the same again."""
        return dataclasses.asdict(self)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read(path: Path | None, environment: Mapping[str, str], flags: Mapping[str, Any]) -> Configuration:
    """The configuration of a file, the environment and flags; the later wins.

    Args:
        flags: settings by name; None stands for a flag that was not given. Text is read as the
            environment's is. `limits.jobs` names a setting within `limits`.

    Raises:
        CannotRead: the file is absent or can't be opened.
        UsageError: a setting that is not known, not of its type or out of range; says where it stands.
    """
    variables = {
        name.removeprefix(ENVIRONMENT).lower().replace("__", "."): value
        for name, value in environment.items()
        if name.startswith(ENVIRONMENT)
    }
    given: dict[str, Any] = {}
    for where, source in (
        (str(path), {} if path is None else _file(path)),
        ("the environment", variables),
        ("the flags", {name: value for name, value in flags.items() if value is not None}),
    ):
        try:
            checked = _checked(Configuration, _nested(source))
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from error
        for name, value in checked.items():
            given[name] = {**given.get(name, {}), **value} if isinstance(value, dict) else value
    return of(given)


def of(settings: Mapping[str, Any]) -> Configuration:
    """A configuration from plain data. Raises UsageError as `read`."""
    values = _checked(Configuration, settings)
    limits = Limits(**values.pop("limits", {}))
    # A key has the limits of every caller, but for those that are its own.
    own = values.pop("key_limits", {})
    key_limits = {key: dataclasses.replace(limits, **more) for key, more in own.items()}
    return Configuration(**values, limits=limits, key_limits=key_limits)


def _file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))  # some editors put a mark in front
    except OSError as error:
        raise CannotRead(f"{path} could not be read: {error.strerror}; expected a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from error


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`{"limits.jobs": 2}` as `{"limits": {"jobs": 2}}`."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *outer, last = name.split(".")
        place = tree
        for part in outer:
            place = _table(part, place.setdefault(part, {}))
        place[last] = value
    return tree


def _checked(kind: Any, given: Mapping[str, Any], within: str = "") -> dict[str, Any]:
    """The settings of a class as plain data, text turned into values, everything checked."""
    known = {each.name: each for each in settings_of(kind)}
    checked: dict[str, Any] = {}
    for name, value in current_names(kind, given).items():
        path = f"{within}{name}"
        if name not in known:
            shown = path if within else repr(name)
            raise UsageError(f"{shown} is no setting; expected one of {', '.join(sorted(known))}")
        if name == "limits":
            checked[name] = _limits(path, value)
        elif name == "key_limits":
            of_keys = _table(path, value).items()
            checked[name] = {key: _limits(f"{path}.{key}", limits) for key, limits in of_keys}
        else:
            checked[name] = _value(dataclasses.replace(known[name], name=path), value)
    return checked


def _limits(path: str, given: Any) -> dict[str, Any]:
    table = dataclasses.asdict(given) if isinstance(given, Limits) else _table(path, given)
    return _checked(Limits, table, f"{path}.")


def _table(path: str, given: Any) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise UsageError(f"{path} is {given!r}; expected a table of limits")
    return given


def _value(each: Setting, value: Any) -> Any:
    try:
        if isinstance(value, str):
            value = each.from_text(value)
        each.check(value)
    except UsageError as error:
        raise UsageError(f"{error}, or none" if each.optional else str(error)) from error
    return float(value) if type(value) is int and float in each.alternatives else value
