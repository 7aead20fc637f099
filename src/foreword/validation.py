"""Checked values: what a dataclass or a function declares, compared with what it is given.

`check_fields` compares the fields of a dataclass with their declared types, and `checks_arguments` the
arguments of a public function. `setting` declares a field of a settings class
with all that is made from it: its range, its help, its name on the command line and in configuration
files, and the names it had before. Nothing else restates any of these; readers go over `settings_of`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import numbers
import sys
import types
import typing
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, ParamSpec, TypeVar

from foreword.errors import ForewordDeprecation, ForewordWarning, UsageError


def check_fields(instance: Any) -> None:
    """Compare every field of a dataclass with its declared type, and convert it as `fitting` does.

    Raises:
        UsageError: names the field, what was found and what was expected.
    """
    hints = typing.get_type_hints(type(instance))
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if (found := fitting(field.name, value, hints[field.name])) is not value:
            object.__setattr__(instance, field.name, found)


Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def checks_arguments(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let a public function compare each argument with its annotation first, as `fitting` does.

    Arguments whose annotation names what is imported for type checkers alone are left to the function.
    """
    signature = inspect.signature(function)

    @functools.cache
    def hints() -> dict[str, Any]:
        found = {}
        for name, parameter in signature.parameters.items():
            variadic = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
            if parameter.annotation is parameter.empty or variadic:
                continue
            try:
                found[name] = eval(parameter.annotation, function.__globals__)  # type: ignore[attr-defined]
            except NameError:
                continue
        return found

    @functools.wraps(function)
    def checked(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        bound = signature.bind(*args, **kwargs)
        for name, hint in hints().items():
            if name in bound.arguments:
                bound.arguments[name] = fitting(name, bound.arguments[name], hint)
        return function(*bound.args, **bound.kwargs)

    return checked


Class = TypeVar("Class", bound=type)


def checks_methods(kind: Class) -> Class:
    """`checks_arguments` for every public method of a class, and for what makes its objects."""
    for name, member in list(vars(kind).items()):
        if inspect.isfunction(member) and (name == "__init__" or not name.startswith("_")):
            setattr(kind, name, checks_arguments(member))
    return kind


def fitting(name: str, value: Any, hint: Any) -> Any:
    """`value` as the type `hint` declares it.

    A whole number becomes a float where one is meant, a number of numpy or its like becomes Python's own,
    and a list a tuple. Of sequences and mappings the elements are compared, too, unless only going over
    them once would show these.

    Raises:
        UsageError: `name` and place of what is of another type, what was found and what was expected.
    """
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        within = None
        for part in parts:
            try:
                return fitting(name, value, part)
            except UsageError as error:
                if not str(error).startswith(f"{name} is "):  # the form is right, but not what is in it
                    within = error
        raise within or _misfit(name, value, hint)
    kind = origin or hint
    if kind in (int, float, bool):
        plain = plain_number(value)
        found = _as_float(name, plain) if kind is float and type(plain) is int else plain
        fits = type(found) is kind or (isinstance(found, kind) and not isinstance(found, bool))
    elif kind is Literal:
        found, fits = value, isinstance(value, str) and value in parts
    elif kind in (Sequence, Iterable, Collection, list, tuple):
        found = value
        fits = isinstance(value, Iterable) and not isinstance(value, (str, bytes, bytearray, Mapping))
        if fits and isinstance(value, (list, tuple)) and parts:
            fixed = kind is tuple and parts[-1] is not ...
            fits = not fixed or len(parts) == len(value)
            each = parts if fixed else parts[:1] * len(value)
            made = [fitting(f"{name}[{i}]", *pair) for i, pair in enumerate(zip(value, each, strict=False))]
            if kind is tuple or any(new is not old for new, old in zip(made, value, strict=False)):
                found = tuple(made)
    elif kind in (Mapping, dict):
        found, fits = value, isinstance(value, Mapping)
        if fits and parts:
            for key, one in value.items():
                fitting(f"a key of {name}", key, parts[0])
                fitting(f"{name}[{key!r}]", one, parts[1])
    elif kind is Callable:
        found, fits = value, callable(value)
    else:
        found, fits = value, kind is Any or not isinstance(kind, type) or isinstance(value, kind)
    if not fits:
        raise _misfit(name, value, hint)
    return found


def check_whole_text(name: str, text: str) -> None:
    """Refuse text that UTF-8 can't hold, and so no tokenizer: half a surrogate pair, a byte that was none.

    Raises:
        UsageError: says which character.
    """
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{name} holds {text[error.start]!r} at character {error.start + 1}, which is half of a "
            "character, or a byte that is not UTF-8; give whole characters"
        ) from error


