"""foreword bench: what Foreword's work costs on this machine, beside PEFT and beside the machine's limit."""

from __future__ import annotations

from pathlib import Path

import typer

from foreword.cli import output
from foreword.cli.app import Group
from foreword.cli.bench import options as its
from foreword.errors import UsageError
from foreword.validation import setting

STEP = "  foreword bench step --data trainset.csv --out step-figures"
MEMORY = "  foreword bench memory --data trainset.csv --size 16"
QUALITY = "  foreword bench quality --train trainset.csv --dev devset.csv --out quality"
GENERATE = "  foreword bench generate --owners 32"
MACHINE = "  foreword bench machine --tokens 900"
START = "  foreword bench start --rounds 3"
CURVES = "  foreword bench curves --of length,owners --memory --out curves"


def step(
    context: typer.Context,
    data: Path | None = its.data_option,
    sizes: str = setting("8,16", metavar="N,N", help="Batch sizes to measure"),
    length: int = its.length_option,
    rounds: int = its.rounds_option(7),
    *,
    given: its.PeerOptions,
) -> None:
    """Training steps a second, against PEFT.

    In examples a second and as a share of the machine's rate of matrix products, on batches of random
    examples.
    """
    batch_sizes = its.numbers("--sizes", sizes)
    model = its.loaded(given, peft=not given.no_peft)
    from foreword.encoding import encode
    from foreword.models import resolve
    from foreword.research.bench import train_step as measured
    from foreword.research.bench import workload

    count = max(batch_sizes) * (rounds + 1)
    rows, _ = encode(workload.examples(data, count), model.tokenizer, model.template)
    rates = its.rates_of(model)
    figures = []
    for size in batch_sizes:
        figures += measured.measure(
            model,
            rows,
            size,
            length=length,
            rounds=rounds,
            peft_folder=None if given.no_peft else str(resolve(given.base).path),
            on_round=its.round_notes(rounds, f"{size} rows: "),
        )
    its.tell(
        context,
        given,
        model,
        rates,
        "A training step",
        notes=(
            "Median and quartiles of the rounds; ways in turns on the same rows.",
            "Share: matrix products that the real tokens need, forward and backward, over the time and the "
            "machine's rate of products of large squares in the same round. Above 1: rows that begin alike, "
            "or a machine that was busy with something else while its rate was taken.",
            "Times PEFT: its step on the same examples, in the same round.",
        ),
        columns=measured.COLUMNS,
        rows=figures,
        ratios={f"{way}; {batch}": faster for batch, way, *_, faster in figures if faster is not None},
        ratio_name="times PEFT's examples a second",
    )


def memory(
    context: typer.Context,
    data: Path | None = its.data_option,
    size: int = setting(8, ge=1, help="Examples in a batch"),
    length: int = its.length_option,
    rounds: int = its.rounds_option(3),
    *,
    given: its.PeerOptions,
) -> None:
    """Peak memory of a training step, against PEFT.

    Above the loaded base model, each way in a process of its own.
    """
    model = its.loaded(given, peft=not given.no_peft)
    from foreword.research.bench import memory as measured
    from foreword.research.bench import workload
    from foreword.research.bench.timing import spread

    measured.check_device(model)
    workload.examples(data, measured.STEPS * size)  # whether there are enough
    rates = its.rates_of(model)
    bytes_of = measured.measure(
        model,
        data,
        size,
        length,
        peft=not given.no_peft,
        rounds=rounds,
        on_round=its.round_notes(rounds),
    )
    peer = bytes_of.get("PEFT")
    share = {
        way: None
        if not peer or 0 in peer
        else spread([own / other for own, other in zip(each, peer, strict=True)])
        for way, each in bytes_of.items()
    }
    its.tell(
        context,
        given,
        model,
        rates,
        "Peak memory of a training step",
        notes=(
            f"Above the loaded base model, over {measured.STEPS} steps; each run a process of its own. "
            "Median and quartiles of the rounds.",
        ),
        columns=("way", "megabytes", "of PEFT's"),
        rows=[(way, spread([number / 1e6 for number in each]), share[way]) for way, each in bytes_of.items()],
        ratios={way: each for way, each in share.items() if each is not None},
        ratio_name="of PEFT's peak",
    )


