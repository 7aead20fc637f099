"""Configuration of a server: a TOML file, FOREWORD_SERVE_... in the environment, flags; the later wins."""

from __future__ import annotations

import dataclasses
import ipaddress
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foreword.errors import CannotRead, UsageError
from foreword.store.names import check_owner

ENVIRONMENT = "FOREWORD_SERVE_"


@dataclass(frozen=True)
class Limits:
    """What a caller may use; None is no limit.

    Attributes:
        requests_per_minute, tokens_per_minute: of each key; tokens are those of prompts and answers.
        jobs: of each owner, waiting or in training.
        stored_bytes: of each owner, uploaded files and prefixes together.
    """

    requests_per_minute: int | None = 600
    tokens_per_minute: int | None = 200_000
    jobs: int | None = 10
    stored_bytes: int | None = 1 << 30


NO_LIMITS = Limits(None, None, None, None)


@dataclass(frozen=True)
class Configuration:
    """Everything that can be set.

    Attributes:
        base: the base model: alias, folder or Hugging Face id.
        name: what it is called in the API; else as above, of a folder the last part.
        device, dtype, attention, quantization: as `BaseModel.load` takes them.
        engine: what turns prompts into tokens: local or vllm.
        engine_url: a vLLM that runs already; None for one that is started and ends with this server.
        engine_arguments: more arguments for the vLLM that is started, as in a shell.
        engine_seconds: how long that may take to start.
        store, blobs: the store of prefixes: folder, or database URL and place of its files.
        checkpoints: folder for the checkpoints of jobs, where the store is no folder.
        host, port: where to listen; port 0 takes a free one.
        keys: whether callers need an API key. Without, only this machine may call.
        owner: whose files and jobs they are, where there are no keys.
        training: whether this server trains; others on the same store may.
        body_bytes, upload_bytes: largest request, and largest file.
        body_seconds, write_seconds: how long a client may take to send its request, or to take a piece of
            the answer.
        drain_seconds: how long running requests may go on after SIGTERM.
        rows: most texts that one request may ask for (prompts times `n`).
        waiting_rows: most texts that are written or wait for it; requests beyond get 503.
        default_max_tokens: new tokens of a chat answer where the request does not say.
        jobs_together: jobs that one training run takes at most.
        isolated: train each job in passes of its own, bit for bit as if it were alone.
        turn_seconds: after so long a run makes room for jobs that wait.
        lease_seconds: a worker not heard of for so long has lost its jobs.
        idle_seconds: a worker with nothing to do ends after so long and gives its memory back.
        trainer_threads: threads of a training process; None: torch's choice.
        limits: of every caller.
        key_limits: of single keys, by the key's id, instead.
    """

    base: str = "smollm2-135m-instruct"
    name: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    attention: str = "auto"
    quantization: str | None = None
    engine: str = "local"
    engine_url: str | None = None
    engine_arguments: str | None = None
    engine_seconds: float = 900.0
    store: str = "prefixes"
    blobs: str | None = None
    checkpoints: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    keys: bool = True
    owner: str = "local"
    training: bool = True
    body_bytes: int = 4 << 20
    upload_bytes: int = 64 << 20
    body_seconds: float = 30.0
    write_seconds: float = 60.0
    drain_seconds: float = 120.0
    rows: int = 64
    waiting_rows: int = 2048
    default_max_tokens: int = 512
    jobs_together: int = 8
    isolated: bool = False
    turn_seconds: float = 600.0
    lease_seconds: float = 30.0
    idle_seconds: float = 60.0
    trainer_threads: int | None = None
    limits: Limits = Limits()
    key_limits: Mapping[str, Limits] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.keys and not is_loopback(self.host):
            raise UsageError(
                f"host is {self.host!r}, and without keys anybody who reaches it could use everything; "
                "listen on 127.0.0.1, or leave keys on (foreword store keys make)"
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
        if self.engine_url is not None and not self.engine_url.startswith(("http://", "https://")):
            raise UsageError(
                f"engine_url is {self.engine_url!r}; expected a URL such as http://127.0.0.1:8001"
            )
        if not 0 <= self.port < 65536:
            raise UsageError(f"port is {self.port}; expected 0 to 65535")
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)}; expected a positive number")
        for limits in (self.limits, *self.key_limits.values()):
            for name, value in dataclasses.asdict(limits).items():
                if value is not None and value < 1:
                    raise UsageError(f"limits.{name} is {value}; expected at least 1, or none for no limit")

    def to_json(self) -> dict[str, Any]:
        """Plain data, from which `of` makes the same again."""
        return dataclasses.asdict(self)


