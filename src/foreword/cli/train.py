"""foreword train: learn a prefix from a file of examples."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from foreword.cli import options as common
from foreword.cli import output
from foreword.cli import train_options as its
from foreword.errors import CheckpointMismatch, UsageError

if TYPE_CHECKING:
    from foreword.examples import Example
    from foreword.prefix import Prefix
    from foreword.template import Template

EXAMPLE = (
    "  foreword train train.jsonl --dev dev.jsonl --base smollm2-135m-instruct --out e2e.prefix\n"
    "  foreword train mail.csv --source-field body --target-field subject \\\n"
    "    --base smollm2-135m-instruct --out mail.prefix --length 20 --epochs 3"
)


def train(
    data: common.DataFile,
    out: its.Out,
    base: its.Base = "smollm2-135m-instruct",
    device: common.Device = "auto",
    dtype: common.Dtype = "auto",
    attention: common.AttentionKernel = "auto",
    format: common.Format = "auto",
    source_field: common.SourceField = None,
    target_field: common.TargetField = None,
    owner_field: common.OwnerField = None,
    limit: common.Limit = None,
    dev: its.Dev = None,
    dev_limit: its.DevLimit = None,
    length: its.Length = None,
    parameterization: its.Kind = None,
    width: its.Width = None,
    freeze_first: its.FreezeFirst = False,
    init: its.Init = None,
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
    gradient_checkpointing: its.GradientCheckpointing = False,
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
    command is given again.
    """
    from foreword.cli.loading import load_base
    from foreword.examples import read_examples
    from foreword.files import check_output
    from foreword.training.train import make_settings
    from foreword.training.train import train as train_prefix

    check_output(out, overwrite=overwrite)
    labels = common.pairs(label, "--label")
    fields = common.fields_of(source_field, target_field, owner_field)
    examples = read_examples(data, format=format, fields=fields, limit=limit)
    dev_examples = None if dev is None else read_examples(dev, format=format, fields=fields, limit=dev_limit)
    settings: dict[str, Any] = {
        "length": length,
        "steps": steps,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "parameterization": _parameterization(parameterization, width, freeze_first),
        "init": init,
        "layers": layers,
        "placement": placement,
        "seed": seed,
        "warmup": warmup,
        "clip": clip,
        "weight_decay": weight_decay,
        "reduction": reduction,
        "accumulate": accumulate,
        "max_length": max_length,
        "gradient_checkpointing": gradient_checkpointing,
        "evaluate_every": evaluate_every,
        "patience": patience,
    }
    make_settings(**settings)  # what is wrong with them is said before the model is loaded
    change = template_change(template, separator, system, examples)
    owners = {example.owner for example in examples}
    if len(owners) > 1:
        output.note(f"{len(owners)} owners in the data; one prefix is trained for all of them together")

    model = load_base(base, device=device, dtype=dtype, attention=attention)
    folder = checkpoint_dir or run_folder(out)

    def run(report: Callable[[Any], None]) -> Prefix:
        return train_prefix(
            model,
            examples,
            dev=dev_examples,
            template=change(model.template),
            checkpoint_dir=folder,
            checkpoint_every=checkpoint_every,
            tensorboard=tensorboard,
            labels=labels,
            licence=licence,
            on_progress=report,
            **settings,
        )

    prefix = _train(run, folder, overwrite=overwrite)
    prefix.save(out, overwrite=overwrite)
    _tell(prefix, out, folder, json=json)


def template_change(
    style: str | None, separator: str | None, system: str | None, examples: Sequence[Example]
) -> Callable[[Template], Template]:
    """What the options make of the base's own template.

    Raises:
        UsageError: an option that the style does not have.
    """
    conversations = any(not isinstance(example.source, str) for example in examples)
    if style is None and (conversations or system is not None):
        style = "chat"
    if separator is not None and style not in (None, "separator"):
        raise UsageError(f"--separator is given, but the template is {style}; it needs --template separator")
    if system is not None and style != "chat":
        raise UsageError(f"--system is given, but the template is {style}; it needs --template chat")
    if conversations and style != "chat":
        raise UsageError(f"the examples are conversations, which the template {style} can't write; use chat")
    changes: dict[str, Any] = {"style": style or (None if separator is None else "separator")}
    changes |= {"separator": None if separator is None else common.unescaped(separator), "system": system}
    given = {name: value for name, value in changes.items() if value is not None}
    if style == "chat":
        given["begin"] = False  # a chat template writes its own beginning
    return lambda template: dataclasses.replace(template, **given)


def run_folder(out: Path) -> Path:
    """Where a run keeps its checkpoints when nothing is said: beside the prefix."""
    return out.with_suffix(".run") if out.suffix == ".prefix" else out.with_name(f"{out.name}.run")


def _parameterization(kind: str | None, width: int | None, freeze_first: bool) -> Any:
    from foreword.parameterization import ParameterizationSettings

    given: dict[str, Any] = {"kind": kind, "width": width, "freeze_first": freeze_first or None}
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        return None
    settings = ParameterizationSettings(**given)
    if width is not None and not settings.has_network:
        raise UsageError(
            f"--width is given, but {settings.kind} has no network; use --parameterization mlp+start"
        )
    return settings


def _train(run: Callable[[Callable[[Any], None]], Prefix], folder: Path, *, overwrite: bool) -> Prefix:
    """Train, or go on; a folder with another run is started anew only under --overwrite."""
    from foreword.cli.progress import training_progress
    from foreword.training.checkpoint import list_checkpoints

    with training_progress() as shown:

        def report(progress: Any) -> None:
            shown(progress)
            if progress.note is not None and 0 < progress.steps <= progress.step:
                output.note(f"this run is complete already; to train it again, remove {folder}")

        try:
            return run(report)
        except CheckpointMismatch:
            if not overwrite:
                raise
            output.note(f"{folder} held a run with other settings; it starts anew (--overwrite)")
            for old in list_checkpoints(folder):
                old.unlink()
            return run(report)


def _tell(prefix: Prefix, out: Path, folder: Path, *, json: bool) -> None:
    size = out.stat().st_size
    places = {name: folder / name for name in ("log.jsonl", "curves.png") if (folder / name).exists()}
    if json:
        return output.json_object(
            {
                "prefix": out,
                "digest": prefix.digest,
                "bytes": size,
                "base": prefix.base.name,
                "length": prefix.length,
                **dataclasses.asdict(prefix.origin),
                "run": folder,
                "log": places.get("log.jsonl"),
                "curves": places.get("curves.png"),
            }
        )
    typer.echo(repr(prefix))
    typer.echo(f"  prefix  {out}  ({size / 1000:.0f} kB)")
    for name, place in (("log", "log.jsonl"), ("curves", "curves.png")):
        if place in places:
            typer.echo(f"  {name:<6}  {places[place]}")
    command = ["foreword", "generate", "--prefix", str(out), "YOUR TEXT"]
    typer.echo(f"next: {shlex.join(command)}")
