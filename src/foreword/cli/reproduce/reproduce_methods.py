"""foreword reproduce low-data, full, ablation: the same command on three questions."""

from __future__ import annotations

from collections.abc import Callable

import typer

from foreword.cli import options as common
from foreword.cli import train_options as its
from foreword.cli.reading import Reading
from foreword.cli.reproduce import reproduce_options as shared
from foreword.cli.reproduce import reproduce_trial_options as own
from foreword.cli.reproduce.reproduce_data import metrics_of, read_splits
from foreword.cli.reproduce.reproduce_trials import Kind, carry_out, make_plan

LOW_DATA = Kind(
    "low-data",
    "Low data: methods by the number of training examples",
    full={
        "methods": "prefix,fine-tuning,lora",
        "others": "lora-8,top-2,adapter,adapter-16,ia3,llama-adapter,"
        "peft-prefix,peft-projection,prompt-tuning,none,zero-shot,few-shot",
        "sizes": "50,100,200,500",
        "subsets": 3,
        "seeds": 1,
        "steps": None,
        "dev_rows": 60,
        "measured_sources": 100,
        "beams": None,
    },
    quick={
        "methods": "prefix,fine-tuning,lora,peft-prefix,zero-shot",
        "others": "",
        "sizes": "50",
        "subsets": 2,
        "seeds": 1,
        "steps": 25,
        "dev_rows": 16,
        "measured_sources": 16,
        "beams": 1,
    },
)

FULL = Kind(
    "full",
    "Full data: methods with all training examples",
    full={
        **LOW_DATA.full,
        "others": "",
        "sizes": "all",
        "subsets": 1,
        "seeds": 3,
        "steps": None,
        "epochs": 5.0,  # the paper's; training's own number of steps ends long before on large data
        "measured_sources": 200,
    },
    quick={**LOW_DATA.quick, "sizes": "all", "subsets": 1, "seeds": 2},
)

ABLATION = Kind(
    "ablation",
    "Ablation: the prefix with one thing changed",
    full={
        **LOW_DATA.full,
        "methods": "prefix,length-1,length-2,length-5,length-20,length-40,mlp,mlp+start,random,task-words,"
        "other-words,demonstrations,embedding,embedding-20,infix,first-half,last-half",
        "others": "",
        "sizes": "500",
    },
    quick={**LOW_DATA.quick, "methods": "prefix,length-2,random,mlp+start,embedding,infix"},
)

HELP = {
    LOW_DATA.name: "Prefixes against other methods with few examples.",
    FULL.name: "Prefixes against other methods with all examples.",
    ABLATION.name: "The prefix with one thing changed.",
}

MORE = """

A run that was stopped goes on when the same command is given again; methods, sizes, subsets and seeds may be
added. The report is report.md in the folder of the run, its picture figures.png.
"""


def example(kind: Kind) -> str:
    """How the command is called."""
    files = "--train trainset.csv --dev devset.csv"
    return f"\b\nExample:\n  foreword reproduce {kind.name} {files} --out {kind.name}"


def command_of(kind: Kind) -> Callable[..., None]:
    """The command of an experiment."""

    def command(
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

        chosen = kind.chosen(context.params)
        fields = common.fields_of(source_field, target_field, None)
        sets = metrics_of(task, metrics)
        splits = read_splits(train, dev, test, Reading(task, format, fields), chosen, seed)
        plan = make_plan(chosen, len(splits.train))
        model = load_base(base, device=device, dtype=dtype, attention=attention, quantization=quantization)
        carry_out(kind, context, model, splits, plan, out, metrics=sets, json=json)

    command.__doc__ = HELP[kind.name] + MORE
    return command
