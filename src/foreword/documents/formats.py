"""The text in a file of each format: plain text, Markdown, HTML, DOCX and PDF.

What is read here may come from a stranger. Nothing is fetched, no entity of XML is followed, and the bounds
below hold for what a file unpacks to, not for its size alone. Every function takes the file's bytes and its
name, which messages call it by, and raises `BadDocument` for what it can't read.
"""

from __future__ import annotations

import codecs
import importlib
import io
import logging
import re
import time
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

from foreword.documents.pdf_lines import Line, lines_of, text_of_pages
from foreword.errors import BadDocument, UsageError

MOST_UNPACKED_BYTES = 32 << 20
"""Of all XML in a DOCX file, and of one stream of a PDF."""
MOST_PARTS = 4096
"""Files in a DOCX file."""
MOST_PAGES = 5000
MOST_CHARACTERS = 10_000_000
"""Of a document's text: about 2,000,000 tokens."""
MOST_SECONDS = 120.0
"""For the pages of a PDF; a thousand of them take about 15."""

INSTALL = "pip install 'foreword[documents]'"


def check_length(characters: int, filename: str) -> None:
    """Refuse a document whose text is too long."""
    if characters > MOST_CHARACTERS:
        raise BadDocument(f"{filename} has more than {MOST_CHARACTERS:,} characters; split it into parts")


# -- text and Markdown ---------------------------------------------------------------------------

_ADVICE = "save it as UTF-8 (for one from Windows: iconv -f WINDOWS-1252 -t UTF-8)"
_MARKS = {  # UTF-32's begins with UTF-16's
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}


def plain_text(content: bytes, filename: str, encoding: str = "utf-8") -> str:
    """As it is, in UTF-8 or in the encoding that a byte-order mark says."""
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), encoding)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise BadDocument(
            f"{filename}: byte {content[error.start]:#04x} at position {error.start + 1} is not {encoding}; "
            f"expected text in UTF-8: {_ADVICE}"
        ) from error
    if (place := text.find("\0")) >= 0:
        raise BadDocument(
            f"{filename} is binary or UTF-16 without a byte-order mark: character {place + 1} is 0; "
            "expected text in UTF-8"
        )
    return text


def markdown_text(content: bytes, filename: str) -> str:
    """As it is, but for headings that are underlined, which become those with `#`."""
    text = re.sub(r"\r\n?", "\n", plain_text(content, filename))
    underlined = re.compile(r"(^|\n\n)([^\s#|>*+-][^\n]{0,200})\n(={3,}|-{3,})[ \t]*(?=\n|$)")
    return underlined.sub(lambda m: f"{m[1]}{'#' if m[3][0] == '=' else '##'} {m[2].strip()}\n", text)


# -- HTML ------------------------------------------------------------------------------------------

_UNSEEN = frozenset(
    re.findall(
        r"\w+",
        "head script style template noscript svg math iframe object canvas nav select",
    )
)
_FLAT = frozenset(["h1", "h2", "h3", "h4", "h5", "h6", "td", "th"])
_BREAKS = frozenset(
    re.findall(
        r"\w+",
        "address article aside blockquote body br caption dd details div dl dt fieldset figcaption "
        "figure footer form header hr li main ol p pre section summary table tr ul",
    )
)
_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.IGNORECASE)
# Others can be slow (punycode), hide what a file says (UTF-7), or contradict that the declaration could be
# found byte by byte (UTF-16), which the HTML standard reads as UTF-8.
_ENCODINGS = re.compile(r"utf-?8|ascii|iso-?8859|latin|cp125|windows-125|koi8|gbk?|gb\d+|big5|shift_jis|euc")


def html_text(content: bytes, filename: str) -> str:
    """What of a page is seen without its menus and frames; no script of it runs."""
    etree = _import("lxml.etree")
    encoding = "utf-8"
    if (found := _CHARSET.search(content[:4096])) is not None:
        encoding = _encoding(found[1].decode("ascii"))
    text = plain_text(content, filename, encoding)
    target = _HtmlText(filename)
    # It has events and builds no tree; what it is fed is UTF-8 whatever the page said of itself.
    parser = etree.HTMLParser(target=target, encoding="utf-8", no_network=True)
    encoded = text.encode()
    try:
        for start in range(0, len(encoded), 1 << 16):
            parser.feed(encoded[start : start + (1 << 16)])
        parser.close()
    except etree.LxmlError as error:
        raise BadDocument(f"{filename} can't be read as HTML: {_brief(error)}; save it anew") from error
    if any("depth" in str(entry.message).lower() for entry in parser.error_log):
        raise BadDocument(f"{filename} has elements within elements deeper than HTML is read; simplify it")
    return "".join(target.parts)