def generate(
    context: typer.Context,
    owners: int = setting(32, ge=1, help="Number of prefixes, and of rows in the batch"),
    length: int = its.length_option,
    new_tokens: int = setting(32, ge=1, help="New tokens of each row"),
    rounds: int = its.rounds_option(7),
    peft_rounds: int = setting(3, ge=1, help="Rounds of PEFT, which is slow"),
    *,
    given: its.PeerOptions,
) -> None:
    """Tokens a second of many prefixes in one batch.

    Against the same batch without any, and against PEFT, adapter after adapter.
    """
    model = its.loaded(given, peft=not given.no_peft)
    from foreword.research.bench import generation as measured

    measured.check(model, length, new_tokens)
    rates = its.rates_of(model)
    figures = measured.measure(
        model,
        owners=owners,
        length=length,
        new_tokens=new_tokens,
        rounds=rounds,
        peft_rounds=0 if given.no_peft else min(peft_rounds, rounds),
        bandwidth=rates.bandwidth,
        on_round=its.round_notes(rounds),
    )
    its.tell(
        context,
        given,
        model,
        rates,
        f"Generation for {owners} owners",
        notes=(
            "Median and quartiles of the rounds; the ratio is that of each round.",
            "Limit: the time of the batch's matrix products on real tokens at the machine's rate in the same "
            "round, or of reading all weights for every new token of the batch, whichever is longer.",
        ),
        columns=measured.COLUMNS,
        rows=figures,
        ratios={way: ratio for way, *_, ratio in figures[1:]},
        ratio_name="times as fast are prefixes in one batch",
    )


