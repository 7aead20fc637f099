"""Options of the commands, made from the definitions of settings; and those that several commands share.

A command says what it takes in its signature: a class of settings stands for an option each, and so does a
parameter whose default is `setting(...)`. `with_options` makes of both what typer understands.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import keyword
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar, Union

import typer
from typer.models import ArgumentInfo

from foreword.base.options import SECTION as MODEL
from foreword.errors import UsageError
from foreword.examples.readers import Format
from foreword.examples.records import parse_fields
from foreword.validation import (
    Setting,
    deprecated,
    flat_settings,
    from_mapping,
    setting,
    settings_of,
)

if TYPE_CHECKING:
    from foreword.store import PrefixStore

DATA, TEXT, OUTPUT = "Data", "Generation", "Output"
BASE = "smollm2-135m-instruct"

# -- from definitions to options -----------------------------------------------------------------


Class = TypeVar("Class")


class Given(dict[str, Any], Generic[Class]):
    """The options of a class of settings that were given, by name, as text; other sources have the rest."""


def with_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command as typer takes it: an option for every setting in its signature.

    A class of settings comes to the command as an object made of the options. What is wrong with a value
    is said in the words of the definition, with the option's name in front.
    """
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, Any] = {}
    given: dict[str, list[str]] = {}
    parameters: list[inspect.Parameter] = []
    for one in signature.parameters.values():
        one = one.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        if isinstance(one.default, dataclasses.Field):
            parameters.append(_parameter(one.name, defined(one), one.annotation))
        elif dataclasses.is_dataclass(one.annotation) and settings_of(one.annotation):  # type: ignore[arg-type]
            groups[one.name] = one.annotation
            parameters += _parameters_of(one.annotation)
        elif typing.get_origin(one.annotation) is Given:
            (kind,) = typing.get_args(one.annotation)
            parameters += (texts := _text_parameters(kind))
            given[one.name] = [each.name for each in texts]
        else:
            parameters.append(one)
    parameters.sort(key=lambda one: not isinstance(one.default, ArgumentInfo))  # in the help, too

    @functools.wraps(command)
    def run(**values: Any) -> Any:
        for name, kind in groups.items():
            values[name] = _made(kind, values)
        for name, options in given.items():
            values[name] = {each: value for each in options if (value := values.pop(each)) is not None}
        return command(**values)

    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def defined(parameter: inspect.Parameter) -> Setting:
    """The setting that stands as a parameter's default."""
    field: dataclasses.Field[Any] = parameter.default
    described: Setting = field.metadata[Setting]
    default = ... if field.default is dataclasses.MISSING else field.default
    name = described.name or parameter.name
    return dataclasses.replace(described, name=name, type=parameter.annotation, default=default)


def option_of(kind: Any, name: str, default: Any = None, **changes: Any) -> Any:
    """One setting of a class as a parameter's default, for a command that takes only some of them.

    Without a `default`, the parameter is None unless it is given, and the help says the setting's own.
    """
    (described,) = (each for each in flat_settings(kind) if each.name == name)
    if default is None:
        changes = {"default_text": described.shown_default, **changes}
    return dataclasses.field(
        default=default, metadata={Setting: dataclasses.replace(described, name="", **changes)}
    )


def _parameters_of(kind: Any) -> list[inspect.Parameter]:
    """Parameters of all settings of a class; old names and those that are gone are taken and not shown."""
    parameters = []
    for each in flat_settings(kind):
        annotation = _option_type(each)
        parameters.append(_parameter(_key(each.name), each, annotation, given=True))
        for alias in each.aliases:
            old = dataclasses.replace(each, name=alias, short=None)
            parameters.append(_parameter(_key(alias), old, annotation, given=True, hidden=True))
    for name in getattr(kind, "GONE", {}):
        gone = Setting("Does nothing any more", name=name, type=bool, default=False)
        parameters.append(_parameter(name, gone, bool, given=True, hidden=True))
    return parameters


def _text_parameters(kind: Any) -> list[inspect.Parameter]:
    """Parameters of the settings that are one value each; values stay text, so that "none" is one."""
    parameters = []
    for each in settings_of(kind):
        if {str, int, float, bool} & set(each.alternatives) or each.choices:
            flag = bool in each.alternatives
            annotation: Any = bool | None if flag else str | None
            parameters.append(_parameter(each.name, each, annotation, given=True))
    return parameters


def _key(name: str) -> str:
    """The name of an option's parameter; `as` and `with` can be none in Python."""
    return f"{name}_" if keyword.iskeyword(name) else name