def _encoding(named: str) -> str:
    try:
        name = codecs.lookup(named).name
    except (LookupError, ValueError):
        return "utf-8"
    if not _ENCODINGS.match(name):
        return "utf-8"
    # What browsers read these as; pages say the one and use the other's quotation marks.
    return "cp1252" if name in ("iso8859-1", "ascii") else name


class _HtmlText:
    """What of a page is seen, collected from the parser's events."""

    def __init__(self, filename: str) -> None:
        self.parts: list[str] = []
        self._filename = filename
        self._characters = 0
        self._unseen = 0
        self._verbatim = 0
        self._flat = 0  # headings and cells, whose text is one line
        self._lists: list[int | None] = []  # the number of the next item; None of a list without numbers

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if self._unseen or tag in _UNSEEN:
            self._unseen += 1
        elif self._flat:
            self._flat += tag in _FLAT
            self._add("" if self._behind_space() or tag not in _BREAKS else " ")
        elif tag in _FLAT:
            self._flat = 1
            self._add(" " if tag in ("td", "th") else f"\n\n{'#' * int(tag[1])} ")
        elif tag == "li":
            begin = "" if self.parts and self.parts[-1].endswith("\n") else "\n"
            self._add(f"{begin}{'  ' * (len(self._lists) - 1)}{self._item()} ")
        elif tag in _BREAKS:
            inside = "" if self._behind_space() else "\n"
            usual = inside if self._lists else "\n\n"
            self._add({"br": "\n", "tr": "\n|", "pre": "\n\n    "}.get(tag, usual))
            self._verbatim += tag == "pre"
            if tag in ("ol", "ul"):
                self._lists.append(1 if tag == "ol" else None)

    def end(self, tag: str) -> None:
        if self._unseen:
            self._unseen -= 1
        elif self._flat:
            self._flat -= tag in _FLAT
            between = "" if self._behind_space() else " "
            if self._flat:
                self._add(between if tag in _BREAKS else "")
            else:
                self._add(f"{between}|" if tag in ("td", "th") else "\n\n")
        elif tag in _BREAKS:
            if tag in ("ol", "ul") and self._lists:
                self._lists.pop()
            self._verbatim -= tag == "pre" and self._verbatim > 0
            if not self._lists and tag not in ("br", "tr", "li"):
                self._add("\n\n")

    def data(self, text: str) -> None:
        if self._unseen:
            return
        if self._verbatim and not self._flat:
            self._add(text.replace("\n", "\n    "))  # Markdown's code; no line of it is a heading
            return
        text = re.sub(r"\s+", " ", text)
        self._add(text.lstrip() if self._behind_space() else text)

    def close(self) -> None:
        pass

    def _add(self, text: str) -> None:
        if text:
            self.parts.append(text)
            self._characters += len(text)
            check_length(self._characters, self._filename)

    def _behind_space(self) -> bool:
        return not self.parts or self.parts[-1][-1].isspace()

    def _item(self) -> str:
        if not self._lists or self._lists[-1] is None:
            return "-"
        self._lists[-1] += 1
        return f"{self._lists[-1] - 1}."


# -- DOCX ------------------------------------------------------------------------------------------

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
# Deleted text, text that was moved away, what repeats a drawing for older programs, and settings.
_NOT_SHOWN = {f"{_W}del", f"{_W}moveFrom", _FALLBACK, f"{_W}pPr", f"{_W}rPr"}
_BETWEEN = {f"{_W}tab": "\t", f"{_W}br": "\n", f"{_W}cr": "\n", f"{_W}noBreakHyphen": "-", f"{_W}p": "\n"}


