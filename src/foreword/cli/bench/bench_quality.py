"""foreword bench quality: after what part of PEFT's time Foreword is at the dev loss that PEFT ends with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foreword.cli import options as common
from foreword.cli import output
from foreword.cli import train_options as training
from foreword.cli.app import SectionedCommand
from foreword.cli.bench import bench_options as its
from foreword.errors import UsageError

EXAMPLE = "  foreword bench quality --train trainset.csv --dev devset.csv --out quality"


def register(app: typer.Typer) -> None:
    """Make it a command of `app`."""
    app.command(cls=SectionedCommand, epilog=its.example(EXAMPLE))(quality)


def quality(
    context: typer.Context,
    train: Annotated[Path, typer.Option("--train", metavar="FILE", help="Examples to train on.")],
    dev: Annotated[Path, typer.Option("--dev", metavar="FILE", help="Examples to measure the loss on.")],
    base: training.Base = "smollm2-135m-instruct",
    steps: Annotated[int, typer.Option("--steps", metavar="N", min=1, help="Steps of PEFT's runs.")] = 60,
    own_steps: Annotated[
        int, typer.Option("--own-steps", metavar="N", min=1, help="Steps of Foreword's run.")
    ] = 36,
    size: Annotated[int, typer.Option("--size", metavar="N", min=1, help="Examples in a batch.")] = 8,
    length: its.Length = 10,
    direct: Annotated[
        str, typer.Option("--direct-rates", metavar="X,X", help="Learning rates of PEFT's direct form.")
    ] = "0.001,0.01",
    projected: Annotated[
        str, typer.Option("--projected-rates", metavar="X,X", help="Learning rates of PEFT's projected form.")
    ] = "0.001,0.01",
    watched: Annotated[
        int, typer.Option("--watched", metavar="N", min=1, help="Steps between looks at Foreword's dev loss.")
    ] = 3,
    dev_rows: Annotated[
        int, typer.Option("--dev-rows", metavar="N", min=1, help="Take the first N dev examples.")
    ] = 100,
    max_length: Annotated[
        int,
        typer.Option(
            "--max-length", metavar="N", min=8, help="Maximum tokens of an example; longer ones are cut."
        ),
    ] = 512,
    threads: its.Threads = None,
    out: its.Out = None,
    json: common.Json = False,
) -> None:
    """Time to the dev loss that PEFT ends with.

    Foreword's defaults against PEFT's direct and projected forms, each at its better learning rate. All runs
    take their steps in turns on the same examples in the same order; looking at the dev loss is not counted.
    """
    rates = {"--direct-rates": _rates("--direct-rates", direct)}
    rates["--projected-rates"] = _rates("--projected-rates", projected)
    model = its.loaded(base, threads, out, peft=True)
    from foreword.encoding import encode
    from foreword.examples import read_examples
    from foreword.models import resolve
    from foreword.research.bench import time_to_quality as measured

    rows, _ = encode(read_examples(train), model.tokenizer, model.template, max_length)
    dev_encoded, _ = encode(read_examples(dev, limit=dev_rows), model.tokenizer, model.template, max_length)
    limits = its.rates_of(model)
    runs = measured.entrants(
        model,
        rows,
        dev_encoded,
        length=length,
        size=size,
        steps=steps,
        own_steps=own_steps,
        watched=watched,
        rates={measured.DIRECT: rates["--direct-rates"], measured.PROJECTED: rates["--projected-rates"]},
        peft_folder=str(resolve(base).path),
    )
    measured.race(runs, on_step=lambda number: output.note(f"step {number} of {max(steps, own_steps)}"))
    own = runs[measured.FOREWORD]
    table = []
    for name, run in runs.items():
        form = name.partition(", ")[2] and name.rpartition(",")[0]
        chosen = bool(form) and measured.best(runs, form) == name
        loss, seconds = run.end
        reached = own.reached(loss) if chosen else None
        table.append(
            (
                name,
                run.steps,
                loss,
                seconds,
                None if reached is None else reached[0],
                None if reached is None else reached[1],
                "never" if chosen and reached is None else None if reached is None else reached[1] / seconds,
            )
        )
    run_log = ", ".join(f"{at}: {loss:.3f} ({taken:.0f} s)" for at, (loss, taken) in own.run_log.items())
    report = its.report_of(
        context,
        model,
        limits,
        "Time to PEFT's dev loss",
        notes=(
            f"Foreword's dev loss after so many steps: {run_log}.",
            f"Dev loss: mean of each target token of {len(dev_encoded)} examples, in nats. One seed.",
            "Share: Foreword's time until its dev loss was first seen at PEFT's last or below, over PEFT's "
            "time; for the better learning rate of each form. Evaluations are not in the times.",
        ),
        columns=(
            "run",
            "steps",
            "dev loss at its end",
            "seconds",
            "Foreword there after steps",
            "after seconds",
            "share of PEFT's time",
        ),
        rows=table,
    )
    its.tell(report, out, json)


def _rates(option: str, text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < rate < 1 for rate in found):
        raise UsageError(
            f"{option} is {text!r}; expected numbers between 0 and 1 with commas between, as in {option} "
            "0.001,0.01"
        )
    return found