def _parameter(
    name: str, described: Setting, annotation: Any, *, given: bool = False, hidden: bool = False
) -> inspect.Parameter:
    """One option. With `given`, one that was not typed comes as None, so that it can be distinguished."""
    spelling, flag = described.option, annotation is bool
    if flag and described.default is True:
        spelling = spelling.replace("--", "--no-", 1)
    elif annotation == bool | None:
        spelling = f"{spelling}/--no-{described.option.removeprefix('--')}"
    bounded = int in described.alternatives and not given
    option = typer.Option(
        *(() if described.short is None else (described.short,)),
        spelling,
        metavar=None if bool in described.alternatives else _metavar(described),
        help=help_of(described),
        rich_help_panel=described.section,
        show_default=False,
        envvar=described.variable,
        hidden=hidden,
        min=described.ge if bounded else None,
        max=described.le if bounded else None,
    )
    default = False if flag else None if given and described.default is not ... else described.default
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        annotation=Annotated[annotation, option],
        default=inspect.Parameter.empty if default is ... else default,
    )


def _metavar(described: Setting) -> str | None:
    usual: dict[Any, str] = {int: "N", float: "X", Path: "FILE"}
    if described.choices:  # as typer has it for a type that is a Literal; what stays text is one to typer
        usual = {described.alternatives[0]: f"<{'|'.join(map(str, described.choices))}>"}
    return described.metavar or next((usual[kind] for kind in described.alternatives if kind in usual), None)


def help_of(described: Setting) -> str:
    """The help of an option: the sentence of its definition, with the default behind it."""
    text, default = described.help, described.shown_default
    if described.default is False:
        return f"{text}."
    if default in (None, "", "()"):
        return f"{text}."
    return f"{text}; default{':' if described.default_text is not None else ''} {default}."


def _option_type(described: Setting) -> Any:
    """What typer shall read: text where the definition reads it itself, else the type, or nothing."""
    kinds = described.alternatives
    if bool in kinds:
        return bool
    if described.parse is not None:
        return str | None
    if typing.get_origin(kinds[0]) is tuple:
        return Union[list[typing.get_args(kinds[0])[0]], None]  # type: ignore[misc]  # noqa: UP007
    return Union[kinds[0], None]  # noqa: UP007 (a Literal takes no |)


def _made(kind: Any, values: dict[str, Any]) -> Any:
    """Take the options of a class of settings out of `values`, and make its object of them."""
    given: dict[str, Any] = {}
    flat = flat_settings(kind)
    for name, why in getattr(kind, "GONE", {}).items():
        if values.pop(name):
            deprecated(f"--{name.replace('_', '-')} does nothing any more and will be refused: {why}")
    for each in flat:
        value = values.pop(_key(each.name))
        for alias in each.aliases:
            old = values.pop(alias)
            if old is None or old is False:  # not typed; 0 is a value
                continue
            typed_as = f"--{alias.replace('_', '-')}"
            if value is not None and value is not False:
                raise UsageError(f"{typed_as} is the old name of {each.option}, and both are given; give one")
            deprecated(f"{typed_as} is now called {each.option}")
            value = old
        if bool in each.alternatives:  # an option can only turn it
            value = (not value if each.default is True else value) if value else None
        given[each.name] = tuple(value) if isinstance(value, list) else value
    try:
        rest = {name: value for name, value in given.items() if value is not None}
        return kind.from_mapping(rest) if hasattr(kind, "from_mapping") else from_mapping(kind, rest)
    except UsageError as error:
        raise in_options(error, flat) from error


def in_options(error: UsageError, described: typing.Iterable[Setting]) -> UsageError:
    """The error with the option's name where the setting's stands in front."""
    message = str(error)
    for each in described:
        if message.startswith((f"{each.name} is ", f"{each.name} of ")):
            message = each.option + message.removeprefix(each.name)
    return UsageError(message)


# -- options that several commands share ---------------------------------------------------------


@dataclass(frozen=True)
class SourceOptions:
    """How a file of examples is written."""

    format: Format = setting("auto", section=DATA, help="How the data is written")
    source_field: str | None = setting(
        None, metavar="NAME", section=DATA, help="Field or column with the source"
    )
    target_field: str | None = setting(
        None, metavar="NAME", section=DATA, help="Field or column with the target"
    )
    named: str | None = setting(
        None,
        name="fields",
        metavar="PART=NAME,...",
        section=DATA,
        help="Fields or columns of any part, as in source=question,target=answer",
    )

    def fields(self, owner: str | None = None) -> dict[str, str] | None:
        """The field names that were given, as `read_examples` takes them.

        Raises:
            UsageError: --fields is no such list, or names a part that has an option of its own beside it.
        """
        listed = {} if self.named is None else parse_fields(self.named, "--fields")
        named = {"source": self.source_field, "target": self.target_field, "owner": owner}
        own = {part: name for part, name in named.items() if name is not None}
        if twice := [part for part in own if part in listed and own[part] != listed[part]]:
            raise UsageError(f"--fields and --{twice[0]}-field both name {twice[0]}; give one of them")
        return {**listed, **own} or None


