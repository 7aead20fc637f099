"""Options of `foreword train`, as annotated types; what they mean is said by `TrainingSettings`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from foreword.cli.options import DATA, MODEL, OUTPUT

PREFIX, COURSE, TEMPLATE, RUN = "Prefix", "Training", "Text in front of the target", "Run"

Base = Annotated[
    str,
    typer.Option(
        "--base",
        metavar="NAME",
        help="Alias, folder or Hugging Face id.",
        rich_help_panel=MODEL,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FILE",
        help="Prefix file to write; with --by owner, folder for a file of each owner.",
        show_default=False,
    ),
]
Dev = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Examples by which the best step is chosen.", rich_help_panel=DATA),
]
DevLimit = Annotated[
    int | None,
    typer.Option(metavar="N", help="Take the first N dev examples only.", rich_help_panel=DATA),
]

# -- prefix ------------------------------------------------------------------------------------

Length = Annotated[
    str | None,
    typer.Option(
        metavar="P",
        help="Number of virtual tokens; default 10. By stream: encoder=5,cross=10.",
        rich_help_panel=PREFIX,
    ),
]
Streams = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="Of an encoder-decoder, some of decoder,encoder,cross; default: those in --length, or all.",
        rich_help_panel=PREFIX,
    ),
]
Kind = Annotated[
    Literal["direct", "mlp", "mlp+start", "embedding"] | None,
    typer.Option("--parameterization", help="What is trained; default direct.", rich_help_panel=PREFIX),
]
Width = Annotated[
    int | None,
    typer.Option(metavar="W", help="Hidden size of the mlp; default 512.", rich_help_panel=PREFIX),
]
FreezeFirst = Annotated[
    bool,
    typer.Option("--freeze-first", help="Do not train the first virtual token.", rich_help_panel=PREFIX),
]
Init = Annotated[
    str | None,
    typer.Option(
        metavar="WHAT",
        help="words:SOME WORDS, text:A TEXT, demonstrations or random; default: words that fit any task.",
        rich_help_panel=PREFIX,
    ),
]
Start = Annotated[
    Path | None,
    typer.Option(
        "--start",
        metavar="PREFIX",
        help="Prefix file to begin at, instead of --init; what it learned goes into the result.",
        rich_help_panel=PREFIX,
    ),
]
Layers = Annotated[
    str | None,
    typer.Option(
        metavar="WHICH",
        help="first:N or last:N: train these layers' keys and values only.",
        rich_help_panel=PREFIX,
    ),
]
Placing = Annotated[
    Literal["prefix", "infix"] | None,
    typer.Option(
        "--placement", help="infix: the target sees it, the source does not.", rich_help_panel=PREFIX
    ),
]
Label = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE", help="Label kept in the prefix file; repeatable.", rich_help_panel=PREFIX
    ),
]
Licence = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="Licence, kept in the prefix file.", rich_help_panel=PREFIX),
]

# -- training ----------------------------------------------------------------------------------

Steps = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Optimiser steps; without --epochs either, about 5 epochs of them.",
        rich_help_panel=COURSE,
    ),
]
Epochs = Annotated[
    float | None,
    typer.Option(metavar="X", help="Passes over the data, instead of --steps.", rich_help_panel=COURSE),
]
BatchSize = Annotated[
    int | None, typer.Option(metavar="N", help="Examples a step; default 8.", rich_help_panel=COURSE)
]
LearningRate = Annotated[
    float | None,
    typer.Option(metavar="X", help="Peak learning rate; docs/defaults.md.", rich_help_panel=COURSE),
]
Seed = Annotated[
    int, typer.Option(metavar="N", help="Seed of initialisation and order.", rich_help_panel=COURSE)
]
Warmup = Annotated[
    float | None,
    typer.Option(
        metavar="X", help="Steps, or below 1 a share of all steps; default 0.05.", rich_help_panel=COURSE
    ),
]
Clip = Annotated[
    float | None,
    typer.Option(metavar="X", help="Maximum gradient norm (0: off); default 1.0.", rich_help_panel=COURSE),
]
WeightDecay = Annotated[
    float | None, typer.Option(metavar="X", help="AdamW's; default 0.0.", rich_help_panel=COURSE)
]
Reduction = Annotated[
    Literal["token", "sequence"] | None,
    typer.Option(
        help="token: mean over target tokens; sequence: sum over each target; default token.",
        rich_help_panel=COURSE,
    ),
]
Accumulate = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Split each step's batch into N parts (gradient accumulation; the batch size stays); default 1.",
        rich_help_panel=COURSE,
    ),
]
MaxLength = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Maximum tokens of a text; default: what the base's window leaves.",
        rich_help_panel=COURSE,
    ),
]
BySource = Annotated[
    bool,
    typer.Option(
        "--by-source",
        help="Batches of examples that share a source, which is then computed once; docs/data.md.",
        rich_help_panel=COURSE,
    ),
]
GradientCheckpointing = Annotated[
    bool,
    typer.Option("--gradient-checkpointing", help="Less memory, more time.", rich_help_panel=COURSE),
]
Packed = Annotated[
    bool,
    typer.Option(
        "--packed",
        help="CPU only: keep prepacked copies of the weights; faster, more memory; docs/speed.md.",
        rich_help_panel=COURSE,
    ),
]
EvaluateEvery = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Steps between dev losses; default: a tenth of the run.", rich_help_panel=COURSE
    ),
]
Patience = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Stop early after N dev losses without a better one.", rich_help_panel=COURSE
    ),
]

# -- text in front of the target -----------------------------------------------------------------

Style = Annotated[
    Literal["separator", "chat", "raw"] | None,
    typer.Option(
        "--template",
        help="What follows the source; default separator, and chat for conversations.",
        rich_help_panel=TEMPLATE,
    ),
]
Separator = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help=r"Between source and target (\n: newline); default: newline.",
        rich_help_panel=TEMPLATE,
    ),
]
System = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="System message for chat.", rich_help_panel=TEMPLATE),
]

# -- run ---------------------------------------------------------------------------------------

CheckpointDir = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Checkpoints, log and curves; default: OUT with .run for .prefix, or the store's own.",
        rich_help_panel=RUN,
    ),
]
CheckpointEvery = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Steps between checkpoints; default: a tenth of the run.", rich_help_panel=RUN
    ),
]
Tensorboard = Annotated[
    bool, typer.Option("--tensorboard", help="Write TensorBoard files, too.", rich_help_panel=RUN)
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace OUT, and start what was run with other settings or data anew.",
        rich_help_panel=OUTPUT,
    ),
]
