"""What earlier releases let a caller write is still taken: options, command lines, keywords, names."""

from __future__ import annotations

import importlib
import shlex
import warnings
from pathlib import Path
from typing import Any

import pytest

from foreword import BaseModel, Prefix, train
from upgrade import runs, surface

OPTIONS = surface.recorded("surface/options.json")
LINES = surface.recorded("surface/lines.json")
CALLS = surface.recorded("surface/calls.json")
NAMES = surface.recorded("surface/names.json")
GONE = surface.recorded("surface/gone.json")
"""What is taken no more, with the message that says so: "COMMAND --option", "function keyword" or "module name"."""


START_KEPT = {"dev", "evaluate_every", "patience"}
"""Where none of the three steps has as low a dev loss as the start, which earlier releases could not keep."""


def with_start_kept(function: str, models: dict[str, BaseModel], calls: surface.Calls) -> float:
    """What such a call comes to: the start; of two owners it is the first who has dev examples."""
    template = models["tiny-llama"].template
    start = calls.train({"learning_rate": 1e-12, "template": template})
    if function == "train":
        return start
    second = train(models["tiny-llama"], surface.examples(5, 6), steps=3, length=4, template=template)
    return start + surface.mark_of(second)


def one_line(told: str, message: str) -> None:
    assert message in told
    assert len(told.strip().splitlines()) == 1


@pytest.mark.parametrize("command", OPTIONS)
def test_every_option_of_a_command_is_taken(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    if command in GONE["options"]:
        assert runs.call(command.split()) != 0
        one_line(capsys.readouterr().err, GONE["options"][command])
        return
    there = surface.options_of(surface.all_commands()[command])
    arguments = [option for option in there if option["kind"] == "argument"]
    before = [option for option in OPTIONS[command] if option["kind"] == "argument"]
    for old, new in zip(before, arguments, strict=False):
        assert (new["nargs"], new["required"] and not old["required"]) == (old["nargs"], False)
    assert len(arguments) >= len(before)
    for option in OPTIONS[command]:
        if option["kind"] == "argument":
            continue
        for spelling in option["spellings"]:
            if f"{command} {spelling}" in GONE["options"]:
                value = [] if option["flag"] else ["1"]
                assert runs.call([*command.split(), spelling, *value]) == 2
                one_line(capsys.readouterr().err, GONE["options"][f"{command} {spelling}"])
                continue
            found = [one for one in there if spelling in one["spellings"]]
            assert found, f"foreword {command} has no {spelling}"
            for part in ("flag", "nargs", "variable"):
                assert found[0][part] == option[part], f"{spelling}: {part}"
            assert found[0]["multiple"] or not option["multiple"]
    required = {s for option in OPTIONS[command] if option["required"] for s in option["spellings"]}
    for option in there:
        if option["kind"] == "option" and option["required"]:
            assert required & set(option["spellings"]), f"foreword {command} now needs {option['spellings']}"


@pytest.mark.parametrize("line", LINES)
def test_a_command_line_of_the_docs_is_one(line: str) -> None:
    surface.parse(shlex.split(line))


@pytest.fixture(scope="module")
def calls(models: dict[str, BaseModel], tmp_path_factory: pytest.TempPathFactory) -> surface.Calls:
    prefix = Prefix.load(surface.FIXTURES / "prefixes" / "default.prefix")
    return surface.Calls(models, prefix, tmp_path_factory.mktemp("calls"))


@pytest.mark.parametrize(
    ("function", "name"),
    [(function, name) for function, cases in surface.CASES.items() for name in ("none", *cases)],
)
def test_a_keyword_does_what_it_did(
    models: dict[str, BaseModel], calls: surface.Calls, function: str, name: str
) -> None:
    case: dict[str, Any] = {} if name == "none" else surface.CASES[function][name]
    if (message := GONE["keywords"].get(f"{function} {name}")) is not None:
        with pytest.raises(Exception, match=".") as raised:
            getattr(calls, function)(case)
        one_line(str(raised.value), message)
        return
    if function.startswith("train"):
        # The default on a base with a chat template is that one since; the separator is asked for.
        case = {"template": models[case.get("$base", "tiny-llama")].template, **case}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name that goes may say so
        found = getattr(calls, function)(case)
    before = CALLS["results"][function][name]
    if function.startswith("train") and name in START_KEPT:
        before = with_start_kept(function, models, calls)
    if isinstance(before, float):
        assert found == pytest.approx(before, abs=0.02)
    elif surface.machine() == CALLS["machine"]:  # elsewhere a near tie may fall otherwise
        assert found == before


def test_keywords_that_should_change_the_result_do() -> None:
    # Else a keyword that is taken and forgotten would pass above.
    silent = {
        "train": {"accumulate", "by_source", "gradient_checkpointing", "packed", "dev", "on_progress"}
        | {
            "checkpoint_dir",
            "checkpoint_every",
            "tensorboard",
            "labels",
            "licence",
            "evaluate_every",
            "patience",
        },
    }
    silent["train_many"] = silent["train"] | {"places", "pass_tokens", "isolated", "on_failure"}
    for function, allowed in silent.items():
        results = CALLS["results"][function]
        same = {name for name in results if results[name] == pytest.approx(results["none"], abs=0.05)}
        assert same - {"none"} <= allowed


@pytest.mark.parametrize("path", NAMES)
def test_a_public_name_is_there(models: dict[str, BaseModel], path: str) -> None:
    module, _, rest = path.partition(":")
    if (message := GONE["names"].get(path)) is not None:
        with pytest.raises((ImportError, AttributeError)) as raised:
            getattr(importlib.import_module(module), rest)
        one_line(str(raised.value), message)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: Any = importlib.import_module(module)
        for part in [part for part in rest.split(".") if part]:
            if part not in getattr(found, "__dataclass_fields__", {}) and found is BaseModel:
                found = getattr(found, part, None) or getattr(models["tiny-seq2seq"], part)
            elif part not in getattr(found, "__dataclass_fields__", {}):
                found = getattr(found, part)


@pytest.mark.parametrize("path", [Path(p) for p in ("default", "chat")])
def test_a_prefix_is_made_by_hand_with_the_old_keywords(path: Path) -> None:
    made = Prefix.load(surface.FIXTURES / "prefixes" / f"{path}.prefix")
    again = Prefix(
        tensors=made.tensors,
        base=made.base,
        template=made.template,
        origin=made.origin,
        created=made.created,
        licence=made.licence,
        labels=made.labels,
        positions=made.positions,
    )
    assert again == made
