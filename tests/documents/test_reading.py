"""Documents read: what text each format gives, and which files are refused, by name and with what to do."""

from __future__ import annotations

import codecs
import importlib
import os
from pathlib import Path
from typing import Any

import docx
import pytest

from foreword.documents import formats
from foreword.documents.chunks import sections
from foreword.documents.reading import document_from_bytes, read_document, read_folder
from foreword.errors import BadDocument, CannotRead, UsageError
from support.made_documents import (
    docx_bytes,
    docx_of_body,
    encrypted,
    paragraph,
    pdf_of_lines,
    pdf_of_streams,
    stream,
)

BODY = (
    "The harbour office opens at seven in the morning and it",
    "closes at nine in the evening. Boats that are longer than",
    "twelve metres need a permit, which the office gives out.",
)


def text_of(content: bytes | str, filename: str) -> str:
    return document_from_bytes(content.encode() if isinstance(content, str) else content, filename).text


# -- text and Markdown -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        "größer\nals\n".encode(),
        codecs.BOM_UTF8 + "größer\r\nals\r\n".encode(),
        "größer\ralso".replace("also", "als").encode("utf-16"),
        codecs.BOM_UTF16_BE + "größer\nals".encode("utf-16-be"),
        codecs.BOM_UTF32_LE + "größer\nals".encode("utf-32-le"),
    ],
    ids=["utf-8", "byte-order mark, CRLF", "utf-16, CR", "utf-16-be", "utf-32-le"],
)
def test_text_of_every_encoding_and_line_end_is_the_same(content: bytes) -> None:
    document = document_from_bytes(content, "folder/a.TXT")
    assert (document.name, document.kind, document.text) == ("a.TXT", "text", "größer\nals\n")


def test_markdown_is_as_it_is_with_headings_of_one_kind() -> None:
    text = text_of("Title\n=====\n\nOne.\n\nPart\n---\nTwo.\n\n| a | b |\n|---|---|\n\n- x\n---\n", "a.md")
    assert text == "# Title\n\nOne.\n\n## Part\n\nTwo.\n\n| a | b |\n|---|---|\n\n- x\n---\n"
    assert [name for name, *_ in sections(text)] == ["Title", "Part"]


def test_two_documents_have_one_digest_if_and_only_if_they_have_one_text() -> None:
    one, other = document_from_bytes(b"a\r\nb", "a.txt"), document_from_bytes(b"a\nb\n", "b.md")
    assert one.digest == other.digest
    assert one.digest != document_from_bytes(b"a\nc\n", "b.md").digest


# -- HTML ------------------------------------------------------------------------------------------


def test_html_is_what_a_reader_sees() -> None:
    text = text_of(
        "<!DOCTYPE html><html><head><title>not this</title><style>p {}</style></head><body>"
        "<nav><a href='/'>Menu</a></nav><script>alert('no')</script><!-- no -->"
        "<h1>Harbour <b>rules</b></h1><p>Boats &amp; nets\n are <i>here</i>.<br>Next line"
        "<h2></h2><ul><li>one<li><p>two</p><ol><li>deep</ol></ul>"
        "<table><tr><th>Berth<th>Price<tr><td><p>A</p>1<td>20&nbsp;€</table><pre># no heading\n  x</pre>last",
        "a.html",
    )
    assert text == (
        "# Harbour rules\n\nBoats & nets are here.\nNext line\n\n- one\n- two\n  1. deep\n\n"
        "| Berth | Price |\n| A 1 | 20 € |\n\n    # no heading\n      x\n\nlast\n"
    )


@pytest.mark.parametrize(
    ("head", "encoding"),
    [
        ('<meta charset="iso-8859-1">', "cp1252"),
        ('<meta http-equiv="Content-Type" content="text/html; charset=koi8-r">', "koi8-r"),
        ("<meta charset=utf-7>", "utf-8"),
        ("<meta charset='nothing-known'>", "utf-8"),
        ("", "utf-16"),
    ],
)
def test_html_is_read_in_the_encoding_that_it_names(head: str, encoding: str) -> None:
    word = "Гавань" if encoding == "koi8-r" else "“Größe”"
    assert text_of(f"<head>{head}</head><p>{word}".encode(encoding), "a.htm") == f"{word}\n"


