"""What the commands of `foreword bench` share: options, the base model, and how a report is told."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from foreword.base.options import ModelOptions
from foreword.cli import output
from foreword.cli.options import DATA, OUTPUT, base_option, json_option, option_of
from foreword.cli.output import command_line, duration
from foreword.errors import UsageError
from foreword.training.settings import TrainingSettings
from foreword.validation import check_settings, setting

if TYPE_CHECKING:
    from foreword.base.base_model import BaseModel
    from foreword.research.bench.roofline import Limits


@dataclass(frozen=True)
class BenchOptions:
    """What every benchmark takes."""

    base: str = base_option()
    device: str = option_of(ModelOptions, "device", "auto", section=None)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option_of(
        ModelOptions,
        "dtype",
        "auto",
        section=None,
        help="Data type of the base model, and of the machine's rate",
    )
    threads: int | None = setting(None, ge=1, default_text="torch's choice", help="Torch threads")
    out: Path | None = setting(
        None,
        metavar="FOLDER",
        section=OUTPUT,
        default_text="nowhere",
        help="Where report.md, report.json and the picture go",
    )
    json: bool = json_option()

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class PeerOptions(BenchOptions):
    """What a benchmark takes that compares with PEFT."""

    no_peft: bool = setting(False, help="Leave PEFT out")


data_option = setting(None, section=DATA, default_text="invented ones", help="Examples to measure on")
rounds_option = functools.partial(
    setting, ge=1, help="Rounds; each measures every way once, and medians are reported"
)
length_option = option_of(TrainingSettings, "length", 10, section=None, help="Number of virtual tokens")


def numbers(option: str, text: str) -> list[int]:
    """`8,16` as numbers.

    Raises:
        UsageError: something else, or a number that is not above 0.
    """
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) for part in parts):
        raise UsageError(
            f"{option} is {text!r}; expected whole numbers above 0 with commas between, as in {option} 8,16"
        )
    return [int(part) for part in parts]


def loaded(given: BenchOptions, *, peft: bool) -> BaseModel:
    """The base model; refuses before the work what can't be measured.

    Raises:
        UsageError: PEFT is wanted and absent; or the base is an encoder-decoder.
        UnsupportedArchitecture: the base's operations can't be counted.
        CannotWrite, OutputExists: see `report.check_folder`.
    """
    import importlib.util

    if peft and importlib.util.find_spec("peft") is None:
        raise UsageError("PEFT is not installed; pip install 'foreword[peft]', or measure with --no-peft")
    import torch

    from foreword.cli.loading import load_base
    from foreword.research.bench import roofline as flops
    from foreword.research.bench.report import check_folder

    if given.out is not None:
        check_folder(given.out)
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    model = load_base(given.base, ModelOptions(device=given.device, dtype=given.dtype))
    if model.is_encoder_decoder:
        raise UsageError(f"{model.name} is an encoder-decoder; the benchmarks take a decoder-only base")
    flops.check_countable(model)
    return model


def rates_of(model: BaseModel) -> Limits:
    """What the model's device can do in its data type, with the threads that were asked for."""
    from foreword.research.bench import roofline

    return roofline.measure(model.dtype, model.device)


def limits_of(model: BaseModel, products: str, copying: str) -> dict[str, str]:
    """Rates of products (GFLOP/s) and of copying (GB/s), as a report has them."""
    from foreword.research.bench.roofline import sizes_for

    side, numbers = sizes_for(model.device).square, str(model.dtype).removeprefix("torch.")
    return {
        f"matrix products ({side} x {side}, {numbers})": f"{products} GFLOP/s",
        "memory (copying)": f"{copying} GB/s",
    }


def round_notes(rounds: int, before: str = "") -> Callable[[int], None]:
    """Says which round is done, and how long the others take."""
    start_time = time.perf_counter()

    def say(number: int) -> None:
        left = (time.perf_counter() - start_time) / number * (rounds - number)
        rest = f", {duration(left)} left" if number < rounds else ""
        output.note(f"{before}round {number} of {rounds}{rest}")

    return say


def tell(
    context: typer.Context,
    given: BenchOptions,
    model: BaseModel,
    rates: Limits | None,
    title: str,
    **more: Any,
) -> None:
    """Make the report, print it, and write it where it was asked for.

    It has the command, the environment and, where they are not its subject, the machine's limits; `more`: its
    other attributes.

    Raises:
        CannotWrite: no right, or no such folder.
    """
    from foreword.research.bench.report import Report, as_json, cell, write
    from foreword.research.environment import describe_machine

    environment = {name: str(value) for name, value in describe_machine(model).items()}
    environment |= {"base": model.name, "dtype": str(model.dtype).removeprefix("torch.")}
    if rates is not None:
        more["limits"] = limits_of(model, f"{rates.flops / 1e9:.0f}", f"{rates.bandwidth / 1e9:.1f}")
    command = command_line(context, without=("out", "json"))
    report = Report(title=title, command=command, environment=environment, **more)
    if given.json:
        written = [] if given.out is None else write(report, given.out)
        return output.json_object({**as_json(report), "files": written})
    for name, value in {**report.environment, **report.limits}.items():
        typer.echo(f"{name}: {value}")
    output.table(report.columns, [tuple(map(cell, row)) for row in report.rows])
    for note in report.notes:
        typer.echo(note)
    for path in [] if given.out is None else write(report, given.out):  # after the figures are told
        typer.echo(f"written: {path}")
    return None
