"""Options of those experiments of `foreword reproduce` that compare methods, as annotated types."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foreword.cli.options import DATA, TEXT
from foreword.cli.train_options import COURSE, PREFIX, RUN
from foreword.errors import UsageError

TRIALS = "What is compared"

TrainFile = Annotated[
    Path,
    typer.Option(
        "--train",
        metavar="FILE",
        help="Examples from which training subsets are drawn, or hub:train with --task; see docs/data.md.",
        show_default=False,
        rich_help_panel=DATA,
    ),
]
DevFile = Annotated[
    Path,
    typer.Option(
        "--dev",
        metavar="FILE",
        help="Examples that choose steps and learning rates; without --test, others of them are measured on.",
        show_default=False,
        rich_help_panel=DATA,
    ),
]
TestFile = Annotated[
    Path | None,
    typer.Option("--test", metavar="FILE", help="Examples to measure on.", rich_help_panel=DATA),
]
Task = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Read, decode and score the files as e2e, webnlg, dart, xsum, cnn, scitldr or aeslc.",
        rich_help_panel=DATA,
    ),
]
Metrics = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Figures beside loss, BLEU and chrF; see evaluate. Repeatable; default: the task's.",
        rich_help_panel=TEXT,
    ),
]
DevRows = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Dev examples that choose steps and learning rates.", rich_help_panel=DATA
    ),
]
MeasuredSources = Annotated[
    int | None,
    typer.Option(metavar="N", help="Number of sources to measure on.", rich_help_panel=DATA),
]
MaxLength = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Maximum tokens of an example; longer ones are cut. Default: 512; xsum and cnn have more.",
        rich_help_panel=DATA,
    ),
]
Methods = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES", help="Methods tried at every size; see docs/reproduce.md.", rich_help_panel=TRIALS
    ),
]
Others = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="Methods tried at --tuning-size only; '' for none.",
        rich_help_panel=TRIALS,
    ),
]
Sizes = Annotated[
    str | None,
    typer.Option(
        metavar="N,N", help="Numbers of training examples; all: the whole file.", rich_help_panel=TRIALS
    ),
]
Subsets = Annotated[
    int | None, typer.Option(metavar="N", help="Subsets of each size.", rich_help_panel=TRIALS)
]
Seeds = Annotated[
    int | None, typer.Option(metavar="N", help="Seeds for each subset.", rich_help_panel=TRIALS)
]
TuningSize = Annotated[
    int,
    typer.Option(
        metavar="N", help="Training examples on which learning rates are chosen.", rich_help_panel=TRIALS
    ),
]
Untuned = Annotated[
    bool,
    typer.Option(
        "--untuned", help="Do not tune learning rates: take each method's usual one.", rich_help_panel=TRIALS
    ),
]
Instruction = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="The task in words, for methods that prompt.", rich_help_panel=TRIALS),
]
Length = Annotated[
    int,
    typer.Option(metavar="P", help="Virtual tokens of every method that has them.", rich_help_panel=PREFIX),
]
Steps = Annotated[
    int | None,
    typer.Option(metavar="N", help="Optimiser steps of each training.", rich_help_panel=COURSE),
]
Patience = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Stop a training early after N dev losses without a better one.",
        rich_help_panel=COURSE,
    ),
]
Beams = Annotated[
    int | None,
    typer.Option(metavar="N", help="Beam search with N beams; default: the task's.", rich_help_panel=TEXT),
]
Quick = Annotated[
    bool,
    typer.Option(
        "--quick",
        help="Small defaults: a run to see that everything works, not for its figures.",
        rich_help_panel=RUN,
    ),
]

Also = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FOLDER",
        help="Another folder of the same run, made by another process with some of the methods: what it has "
        "finished is taken over. Repeatable.",
        rich_help_panel=RUN,
    ),
]


def names(given: str) -> list[str]:
    """Names from a list with commas."""
    return [name.strip() for name in given.split(",") if name.strip()]


def numbers(given: str, option: str, most: int) -> tuple[int, ...]:
    """Whole numbers from a list with commas, each once; `all` is the most.

    Raises:
        UsageError: something else in it, or nothing.
    """
    words = [str(most) if name == "all" else name for name in names(given)]
    try:
        found = tuple(dict.fromkeys(map(int, words)))
    except ValueError as error:
        raise UsageError(
            f"{option} is {given!r}; expected whole numbers with commas, as in 50,100, or all"
        ) from error
    if not found:
        raise UsageError(f"{option} is empty; expected whole numbers with commas, as in 50,100, or all")
    return found
