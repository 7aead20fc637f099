"""What the readers of all formats share: lines that know their place, and the names of the user's fields.

Every fault can name its file and line. One line is read at a time: memory does not grow with the file, and a
pipe is read as well as a file because nothing is read twice.
"""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import io
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from foreword.errors import BadExamples, CannotRead, UnknownField, UsageError
from foreword.examples.example import Example
from foreword.template import Source, Target

# No example is that long; a file without line ends would otherwise be taken into memory as a whole.
LONGEST_LINE_BYTES = 64 * 1024 * 1024

PARQUET = b"PAR1"
"""What a Parquet file begins with."""

# What people hand over by mistake, by its first bytes.
_NOT_TEXT = (
    (b"\x1f\x8b", "is compressed with gzip; unpack it first (gunzip)"),
    (b"PK\x03\x04", "is a zip archive or a spreadsheet; unpack it, or export the table as CSV in UTF-8"),
    (PARQUET, "is a Parquet file, where text was expected; export it as JSON lines"),
    (codecs.BOM_UTF32_LE, "is encoded in UTF-32; save it as UTF-8"),
    (codecs.BOM_UTF32_BE, "is encoded in UTF-32; save it as UTF-8"),
    (codecs.BOM_UTF16_LE, "is encoded in UTF-16; save it as UTF-8"),
    (codecs.BOM_UTF16_BE, "is encoded in UTF-16; save it as UTF-8"),
)


class Line(NamedTuple):
    """A line without its line end, and where it stands (numbers from 1).

    Attributes:
        end: of the line, which belongs to a text that spans several.
        unit: what is counted: lines, or the rows of a table that has none.
    """

    file: str
    number: int
    text: str
    end: str = "\n"
    unit: str = "line"

    @property
    def place(self) -> str:
        """File and line, for messages."""
        return f"{self.file}, {self.unit} {self.number}"

    @property
    def blank(self) -> bool:
        """Nothing but white space: readers skip such lines."""
        return not self.text or self.text.isspace()

    def fault(self, message: str, *, advice: str | None = None, remedy: str | None = None) -> BadExamples:
        """The error to raise for a fault in this line; `advice` and `remedy` as of `ForewordError`."""
        return BadExamples(f"{self.place}: {message}", advice=advice, remedy=remedy)

    def example(self, source: Source, target: Target, owner: str | None) -> Example:
        """The example that stands in this line.

        Raises:
            BadExamples: what `Example` itself refuses, with file and line added.
        """
        try:
            return Example(source, target, owner, self.place)
        except BadExamples as error:
            raise self.fault(str(error)) from error


def read_lines(path: str | os.PathLike[str]) -> Iterator[Line]:
    """Every line of a UTF-8 file, with or without a byte-order mark, ended by LF or CRLF.

    Raises:
        CannotRead: `path` is absent, a folder, or the system refuses to open or read it.
        BadExamples: a line is not UTF-8 or longer than 64 MB, or the file is no text at all.
    """
    with opened(path) as stream:
        yield from lines_of(stream, os.fspath(path))


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[io.BufferedReader]:
    """The file at `path`, open for reading.

    Raises:
        CannotRead: `path` is absent, a folder, or the system refuses to open or read it.
    """
    file = os.fspath(path)
    try:
        with open(file, "rb") as stream:
            yield stream
    except FileNotFoundError as error:
        raise CannotRead(f"{file} does not exist; check the path") from error
    except IsADirectoryError as error:
        raise CannotRead(f"{file} is a folder; give the name of one file of examples") from error
    except OSError as error:
        raise CannotRead(f"{file} can't be read: {error.strerror or error}") from error


