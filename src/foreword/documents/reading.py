"""Documents read from files (text, Markdown, HTML, PDF, DOCX) as text with Markdown's headings and lists.

formats.py has how each format is read; here is which one a file has, and which files a folder has.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath

from foreword.documents.conversations import text_digest
from foreword.documents.formats import check_length, docx_text, html_text, markdown_text, pdf_text, plain_text
from foreword.errors import BadDocument, CannotRead

MOST_BYTES = 64 << 20
"""Of a file."""
LONGEST_GAP = 64
"""Spaces between two words that are kept: more say nothing, and patterns that look for them get slow."""


@dataclass(frozen=True)
class Document:
    """A document as text.

    Attributes:
        name: of its file, without folders.
        text: Markdown as far as it is known: headings (`#`), items of lists (`- `) and rows of tables (`|`).
        kind: "text", "markdown", "html", "pdf" or "docx".
    """

    name: str
    text: str
    kind: str

    @property
    def digest(self) -> str:
        """SHA-256 of the text, in hexadecimal."""
        return text_digest(self.text)


def read_document(path: str | os.PathLike[str]) -> Document:
    """The document in a file.

    Raises:
        CannotRead: the file is absent, no file, or can't be opened.
        BadDocument: empty, damaged, encrypted, too large, without text, or of a kind that is not read; says
            which, and what to do.
        UsageError: a library that reads this kind is not installed.
    """
    file = os.fspath(path)

    def opener(name: str, flags: int) -> int:
        # Else opening a pipe that nobody writes to would wait for ever.
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    try:
        with open(file, "rb", opener=opener) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise CannotRead(f"{file} is no regular file; expected the file of one document")
            content = stream.read(MOST_BYTES + 1)
    except IsADirectoryError as error:
        raise CannotRead(f"{file} is a folder; expected the file of one document") from error
    except FileNotFoundError as error:
        raise CannotRead(f"{file} does not exist; check the path") from error
    except OSError as error:
        raise CannotRead(f"{file} can't be read: {error.strerror or error}") from error
    return document_from_bytes(content, file)


def read_folder(
    path: str | os.PathLike[str], *, on_passed_over: Callable[[str, str], None] | None = None
) -> list[Document]:
    """The documents in a folder, as `documents_in` lists them.

    Raises:
        CannotRead, BadDocument: as `documents_in`, and for one that can't be read.
        UsageError: as `read_document`.
    """
    return [read_document(file) for file in documents_in(path, on_passed_over=on_passed_over)]


def documents_in(
    path: str | os.PathLike[str], *, on_passed_over: Callable[[str, str], None] | None = None
) -> list[Path]:
    """The files in a folder that may hold documents, in the order of their names.

    Those in folders below it are not looked at.

    Args:
        on_passed_over: called with the name of everything that is not taken, and the reason.

    Raises:
        CannotRead: no folder, or one that can't be listed.
        BadDocument: no document in it.
    """
    folder = Path(path)
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise CannotRead(f"{folder} can't be listed: {error.strerror or error}") from error
    found = []
    for entry in entries:
        if (reason := _why_passed_over(entry)) is None:
            found.append(entry)
        elif on_passed_over is not None:
            on_passed_over(entry.name, reason)
    if not found:
        names = ", ".join(entry.name for entry in entries[:5]) or "nothing"
        raise BadDocument(f"{folder} has no document in it, found {names}; expected files of {SUFFIXES}")
    return found


def _why_passed_over(entry: Path) -> str | None:
    if entry.name.startswith("."):
        return "hidden"
    if entry.is_dir():
        return "a folder"
    if entry.is_symlink() and entry.resolve().parent != entry.parent.resolve():
        return "a link to somewhere else"
    if not entry.is_file():
        return "no regular file"
    return None if entry.suffix.lower() in _KINDS else f"not of {SUFFIXES}"


_SIGNATURES = {
    b"%PDF-": ("PDF", "give it a name that ends in .pdf"),
    b"PK\x03\x04": ("DOCX", "give it a name that ends in .docx, or unpack it if it is another archive"),
    b"\xd0\xcf\x11\xe0": ("an old Word document or an encrypted one", "save it as DOCX, without a password"),
    b"{\\rtf": ("RTF", "save it as DOCX"),
}
"""What files of another kind begin with, and what to do with them."""


def document_from_bytes(content: bytes, filename: str) -> Document:
    """The document that a file of this name holds, such as one that was uploaded.

    Raises:
        BadDocument, UsageError: as `read_document`.
    """
    kind, read = check_kind(content, filename)
    text = _tidy(read(content, filename))
    if not any(character.isalnum() for character in text):
        raise BadDocument(f"{filename} has no text in it; expected a document with text")
    check_length(len(text), filename)
    return Document(PurePath(filename).name, text, kind)


def check_kind(content: bytes, filename: str) -> tuple[str, Callable[[bytes, str], str]]:
    """The kind of a document and what reads it, by its name, size and first bytes; it is not read.

    Raises:
        BadDocument: empty, too large, or of a kind that is not read.
    """
    suffix = PurePath(filename).suffix.lower()
    if suffix not in _KINDS:
        raise BadDocument(f"{filename} has the ending {suffix!r}; expected one of {SUFFIXES}")
    if len(content) > MOST_BYTES:
        raise BadDocument(f"{filename} has more than {MOST_BYTES >> 20} MiB; split it into parts")
    if not content:
        raise BadDocument(f"{filename} is empty; expected a document with text")
    kind, read = _KINDS[suffix]
    for start, (what, advice) in _SIGNATURES.items():
        if content.startswith(start) and what.lower() != kind:
            raise BadDocument(f"{filename} is {what}; {advice}")
    return kind, read


_SAME = str.maketrans({"\xa0": " ", "\u202f": " ", "ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl"})
"""Letters that printing joins and spaces that keep words together, as they are typed."""


def _tidy(text: str) -> str:
    """Line feeds alone at the ends of lines, one empty line at most, no characters that are not seen."""
    text = text.translate(_SAME)
    text = re.sub(r"\r\n?|[\f\v\x85\u2028\u2029]", "\n", text)
    text = re.sub(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\xad\u200b\ufeff]", "", text)
    text = re.sub(r"[^\S\n\t]", " ", text)  # spaces of any width
    text = re.sub(rf"([ \t]{{{LONGEST_GAP}}})[ \t]+", r"\1", text)
    text = "\n".join(line.rstrip(" \t") for line in text.split("\n"))
    text = re.sub(r"^#{1,6}$", "", text, flags=re.MULTILINE)  # headings without a word
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n") + "\n"


_KINDS: dict[str, tuple[str, Callable[[bytes, str], str]]] = {
    ".txt": ("text", plain_text),
    ".text": ("text", plain_text),
    ".md": ("markdown", markdown_text),
    ".markdown": ("markdown", markdown_text),
    ".html": ("html", html_text),
    ".htm": ("html", html_text),
    ".xhtml": ("html", html_text),
    ".pdf": ("pdf", pdf_text),
    ".docx": ("docx", docx_text),
}
SUFFIXES = ", ".join(_KINDS)
