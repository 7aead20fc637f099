"""foreword bench: what Foreword's work costs on this machine, beside PEFT and beside the machine's limit."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foreword.cli import options as common
from foreword.cli import output
from foreword.cli import train_options as its
from foreword.cli.commands import SectionedCommand
from foreword.errors import UsageError

if TYPE_CHECKING:
    from foreword.base import BaseModel
    from foreword.bench.report import Report

EXAMPLE = (
    "\b\nExample:\n"
    "  foreword bench step --data trainset.csv --out step-figures\n"
    "  foreword bench generate --owners 32"
)

app = typer.Typer(
    no_args_is_help=True,
    help="Measure speed and memory on this machine, beside PEFT and the machine's limit.",
    epilog=EXAMPLE,
)

Data = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Examples to measure on; default: invented ones.", rich_help_panel=common.DATA
    ),
]
Rounds = Annotated[
    int, typer.Option("--rounds", metavar="N", min=1, help="Turns of each way; medians are told.")
]
Threads = Annotated[
    int | None, typer.Option("--threads", metavar="N", min=1, help="Of torch; default: its choice.")
]
Length = Annotated[int, typer.Option("--length", metavar="P", min=1, help="Number of virtual tokens.")]
NoPeft = Annotated[bool, typer.Option("--no-peft", help="Leave PEFT out.")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FOLDER",
        help="Where report.md, report.json and the picture go; default: nowhere.",
        rich_help_panel=common.OUTPUT,
    ),
]


@app.command(cls=SectionedCommand, epilog=EXAMPLE)
def step(
    context: typer.Context,
    base: its.Base = "smollm2-135m-instruct",
    data: Data = None,
    sizes: Annotated[str, typer.Option("--sizes", metavar="N,N", help="Examples in a batch.")] = "8,16",
    length: Length = 10,
    rounds: Rounds = 7,
    threads: Threads = None,
    no_peft: NoPeft = False,
    out: Out = None,
    json: common.Json = False,
) -> None:
    """Training steps a second, against PEFT.

    In examples a second and as a share of the machine's rate of matrix products; in float32, on batches
    of random examples, and on batches drawn by source, where a source that several examples share is
    computed once.
    """
    numbers = _numbers(sizes)
    model, rates = _prepared(base, threads, out, peft=not no_peft)
    from foreword.bench import data as examples_of
    from foreword.bench import step as measured
    from foreword.encoding import encode
    from foreword.models import resolve

    count = max(numbers) * (rounds + 1)
    rows, _ = encode(examples_of.examples(data, count), model.tokenizer, model.template)
    found = measured.measure(
        model,
        rows,
        numbers,
        length=length,
        rounds=rounds,
        peft_folder=None if no_peft else str(resolve(base).path),
        on_round=lambda batch, number: output.note(f"{batch}: round {number} of {rounds}"),
    )
    report = _report(
        context,
        model,
        rates,
        "A training step",
        notes=(
            "Median and quartiles of the rounds; ways in turns on the same rows.",
            "Share: matrix products that the real tokens need, forward and backward, over the time and the "
            "machine's rate of products of 2048 x 2048 in the same round. Sources that are shared are "
            "computed once, so there it has no meaning.",
            "Times PEFT: its step on as many random examples, in the same round.",
        ),
        columns=("batch", "way", "seconds", "examples/s", "share of the machine's rate", "times PEFT"),
        rows=[(f.batch, f.way, f.seconds, f.examples, f.share, f.faster) for f in found],
        ratios={f"{f.way}; {f.batch}": f.faster for f in found if f.faster is not None},
        ratio_name="times PEFT's examples a second",
    )
    _tell(report, out, json)


@app.command(cls=SectionedCommand, epilog=EXAMPLE)
def memory(
    context: typer.Context,
    base: its.Base = "smollm2-135m-instruct",
    data: Data = None,
    size: Annotated[int, typer.Option("--size", metavar="N", min=1, help="Examples in a batch.")] = 8,
    length: Length = 10,
    threads: Threads = None,
    no_peft: NoPeft = False,
    out: Out = None,
    json: common.Json = False,
) -> None:
    """Peak memory of a training step, against PEFT.

    Above the loaded base model, on the CPU, each way in a process of its own.
    """
    model, rates = _prepared(base, threads, out, peft=not no_peft, device="cpu")
    from foreword.bench import memory as measured
    from foreword.bench.rounds import Spread

    found = measured.measure(base, data, size, length, peft=not no_peft)
    peer = found.get("PEFT")
    share = {way: number / peer if peer else None for way, number in found.items()}
    report = _report(
        context,
        model,
        rates,
        "Peak memory of a training step",
        notes=("Above the loaded base model, over four steps; one run of each.",),
        columns=("way", "megabytes", "of PEFT's"),
        rows=[(way, number / 1e6, share[way]) for way, number in found.items()],
        ratios={way: Spread(each, each, each) for way, each in share.items() if each is not None},
        ratio_name="of PEFT's peak",
    )
    _tell(report, out, json)


@app.command(cls=SectionedCommand, epilog=EXAMPLE)
def generate(
    context: typer.Context,
    base: its.Base = "smollm2-135m-instruct",
    owners: Annotated[
        int, typer.Option("--owners", metavar="N", min=1, help="Prefixes, and rows of the batch.")
    ] = 32,
    length: Length = 10,
    new_tokens: Annotated[int, typer.Option("--new-tokens", metavar="N", min=1, help="Of each row.")] = 32,
    rounds: Rounds = 7,
    peft_rounds: Annotated[
        int, typer.Option("--peft-rounds", metavar="N", min=1, help="Of PEFT, which is slow.")
    ] = 3,
    threads: Threads = None,
    no_peft: NoPeft = False,
    out: Out = None,
    json: common.Json = False,
) -> None:
    """Tokens a second of many prefixes in one batch.

    Against the same batch without any, and against PEFT, adapter after adapter.
    """
    model, rates = _prepared(base, threads, out, peft=not no_peft)
    from foreword.bench import generation as measured

    found = measured.measure(
        model,
        owners=owners,
        length=length,
        new_tokens=new_tokens,
        rounds=rounds,
        peft_rounds=0 if no_peft else min(peft_rounds, rounds),
        on_round=lambda number: output.note(f"round {number} of {rounds}"),
    )
    report = _report(
        context,
        model,
        rates,
        f"Generation for {owners} owners",
        notes=("Median and quartiles of the rounds; the ratio is that of each round.",),
        columns=("way", "tokens/s", "prefixes in one batch against it"),
        rows=[(f.way, f.tokens, f.ratio) for f in found],
        ratios={f.way: f.ratio for f in found[1:]},
        ratio_name="times as fast are prefixes in one batch",
    )
    _tell(report, out, json)


def _numbers(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) for part in parts):
        raise UsageError(f"--sizes is {text!r}; expected whole numbers above 0, as in --sizes 8,16")
    return [int(part) for part in parts]


def _prepared(
    base: str, threads: int | None, out: Path | None, *, peft: bool, device: str = "auto"
) -> tuple[BaseModel, Any]:
    """The base model in float32, and the machine's limits; refuses before the work what can't be done."""
    import importlib.util

    if peft and importlib.util.find_spec("peft") is None:
        raise UsageError("PEFT is not installed; pip install 'foreword[peft]', or measure with --no-peft")
    import torch

    from foreword.bench import machine
    from foreword.bench.report import check_folder
    from foreword.cli.loading import load_base

    if out is not None:
        check_folder(out)
    if threads is not None:
        torch.set_num_threads(threads)
    model = load_base(base, device=device, dtype="float32", attention="auto")
    if model.is_encoder_decoder:
        raise UsageError(f"{model.name} is an encoder-decoder; the benchmarks take a decoder-only base")
    if peft and model.device.type != "cpu":
        raise UsageError(
            f"{model.name} is on {model.device}, where the comparison with PEFT is not made yet; measure "
            "with --no-peft"
        )
    return model, machine.measure(torch.float32, model.device)


def _report(context: typer.Context, model: BaseModel, rates: Any, title: str, **more: Any) -> Report:
    import importlib.metadata

    from foreword.bench.report import Report
    from foreword.hardware import describe_machine

    environment = {name: str(value) for name, value in describe_machine(model).items()}
    environment |= {"base": model.name, "dtype": "float32"}
    try:
        environment["peft"] = importlib.metadata.version("peft")
    except importlib.metadata.PackageNotFoundError:
        environment["peft"] = "not installed"
    limits = {
        "matrix products (2048 x 2048)": f"{rates.flops / 1e9:.0f} GFLOP/s",
        "memory (copying)": f"{rates.bandwidth / 1e9:.1f} GB/s",
    }
    return Report(title=title, command=_command(context), environment=environment, limits=limits, **more)


def _command(context: typer.Context) -> str:
    """The command as typed, options at their defaults left out."""
    words = ["foreword", "bench", str(context.info_name)]
    for parameter in context.command.params:
        source: Any = context.get_parameter_source(parameter.name or "")
        if source is None or source.name != "COMMANDLINE" or parameter.name in ("out", "json"):
            continue
        value = context.params[parameter.name or ""]
        words += [parameter.opts[0]] if value is True else [parameter.opts[0], str(value)]
    return shlex.join(words)


def _tell(report: Report, out: Path | None, json: bool) -> None:
    from foreword.bench.report import as_json, cell, write

    if json:
        written = [] if out is None else write(report, out)
        return output.json_object({**as_json(report), "files": written})
    for name, value in {**report.environment, **report.limits}.items():
        typer.echo(f"{name}: {value}")
    output.table(report.columns, [tuple(map(cell, row)) for row in report.rows])
    for note in report.notes:
        typer.echo(note)
    for path in [] if out is None else write(report, out):  # after the figures are told
        typer.echo(f"written: {path}")
    return None
