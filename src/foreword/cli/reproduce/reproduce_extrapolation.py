"""foreword reproduce extrapolation: groups of examples that no method has seen in training."""

from __future__ import annotations

from typing import Annotated

import typer

from foreword.cli import options as common
from foreword.cli import train_options as its
from foreword.cli.reading import Reading
from foreword.cli.reproduce import reproduce_options as shared
from foreword.cli.reproduce import reproduce_trial_options as own
from foreword.cli.reproduce.reproduce_data import metrics_of, tell_left_out
from foreword.cli.reproduce.reproduce_methods import LOW_DATA, MORE
from foreword.cli.reproduce.reproduce_trials import Kind, carry_out, make_plan

EXTRAPOLATION = Kind(
    "extrapolation",
    "Extrapolation: groups that training has not seen",
    full={**LOW_DATA.full, "others": "", "sizes": "500"},
    quick={**LOW_DATA.quick},
)

EXAMPLE = (
    "\b\nExample:\n"
    "  foreword reproduce extrapolation --task webnlg --train webnlg/train --dev webnlg/dev \\\n"
    "    --held-out Food --held-out City --out extrapolation"
)

GroupField = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Field or column with the group, such as a category.",
        rich_help_panel=common.DATA,
    ),
]
HeldOut = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Group to hold out of training; repeatable. Without it, one in three, drawn by the seed.",
        rich_help_panel=common.DATA,
    ),
]


def extrapolation(
    context: typer.Context,
    train: own.TrainFile,
    dev: own.DevFile,
    out: shared.Out,
    test: own.TestFile = None,
    task: own.Task = None,
    base: its.Base = "smollm2-135m-instruct",
    device: common.Device = "auto",
    dtype: common.Dtype = "auto",
    attention: common.AttentionKernel = "auto",
    quantization: common.Quantized = None,
    format: common.Format = "auto",
    source_field: common.SourceField = None,
    target_field: common.TargetField = None,
    group_field: GroupField = None,
    held_out: HeldOut = None,
    dev_rows: own.DevRows = None,
    measured_sources: own.MeasuredSources = None,
    max_length: own.MaxLength = None,
    methods: own.Methods = None,
    others: own.Others = None,
    sizes: own.Sizes = None,
    subsets: own.Subsets = None,
    seeds: own.Seeds = None,
    tuning_size: own.TuningSize = 100,
    untuned: own.Untuned = False,
    instruction: own.Instruction = None,
    length: own.Length = 10,
    steps: own.Steps = None,
    batch_size: its.BatchSize = None,
    patience: own.Patience = None,
    beams: own.Beams = None,
    metrics: own.Metrics = None,
    seed: its.Seed = 0,
    also: own.Also = None,
    quick: own.Quick = False,
    json: common.Json = False,
) -> None:
    from foreword.cli.loading import load_base
    from foreword.research.experiments.splits import split_by_group

    chosen = EXTRAPOLATION.chosen(context.params)
    fields = common.fields_of(source_field, target_field, group_field)
    sets, reading = metrics_of(task, metrics), Reading(task, format, fields)
    splits, unseen, left_out = split_by_group(
        reading.training(train, groups=True),
        reading.entries(dev, groups=True),
        held_out or (),
        dev_rows=chosen["dev_rows"],
        measured_sources=chosen["measured_sources"],
        seed=seed,
        test=None if test is None else reading.entries(test, groups=True),
    )
    typer.echo(f"measured as unseen: {', '.join(unseen)}", err=True)
    tell_left_out(left_out)
    plan = make_plan(chosen, len(splits.train))
    model = load_base(base, device=device, dtype=dtype, attention=attention, quantization=quantization)
    carry_out(
        EXTRAPOLATION,
        context,
        model,
        splits,
        plan,
        out,
        metrics=sets,
        json=json,
        more={"held out": ", ".join(unseen)},
    )


extrapolation.__doc__ = "Prefixes against others on unseen groups." + MORE