@dataclass(frozen=True)
class DataOptions(SourceOptions):
    """How a file of examples with owners is written."""

    owner_field: str | None = setting(
        None, metavar="NAME", section=DATA, help="Field or column with the owner"
    )

    def fields(self, owner: str | None = None) -> dict[str, str] | None:
        """As `SourceOptions.fields`; `owner` is the owner's field where none was given."""
        listed = {} if self.named is None else parse_fields(self.named, "--fields")
        return super().fields(self.owner_field or listed.get("owner", owner))


@dataclass(frozen=True)
class TextOptions:
    """How texts are generated, of the commands that decode with or without a task."""

    max_new_tokens: int = setting(64, section=TEXT, help="Maximum new tokens per text")
    min_new_tokens: int = setting(0, section=TEXT, help="Minimum new tokens before an end token")
    beams: int = setting(1, section=TEXT, help="Beam search with N beams; 1: off")
    length_penalty: float = setting(
        1.0, section=TEXT, help="Exponent of the length by which beam scores are divided"
    )
    stop: tuple[str, ...] = setting(
        (), metavar="TEXT", section=TEXT, help=r"End a text where this begins (\n: newline); repeatable"
    )
    ban: tuple[str, ...] = setting((), metavar="TEXT", section=TEXT, help="Never write this; repeatable")
    batch_size: int = setting(32, section=TEXT, help="Texts generated together")

    def decoding(self) -> dict[str, Any]:
        """Keywords of `Decoding`."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del given["batch_size"]
        given["banned"] = given.pop("ban")
        return {**given, "stop": tuple(map(unescaped, self.stop))}


@dataclass(frozen=True)
class StoreOptions:
    """The store that a command works on."""

    place: str = setting(
        "prefixes",
        name="store",
        variable="FOREWORD_STORE",
        metavar="PLACE",
        help="Folder of the store, or URL of its database",
    )
    blobs: str | None = setting(
        None,
        variable="FOREWORD_STORE_BLOBS",
        metavar="PLACE",
        help="Where a database's files are: folder or URL",
    )

    def opened(self, *, create: bool = False) -> PrefixStore:
        """The store. Raises as `PrefixStore`."""
        from foreword.store import PrefixStore

        return PrefixStore(self.place, blobs=self.blobs, create=create)


@dataclass(frozen=True)
class DeclaredOptions:
    """Whose declarations count where a prefix was trained for another base."""

    place: str | None = setting(
        None,
        name="store",
        variable="FOREWORD_STORE",
        metavar="PLACE",
        section=MODEL,
        help="Store that declares on which other bases prefixes run; see `foreword store equate`",
    )
    blobs: str | None = setting(
        None,
        variable="FOREWORD_STORE_BLOBS",
        metavar="PLACE",
        section=MODEL,
        help="Where that store's files are, if it is in a database",
    )


base_option = functools.partial(
    setting, BASE, name="base", metavar="NAME", section=MODEL, help="Alias, folder or Hugging Face id"
)
base_of_prefix = functools.partial(
    setting,
    None,
    name="base",
    metavar="NAME",
    section=MODEL,
    help="Alias, folder or Hugging Face id; without it, the base that the prefix names",
)
overwrite_option = functools.partial(
    setting, False, name="overwrite", section=OUTPUT, help="Replace the output if it is there"
)
json_option = functools.partial(setting, False, name="json", section=OUTPUT, help="Print one JSON object")
argument = functools.partial(typer.Argument, show_default=False)
data_file = functools.partial(argument, ..., metavar="DATA", help="File of examples; see docs/data.md.")


# -- what options mean ---------------------------------------------------------------------------


def unescaped(text: str) -> str:
    r"""`\n` and `\t`, which a shell can hardly pass on, as newline and tab."""
    return text.replace(r"\n", "\n").replace(r"\t", "\t")


def pairs(texts: list[str] | None, option: str) -> dict[str, str]:
    """`name=value` texts as a dictionary.

    Raises:
        UsageError: a text without `=`, or without a name in front of it.
    """
    named = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"{option} is {text!r}; expected NAME=VALUE, as in {option} task=reviews")
        named[name.strip()] = value
    return named


def typed(context: typer.Context, *parameters: str) -> list[str]:
    """The options among these parameters that the user gave, be it at their default values."""
    spellings = {one.name: one.opts[-1] for one in context.command.params}
    sources = {name: context.get_parameter_source(name) for name in parameters}
    return [spellings[name] for name, source in sources.items() if source and source.name == "COMMANDLINE"]