def docx_text(content: bytes, filename: str) -> str:
    """The body of a Word document. Headers, footers, notes, comments, and the numbers that Word itself gives
    to headings and items are no part of it."""
    docx = _import("docx")
    bounded = _bounded_parts(content, filename)
    try:
        document = docx.Document(bounded)
        levels = _heading_levels(document.styles.element)
        return "".join(_blocks(document.element.body, levels, filename))
    except (BadDocument, MemoryError):
        raise
    except Exception as error:  # python-docx raises whatever a part that is not as it should be leads to
        raise _damaged(filename, "DOCX", error) from error


def _bounded_parts(content: bytes, filename: str) -> io.BytesIO:
    """The same archive with its XML alone, unpacked: what an archive says of its sizes need not be true.

    Raises:
        BadDocument: no archive, encrypted, with more in it than the bounds allow, or XML with a DOCTYPE.
    """
    made, total = io.BytesIO(), 0
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(made, "w") as bounded:
            members = archive.infolist()
            if len(members) > MOST_PARTS:
                raise BadDocument(f"{filename} has {len(members):,} parts; expected {MOST_PARTS:,} at most")
            for member in members:
                xml = b""
                if member.filename.lower().endswith((".xml", ".rels")):
                    with archive.open(member) as stream:
                        while piece := stream.read(1 << 20):  # never more than that at once
                            xml += piece
                            if total + len(xml) > MOST_UNPACKED_BYTES:
                                raise BadDocument(
                                    f"{filename} unpacks to more than {MOST_UNPACKED_BYTES >> 20} MiB; "
                                    "split it into parts"
                                )
                    total += len(xml)
                    if b"<!DOCTYPE" in xml or b"<!DOCTYPE" in xml[:65536].replace(b"\0", b""):
                        raise BadDocument(f"{filename}: {member.filename} has a DOCTYPE, which DOCX forbids")
                bounded.writestr(zipfile.ZipInfo(member.filename), xml)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, OSError, zlib.error) as error:
        raise _damaged(filename, "DOCX", error) from error
    except RuntimeError as error:  # what zipfile raises where a password is needed
        raise BadDocument(f"{filename} is encrypted; save it without a password") from error
    made.seek(0)
    return made


def _heading_levels(styles: Any) -> dict[str, int]:
    """Level of the heading that each style is, by the style's id; those made of others take theirs."""
    levels: dict[str, int] = {}
    based: dict[str, str] = {}
    for style in styles.iterchildren(f"{_W}style"):
        identity = style.get(f"{_W}styleId", "")
        name = str(_value(style, "name")).lower()
        outline = _value(style, f"pPr/{_W}outlineLvl")
        if found := re.fullmatch(r"heading (\d)", name):
            levels[identity] = int(found[1])
        elif name == "title":
            levels[identity] = 1
        elif outline.isdigit() and int(outline) < 9:
            levels[identity] = int(outline) + 1
        based[identity] = _value(style, "basedOn")
    known: dict[str, int | None] = {**levels}
    for identity in based:
        path: dict[str, None] = {}  # in order, and no style twice
        while identity in based and identity not in known and identity not in path:
            path[identity] = None
            identity = based[identity]
        known |= dict.fromkeys(path, known.get(identity))
    return {identity: level for identity, level in known.items() if level is not None}


def _value(element: Any, path: str) -> str:
    found = element.find(_W + path)
    return "" if found is None else found.get(f"{_W}val") or ""


def _blocks(element: Any, levels: dict[str, int], filename: str) -> Iterator[str]:
    """Paragraphs and rows of tables; what is around them (content controls, insertions) is looked into."""
    characters = 0
    for child in element.iterchildren():
        if child.tag == f"{_W}p":
            block = _paragraph(child, levels)
        elif child.tag == f"{_W}tr":
            cells = [_shown(cell) for cell in child.iterchildren(f"{_W}tc", f"{_W}sdt")]
            block = f"| {' | '.join(' '.join(cell.split()) for cell in cells)} |\n"
        elif child.tag in _NOT_SHOWN:
            continue
        else:
            around = "\n" if child.tag == f"{_W}tbl" else ""
            block = around + "".join(_blocks(child, levels, filename)) + around
        characters += len(block)
        check_length(characters, filename)
        yield block


