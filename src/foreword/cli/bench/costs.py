"""foreword bench machine, start and curves: the limits, the wait for a first token, and how costs grow."""

from __future__ import annotations

import typer

from foreword.cli import output
from foreword.cli.bench import options as its
from foreword.errors import UsageError
from foreword.validation import setting

MACHINE = "  foreword bench machine --tokens 900"
START = "  foreword bench start --rounds 3"
CURVES = "  foreword bench curves --of length,owners --memory --out curves"


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

    found = measured.at_shapes(model, tokens, rounds, on_round=its.told(rounds))
    squares, copying = found.squares.scaled(1e-9), found.copying.scaled(1e-9)
    rows: list[tuple[object, ...]] = [
        (
            f.layers,
            f"{f.outputs} x {f.inputs}",
            f.count,
            f.forward.scaled(1e-9),
            f.backward.scaled(1e-9),
            f.share,
        )
        for f in found.shapes
    ]
    rows.append(("all of them once, forward and backward", None, None, None, None, found.together))
    rows.append(("squares", "2048 x 2048", None, squares, None, None))
    report = its.report_of(
        context,
        model,
        None,
        f"What the machine can do, with {tokens} tokens",
        limits={"matrix products (2048 x 2048)": f"{squares} GFLOP/s", "memory (copying)": f"{copying} GB/s"},
        notes=(
            "Median and quartiles of the rounds. Forward: outputs of the layer. Backward: gradients of its "
            "inputs; frozen weights need none of their own.",
            "Share: of the rate of squares in the same round.",
        ),
        columns=("layers", "shape", "count", "forward, GFLOP/s", "backward, GFLOP/s", "share of squares"),
        rows=rows,
        ratios={f"{f.layers} {f.outputs} x {f.inputs}": f.share for f in found.shapes}
        | {"all": found.together},
        ratio_name="of the rate of large squares",
    )
    its.tell(report, given)


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
    found = measured.measure(
        model, length=length, rounds=rounds, peft=not given.no_peft, on_round=its.told(rounds)
    )
    report = its.report_of(
        context,
        model,
        rates,
        "Start-up",
        notes=(
            "Median and quartiles of the rounds; whole processes, from their start to their end.",
            "Limit: for help the bare interpreter, for a token the import of torch and transformers.",
        ),
        columns=("way", "seconds", "limit / own time", "times as fast as PEFT"),
        rows=[(f.way, f.seconds, f.share, f.faster) for f in found],
        ratios={f.way: f.share for f in found if f.share is not None},
        ratio_name="limit / own time",
    )
    its.tell(report, given)


def curves(
    context: typer.Context,
    of: str = setting(
        "length,batch,text,owners,prefixes",
        metavar="NAME,NAME",
        help="What grows: length, batch, text, owners, prefixes",
    ),
    points: str | None = setting(None, metavar="N,N", help="Points of a single curve, instead of its own"),
    memory: bool = setting(False, help="Measure peak memory, too (on the CPU)"),
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
    model = its.loaded(given, peft=False, device="cpu" if memory else "auto")
    from foreword.research.bench import scaling as measured
    from foreword.research.bench.report import Panel

    if unknown := [name for name in names if name not in measured.AXES]:
        raise UsageError(f"--of has {unknown[0]!r}; expected some of {', '.join(measured.AXES)}")
    points_of = {name: chosen_points or measured.AXES[name].points for name in names}
    for name, values in points_of.items():
        measured.check(model, name, values)
    rates = its.rates_of(model)
    rows, notes, panels = [], [], []
    for name, values in points_of.items():
        axis = measured.AXES[name]
        found = measured.measure(
            model, name, values, rounds=rounds, memory=memory, on_round=its.told(rounds, f"{name}: ")
        )
        for f in found:
            bytes_ = None if f.memory is None else f.memory / 1e6
            rows.append((name, f.at, f.seconds, f.growth, f.operations_growth, f.share, bytes_))
        notes.append(measured.in_words(name, found))
        first = found[0].seconds.median
        panels.append(
            Panel(
                title=axis.stays,
                across=axis.grows,
                up="seconds",
                points=values,
                measured=[f.seconds for f in found],
                said=[first * f.operations_growth for f in found],
                memory=[f.memory / 1e6 for f in found if f.memory is not None],
            )
        )
        output.note(notes[-1])
    report = its.report_of(
        context,
        model,
        rates,
        "How costs grow",
        notes=(
            "Median and quartiles of the rounds, all points of a curve in turns; growth over the first point "
            "is that of each round. Share: of the machine's rate of matrix products in the same round.",
            *notes,
        ),
        columns=("curve", "at", "seconds", "growth", "growth of operations", "share", "peak MB"),
        rows=rows,
        panels=panels,
    )
    its.tell(report, given)