def plain_number(value: Any) -> Any:
    """A number, or true or false, of numpy or its like as Python's own; everything else as it is."""
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        try:
            return float(value)
        except OverflowError:  # such as a fraction's
            return value
    return bool(value) if type(value).__name__ in ("bool", "bool_") else value


def _as_float(name: str, value: Any) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise UsageError(f"{name} is {_shown(value)}; expected a number that a float can hold") from error


def _misfit(name: str, value: Any, hint: Any) -> UsageError:
    return UsageError(f"{name} is {_shown(value)}; expected {_words(hint)}")


def _shown(value: Any) -> str:
    """`value` for a message: itself where it is short."""
    if isinstance(value, int) and abs(value) >= 10**80:  # Python refuses to write those of 4,300 digits
        return "a number of more than 80 digits"
    shown = repr(value)
    return shown if len(shown) <= 80 else f"of type {type(value).__name__}"


def _is_literal(hint: Any) -> bool:
    return typing.get_origin(hint) is Literal


_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    types.NoneType: "None",
}


def _words(hint: Any) -> str:
    """What `hint` stands for, for a message."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        flat = [
            one for part in parts for one in (typing.get_args(part) if _is_literal(part) else [_words(part)])
        ]
        return _any_of(list(dict.fromkeys(flat)))
    if _is_literal(hint):
        return _any_of(parts)
    if origin is tuple and parts and parts[-1] is not ...:
        return f"a tuple of {' and '.join(map(_words, parts))}"
    if origin in (Sequence, Iterable, Collection, list, tuple):
        return f"several of: {_words(parts[0])}" if parts else "several"
    if origin in (Mapping, dict) or hint in (Mapping, dict):
        return f"a mapping to {_words(parts[1])}" if parts else "a mapping"
    if origin is Callable or hint is Callable:
        return "a function"
    return _WORDS.get(hint) or getattr(hint, "__name__", None) or str(hint).replace("typing.", "")


def is_text_mapping(value: object) -> bool:
    """Whether `value` is a mapping of text to text."""
    return isinstance(value, Mapping) and all(
        isinstance(k, str) and isinstance(v, str) for k, v in value.items()
    )


# -- settings ------------------------------------------------------------------------------------

SMALLEST_SEED, LARGEST_SEED = -(2**63), 2**64 - 1
"""Seeds that torch's generators take (`torch.Generator.manual_seed`)."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting: a field of a settings class, and all that is made from it.

    Attributes:
        help: one sentence for `--help` and the reference page; the default is put behind it.
        name: what users write; `_` becomes `-` in the option. The field's name, unless the field belongs to a
            settings class within another.
        path: the attributes that lead from a settings object to the value.
        type: as annotated; `None` in it means that the setting may be left open.
        default: the value, or ... where the setting must be given.
        default_text: the default in words, where the value does not say it.
        ge, gt, le, lt: bounds of a number, or of each number of a mapping.
        choices: the values that are taken; those of the type, if it is a `Literal`.
        metavar: what stands for the value in `--help`.
        section: of the help and of the reference page.
        aliases: names that the setting had before; each is taken with a `ForewordDeprecation`.
        short: a second spelling of the option, such as `-o`.
        variable: the variable of the environment that an option without a value is read from.
        parse: the value from text, where the type does not say how.
    """

    help: str
    name: str = ""
    path: tuple[str, ...] = ()
    type: Any = None
    default: Any = ...
    default_text: str | None = None
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    choices: tuple[Any, ...] = ()
    metavar: str | None = None
    section: str | None = None
    aliases: tuple[str, ...] = ()
    short: str | None = None
    variable: str | None = None
    parse: Callable[[str], Any] | None = None

    @property
    def option(self) -> str:
        """Its option on a command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def alternatives(self) -> tuple[Any, ...]:
        """The types of its values, None left out."""
        union = typing.get_origin(self.type) in (typing.Union, types.UnionType)
        parts = typing.get_args(self.type) if union else (self.type,)
        return tuple(part for part in parts if part is not type(None))

    @property
    def optional(self) -> bool:
        """Whether None is a value of it."""
        return self.type is None or type(None) in typing.get_args(self.type)

    @property
    def shown_default(self) -> str | None:
        """The default in words, as the help and the reference page say it; None without one."""
        if self.default_text is not None or self.default is ... or self.default is None:
            return self.default_text
        return str(self.default).lower() if isinstance(self.default, bool) else str(self.default)

    def check(self, value: Any) -> None:
        """Compare a value with type, range and choices.

        Raises:
            UsageError: names the setting, what was found and what was expected.
        """
        if value is None and (self.optional or self.default is None):
            return
        takes_mapping = any(typing.get_origin(kind) is Mapping for kind in self.alternatives)
        if isinstance(value, Mapping) and takes_mapping:
            for key, each in value.items():
                self._check_one(f"{self.name} of {key}", each)
        else:
            self._check_one(self.name, value)

    def _check_one(self, name: str, value: Any) -> None:
        kinds = self.alternatives
        if self.choices:
            if value not in self.choices:
                raise UsageError(f"{name} is {value!r}; expected {_any_of(self.choices)}")
            return
        for kind, number, words in (
            (int, numbers.Integral, "a whole number"),
            (float, numbers.Real, "a number"),
        ):
            if kind in kinds and (not isinstance(value, number) or isinstance(value, bool)):
                raise UsageError(f"{name} is {value!r}; expected {words}")
        if float in kinds:
            _as_float(name, value)
        if (bool in kinds or kinds == (str,)) and not isinstance(value, kinds):
            raise UsageError(f"{name} is {value!r}; expected {'text' if str in kinds else 'true or false'}")
        if any(dataclasses.is_dataclass(kind) for kind in kinds):
            fitting(name, value, self.type)
        # Written so that NaN, which compares false with everything, is out of every range.
        inside = (
            (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )
        if not inside:
            raise UsageError(f"{name} is {_shown(value)}; expected {self.range}")

    @property
    def range(self) -> str | None:
        """Its bounds in words; None without any."""
        whole = int in self.alternatives
        if self.ge is not None and self.le is not None:
            # Of many digits, "g" would say others.
            return " to ".join(f"{end:,}" if abs(end) > 2**53 else f"{end:g}" for end in (self.ge, self.le))
        if (whole and self.ge == 1) or self.gt == 0:
            lower = "a positive number"
        elif self.ge is not None:
            lower = "zero or more" if self.ge == 0 else f"{self.ge:g} or more"
        else:
            lower = "" if self.gt is None else f"more than {self.gt:g}"
        upper = f"{self.le:g} or less" if self.le is not None else ""
        upper = f"less than {self.lt:g}" if self.lt is not None else upper
        return (f"{lower}, {upper}" if lower and upper else lower or upper) or None

    def from_text(self, text: str) -> Any:
        """The value that `text` stands for: an option's, a variable's of the environment.

        Raises:
            UsageError: no value of this setting; says what was expected.
        """
        if self.parse is not None:
            return self.parse(text)
        if self.optional and text == "none":
            return None
        for kind in self.alternatives:
            if kind is bool:
                known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
                if text.lower() in known:
                    return known[text.lower()]
            elif kind in (int, float):
                try:
                    return kind(text)
                except ValueError:
                    pass
        self.check(text)  # refuses text where none is taken
        return text


def setting(
    default: Any = dataclasses.MISSING, *, default_factory: Any = dataclasses.MISSING, help: str, **more: Any
) -> Any:
    """A field of a settings class; the keywords are the attributes of `Setting`."""
    metadata = {Setting: Setting(help, **more)}
    return dataclasses.field(default=default, default_factory=default_factory, metadata=metadata)  # type: ignore[call-overload]


@functools.cache
def settings_of(kind: Any) -> tuple[Setting, ...]:
    """The settings that a class declares, in its order, with the names, types and defaults of its fields."""
    hints = typing.get_type_hints(kind)
    settings = []
    for field in dataclasses.fields(kind):
        described: Setting | None = field.metadata.get(Setting)
        if described is None:
            continue
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        one = dataclasses.replace(
            described,
            name=described.name or field.name,
            path=(field.name,),
            type=hints[field.name],
            default=... if default is dataclasses.MISSING else default,
        )
        if not one.choices and one.alternatives and typing.get_origin(one.alternatives[0]) is Literal:
            one = dataclasses.replace(one, choices=typing.get_args(one.alternatives[0]))
        settings.append(one)
    return tuple(settings)


@functools.cache
def flat_settings(kind: Any) -> tuple[Setting, ...]:
    """As `settings_of`, with the settings of a class within the class in place of the field that holds it."""
    flat: list[Setting] = []
    for each in settings_of(kind):
        within = _settings_class(each)
        below = () if within is None else settings_of(within)
        flat += [
            dataclasses.replace(part, path=(*each.path, *part.path), section=part.section or each.section)
            for part in below
        ] or [each]
    return tuple(flat)


def from_mapping(kind: Any, given: Mapping[str, Any], what: str = "settings") -> Any:
    """An object of a settings class from plain data, such as a table of a file; None stands for the default.

    Text is read where the setting says how. The settings of a class within the class may stand beside the
    others, in a mapping of their own, or, the first of them, as the bare value.

    Raises:
        UsageError: an unknown setting, or one out of range; `what` says of what kind it would be.
    """
    named = {name: value for name, value in current_names(kind, given).items() if value is not None}
    top = {each.name: each for each in settings_of(kind)}
    inner = {each.name: each for each in flat_settings(kind) if len(each.path) > 1}
    if unknown := set(named) - set(top) - set(inner):
        raise UsageError(f"unknown {what} {sorted(unknown)}; known are {sorted(top)}")
    made: dict[str, Any] = {}
    for name, value in named.items():
        each = inner.get(name) or top[name]
        if isinstance(value, str) and each.parse is not None:
            value = each.parse(value)
        value = tuple(value) if isinstance(value, list) else value  # files and JSON have no tuples
        whole = name not in inner or dataclasses.is_dataclass(value)
        if each.path[0] in made and (whole or not isinstance(made[each.path[0]], dict)):
            raise UsageError(f"{name} is given beside an object of settings that holds it; give one of them")
        if whole:
            made[each.path[0]] = value
        else:
            below = value if isinstance(value, Mapping) else {each.path[1]: value}
            made.setdefault(each.path[0], {}).update(below)
    for field, value in made.items():
        (one,) = (each for each in top.values() if each.path[0] == field)
        if isinstance(value, dict) and (within := _settings_class(one)) is not None:
            known = {each.path[-1] for each in settings_of(within)}
            if unknown := set(value) - known:
                raise UsageError(
                    f"{one.name} has unknown {what} {sorted(map(repr, unknown))}; known are {sorted(known)}"
                )
            made[field] = within(**value)
    return kind(**made)


def check_settings(instance: Any) -> None:
    """Compare every setting of an object with its type, range and choices.

    Raises:
        UsageError: names the setting, what was found and what was expected.
    """
    for each in settings_of(type(instance)):  # type: ignore[arg-type]
        value = plain = getattr(instance, each.path[0])
        if not isinstance(value, Mapping):
            plain = plain_number(value)
        elif any(plain_number(one) is not one for one in value.values()):
            plain = {key: plain_number(one) for key, one in value.items()}
        if plain is not value:
            object.__setattr__(instance, each.path[0], plain)
        each.check(plain)


def current_names(kind: Any, given: Mapping[str, Any], *, warn: bool = True) -> dict[str, Any]:
    """`given` with the names that settings have now, and without settings that are gone.

    What is gone stands in the class's `GONE`: the name, and what is to be known. The warning is left out
    where nobody can do anything about it: names in a file that an earlier release wrote.

    Raises:
        UsageError: a setting under its old and its new name.
    """
    renamed = {alias: each.name for each in settings_of(kind) for alias in each.aliases}
    gone: Mapping[str, str] = getattr(kind, "GONE", {})
    current: dict[str, Any] = {}
    for name, value in given.items():
        if name in gone:
            if warn and value not in (None, False):
                deprecated(f"{name} does nothing any more and will be refused: {gone[name]}")
            continue
        new = renamed.get(name, name)
        if new != name and value is not None:
            if given.get(new) is not None:
                raise UsageError(f"{name} is the old name of {new}, and both are given; give {new}")
            if warn:
                deprecated(f"{name} is now called {new}; the old name will be refused")
        if current.get(new) is None:
            current[new] = value
    return current


def deprecated(message: str) -> None:
    """Warn of a name that goes; `message` says what to write instead."""
    warn(message, ForewordDeprecation)


def warn(message: str, category: type[ForewordWarning]) -> None:
    """Warn, at the line outside of the package that led here."""
    warnings.warn(message, category, stacklevel=_outside())


def takes_old_names(kind: Class) -> Class:
    """Let a settings class be made with, and read by, the names that its settings had before."""
    made: Any = kind.__init__  # type: ignore[misc]

    @functools.wraps(made)
    def initialize(self: Any, *values: Any, **given: Any) -> None:
        made(self, *values, **current_names(kind, given))

    def attribute(self: Any, name: str) -> Any:
        for each in settings_of(kind):
            if name in each.aliases:
                deprecated(f"{name} is now called {each.name}; the old name will be refused")
                return getattr(self, each.name)
        raise AttributeError(f"{kind.__name__!r} object has no attribute {name!r}")

    setattr(kind, "__init__", initialize)  # noqa: B010 (mypy refuses the assignment)
    setattr(kind, "__getattr__", attribute)  # noqa: B010
    return kind


def _settings_class(described: Setting) -> Any:
    """The class of settings that a field holds, if it holds one."""
    kind = described.alternatives[0] if described.alternatives else None
    return kind if isinstance(kind, type) and dataclasses.is_dataclass(kind) and settings_of(kind) else None


def _any_of(choices: Sequence[Any]) -> str:
    *most, last = map(str, choices)
    return f"{', '.join(most)} or {last}" if most else last


def _outside() -> int:
    """Frames between a warning and the first one outside of the package: the line that is to be changed."""
    frame, depth = sys._getframe(1), 0
    while frame is not None:
        depth += 1
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package not in (__name__.partition(".")[0], "dataclasses"):
            break
        frame = frame.f_back  # type: ignore[assignment]
    return depth
