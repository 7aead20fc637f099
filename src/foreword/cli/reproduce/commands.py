"""foreword reproduce: run an experiment and write its report."""

from __future__ import annotations

from typing import Any

import typer

from foreword.cli import options as common
from foreword.cli import output
from foreword.cli import train_options as its
from foreword.cli.app import SectionedCommand
from foreword.cli.command_line import command_line
from foreword.cli.reproduce import reproduce_options as own
from foreword.cli.reproduce.reproduce_data import MAX_LENGTH
from foreword.cli.reproduce.reproduce_extrapolation import EXAMPLE as EXTRAPOLATION_EXAMPLE
from foreword.cli.reproduce.reproduce_extrapolation import EXTRAPOLATION, extrapolation
from foreword.cli.reproduce.reproduce_methods import ABLATION, FULL, LOW_DATA, command_of, example
from foreword.errors import UsageError

EXAMPLE = (
    "\b\nExample:\n"
    "  foreword reproduce personalization --train train.jsonl --dev dev.jsonl --owner-field user \\\n"
    "    --out personalization"
)

app = typer.Typer(
    no_args_is_help=True, help="Run an experiment and write a report with its figures.", epilog=EXAMPLE
)


@app.callback()
def _experiments() -> None:
    """Run an experiment and write a report with its figures."""  # keeps one command a sub-command


QUICK = {"owners": 4, "steps": 20, "batch_size": 4, "dev_rows": 5, "max_length": 256}


@app.command(cls=SectionedCommand, epilog=EXAMPLE)
def personalization(
    context: typer.Context,
    train: own.TrainFile,
    dev: own.DevFile,
    out: own.Out,
    base: its.Base = "smollm2-135m-instruct",
    device: common.Device = "auto",
    dtype: common.Dtype = "auto",
    attention: common.AttentionKernel = "auto",
    quantization: common.Quantized = None,
    format: common.Format = "auto",
    source_field: common.SourceField = None,
    target_field: common.TargetField = None,
    owner_field: common.OwnerField = None,
    owners: own.Owners = None,
    dev_rows: own.DevRows = None,
    max_length: own.MaxLength = None,
    length: own.Length = 10,
    steps: own.Steps = None,
    shared_steps: own.SharedSteps = None,
    batch_size: its.BatchSize = None,
    learning_rate: its.LearningRate = None,
    seed: its.Seed = 0,
    quick: own.Quick = False,
    json: common.Json = False,
) -> None:
    """Own prefixes against none, a shared one, others'.

    A run that was stopped goes on when the same command is given again. The report is report.md in the folder
    of the run, its picture matrix.png.
    """
    from foreword.cli.loading import load_base
    from foreword.cli.progress import Counter
    from foreword.examples import read_examples
    from foreword.files import write_text
    from foreword.research.environment import describe_machine
    from foreword.research.experiments import personalization as experiment
    from foreword.research.experiments import plots
    from foreword.research.experiments import report_personalization as report
    from foreword.research.experiments.personalization import choose_owners
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
    if chosen["max_length"] is not None and chosen["max_length"] < 1:
        raise UsageError(f"--max-length is {chosen['max_length']}; expected 1 or more")
    recipe = experiment.Recipe(
        length=length,
        steps=chosen["steps"],
        batch_size=chosen["batch_size"],
        learning_rate=learning_rate,
        seed=seed,
        shared_steps=shared_steps,
    )
    fields = common.fields_of(source_field, target_field, owner_field)
    train_examples = read_examples(train, format=format, fields=fields)
    dev_examples = read_examples(dev, format=format, fields=fields)
    model = load_base(base, device=device, dtype=dtype, attention=attention, quantization=quantization)
    room = model.text_limit(length)
    longest = chosen["max_length"] or MAX_LENGTH
    longest = longest if room is None else min(longest, room)
    data = choose_owners(
        model,
        train_examples,
        dev_examples,
        owners=chosen["owners"],
        dev_rows=chosen["dev_rows"],
        max_length=longest,
    )
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
    plots.draw(report.make_matrix(columns), out / "matrix.png")
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


for _kind in (LOW_DATA, FULL, ABLATION):
    app.command(_kind.name, cls=SectionedCommand, epilog=example(_kind))(command_of(_kind))
app.command(EXTRAPOLATION.name, cls=SectionedCommand, epilog=EXTRAPOLATION_EXAMPLE)(extrapolation)