def lines_of(stream: BinaryIO, name: str) -> Iterator[Line]:
    """As `read_lines`, of what is open already, such as standard input; `name` is for messages.

    Raises:
        BadExamples: as `read_lines`.
    """
    number, begun = 0, False
    while content := stream.readline(LONGEST_LINE_BYTES + 1):
        number += 1
        if number == 1:
            for start, what in _NOT_TEXT:
                if content.startswith(start):
                    raise BadExamples(f"{name} {what}")
            content = content.removeprefix(codecs.BOM_UTF8)
        if not begun and content.count(0) * 4 >= len(content) > 0:
            raise BadExamples(
                f"{name}, line {number}: byte 0x00 at position {content.index(0) + 1}, as in UTF-16 without "
                "a byte-order mark; save the file as UTF-8, without zero bytes"
            )
        begun = begun or not content.isspace()
        end = "\r\n" if content.endswith(b"\r\n") else "\n"
        yield Line(name, number, _decode(name, number, content), end)


def excerpt(text: str, length: int = 60) -> str:
    """The beginning of `text`, quoted, for a message."""
    return repr(text if len(text) <= length else text[:length] + "…")


def _decode(file: str, number: int, content: bytes) -> str:
    if len(content) > LONGEST_LINE_BYTES:
        raise BadExamples(
            f"{file}, line {number}: longer than {LONGEST_LINE_BYTES // 1024**2} MB; "
            "expected one example a line"
        )
    try:
        # Only LF and CRLF end a line here: U+2028 and its kind are text, JSON allows them in strings.
        return content.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise BadExamples(
            f"{file}, line {number}: byte {content[error.start]:#04x} at position {error.start + 1} is not "
            "UTF-8; save the file as UTF-8 (for one from Windows: iconv -f WINDOWS-1252 -t UTF-8)"
        ) from error


@dataclass(frozen=True)
class Fields:
    """Which field or column of the user's data holds which part of an example.

    Attributes:
        owner_named: the user named the owner's field, so that a line without it, or with null in it, is a
            fault.
    """

    source: str = "source"
    target: str = "target"
    owner: str = "owner"
    messages: str = "messages"
    conversations: str = "conversations"
    tools: str = "tools"
    prompt: str = "prompt"
    completion: str = "completion"
    instruction: str = "instruction"
    input: str = "input"
    output: str = "output"
    system: str = "system"
    history: str = "history"
    chosen: str = "chosen"
    rejected: str = "rejected"
    owner_named: bool = False


PARTS = tuple(field.name for field in dataclasses.fields(Fields) if field.name != "owner_named")


def make_fields(mapping: Mapping[str, str] | None) -> Fields:
    """`Fields` from what the user passed as `fields=`.

    Raises:
        UsageError: a key that is no part of an example, or a name that is not text.
    """
    for part, name in (mapping or {}).items():
        if part not in PARTS:
            raise UsageError(f"fields has the key {part!r}; expected {', '.join(PARTS)}")
        if not isinstance(name, str) or not name:
            raise UsageError(f"fields[{part!r}] is {name!r}; expected the name of a field")
    return Fields(**(mapping or {}), owner_named="owner" in (mapping or {}))


def parse_fields(text: str, name: str) -> dict[str, str]:
    """`source=question,target=answer` as the mapping that `make_fields` takes.

    Args:
        name: what the user calls it, for messages.

    Raises:
        UsageError: no such list, or a part that no example has.
    """
    found: dict[str, str] = {}
    for pair in text.split(","):
        part, equals, field = (each.strip() for each in pair.partition("="))
        if not (part and equals and field) or part in found:
            raise UsageError(
                f"{name} is {excerpt(text)}; expected each part once with the name of your field, as in "
                "source=question,target=answer"
            )
        if part not in PARTS:
            raise UsageError(f"{name} has the part {excerpt(part)}; expected {', '.join(PARTS)}")
        found[part] = field
    return found


def missing_field(line: Line, part: str, name: str, present: Collection[str]) -> UnknownField:
    """The error for a line in which the field `name`, that should hold `part`, is absent."""
    listed = ", ".join(map(repr, list(present)[:12])) or "none"
    return UnknownField(f"{line.place}: no field {name!r}; found {listed}", part)
