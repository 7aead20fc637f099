"""foreword reproduce: run an experiment and write its report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from foreword.base.options import ModelOptions
from foreword.cli import output
from foreword.cli.app import Group
from foreword.cli.loading import Reading
from foreword.cli.options import (
    DATA,
    TEXT,
    DataOptions,
    SourceOptions,
    TextOptions,
    base_option,
    json_option,
    option_of,
)
from foreword.cli.output import command_line
from foreword.cli.reproduce.data import MAX_LENGTH, metrics_of, read_splits, tell_left_out
from foreword.cli.reproduce.trials import ABLATION, EXTRAPOLATION, FULL, LOW_DATA, Kind, carry_out, make_plan
from foreword.errors import UsageError
from foreword.training.settings import TRAINING, TrainingSettings
from foreword.validation import setting

RUN, TRIALS = "Run", "What is compared"

PERSONALIZATION_EXAMPLE = (
    "  foreword reproduce personalization --train train.jsonl --dev dev.jsonl --owner-field user \\\n"
    "    --out personalization"
)
EXTRAPOLATION_EXAMPLE = (
    "  foreword reproduce extrapolation --task webnlg --train webnlg/train --dev webnlg/dev \\\n"
    "    --held-out Food --held-out City --out extrapolation"
)

app = Group("Run an experiment and write a report with its figures.", PERSONALIZATION_EXAMPLE)

_out = setting(metavar="FOLDER", help="Folder of the run; the same command resumes it")
_length = option_of(TrainingSettings, "length", 10, help="Number of virtual tokens")


# -- own prefixes against others -----------------------------------------------------------------

QUICK = {"owners": 4, "steps": 20, "batch_size": 4, "dev_rows": 5, "max_length": 256}


def personalization(
    context: typer.Context,
    train: Path = setting(section=DATA, help="Examples to learn from, each with its owner; see docs/data.md"),
    dev: Path = setting(section=DATA, help="Examples to measure on, of the same owners"),
    out: Path = _out,
    base: str = base_option(),
    *,
    options: ModelOptions,
    files: DataOptions,
    owners: int | None = setting(
        None, section=DATA, default_text="all", help="Take the first N owners by name"
    ),
    dev_rows: int | None = setting(None, section=DATA, help="Take the first N dev examples of each owner"),
    max_length: int | None = setting(
        None,
        section=DATA,
        default_text="512, or 256 with --quick",
        help="Leave out examples with more tokens",
    ),
    length: int = _length,
    steps: int | None = option_of(
        TrainingSettings,
        "steps",
        help="Optimiser steps for each owner",
        default_text="about 5 epochs of their examples",
    ),
    shared_steps: int | None = setting(
        None,
        section=TRAINING,
        default_text="as many as all owners' together",
        help="Optimiser steps of the shared prefix",
    ),
    batch_size: int | None = option_of(TrainingSettings, "batch_size"),
    learning_rate: float | None = option_of(TrainingSettings, "learning_rate"),
    seed: int = option_of(TrainingSettings, "seed", 0, ge=None, le=None),  # the recipe has the range
    quick: bool = setting(
        False,
        section=RUN,
        help="4 owners, 20 steps of 4 examples, 5 dev examples each, unless told otherwise: to see that it "
        "works, not for its figures",
    ),
    json: bool = json_option(),
) -> None:
    """Own prefixes against none, a shared one, others'.

    A run that was stopped goes on when the same command is given again. The report is report.md in the folder
    of the run, its picture matrix.png.
    """
    from foreword.cli.loading import load_base
    from foreword.cli.output import Counter
    from foreword.examples import read_examples
    from foreword.files import write_text
    from foreword.research.environment import describe_machine
    from foreword.research.experiments import personalization as experiment
    from foreword.research.experiments import plots
    from foreword.research.experiments import report_personalization as report
    from foreword.research.experiments.results import Results, alone

    given = {
        "owners": owners,
        "steps": steps,
        "batch_size": batch_size,
        "dev_rows": dev_rows,
        "max_length": max_length,
    }
    chosen: dict[str, Any] = {
        name: QUICK[name] if quick and value is None else value for name, value in given.items()
    }
    longest = chosen.pop("max_length")
    longest = MAX_LENGTH if longest is None else longest
    if longest < 1:
        raise UsageError(f"--max-length is {longest}; expected 1 or more")
    kept = {name: chosen.pop(name) for name in ("owners", "dev_rows")}
    chosen |= {"length": length, "learning_rate": learning_rate, "seed": seed, "shared_steps": shared_steps}
    recipe = experiment.Recipe.from_mapping(chosen)
    fields = files.fields()
    train_examples = read_examples(train, format=files.format, fields=fields)
    dev_examples = read_examples(dev, format=files.format, fields=fields)
    model = load_base(base, options)
    limit = model.max_text_tokens(length)
    longest = longest if limit is None else min(longest, limit)
    data = experiment.choose_owners(model, train_examples, dev_examples, **kept, max_length=longest)
    settings = experiment.settings_of(model, data, recipe, longest)
    context.with_resource(alone(out))
    results = Results(out, experiment.EXPERIMENT, settings)
    if unmeasured := len(data.unmeasured):
        output.note(f"{unmeasured} owners have no dev examples and are left out")
    prefixes, scores = experiment.left(data, results)
    if prefixes or scores:
        typer.echo(
            f"{len(data.owners)} owners; to train: {prefixes} prefixes, to score: {scores} owners", err=True
        )
        results.begin_session(command=command_line(context), **describe_machine(model))
    columns = experiment.run(model, data, recipe, out, results, Counter())
    plots.draw(*report.make_matrix(columns), out / "matrix.png")
    page = report.make_report(results, data, columns, model.name, "matrix.png")
    write_text(out / "report.md", page, overwrite=True)
    if json:
        return output.json_object(
            {
                "report": out / "report.md",
                "picture": out / "matrix.png",
                "results": results.path,
                "owners": len(data.owners),
                "own_against": {
                    rival: {"rival": rival, **report.figures_of(each)}
                    for rival, each in report.contrasts(columns).items()
                },
            }
        )
    typer.echo(report.summary(columns))
    typer.echo(f"report   {out / 'report.md'}\npicture  {out / 'matrix.png'}")


# -- methods against each other ------------------------------------------------------------------


@dataclass(frozen=True)
class TrialOptions:
    """What experiments that compare methods have in common."""

    train: Path = setting(
        section=DATA,
        help="Examples from which training subsets are drawn, or hub:train with --task; see docs/data.md",
    )
    dev: Path = setting(
        section=DATA,
        help="Examples that choose steps and learning rates; without --test, others of them are measured on",
    )
    out: Path = _out
    test: Path | None = setting(None, section=DATA, help="Examples to measure on")
    task: str | None = setting(
        None,
        metavar="NAME",
        section=DATA,
        help="Read, decode and score the files as e2e, webnlg, dart, xsum, cnn, scitldr or aeslc",
    )
    dev_rows: int | None = setting(
        None, section=DATA, help="Dev examples that choose steps and learning rates"
    )
    measured_sources: int | None = setting(None, section=DATA, help="Number of sources to measure on")
    max_length: int | None = setting(
        None,
        section=DATA,
        default_text="512; xsum and cnn have more",
        help="Maximum tokens of an example; longer ones are cut",
    )
    methods: str | None = setting(
        None, metavar="NAMES", section=TRIALS, help="Methods tried at every size; see docs/reproduce.md"
    )
    others: str | None = setting(
        None, metavar="NAMES", section=TRIALS, help="Methods tried at --tuning-size only; '' for none"
    )
    sizes: str | None = setting(
        None, metavar="N,N", section=TRIALS, help="Numbers of training examples; all: the whole file"
    )
    subsets: int | None = setting(None, section=TRIALS, help="Subsets of each size")
    seeds: int | None = setting(None, section=TRIALS, help="Seeds for each subset")
    tuning_size: int = setting(
        100, section=TRIALS, help="Training examples on which learning rates are chosen"
    )
    untuned: bool = setting(
        False, section=TRIALS, help="Do not tune learning rates: take each method's usual one"
    )
    instruction: str | None = setting(
        None, metavar="TEXT", section=TRIALS, help="The task in words, for methods that prompt"
    )
    length: int = option_of(
        TrainingSettings, "length", 10, help="Virtual tokens of every method that has them", parse=None
    )
    steps: int | None = option_of(
        TrainingSettings, "steps", help="Optimiser steps of each training", default_text=None
    )
    batch_size: int | None = option_of(TrainingSettings, "batch_size")
    patience: int | None = option_of(TrainingSettings, "patience", default_text=None)
    beams: int | None = option_of(
        TextOptions, "beams", help="Beam search with N beams", default_text="the task's"
    )
    metrics: tuple[str, ...] | None = setting(
        None,
        metavar="NAME",
        section=TEXT,
        default_text="the task's",
        help="Figures beside loss, BLEU and chrF; see evaluate. Repeatable",
    )
    seed: int = option_of(TrainingSettings, "seed", 0)
    also: tuple[Path, ...] = setting(
        (),
        metavar="FOLDER",
        section=RUN,
        help="Another folder of the same run, made by another process with some of the methods: what it has "
        "finished is taken over. Repeatable",
    )
    quick: bool = setting(
        False, section=RUN, help="Small defaults: a run to see that everything works, not for its figures"
    )


HELP = {
    LOW_DATA.name: "Prefixes against other methods with few examples.",
    FULL.name: "Prefixes against other methods with all examples.",
    ABLATION.name: "The prefix with one thing changed.",
    EXTRAPOLATION.name: "Prefixes against others on unseen groups.",
}

MORE = """