# -- DOCX ------------------------------------------------------------------------------------------


def test_docx_has_headings_lists_and_tables_in_their_order() -> None:
    document = docx.Document()
    document.add_heading("Handbook", 0)
    document.add_heading("Opening", 2)
    document.add_paragraph("We open\tat seven.").add_run(" Always.")
    document.add_paragraph("first", style="List Bullet")
    document.add_paragraph("second", style="List Bullet")
    table = document.add_table(2, 2)
    for row, cells in zip(table.rows, (("Berth", "Price"), ("A 1", "20\n€")), strict=True):
        for cell, text in zip(row.cells, cells, strict=True):
            cell.text = text
    document.add_paragraph("The end.")
    read = document_from_bytes(docx_bytes(document), "a.docx")
    assert read.kind == "docx"
    assert read.text == (
        "# Handbook\n\n## Opening\n\nWe open\tat seven. Always.\n\n- first\n- second\n\n"
        "| Berth | Price |\n| A 1 | 20 € |\n\nThe end.\n"
    )


def test_docx_shows_what_was_put_in_and_not_what_was_taken_out() -> None:
    run = "<w:r><w:t>{0}</w:t></w:r>"
    body = (
        f"<w:p><w:ins>{run.format('new')}</w:ins><w:del><w:r><w:delText>old</w:delText></w:r></w:del>"
        f"<w:moveFrom>{run.format('away')}</w:moveFrom><w:hyperlink>{run.format(' link')}</w:hyperlink></w:p>"
        f"<w:sdt><w:sdtContent>{paragraph('controlled')}</w:sdtContent></w:sdt>"
        + paragraph("outlined", '<w:outlineLvl w:val="1"/>')
    )
    assert text_of(docx_of_body(body), "a.docx") == "new link\n\ncontrolled\n\n## outlined\n"


# -- PDF -------------------------------------------------------------------------------------------


def test_pdf_has_headings_by_size_and_whole_paragraphs() -> None:
    page = [(20, "Harbour rules"), (10, "")] + [(10, line) for line in BODY]
    page += [
        (10, "It is closed on holi-"),
        (10, "days."),
        (14, "Prices"),
        (10, "• Berth A: 20"),
        (10, "- Berth B: 30"),
    ]
    document = document_from_bytes(pdf_of_lines([page]), "a.pdf")
    assert document.kind == "pdf"
    assert document.text == (
        "# Harbour rules\n\n"
        + " ".join(BODY)
        + " It is closed on holidays.\n\n## Prices\n- Berth A: 20\n- Berth B: 30\n"
    )


def test_pdf_pages_leave_out_what_stands_at_the_edge_of_most() -> None:
    pages = [
        [(10, "Harbour rules"), *((10, f"{name}: {line}") for line in BODY), (10, f"page {n}")]
        for n, name in enumerate("abcd")
    ]
    text = text_of(pdf_of_lines(pages), "a.pdf")
    assert "Harbour rules" not in text
    assert "page" not in text
    assert all(f"{name}: {BODY[0]}" in text for name in "abcd")


def test_pdf_with_a_password_against_changes_alone_is_read() -> None:
    plain = pdf_of_lines([[(10, BODY[0])]])
    assert text_of(encrypted(plain, user_password=""), "a.pdf") == f"{BODY[0]}\n"
    with pytest.raises(BadDocument, match=r"a.pdf is encrypted; save it without a password"):
        text_of(encrypted(plain, user_password="secret"), "a.pdf")


# -- refused ---------------------------------------------------------------------------------------

SCAN = pdf_of_streams([stream(b"q 612 0 0 792 0 0 cm Q")] * 3)