def _paragraph(element: Any, levels: dict[str, int]) -> str:
    text = _shown(element).strip()
    style = _value(element, f"pPr/{_W}pStyle")
    outline = _value(element, f"pPr/{_W}outlineLvl")
    level = int(outline) + 1 if outline.isdigit() and int(outline) < 9 else levels.get(style)
    if level is not None and text:
        return f"\n{'#' * min(level, 6)} {' '.join(text.split())}\n\n"
    listed = element.find(f"{_W}pPr/{_W}numPr") is not None or style.lower().startswith("list")
    return f"- {text}\n" if listed and text else f"\n{text}\n\n"


def _shown(element: Any) -> str:
    """The text of an element, in its order."""
    parts: list[str] = []
    left = [element]
    while left:
        one = left.pop()
        if one.tag in _NOT_SHOWN or not isinstance(one.tag, str):
            continue
        parts.append(_BETWEEN.get(one.tag, ""))
        if one.tag == f"{_W}t":
            parts.append(one.text or "")
        left.extend(reversed(one))
    return "".join(parts)


# -- PDF -------------------------------------------------------------------------------------------

_PDF_FILTERS = ("array_based_stream", "lzw", "run_length", "zlib", "brotli")


def pdf_text(content: bytes, filename: str) -> str:
    """The text of all pages, put together to headings and paragraphs (pdf_lines.py)."""
    pypdf = _import("pypdf")
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # what is wrong with a file is told once, by us
    until = time.monotonic() + MOST_SECONDS
    bounds = {f"{name}_maximum_output_length": MOST_UNPACKED_BYTES for name in _PDF_FILTERS}
    try:
        with pypdf.apply_configuration(**bounds):
            reader = pypdf.PdfReader(io.BytesIO(content))
            # The empty password opens those that are only to be protected against changes.
            if reader.is_encrypted and not reader.decrypt(""):
                raise BadDocument(f"{filename} is encrypted; save it without a password")
            count = len(reader.pages)
            if count > MOST_PAGES:
                raise BadDocument(f"{filename} has {count:,} pages; expected {MOST_PAGES:,} at most")
            pages: list[list[Line]] = []
            characters = 0
            for page in reader.pages:
                pages.append(_page_lines(page, filename, until))
                characters += sum(len(line.text) for line in pages[-1])
                check_length(characters, filename)
    except (BadDocument, MemoryError):
        raise
    except pypdf.errors.DependencyError as error:
        raise UsageError(f"{filename} is encrypted, and what reads it is not installed: {INSTALL}") from error
    except pypdf.errors.LimitReachedError as error:
        raise BadDocument(
            f"{filename} unpacks to more than is read: {_brief(error)}; split it, or save its text"
        ) from error
    except Exception as error:  # pypdf raises whatever an object that is not as it should be leads to
        raise _damaged(filename, "PDF", error) from error
    text = text_of_pages(pages)
    if not any(character.isalnum() for character in text):
        raise BadDocument(
            f"{filename} has {count} pages and no text in them, as a scan; recognize its text first, for "
            "instance with ocrmypdf"
        )
    return text


def _page_lines(page: Any, filename: str, until: float) -> list[Line]:
    pieces: list[tuple[str, float]] = []

    def collect(text: str, cm: list[float], tm: list[float], font: object, size: float) -> None:
        # Letters have the height of the font's size, scaled by both matrices.
        pieces.append((text, abs(size) * abs(tm[3] or tm[1]) * abs(cm[3] or cm[1])))

    def check(*_: object) -> None:
        if time.monotonic() > until:
            raise BadDocument(
                f"{filename} takes longer than {MOST_SECONDS:.0f} s to read; split it into parts"
            )

    check()
    page.extract_text(visitor_text=collect, visitor_operand_before=check)
    return lines_of(pieces)


# -- all -------------------------------------------------------------------------------------------


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"reading this document needs {error.name}; install it with: {INSTALL}") from error


def _damaged(filename: str, kind: str, error: Exception) -> BadDocument:
    return BadDocument(
        f"{filename} is damaged or no {kind} file ({_brief(error)}); save it anew, or give its text as .txt"
    )


def _brief(error: Exception) -> str:
    """What a library says of the file; what only Python says of its code stays in the error's cause."""
    own = type(error).__module__.split(".")[0] in ("pypdf", "lxml", "zipfile", "zlib")
    return str(error)[:120] if own and str(error) else "not as the format has it"
