"""Prompts: from the command line, from a file with one a line, or from standard input."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foreword.errors import BadExamples, UsageError

if TYPE_CHECKING:
    from foreword.examples.records import Line
    from foreword.template import Source

STANDARD_INPUT = "-"


def read_prompts(given: Sequence[str], file: Path | None) -> list[Source]:
    """The prompts of a command.

    Raises:
        UsageError: none at all, or both ways at once.
        CannotRead, BadExamples: a file that is absent, empty or has a fault; says where.
    """
    if given and file is not None:
        raise UsageError("prompts are given both as words and by --input; choose one")
    if file is None:
        if not given:
            raise UsageError("no prompt: give one in quotes, --input FILE, or --input - for standard input")
        return list(given)
    prompts = [_prompt(line) for line in _lines(file) if not line.blank]
    if not prompts:
        raise BadExamples(f"{_name(file)} is empty; expected a prompt a line")
    return prompts


def _lines(file: Path) -> Iterator[Line]:
    from foreword.examples.records import Line, read_lines

    if str(file) != STANDARD_INPUT:
        yield from read_lines(file)
        return
    for number, text in enumerate(sys.stdin, 1):
        yield Line(_name(file), number, text.rstrip("\r\n"))


def _name(file: Path) -> str:
    return "standard input" if str(file) == STANDARD_INPUT else str(file)


def _prompt(line: Line) -> Source:
    from foreword.examples.jsonl import parse_object

    if not line.text.lstrip().startswith('{"'):
        return line.text
    record = parse_object(line)
    source = record.get("source", record.get("messages"))
    if isinstance(source, str):
        return source
    if isinstance(source, list) and source and all(isinstance(text, str) for text in source):
        return " ".join(source)
    if isinstance(source, list) and source and all(_is_message(item) for item in source):
        return tuple({"role": item["role"], "content": item["content"]} for item in source)
    raise line.fault(
        "expected an object with source (text) or messages (a list of role and content), "
        f"found {', '.join(map(repr, record)) or 'no field'}"
    )


def _is_message(item: Any) -> bool:
    return isinstance(item, dict) and all(isinstance(item.get(name), str) for name in ("role", "content"))