def quality(
    context: typer.Context,
    train: Path = setting(help="Examples to train on"),
    dev: Path = setting(help="Examples to measure the loss on"),
    steps: int = setting(60, ge=1, help="Steps of PEFT's runs"),
    own_steps: int = setting(36, ge=1, help="Steps of Foreword's run"),
    size: int = setting(8, ge=1, help="Examples in a batch"),
    length: int = its.length_option,
    direct: str = setting(
        "0.001,0.01", name="direct_rates", metavar="X,X", help="Learning rates of PEFT's direct form"
    ),
    projected: str = setting(
        "0.001,0.01", name="projected_rates", metavar="X,X", help="Learning rates of PEFT's projected form"
    ),
    watched: int = setting(3, ge=1, help="Steps between looks at Foreword's dev loss"),
    dev_rows: int = setting(100, ge=1, help="Take the first N dev examples"),
    max_length: int = setting(512, ge=8, help="Maximum tokens of an example; longer ones are cut"),
    *,
    given: its.BenchOptions,
) -> None:
    """Time to the dev loss that PEFT ends with.

    Foreword's defaults against PEFT's direct and projected forms, each at its better learning rate. All runs
    take their steps in turns on the same examples in the same order; looking at the dev loss is not counted.
    """
    direct_rates, projected_rates = _rates("--direct-rates", direct), _rates("--projected-rates", projected)
    model = its.loaded(given, peft=True)
    from foreword.encoding import encode
    from foreword.examples import read_examples
    from foreword.models import resolve
    from foreword.research.bench import time_to_quality as measured
    from foreword.research.bench.timing import waiting_for

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
        rates={measured.DIRECT: direct_rates, measured.PROJECTED: projected_rates},
        peft_folder=str(resolve(given.base).path),
    )
    measured.race(
        runs,
        on_step=lambda number: output.note(f"step {number} of {max(steps, own_steps)}"),
        wait=waiting_for(model.device),
    )
    own = runs[measured.FOREWORD]
    table = []
    for name, run in runs.items():
        form = name.partition(", ")[2] and name.rpartition(",")[0]
        loss, seconds = run.end
        there: tuple[object, ...] = (None, None, None)
        if form and measured.best(runs, form) == name:
            reached = own.reached(loss)
            there = (None, None, "never") if reached is None else (*reached, reached[1] / seconds)
        table.append((name, run.steps, loss, seconds, *there))
    run_log = ", ".join(f"{at}: {loss:.3f} ({taken:.0f} s)" for at, (loss, taken) in own.run_log.items())
    its.tell(
        context,
        given,
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


def _rates(option: str, text: str) -> list[float]:
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        rates = []
    if not rates or not all(0 < rate < 1 for rate in rates):
        raise UsageError(
            f"{option} is {text!r}; expected numbers between 0 and 1 with commas between, as in {option} "
            "0.001,0.01"
        )
    return rates


def machine(
    context: typer.Context,
    tokens: int = setting(450, ge=1, help="Tokens of a step; 450 are about 8 examples of E2E"),
    rounds: int = its.rounds_option(7),
    *,
    given: its.BenchOptions,
) -> None:
    """What the machine can do at most.

    Its rate of matrix products, of large squares and at the shapes of the model's layers, and of copying
    memory.
    """
    model = its.loaded(given, peft=False)
    from foreword.research.bench import roofline as measured

    figures, squares, copying = measured.at_shapes(model, tokens, rounds, on_round=its.round_notes(rounds))
    its.tell(
        context,
        given,
        model,
        None,
        f"What the machine can do, with {tokens} tokens",
        limits=its.limits_of(model, str(squares), str(copying)),
        notes=(
            "Median and quartiles of the rounds. Forward: outputs of the layer. Backward: gradients of its "
            "inputs; frozen weights need none of their own.",
            "Share: of the rate of squares in the same round.",
        ),
        columns=measured.SHAPE_COLUMNS,
        rows=figures,
        ratios={
            f"{layers} {shape}" if shape else "all": share
            for layers, shape, *_, share in figures
            if share is not None
        },
        ratio_name="of the rate of large squares",
    )


def start(
    context: typer.Context,
    length: int = its.length_option,
    rounds: int = its.rounds_option(7),
    *,
    given: its.PeerOptions,
) -> None:
    """Seconds until help and until the first token.

    Each in a process of its own, with files and caches warm, against PEFT in a script of six lines.
    """
    model = its.loaded(given, peft=not given.no_peft)
    from foreword.research.bench import startup as measured

    rates = its.rates_of(model)
    figures = measured.measure(
        model, length=length, rounds=rounds, peft=not given.no_peft, on_round=its.round_notes(rounds)
    )
    its.tell(
        context,
        given,
        model,
        rates,
        "Start-up",
        notes=(
            "Median and quartiles of the rounds; whole processes, from their start to their end.",
            "Limit: for help the bare interpreter, for a token the import of torch and transformers.",
        ),
        columns=measured.COLUMNS,
        rows=figures,
        ratios={way: share for way, _, share, _ in figures if share is not None},
        ratio_name="limit / own time",
    )


def curves(
    context: typer.Context,
    of: str = setting(
        "length,batch,text,owners,prefixes",
        metavar="NAME,NAME",
        help="What grows: length, batch, text, owners, prefixes",
    ),
    points: str | None = setting(None, metavar="N,N", help="Points of a single curve, instead of its own"),
    memory: bool = setting(False, help="Measure peak memory, too"),
    rounds: int = its.rounds_option(5),
    *,
    given: its.BenchOptions,
) -> None:
    """How the cost grows with one size while the others stay.

    Time, and memory if asked for, against the length of the prefix, the rows of a batch, the tokens of a
    row, the number of owners in a training step, and the number of distinct prefixes in a batch that is
    generated.
    """
    names = [name.strip() for name in of.split(",")]
    chosen_points = None if points is None else its.numbers("--points", points)
    if chosen_points is not None and len(names) != 1:
        raise UsageError(f"--points are of one curve, and --of is {of!r}; name one")
    model = its.loaded(given, peft=False)
    from foreword.research.bench import memory as peaks
    from foreword.research.bench import scaling as measured
    from foreword.research.bench.report import Panel

    if unknown := [name for name in names if name not in measured.AXES]:
        raise UsageError(f"--of has {unknown[0]!r}; expected some of {', '.join(measured.AXES)}")
    if memory:
        peaks.check_device(model)
    points_of = {name: chosen_points or measured.AXES[name].points for name in names}
    for name, values in points_of.items():
        measured.check(model, name, values)
    rates = its.rates_of(model)
    rows, notes, panels = [], [], []
    for name, values in points_of.items():
        axis = measured.AXES[name]
        curve = measured.measure(
            model, name, values, rounds=rounds, memory=memory, on_round=its.round_notes(rounds, f"{name}: ")
        )
        rows += curve
        notes.append(measured.in_words(curve))
        first = curve[0].seconds.median
        panels.append(
            Panel(
                title=axis.stays,
                across=axis.grows,
                up="seconds",
                points=values,
                measured=[each.seconds for each in curve],
                said=[first * each.operations_growth for each in curve],
                memory=[each.megabytes for each in curve if each.megabytes is not None],
            )
        )
        output.note(notes[-1])
    its.tell(
        context,
        given,
        model,
        rates,
        "How costs grow",
        notes=(
            "Median and quartiles of the rounds, all points of a curve in turns; growth over the first point "
            "is that of each round. Share: of the machine's rate of matrix products in the same round.",
            *notes,
        ),
        columns=measured.COLUMNS,
        rows=rows,
        panels=panels,
    )


app = Group(
    "Measure speed and memory on this machine, beside PEFT and the machine's limit.",
    STEP,
    GENERATE,
    CURVES,
)
for _command, _example in (
    (step, STEP),
    (memory, MEMORY),
    (generate, GENERATE),
    (machine, MACHINE),
    (start, START),
    (curves, CURVES),
    (quality, QUALITY),
):
    app.add(_command, None, _example)
