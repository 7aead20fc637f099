"""Options of `foreword reproduce`, as annotated types."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foreword.cli.options import DATA
from foreword.cli.train_options import COURSE, PREFIX, RUN

TrainFile = Annotated[
    Path,
    typer.Option(
        "--train",
        metavar="FILE",
        help="Examples to learn from, each with its owner; see docs/data.md.",
        show_default=False,
        rich_help_panel=DATA,
    ),
]
DevFile = Annotated[
    Path,
    typer.Option(
        "--dev",
        metavar="FILE",
        help="Examples to measure on, of the same owners.",
        show_default=False,
        rich_help_panel=DATA,
    ),
]
Out = Annotated[
    Path,
    typer.Option(
        "--out",
        metavar="FOLDER",
        help="Folder of the run; the same command resumes it.",
        show_default=False,
    ),
]
Owners = Annotated[
    int | None,
    typer.Option(metavar="N", help="Take the first N owners by name; default: all.", rich_help_panel=DATA),
]
DevRows = Annotated[
    int | None,
    typer.Option(metavar="N", help="Take the first N dev examples of each owner.", rich_help_panel=DATA),
]
MaxLength = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Leave out examples with more tokens; default 512, or 256 with --quick.",
        rich_help_panel=DATA,
    ),
]
Length = Annotated[int, typer.Option(metavar="P", help="Number of virtual tokens.", rich_help_panel=PREFIX)]
Steps = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Optimiser steps for each owner; without it, about 5 epochs of their examples.",
        rich_help_panel=COURSE,
    ),
]
SharedSteps = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Optimiser steps of the shared prefix; without it, as many as all owners' together.",
        rich_help_panel=COURSE,
    ),
]
Quick = Annotated[
    bool,
    typer.Option(
        "--quick",
        help="4 owners, 20 steps of 4 examples, 5 dev examples each, unless told otherwise: to see that it "
        "works, not for its figures.",
        rich_help_panel=RUN,
    ),
]
