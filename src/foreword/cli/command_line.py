"""The command line of a report: what to type to make it again."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from typing import Any

import typer


def command_line(context: typer.Context, without: Collection[str] = ()) -> str:
    """The command as typed, options at their defaults left out.

    Args:
        without: names of parameters to leave out, too: those on which no figure depends.
    """
    words = context.command_path.split()
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if parameter.name not in without and value not in (None, parameter.default):
            words += _words(parameter, value)
    return shlex.join(words)


def _words(parameter: Any, value: Any) -> list[str]:
    if value is True:
        return parameter.opts[:1]  # type: ignore[no-any-return]
    if value is False:  # --no-…, where there is such a name; else it is said by saying nothing
        return parameter.secondary_opts[:1]  # type: ignore[no-any-return]
    name = [] if parameter.param_type_name == "argument" else parameter.opts[:1]
    values = value if isinstance(value, list | tuple) else [value]
    return [word for each in values for word in (*name, str(each))]
