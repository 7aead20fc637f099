"""foreword bench: what Foreword's work costs on this machine, beside PEFT and beside the machine's limit."""

from __future__ import annotations

from typing import Annotated

import typer

from foreword.cli import options as common
from foreword.cli import train_options as training
from foreword.cli.app import SectionedCommand
from foreword.cli.bench import bench_costs, bench_quality
from foreword.cli.bench import bench_options as its

STEP = "  foreword bench step --data trainset.csv --out step-figures"
MEMORY = "  foreword bench memory --data trainset.csv --size 16"
GENERATE = "  foreword bench generate --owners 32"

app = typer.Typer(
    no_args_is_help=True,
    help="Measure speed and memory on this machine, beside PEFT and the machine's limit.",
    epilog=its.example(STEP, GENERATE, bench_costs.CURVES),
)


@app.command(cls=SectionedCommand, epilog=its.example(STEP))
def step(
    context: typer.Context,
    base: training.Base = "smollm2-135m-instruct",
    data: its.Data = None,
    sizes: Annotated[str, typer.Option("--sizes", metavar="N,N", help="Batch sizes to measure.")] = "8,16",
    length: its.Length = 10,
    rounds: its.Rounds = 7,
    threads: its.Threads = None,
    no_peft: its.NoPeft = False,
    out: its.Out = None,
    json: common.Json = False,
) -> None:
    """Training steps a second, against PEFT.

    In examples a second and as a share of the machine's rate of matrix products; in float32, on batches
    of random examples.
    """
    asked = its.numbers("--sizes", sizes)
    model = its.loaded(base, threads, out, peft=not no_peft)
    from foreword.encoding import encode
    from foreword.models import resolve
    from foreword.research.bench import train_step as measured
    from foreword.research.bench import workload

    count = max(asked) * (rounds + 1)
    rows, _ = encode(workload.examples(data, count), model.tokenizer, model.template)
    rates = its.rates_of(model)
    figures: list[measured.StepFigures] = []
    for size in asked:
        figures += measured.measure(
            model,
            rows,
            size,
            length=length,
            rounds=rounds,
            peft_folder=None if no_peft else str(resolve(base).path),
            on_round=its.told(rounds, f"{size} rows: "),
        )
    report = its.report_of(
        context,
        model,
        rates,
        "A training step",
        notes=(
            "Median and quartiles of the rounds; ways in turns on the same rows.",
            "Share: matrix products that the real tokens need, forward and backward, over the time and the "
            "machine's rate of products of 2048 x 2048 in the same round. Above 1: rows that begin alike, or "
            "a machine that was busy with something else while its rate was taken.",
            "Times PEFT: its step on the same examples, in the same round.",
        ),
        columns=("batch", "way", "seconds", "examples/s", "share of the machine's rate", "times PEFT"),
        rows=[(f.batch, f.way, f.seconds, f.examples, f.share, f.faster) for f in figures],
        ratios={f"{f.way}; {f.batch}": f.faster for f in figures if f.faster is not None},
        ratio_name="times PEFT's examples a second",
    )
    its.tell(report, out, json)


@app.command(cls=SectionedCommand, epilog=its.example(MEMORY))
def memory(
    context: typer.Context,
    base: training.Base = "smollm2-135m-instruct",
    data: its.Data = None,
    size: Annotated[int, typer.Option("--size", metavar="N", min=1, help="Examples in a batch.")] = 8,
    length: its.Length = 10,
    rounds: its.Rounds = 3,
    threads: its.Threads = None,
    no_peft: its.NoPeft = False,
    out: its.Out = None,
    json: common.Json = False,
) -> None:
    """Peak memory of a training step, against PEFT.

    Above the loaded base model, on the CPU, each way in a process of its own.
    """
    model = its.loaded(base, threads, out, peft=not no_peft, device="cpu")
    from foreword.research.bench import memory as measured
    from foreword.research.bench import workload
    from foreword.research.bench.timing import spread

    workload.examples(data, measured.STEPS * size)  # whether there are enough
    rates = its.rates_of(model)
    found = measured.measure(
        base, data, size, length, peft=not no_peft, rounds=rounds, on_round=its.told(rounds)
    )
    peer = found.get("PEFT")
    share = {
        way: None
        if not peer or 0 in peer
        else spread([own / other for own, other in zip(each, peer, strict=True)])
        for way, each in found.items()
    }
    report = its.report_of(
        context,
        model,
        rates,
        "Peak memory of a training step",
        notes=(
            f"Above the loaded base model, over {measured.STEPS} steps; each run a process of its own. "
            "Median and quartiles of the rounds.",
        ),
        columns=("way", "megabytes", "of PEFT's"),
        rows=[(way, spread([number / 1e6 for number in each]), share[way]) for way, each in found.items()],
        ratios={way: each for way, each in share.items() if each is not None},
        ratio_name="of PEFT's peak",
    )
    its.tell(report, out, json)


@app.command(cls=SectionedCommand, epilog=its.example(GENERATE))
def generate(
    context: typer.Context,
    base: training.Base = "smollm2-135m-instruct",
    owners: Annotated[
        int,
        typer.Option("--owners", metavar="N", min=1, help="Number of prefixes, and of rows in the batch."),
    ] = 32,
    length: its.Length = 10,
    new_tokens: Annotated[
        int, typer.Option("--new-tokens", metavar="N", min=1, help="New tokens of each row.")
    ] = 32,
    rounds: its.Rounds = 7,
    peft_rounds: Annotated[
        int, typer.Option("--peft-rounds", metavar="N", min=1, help="Rounds of PEFT, which is slow.")
    ] = 3,
    threads: its.Threads = None,
    no_peft: its.NoPeft = False,
    out: its.Out = None,
    json: common.Json = False,
) -> None:
    """Tokens a second of many prefixes in one batch.

    Against the same batch without any, and against PEFT, adapter after adapter.
    """
    model = its.loaded(base, threads, out, peft=not no_peft)
    from foreword.research.bench import generation as measured

    measured.check(model, length, new_tokens)
    rates = its.rates_of(model)
    found = measured.measure(
        model,
        owners=owners,
        length=length,
        new_tokens=new_tokens,
        rounds=rounds,
        peft_rounds=0 if no_peft else min(peft_rounds, rounds),
        bandwidth=rates.bandwidth,
        on_round=its.told(rounds),
    )
    report = its.report_of(
        context,
        model,
        rates,
        f"Generation for {owners} owners",
        notes=(
            "Median and quartiles of the rounds; the ratio is that of each round.",
            "Limit: the time of the batch's matrix products on real tokens at the machine's rate in the same "
            "round, or of reading all weights for every new token of the batch, whichever is longer.",
        ),
        columns=("way", "tokens/s", "share of the machine's limit", "prefixes in one batch against it"),
        rows=[(f.way, f.tokens, f.share, f.ratio) for f in found],
        ratios={f.way: f.ratio for f in found[1:]},
        ratio_name="times as fast are prefixes in one batch",
    )
    its.tell(report, out, json)


bench_costs.register(app)
bench_quality.register(app)