@pytest.mark.parametrize(
    ("content", "filename", "message"),
    [
        (b"", "a.txt", r"a\.txt is empty"),
        (b" \n\n ", "a.md", "no text in it"),
        (b"<script>x</script>", "a.html", "no text in it"),
        (b"a\0b", "a.txt", "binary or UTF-16 without"),
        (b"\x89PNG\r\n\x1a\n\0\0", "a.txt", r"byte 0x89 at position 1 is not utf-8.*iconv"),
        ("Größe".encode("cp1252"), "a.md", r"byte 0xf6 at position 3 is not utf-8.*iconv"),
        ("x".encode("utf-16-le") + b"\0", "a.html", "binary or UTF-16 without"),
        (b"text", "a.odt", r"ending '\.odt'; expected one of \.txt, .*\.docx"),
        (b"text", "README", "ending ''; expected one of"),
        (b"%PDF-1.7\n", "a.txt", r"is PDF; give it a name that ends in \.pdf"),
        (b"PK\x03\x04....", "a.pdf", r"is DOCX; give it a name that ends in \.docx"),
        (b"\xd0\xcf\x11\xe0....", "a.docx", "old Word document or an encrypted one; save it as DOCX"),
        (SCAN, "a.pdf", "3 pages and no text in them, as a scan; .*ocrmypdf"),
        (b"%PDF-1.7\nnothing else", "a.pdf", "damaged or no PDF file .*save it anew"),
        (b"GIF89a", "a.pdf", "damaged or no PDF file"),
        (b"no archive", "a.docx", "damaged or no DOCX file"),
        (docx_of_body(paragraph("x"))[:-30], "a.docx", "damaged or no DOCX file"),
        (docx_of_body(""), "a.docx", "no text in it"),
        (docx_of_body("<w:p>"), "a.docx", "damaged or no DOCX file"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else str(value)[:30],
)
def test_what_can_not_be_read_is_refused_with_what_to_do(content: bytes, filename: str, message: str) -> None:
    with pytest.raises(BadDocument, match=message) as caught:
        document_from_bytes(content, filename)
    assert filename in str(caught.value)


@pytest.mark.parametrize(
    ("module", "filename"), [("pypdf", "a.pdf"), ("docx", "a.docx"), ("lxml.etree", "a.html")]
)
def test_a_missing_library_is_named_with_its_extra(
    module: str, filename: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.import_module

    def missing(name: str, *given: Any) -> Any:
        if name == module:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *given)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UsageError, match=rf"needs {module}.*pip install 'foreword\[documents\]'"):
        document_from_bytes(b"x", filename)


def test_the_modules_of_documents_need_none_of_these_libraries() -> None:
    assert not {"pypdf", "docx", "lxml"} & set(vars(formats))


# -- files and folders ---------------------------------------------------------------------------


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    for name, message in (
        ("none.txt", "does not exist"),
        (".", "is a folder"),
        ("pipe.txt", "no regular file"),
    ):
        with pytest.raises(CannotRead, match=message):
            read_document(tmp_path / name)


def test_a_folder_gives_its_documents_in_order_and_names_what_is_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    for name in ("b.md", "a.txt", "c.png", ".hidden.md", "below/d.md"):
        (folder / name).write_text(name)
    (tmp_path / "outside.md").write_text("secret")
    (folder / "link.md").symlink_to(tmp_path / "outside.md")
    (folder / "same.md").symlink_to("b.md")
    (folder / "gone.md").symlink_to("nothing.md")
    passed: dict[str, str] = {}
    found = read_folder(folder, on_passed_over=passed.__setitem__)
    assert [(one.name, one.text) for one in found] == [
        ("a.txt", "a.txt\n"),
        ("b.md", "b.md\n"),
        ("same.md", "b.md\n"),
    ]
    assert passed.keys() == {"c.png", ".hidden.md", "below", "link.md", "gone.md"}
    assert passed["link.md"] == "a link to somewhere else"
    assert "expected" not in passed["c.png"]
    assert ".docx" in passed["c.png"]


def test_a_folder_without_a_document_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadDocument, match=r"no document in it, found nothing; expected files of \.txt"):
        read_folder(tmp_path)
    (tmp_path / "x.png").write_bytes(b"x")
    with pytest.raises(BadDocument, match=r"found x\.png; expected"):
        read_folder(tmp_path)
    with pytest.raises(CannotRead, match="can't be listed"):
        read_folder(tmp_path / "none")


def test_a_bad_document_in_a_folder_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("good")
    (tmp_path / "b.txt").write_text("")
    with pytest.raises(BadDocument, match=r"b\.txt is empty"):
        read_folder(tmp_path)
