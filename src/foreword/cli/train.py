"""foreword train: learn a prefix from a file of examples, or one for each owner in it."""

from __future__ import annotations

import functools
from pathlib import Path

import typer

from foreword.cli import options as common
from foreword.cli import train_options as its
from foreword.cli import train_owner_options as many
from foreword.cli.train_request import Request, settings_of, template_change
from foreword.errors import UsageError

EXAMPLE = (
    "  foreword train train.jsonl --dev dev.jsonl --base smollm2-135m-instruct --out e2e.prefix\n"
    "  foreword train mail.csv --source-field body --target-field subject \\\n"
    "    --base smollm2-135m-instruct --out mail.prefix --length 20 --epochs 3\n"
    "  foreword train mail.csv --by owner --owner-field user --out prefixes"
)

FOR_OWNERS = {
    "name": "--name",
    "place": "--store",
    "blobs": "--blobs",
    "places": "--places",
    "pass_tokens": "--pass-tokens",
    "isolated": "--isolated",
}
"""Options that mean nothing without --by owner, by their parameters."""


def train(
    context: typer.Context,
    data: common.DataFile,
    out: its.Out = None,
    base: its.Base = "smollm2-135m-instruct",
    device: common.Device = "auto",
    dtype: common.Dtype = "auto",
    attention: common.AttentionKernel = "auto",
    quantization: common.Quantized = None,
    format: common.Format = "auto",
    source_field: common.SourceField = None,
    target_field: common.TargetField = None,
    owner_field: common.OwnerField = None,
    limit: common.Limit = None,
    dev: its.Dev = None,
    dev_limit: its.DevLimit = None,
    by: many.By = None,
    name: many.Name = None,
    place: many.Place = "prefixes",
    blobs: many.Blobs = None,
    places: many.Places = 64,
    pass_tokens: many.PassTokens = 2048,
    isolated: many.Isolated = False,
    length: its.Length = None,
    streams: its.Streams = None,
    parameterization: its.Kind = None,
    width: its.Width = None,
    freeze_first: its.FreezeFirst = False,
    init: its.Init = None,
    start: its.Start = None,
    layers: its.Layers = None,
    placement: its.Placing = None,
    label: its.Label = None,
    licence: its.Licence = None,
    steps: its.Steps = None,
    epochs: its.Epochs = None,
    batch_size: its.BatchSize = None,
    learning_rate: its.LearningRate = None,
    seed: its.Seed = 0,
    warmup: its.Warmup = None,
    clip: its.Clip = None,
    weight_decay: its.WeightDecay = None,
    reduction: its.Reduction = None,
    accumulate: its.Accumulate = None,
    max_length: its.MaxLength = None,
    by_source: its.BySource = False,
    gradient_checkpointing: its.GradientCheckpointing = False,
    packed: its.Packed = False,
    evaluate_every: its.EvaluateEvery = None,
    patience: its.Patience = None,
    template: its.Style = None,
    separator: its.Separator = None,
    system: its.System = None,
    checkpoint_dir: its.CheckpointDir = None,
    checkpoint_every: its.CheckpointEvery = None,
    tensorboard: its.Tensorboard = False,
    overwrite: its.Overwrite = False,
    json: common.Json = False,
) -> None:
    """Learn a prefix for a base model from a file of examples.

    Leaving options out gives the measured defaults. A run that was stopped goes on when the same
    command is given again. With --by owner, each owner in the data gets a prefix of their own, learned
    from their examples alone; see docs/owners.md.
    """
    from foreword.cli.loading import load_base
    from foreword.examples import read_examples
    from foreword.files import check_output
    from foreword.prefix import Prefix

    if by is None:
        for parameter, option in FOR_OWNERS.items():
            if common.typed(context, parameter):
                raise UsageError(f"{option} is given, but one prefix is trained; {option} needs --by owner")
        if out is None:
            raise UsageError("no place for the prefix; say which file to write: --out FILE")
        check_output(out, overwrite=overwrite)
    else:
        _check_owner_options(
            {option for parameter, option in FOR_OWNERS.items() if common.typed(context, parameter)},
            out=out,
            name=name,
            accumulate=accumulate,
            isolated=isolated,
            tensorboard=tensorboard,
        )
    if checkpoint_every is not None and checkpoint_every < 1:
        raise UsageError(f"--checkpoint-every is {checkpoint_every}; expected 1 or more")
    # Where each owner gets a prefix, a line without one is a fault even if the field has its usual name.
    fields = common.fields_of(source_field, target_field, owner_field or (by and "owner"))
    examples = read_examples(data, format=format, fields=fields, limit=limit)
    asked = Request(
        examples=examples,
        dev=None if dev is None else read_examples(dev, format=format, fields=fields, limit=dev_limit),
        settings=settings_of(context.params),
        template=template_change(template, separator, system, examples),
        start=None if start is None else Prefix.load(start),
        labels=common.pairs(label, "--label"),
        licence=licence,
        checkpoint_dir=checkpoint_dir,
        checkpoint_every=checkpoint_every,
        load=functools.partial(
            load_base, base, device=device, dtype=dtype, attention=attention, quantization=quantization
        ),
        overwrite=overwrite,
        json=json,
    )
    if by is None:
        from foreword.cli.train_one import train_one

        assert out is not None
        return train_one(asked, out, tensorboard=tensorboard)
    from foreword.cli.train_destinations import destination
    from foreword.cli.train_owners import train_owners

    with destination(out, name, place, blobs, checkpoint_dir) as goal:
        train_owners(asked, goal, places=places, pass_tokens=pass_tokens, isolated=isolated)


def _check_owner_options(
    typed: set[str],
    *,
    out: Path | None,
    name: str | None,
    accumulate: int | None,
    isolated: bool,
    tensorboard: bool,
) -> None:
    if (out is None) == (name is None):
        raise UsageError(
            "say where the owners' prefixes go: --out FOLDER for a file each, or --store PLACE --name NAME "
            "for OWNER/NAME in a store"
        )
    if out is not None and (others := sorted(typed & {"--store", "--blobs"})):
        raise UsageError(f"--out and {others[0]} are both given; to put prefixes into a store, use --name")
    if isolated and "--pass-tokens" in typed:
        raise UsageError(
            "--isolated and --pass-tokens are both given; isolated owners have passes of their own, which "
            "--accumulate divides"
        )
    if accumulate is not None and not isolated:
        raise UsageError(
            "--accumulate is given, but owners share passes; for less memory lower --pass-tokens, or give "
            "--isolated, too"
        )
    if tensorboard:
        raise UsageError("--tensorboard is given, but it shows one run; it can't be used with --by owner")
