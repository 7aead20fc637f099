"""Request: what the options of `foreword train` ask for, checked before a base model is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foreword.cli.options import unescaped
from foreword.errors import UsageError

if TYPE_CHECKING:
    from foreword.base.base_model import BaseModel
    from foreword.examples import Example
    from foreword.prefix import Prefix
    from foreword.template import Template

SETTINGS = (
    "steps",
    "epochs",
    "batch_size",
    "learning_rate",
    "init",
    "layers",
    "placement",
    "seed",
    "warmup",
    "clip",
    "weight_decay",
    "reduction",
    "accumulate",
    "max_length",
    "by_source",
    "gradient_checkpointing",
    "packed",
    "evaluate_every",
    "patience",
)
"""Options that are keywords of `train` as they stand."""


@dataclass(frozen=True)
class Request:
    """What is to be trained, of one prefix or of many.

    Attributes:
        examples, dev: from the files; `dev` is None without one.
        settings: keywords of `train` that decide which prefix comes out, None for a default.
        template: what the options make of the base's own.
        start: the prefix to begin at.
        labels, licence: for the prefix file.
        checkpoint_dir, checkpoint_every: where and how often; None for the default.
        load: loads the base model.
        overwrite, json: as typed.
    """

    examples: list[Example]
    dev: list[Example] | None
    settings: dict[str, Any]
    template: Callable[[Template], Template]
    start: Prefix | None
    labels: dict[str, str]
    licence: str | None
    checkpoint_dir: Path | None
    checkpoint_every: int | None
    load: Callable[[], BaseModel]
    overwrite: bool
    json: bool


def settings_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of `train` from the options as typed.

    Raises:
        UsageError: out of range, or options that do not go together.
    """
    from foreword.training.settings import make_settings

    settings = {name: options[name] for name in SETTINGS}
    settings["length"] = lengths_of(options["length"])
    settings["streams"] = streams_of(options["streams"])
    settings["parameterization"] = _parameterization(
        options["parameterization"], options["width"], options["freeze_first"]
    )
    if options["start"] is not None and options["init"] is not None:
        raise UsageError("--start and --init both say where training begins; give one of them")
    make_settings(**settings)
    return settings


def lengths_of(text: str | None) -> int | dict[str, int] | None:
    """`10`, or `encoder=5,cross=10`, as `train` takes it.

    Raises:
        UsageError: neither of them; a stream named twice.
    """
    if text is None:
        return None
    if "=" not in text:
        return _whole(text, text)
    lengths: dict[str, int] = {}
    for part in text.split(","):
        stream, equals, number = (piece.strip() for piece in part.partition("="))
        if not equals or not stream or stream in lengths:
            raise _bad_length(text)
        lengths[stream] = _whole(number, text)
    return lengths


def streams_of(text: str | None) -> tuple[str, ...] | None:
    """`encoder,cross` as `train` takes it; whether they are streams is seen there.

    Raises:
        UsageError: a stream named twice, or nothing between two commas.
    """
    if text is None:
        return None
    streams = tuple(part.strip() for part in text.split(","))
    if "" in streams or len(set(streams)) < len(streams):
        raise UsageError(
            f"--streams is {text!r}; expected some of decoder, encoder and cross, each once, as in "
            "--streams encoder,cross"
        )
    return streams


def template_change(
    style: str | None, separator: str | None, system: str | None, examples: Sequence[Example]
) -> Callable[[Template], Template]:
    """What the options make of the base's own template.

    Raises:
        UsageError: an option that the style does not have.
    """
    conversations = any(not isinstance(example.source, str) for example in examples)
    if style is None and (conversations or system is not None):
        style = "chat"
    if separator is not None and style not in (None, "separator"):
        raise UsageError(f"--separator is given, but the template is {style}; it needs --template separator")
    if system is not None and style != "chat":
        raise UsageError(f"--system is given, but the template is {style}; it needs --template chat")
    if conversations and style != "chat":
        raise UsageError(f"the examples are conversations, which the template {style} can't write; use chat")
    changes: dict[str, Any] = {"style": style or (None if separator is None else "separator")}
    changes |= {"separator": None if separator is None else unescaped(separator), "system": system}
    given = {name: value for name, value in changes.items() if value is not None}
    if style == "chat":
        given["begin"] = False  # a chat template writes its own beginning
    return lambda template: dataclasses.replace(template, **given)


def run_folder(out: Path) -> Path:
    """Where a run keeps its checkpoints when nothing is said: beside what it writes."""
    return out.with_suffix(".run") if out.suffix == ".prefix" else out.with_name(f"{out.name}.run")


def _whole(number: str, text: str) -> int:
    try:
        return int(number)
    except ValueError:
        raise _bad_length(text) from None


def _bad_length(text: str) -> UsageError:
    return UsageError(
        f"--length is {text!r}; expected a whole number, or one for each stream, each once, as in "
        "--length encoder=5,cross=10"
    )


def _parameterization(kind: str | None, width: int | None, freeze_first: bool) -> Any:
    from foreword.training.settings import ParameterizationSettings

    given: dict[str, Any] = {"kind": kind, "width": width, "freeze_first": freeze_first or None}
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        return None
    settings = ParameterizationSettings(**given)
    if width is not None and not settings.has_network:
        raise UsageError(
            f"--width is given, but {settings.kind} has no network; use --parameterization mlp+start"
        )
    return settings