_POSITIVE = (
    *("body_bytes", "upload_bytes", "body_seconds", "write_seconds", "drain_seconds", "rows", "waiting_rows"),
    *("default_max_tokens", "jobs_together", "turn_seconds", "lease_seconds", "idle_seconds"),
    "engine_seconds",
)


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
        UsageError: a setting that is not known, or not of its type; says where it stands.
    """
    settings: dict[str, Any] = {}
    if path is not None:
        _merge(settings, _file(path), str(path))
    named = {
        name.removeprefix(ENVIRONMENT).lower().replace("__", "."): value
        for name, value in environment.items()
        if name.startswith(ENVIRONMENT)
    }
    _merge(settings, _nested(named), "the environment")
    _merge(settings, _nested({k: v for k, v in flags.items() if v is not None}), "the flags")
    return of(settings)


def of(settings: Mapping[str, Any]) -> Configuration:
    """A configuration from plain data. Raises UsageError as `read`."""
    given = dict(settings)
    given["limits"] = _limits("limits", given.get("limits", {}), Limits())
    given["key_limits"] = {
        key: _limits(f"key_limits.{key}", limits, given["limits"])
        for key, limits in dict(given.get("key_limits", {})).items()
    }
    return Configuration(**_typed(Configuration, given, ""))


def _file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as opened:
            return tomllib.load(opened)
    except OSError as error:
        raise CannotRead(f"{path} could not be read: {error.strerror}; expected a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from error


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in flat.items():
        *outer, last = name.split(".")
        place = found
        for part in outer:
            place = place.setdefault(part, {})
        place[last] = value
    return found


def _merge(settings: dict[str, Any], more: Mapping[str, Any], where: str) -> None:
    known = {entry.name for entry in dataclasses.fields(Configuration)}
    if unknown := sorted(set(more) - known):
        raise UsageError(f"{where}: {unknown[0]!r} is no setting; expected one of {', '.join(sorted(known))}")
    for name, value in more.items():
        if isinstance(value, Mapping) and isinstance(settings.get(name), Mapping):
            settings[name] = {**settings[name], **value}
        else:
            settings[name] = value


def _limits(name: str, given: Any, default: Limits) -> Limits:
    if isinstance(given, Limits):
        return given
    if not isinstance(given, Mapping):
        raise UsageError(f"{name} is {given!r}; expected a table of limits")
    return dataclasses.replace(default, **_typed(Limits, given, f"{name}."))


def _typed(kind: type[Any], given: Mapping[str, Any], before: str) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    typed = {}
    for name, value in given.items():
        if name not in hints:
            raise UsageError(f"{before}{name} is no setting; expected one of {', '.join(hints)}")
        typed[name] = _value(f"{before}{name}", value, hints[name])
    return typed


def _value(name: str, value: Any, hint: Any) -> Any:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if type(None) in options and (value is None or value == "none"):
        return None
    kind = options[0]
    if kind not in (str, int, float, bool):
        return value
    if isinstance(value, str) and kind is not str:
        value = _parsed(value, kind)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise UsageError(f"{name} is {value!r}; expected {kind.__name__}")
    return value


def _parsed(text: str, kind: type[Any]) -> Any:
    if kind is bool:
        return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(
            text.lower(), text
        )
    try:
        return kind(text)
    except ValueError:
        return text
