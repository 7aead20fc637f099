"""Each setting of training is defined once, and from that definition stands in every place that knows settings."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import json
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import typer.main
from typer.testing import CliRunner

from foreword import BaseModel, prefix, train, train_many
from foreword.base.options import ModelOptions
from foreword.cli.app import load
from foreword.cli.options import with_options
from foreword.cli.train import train as train_command
from foreword.errors import CheckpointMismatch, ForewordDeprecation, UsageError
from foreword.prefix import Geometry, StreamGeometry
from foreword.serving.jobs.settings import ELSEWHERE, JobBody, hyperparameters_of
from foreword.training import checkpoint, settings
from foreword.training.settings import (
    Initialization,
    OwnersOptions,
    OwnersSettings,
    ParameterizationSettings,
    TrainingOptions,
    TrainingSettings,
    make_settings,
)
from foreword.validation import flat_settings, setting, settings_of
from support.stand_ins import random_examples


@dataclass(frozen=True)
class OneMore(TrainingSettings):
    """The settings with one that was just added."""

    patch_size: int = setting(3, ge=1, le=9, section="Training", help="What the new setting does")


DEFINITIONS = [TrainingSettings, OneMore]


def options(kind: Any) -> dict[str, Any]:
    """The options of a command that takes a class of settings, by spelling."""

    def command(chosen: Any) -> None: ...

    command.__annotations__ = {"chosen": kind}
    app = typer.Typer(add_completion=False)
    app.command()(with_options(command))
    return {spelling: one for one in typer.main.get_command(app).params for spelling in one.opts}


def page() -> types.ModuleType:
    path = Path(__file__).parents[2] / "docs" / "make_settings.py"
    specification = importlib.util.spec_from_file_location("make_settings", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", DEFINITIONS)
def test_every_setting_is_in_every_place(kind: Any) -> None:
    places: dict[str, Callable[[Any], bool]] = {
        "command line": lambda each: each.option in options(kind),
        "hyperparameters of a job": lambda each: (
            ELSEWHERE.get(each.name, each.name)
            in {*hyperparameters_of(kind).model_fields, *JobBody.model_fields}
        ),
        "description in a checkpoint": lambda each: each.path[0] in kind().to_json(),
        "reference page": lambda each: f"| `{each.name}` |" in page().render(kind),
        "mapping": lambda each: (
            each.name in kind.from_mapping({each.name: None}).keywords() or len(each.path) > 1
        ),
    }
    defined = flat_settings(kind)
    assert {each.path[0] for each in defined} == {field.name for field in dataclasses.fields(kind)}
    for name, has in places.items():
        missing = [each.name for each in defined if not has(each)]
        assert not missing, f"{name}: {missing}"


def test_foreword_train_has_exactly_the_options_of_the_definitions() -> None:
    there = {spelling for one in load("train").params for spelling in one.opts}
    for kind in (TrainingSettings, OwnersSettings, ModelOptions):
        assert set(options(kind)) <= there
    by_hand = set(inspect.signature(train_command).parameters)
    for each in (*flat_settings(TrainingSettings), *flat_settings(OwnersSettings)):
        assert each.name not in by_hand, f"cli/train.py names {each.option} by hand"


def test_an_added_setting_has_its_range_and_default_everywhere() -> None:
    option = options(OneMore)["--patch-size"]
    assert option.help == "What the new setting does; default 3."
    with pytest.raises(ValueError, match="less than or equal to 9"):
        hyperparameters_of(OneMore)(patch_size=10)
    with pytest.raises(UsageError, match="patch_size is 10; expected 1 to 9"):
        OneMore.from_mapping({"patch_size": 10})
    assert "| `patch_size` | whole number | 3 | 1 to 9 | `--patch-size` |" in page().render(OneMore)


def test_keywords_of_train_are_the_settings_with_their_old_names() -> None:
    known = {name for each in flat_settings(TrainingSettings) for name in (each.name, *each.aliases)}
    assert set(TrainingOptions.__annotations__) == known | set(TrainingSettings.GONE)
    for_owners = {name for each in settings_of(OwnersSettings) for name in (each.name, *each.aliases)}
    assert set(OwnersOptions.__annotations__) == set(TrainingOptions.__annotations__) | for_owners
    hints = typing.get_type_hints(OwnersOptions)
    for each in (*flat_settings(TrainingSettings), *flat_settings(OwnersSettings)):
        taken = set(typing.get_args(hints[each.name]))
        named = str in taken and each.choices  # by its kind, as text
        assert named or set(each.alternatives) <= taken or each.type in taken, each.name
        assert all(hints[alias] == hints[each.name] for alias in each.aliases)


def test_options_of_a_base_model_are_the_keywords_of_its_loading() -> None:
    taken = inspect.signature(BaseModel.load).parameters
    for each in settings_of(ModelOptions):
        assert taken[each.name].default == each.default
    assert set(taken) - {each.name for each in settings_of(ModelOptions)} == {"name", "notify"}


def test_streams_are_those_of_a_prefix() -> None:
    assert settings.Stream == prefix.Stream
    assert settings.STREAMS == prefix.STREAMS


def test_settings_come_from_a_mapping_of_plain_data() -> None:
    table = {
        "length": {"encoder": 2, "cross": 3},
        "streams": ["encoder", "cross"],
        "parameterization": {"kind": "mlp+start", "width": 8},
        "init": "words: some words",
        "steps": 5,
        "warmup": None,
    }
    made = TrainingSettings.from_mapping(json.loads(json.dumps(table)))
    assert made.parameterization == ParameterizationSettings("mlp+start", 8)
    assert made.init == Initialization("words", "some words")
    assert made.streams == ("encoder", "cross")
    assert (made.steps, made.warmup, made.learning_rate) == (5, 0.05, 1e-3)
    assert make_settings(parameterization="mlp", width=8) == make_settings(
        parameterization=ParameterizationSettings("mlp", 8)
    )
    assert make_settings(**made.keywords()) == made


@pytest.mark.parametrize(
    ("old", "new", "value"), [("clip", "max_grad_norm", 0.5), ("accumulate", "gradient_accumulation", 2)]
)
def test_an_old_name_is_the_new_one(old: str, new: str, value: float) -> None:
    with pytest.warns(ForewordDeprecation, match=f"{old} is now called {new}"):
        assert make_settings(**{old: value}) == make_settings(**{new: value})
    assert options(TrainingSettings)[f"--{old}"].hidden
    hyperparameters = hyperparameters_of(TrainingSettings)(**{old: value})
    assert hyperparameters.model_dump(exclude_none=True) == {old: value}


@pytest.mark.parametrize("name", TrainingSettings.GONE)
def test_what_is_gone_is_taken_and_changes_nothing(name: str) -> None:
    with pytest.warns(ForewordDeprecation, match=f"{name} does nothing any more"):
        assert make_settings(**{name: True}) == make_settings()
    assert options(TrainingSettings)[f"--{name.replace('_', '-')}"].hidden


def test_a_checkpoint_under_old_names_is_the_same_run(tmp_path: Path) -> None:
    now = make_settings(max_grad_norm=0.5).to_json()
    before = {
        name: value for name, value in now.items() if name not in ("max_grad_norm", "gradient_accumulation")
    }
    before |= {"clip": 0.5, "accumulate": 1, "by_source": False, "packed": True}
    path = checkpoint.write(
        tmp_path, 1, {"a": torch.zeros(1)}, {"step": 1, "history": []}, {"settings": before}
    )
    assert checkpoint.read(path, {"settings": now})[1]["step"] == 1
    with pytest.raises(CheckpointMismatch, match="settings.max_grad_norm is 1.0, was 0.5"):
        checkpoint.read(path, {"settings": make_settings().to_json()})
    path = checkpoint.write(
        tmp_path, 2, {"a": torch.zeros(1)}, {"history": []}, {"settings": {**before, "by_source": True}}
    )
    with pytest.raises(CheckpointMismatch, match="settings.by_source is None, was True"):
        checkpoint.read(path, {"settings": now})


def test_what_depends_on_base_and_data_is_filled_in_once() -> None:
    sizes = StreamGeometry(layers=4, kv_heads=2, key_dim=8, value_dim=8)
    resolved = make_settings(layers="last:1").resolve(Geometry({"decoder": sizes}), 100)
    assert resolved.lengths == {"decoder": 10}
    assert resolved.trained_layers == {"decoder": range(3, 4)}
    assert (resolved.steps, resolved.warmup_steps, resolved.learning_rate) == (62, 3, 0.05)
    assert (resolved.evaluate_every, resolved.checkpoint_every) == (7, 6)


def settings_typed(*words: str) -> TrainingSettings:
    """What a command that takes the settings makes of the words typed behind it."""
    made: list[TrainingSettings] = []
    app = typer.Typer(pretty_exceptions_enable=False)

    def command(*, settings: TrainingSettings) -> None:
        made.append(settings)

    app.command()(with_options(command))
    CliRunner().invoke(app, words, catch_exceptions=False)
    return made[0]


def test_an_old_option_takes_zero_as_a_value() -> None:
    with pytest.warns(ForewordDeprecation, match="--clip is now called --max-grad-norm"):
        assert settings_typed("--clip", "0").max_grad_norm == 0
    with (
        pytest.warns(ForewordDeprecation),
        pytest.raises(UsageError, match="--gradient-accumulation is 0; expected a positive number"),
    ):
        settings_typed("--accumulate", "0")
    with pytest.raises(UsageError, match="--clip is the old name of --max-grad-norm, and both are given"):
        settings_typed("--clip", "3", "--max-grad-norm", "0")


def test_an_option_that_is_gone_is_named_as_it_is_typed() -> None:
    with pytest.warns(ForewordDeprecation, match="--by-source does nothing any more"):
        assert settings_typed("--by-source") == TrainingSettings()


def test_a_table_where_a_value_belongs_is_refused() -> None:
    with pytest.raises(UsageError, match="batch_size is {'a': 2}; expected a whole number"):
        TrainingSettings.from_mapping({"batch_size": {"a": 2}})


@pytest.mark.parametrize(
    ("chosen", "given", "told"),
    [
        ({"patience": 3}, {"dev": False, "start": False}, "patience is 3, but there are no dev examples"),
        ({"init": "random"}, {"dev": False, "start": True}, "init is random, and a prefix to start from"),
        ({"parameterization": "mlp"}, {"dev": True, "start": True}, "'mlp' has no starting point"),
    ],
)
def test_a_setting_that_a_run_would_ignore_is_refused(
    chosen: dict[str, Any], given: dict[str, bool], told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        make_settings(**chosen).check_with(**given)
    make_settings(**chosen).check_with(dev=True, start=False)


def test_a_setting_that_another_would_hide_is_refused(tiny_base: BaseModel) -> None:
    with pytest.raises(UsageError, match="init is random, but 'mlp' has no starting point"):
        make_settings(parameterization="mlp", init="random")
    whole = ParameterizationSettings("mlp+start")
    for given in ({"width": 8, "parameterization": whole}, {"parameterization": whole, "width": 8}):
        with pytest.raises(UsageError, match="beside an object of settings that holds it"):
            make_settings(**given)
    examples = random_examples(2)
    with pytest.raises(UsageError, match="checkpoint_every is 2, but there is no folder"):
        train(tiny_base, examples, steps=1, checkpoint_every=2)
    with pytest.raises(UsageError, match="checkpoint_every is 2, but there is no folder"):
        train_many(tiny_base, {"a": examples}, steps=1, checkpoint_every=2)
    with pytest.raises(UsageError, match="patience is 1, but there are no dev examples"):
        train_many(tiny_base, {"a": examples}, steps=1, patience=1)
