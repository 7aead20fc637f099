"""docs/python.md: every public name is on it, and what it says of them is so.

Tables that begin with "argument" are about the callable in the heading above and have exactly its arguments,
with their defaults; tables that begin with "attribute" are about the class in the heading above.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import foreword
from foreword import BaseModel, Prefix, PrefixStore, errors
from foreword.documents import compile_documents
from foreword.documents.settings import DocumentSettings, TogetherSettings
from foreword.evaluation import evaluate
from foreword.training.settings import Initialization, OwnersSettings, TrainingSettings
from foreword.validation import Setting, flat_settings

PAGE = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
MODULES = (
    "",
    ".documents",
    ".errors",
    ".evaluation",
    ".examples",
    ".prefix",
    ".training",
    ".training.parameterization",
)
ELSEWHERE = {
    "AdamW": "torch.optim",
    "KeyboardInterrupt": "builtins",
    "Path": "pathlib",
    "UserWarning": "builtins",
}
ELSEWHERE |= {"ValueError": "builtins"}
SETTINGS = {setting.name: setting for setting in flat_settings(TrainingSettings)}
OWNERS_SETTINGS = {setting.name: setting for setting in flat_settings(OwnersSettings)}


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def sections() -> dict[str, str]:
    """What stands below each heading that names something, up to the next heading."""
    parts = re.split(
        r"^(#+ .+)$", re.sub(r"^```.*?^```$", "", PAGE, flags=re.MULTILINE | re.DOTALL), flags=re.M
    )
    return {
        quoted(head)[0]: text for head, text in zip(parts[1::2], parts[2::2], strict=True) if quoted(head)
    }


def rows(text: str, first: str) -> Iterator[list[str]]:
    """Cells of the table whose first column is called so."""
    for table in re.findall(rf"^\| {first} \|.*\n\|[-|]+\n((?:\|.*\n?)+)", text, re.MULTILINE):
        for line in table.splitlines():
            yield [cell.strip() for cell in line.strip("|").split("|")]


def named(name: str) -> Any:
    """The public thing of that name, which may be in any of the modules and may have a dot in it."""
    head, *rest = name.split(".")
    for module in MODULES:
        found = getattr(importlib.import_module(f"foreword{module}"), head, None)
        if found is not None:
            for part in rest:
                found = getattr(found, part)
            return found
    if head in ELSEWHERE:
        return getattr(importlib.import_module(ELSEWHERE[head]), head)
    raise AttributeError(f"Foreword has no {name}")


def arguments(callable_: Any) -> dict[str, Any]:
    """Name and default of each argument, those that are handed on to the settings of training among them."""
    found = {
        name: one.default for name, one in inspect.signature(callable_).parameters.items() if name != "self"
    }
    if callable_ in (foreword.compile_document, compile_documents):
        del found["options"]
        found |= {each.name: each.default for each in dataclasses.fields(DocumentSettings)}
    if callable_ is compile_documents:
        found |= {each.name: each.default for each in dataclasses.fields(TogetherSettings)}
    if found.pop("options", None) is not None:
        settings = SETTINGS | (OWNERS_SETTINGS if callable_ is foreword.train_many else {})
        found |= {name: _default(setting) for name, setting in settings.items()}
    found.pop("decoding", None)
    return found


def _default(setting: Setting) -> Any:
    at: Any = OwnersSettings() if setting.name in OWNERS_SETTINGS else TrainingSettings()
    for attribute in setting.path:
        at = getattr(at, attribute)
    return f"{at.kind}:{at.text}" if isinstance(at, Initialization) else at


CALLABLES = [name for name, text in sections().items() if "| argument |" in text]


def test_every_public_name_has_its_place_on_the_page() -> None:
    headings = set(sections())
    for name in set(foreword.__all__) - {"__version__"}:
        assert any(heading.split(".")[0] == name for heading in headings), name
    assert "`foreword.__version__`" in PAGE


@pytest.mark.parametrize("name", CALLABLES)
def test_the_arguments_are_those_of_the_code_with_their_defaults(name: str) -> None:
    told: dict[str, str | None] = {}
    for names, defaults in (
        (quoted(cells[0]), quoted(cells[1])) for cells in rows(sections()[name], "argument")
    ):
        shared = (
            defaults[0] if len(defaults) == 1 else None
        )  # one default for all of the row, or each its own
        told |= dict(zip(names, defaults if len(defaults) > 1 else [shared] * len(names), strict=True))
    real = arguments(named(name))
    assert set(told) == set(real)
    for argument, value in told.items():
        if value is not None:
            assert ast.literal_eval(value) == real[argument], argument


def test_what_evaluate_hands_on_is_taken_by_generate() -> None:
    assert "decoding" in inspect.signature(evaluate).parameters
    assert {"beams", "stop", "seed"} <= set(arguments(foreword.generate))


@pytest.mark.parametrize("name", ["BaseModel", "Prefix", "PrefixStore"])
def test_attributes_and_methods_exist_with_these_arguments(
    name: str, tiny_base: BaseModel, plain_prefix: Prefix
) -> None:
    owner: Any = {"BaseModel": tiny_base, "Prefix": plain_prefix, "PrefixStore": PrefixStore}[name]
    told = [call for cells in rows(sections()[name], "attribute") for call in quoted(cells[0])]
    assert told
    for call in told:
        attribute, is_call, given = call.removesuffix(")").partition("(")
        found = getattr(owner, attribute)
        assert callable(found) == bool(is_call) or attribute in ("model", "tokenizer"), call
        if given:
            taken = inspect.signature(found).parameters
            assert {one.partition("=")[0] for one in given.split(", ")} <= set(taken), call


def test_all_that_a_prefix_has_is_on_the_page(plain_prefix: Prefix) -> None:
    told = {
        call.partition("(")[0]
        for cells in rows(sections()["Prefix"], "attribute")
        for call in quoted(cells[0])
    }
    assert told | {"load"} == {name for name in dir(plain_prefix) if not name.startswith("_")}


def test_every_error_is_in_the_table_of_errors_and_no_other() -> None:
    told = set(quoted(PAGE.split("## Errors")[1])) - {"foreword.errors", "ValueError", "UserWarning"}
    mine = {
        name
        for name, one in vars(errors).items()
        if inspect.isclass(one) and one.__module__ == errors.__name__
    }
    assert told == mine


def test_kinds_of_errors_are_told_right() -> None:
    for cells in rows(PAGE.split("## Errors")[1], "about"):
        if kind := re.search(r"each a `(\w+)`", cells[0]):
            for name in quoted(cells[1]):
                assert issubclass(getattr(errors, name), getattr(errors, kind[1])), name


def test_every_name_on_the_page_exists(tiny_base: BaseModel, plain_prefix: Prefix) -> None:
    objects = {"base": tiny_base, "prefix": plain_prefix}
    prose = re.sub(r"^```.*?^```$", "", PAGE, flags=re.MULTILINE | re.DOTALL)
    checked = 0
    for text in quoted(prose):
        if found := re.match(r"foreword((?:\.\w+)+)(?=\(|$)", text):
            *path, last = found[1][1:].split(".")
            module = importlib.import_module(".".join(["foreword", *path]))
            if not hasattr(module, last):
                importlib.import_module(f"{module.__name__}.{last}")
            checked += 1
        elif found := re.match(r"(base|prefix)\.(\w+)", text):
            assert hasattr(objects[found[1]], found[2]), text
            checked += 1
        elif found := re.match(r"(?!None|True|False)[A-Z][a-z]+\w*(\.\w+)*(?=\(|$)", text):
            named(found[0])
            checked += 1
    assert checked > 60
