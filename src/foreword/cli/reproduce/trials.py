"""Experiments that compare methods: from the options of a command to a plan, to a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from foreword.cli import output
from foreword.cli.output import command_line
from foreword.cli.reproduce.data import INSTRUCTIONS, USUAL, cut_as_published, decoding_of, max_length_of
from foreword.errors import UsageError

if TYPE_CHECKING:
    from foreword.base.base_model import BaseModel
    from foreword.research.experiments.plan import Plan
    from foreword.research.experiments.results import Results
    from foreword.research.experiments.splits import DataSplits


@dataclass(frozen=True)
class Kind:
    """An experiment.

    Attributes:
        name, title: of the command, of the report.
        full, quick: what options stand for that were not given: methods, others, sizes, subsets, seeds,
            steps (or `epochs`), dev_rows, measured_sources, beams.
    """

    name: str
    title: str
    full: Mapping[str, Any]
    quick: Mapping[str, Any]

    def chosen(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The command's options, and what they stand for where nothing was given."""
        defaults = self.quick if options["quick"] else self.full
        return {**options, **{name: defaults[name] for name in defaults if options.get(name) is None}}


LOW_DATA = Kind(
    "low-data",
    "Low data: methods by the number of training examples",
    full={
        "methods": "prefix,fine-tuning,lora",
        "others": "lora-8,top-2,adapter,peft-prefix,peft-projection,prompt-tuning,none,zero-shot,few-shot",
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

EXTRAPOLATION = Kind(
    "extrapolation",
    "Extrapolation: groups that training has not seen",
    full={**LOW_DATA.full, "others": "", "sizes": "500"},
    quick={**LOW_DATA.quick},
)


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
        parsed = tuple(dict.fromkeys(map(int, words)))
    except ValueError as error:
        raise UsageError(
            f"{option} is {given!r}; expected whole numbers with commas, as in 50,100, or all"
        ) from error
    if not parsed:
        raise UsageError(f"{option} is empty; expected whole numbers with commas, as in 50,100, or all")
    return parsed


def make_plan(chosen: Mapping[str, Any], examples: int) -> Plan:
    """The plan that the options (`Kind.chosen`) stand for; `examples`: of training, in all.

    Raises:
        UsageError: an option out of range, an unknown method, more examples than there are.
    """
    from foreword.research.baselines.registry import methods_named
    from foreword.research.experiments.plan import Plan

    methods = methods_named(names(chosen["methods"]))
    others = methods_named(names(chosen["others"]))
    sizes = numbers(chosen["sizes"], "--sizes", examples)
    if max(sizes) > examples:
        raise UsageError(f"{max(sizes)} training examples are asked for, and there are {examples}")
    return Plan(
        methods=tuple(methods),
        others=tuple(method for method in others if method not in methods),
        sizes=sizes,
        subsets=chosen["subsets"],
        seeds=chosen["seeds"],
        tuning_size=min(chosen["tuning_size"], examples),
        tuned=not (chosen["untuned"] or chosen["quick"]),
        length=chosen["length"],
        steps=chosen["steps"],
        epochs=chosen.get("epochs") if chosen["steps"] is None else None,
        batch_size=8 if chosen["batch_size"] is None else chosen["batch_size"],
        patience=chosen["patience"],
        seed=chosen["seed"],
        max_length=max_length_of(chosen["task"], chosen["max_length"]),
        instruction=chosen["instruction"] or INSTRUCTIONS[chosen["task"] or USUAL],
        decoding=decoding_of(chosen["task"], chosen["beams"]),
    )


def carry_out(
    kind: Kind,
    context: typer.Context,
    model: BaseModel,
    splits: DataSplits,
    plan: Plan,
    out: Path,
    *,
    metrics: tuple[str, ...],
    json: bool,
    more: Mapping[str, str] | None = None,
) -> None:
    """Make the trials that are left, and write report and picture from all of them.

    Args:
        metrics: sets computed of the texts, beside the figures of every trial.
        more: settings that make the run this one, beside those of the plan.
    """
    from foreword.cli.output import Counter
    from foreword.files import write_text
    from foreword.research.environment import describe_machine, package_versions
    from foreword.research.experiments import report_trials, trials
    from foreword.research.experiments.checks import check, check_chosen, without_unsupported
    from foreword.research.experiments.measure import rescore
    from foreword.research.experiments.results import Results, alone, take_over

    splits = cut_as_published(splits, context.params["task"], plan, model)
    if context.params["others"] is None:  # nobody has asked for them by name
        others, refused = without_unsupported(model, plan.others, splits, plan)
        plan = replace(plan, others=tuple(others))
        for why in refused.values():
            output.note(f"left out: {why}")
    check(model, splits, plan)
    context.with_resource(alone(out))
    results = Results(out, kind.name, {**trials.settings_of(model, splits, plan), **(more or {})})
    for folder in context.params["also"] or ():
        output.note(f"{take_over(results, folder)} pieces taken over from {folder}")
    check_chosen(model, splits, plan, results)
    groups, command = list(splits.measured), command_line(context)

    def report() -> None:
        numbers = model.model.num_parameters()
        page = report_trials.make_report(
            kind.title, command, results, plan, groups, model.name, numbers, "figures.png"
        )
        report_trials.draw(results, plan, groups, out / "figures.png", title=kind.title)
        write_text(out / "report.md", page, overwrite=True)

    left = sum(trial.key not in results.records for trial in plan.trials())
    if left:
        typer.echo(f"{left} trials to make", err=True)
        if not context.params["quick"] and report_trials.is_too_small(plan):
            output.note(report_trials.too_few(plan))
        scorers = package_versions("sacrebleu", "rouge-score", "pycocoevalcap")
        results.begin_session(command=command, **describe_machine(model), metrics=scorers)
    count = Counter()

    def after_each() -> None:
        rescore(results, plan, metrics, out, count)
        report()

    trials.run(model, splits, plan, results, out, count, after_each)
    after_each()
    if json:
        return output.json_object(
            {
                "report": out / "report.md",
                "picture": out / "figures.png",
                "results": results.path,
                "figures": _figures(results, plan, groups),
            }
        )
    typer.echo(report_trials.summary(results, plan, groups))
    typer.echo(f"report   {out / 'report.md'}\npicture  {out / 'figures.png'}")


def _figures(results: Results, plan: Plan, groups: list[str]) -> list[dict[str, Any]]:
    """Every cell of the report's tables."""
    from foreword.research.experiments import statistics

    return [
        {
            "group": group,
            "method": method.name,
            "n": size,
            "metric": metric,
            "mean": cell.mean,
            "spread": cell.spread,
            "trials": len(cell.values),
        }
        for group in groups
        for method in statistics.all_methods(plan)
        for size in statistics.sizes(plan)
        for metric in statistics.metrics(results)
        if (cell := statistics.cell(results, plan, method, size, group, metric)).values
    ]