A run that was stopped goes on when the same command is given again;
methods, sizes, subsets and seeds may be added. The report is report.md in the folder of the run, its picture
figures.png.
"""


def command_of(kind: Kind) -> Callable[..., None]:
    """The command of an experiment on one file of examples, or a task's official files."""

    def command(
        context: typer.Context,
        trial: TrialOptions,
        files: SourceOptions,
        options: ModelOptions,
        base: str = base_option(),
        json: bool = json_option(),
    ) -> None:
        from foreword.cli.loading import load_base

        chosen = kind.chosen(vars(trial))
        sets = metrics_of(trial.task, trial.metrics)
        reading = Reading(trial.task, files.format, files.fields())
        splits = read_splits(trial.train, trial.dev, trial.test, reading, chosen, trial.seed)
        plan = make_plan(chosen, len(splits.train))
        model = load_base(base, options)
        carry_out(kind, context, model, splits, plan, trial.out, metrics=sets, json=json)

    return command


def extrapolation(
    context: typer.Context,
    trial: TrialOptions,
    files: SourceOptions,
    options: ModelOptions,
    base: str = base_option(),
    group_field: str | None = setting(
        None, metavar="NAME", section=DATA, help="Field or column with the group, such as a category"
    ),
    held_out: list[str] | None = setting(
        None,
        metavar="NAME",
        section=DATA,
        default_text="one in three, drawn by the seed",
        help="Group to hold out of training; repeatable",
    ),
    json: bool = json_option(),
) -> None:
    from foreword.cli.loading import load_base
    from foreword.research.experiments.splits import split_by_group

    chosen = EXTRAPOLATION.chosen(vars(trial))
    sets = metrics_of(trial.task, trial.metrics)
    reading = Reading(trial.task, files.format, files.fields(group_field))
    splits, unseen, left_out = split_by_group(
        reading.training(trial.train, groups=True),
        reading.entries(trial.dev, groups=True),
        held_out or (),
        dev_rows=chosen["dev_rows"],
        measured_sources=chosen["measured_sources"],
        seed=trial.seed,
        test=None if trial.test is None else reading.entries(trial.test, groups=True),
    )
    typer.echo(f"measured as unseen: {', '.join(unseen)}", err=True)
    tell_left_out(left_out)
    plan = make_plan(chosen, len(splits.train))
    model = load_base(base, options)
    carry_out(
        EXTRAPOLATION,
        context,
        model,
        splits,
        plan,
        trial.out,
        metrics=sets,
        json=json,
        more={"held out": ", ".join(unseen)},
    )


def _add(kind: Kind, command: Callable[..., None], example: str) -> None:
    command.__doc__ = HELP[kind.name] + MORE
    app.add(command, kind.name, example)


app.add(personalization, None, PERSONALIZATION_EXAMPLE)
for _kind in (LOW_DATA, FULL, ABLATION):
    _files = "--train trainset.csv --dev devset.csv"
    _add(_kind, command_of(_kind), f"  foreword reproduce {_kind.name} {_files} --out {_kind.name}")
_add(EXTRAPOLATION, extrapolation, EXTRAPOLATION_EXAMPLE)
