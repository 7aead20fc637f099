"""Documents made to do harm: they unpack without end, nest, refer outside, or take long; and what becomes of them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from foreword.documents import formats, reading
from foreword.documents.checking import LONGEST_ANSWER, facts_of, fault_of
from foreword.documents.chunks import split
from foreword.documents.drawn import drawn
from foreword.documents.reading import document_from_bytes
from foreword.documents.written import parse_pairs
from foreword.errors import BadDocument
from support.made_documents import (
    CONTENT_TYPES,
    W,
    docx_of_body,
    paragraph,
    pdf_of_lines,
    pdf_of_streams,
    stream,
)

WORD = "The harbour opens at seven."


def refused(content: bytes, filename: str, message: str) -> None:
    with pytest.raises(BadDocument, match=message):
        document_from_bytes(content, filename)


# -- sizes -----------------------------------------------------------------------------------------


def test_a_file_beyond_the_limit_is_not_read_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MOST_BYTES", 1 << 20)
    with open(tmp_path / "a.txt", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(BadDocument, match="more than 1 MiB; split it"):
        reading.read_document(tmp_path / "a.txt")


@pytest.mark.parametrize("filename", ["a.txt", "a.html", "a.docx", "a.pdf"])
def test_a_text_beyond_the_limit_is_refused(filename: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MOST_CHARACTERS", 100)
    content = {
        "a.txt": WORD.encode() * 10,
        "a.html": f"<p>{WORD * 10}".encode(),
        "a.docx": docx_of_body(paragraph(WORD) * 10),
        "a.pdf": pdf_of_lines([[(10, WORD)]] * 10),
    }[filename]
    refused(content, filename, "more than 100 characters; split it")


def test_an_archive_that_unpacks_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MOST_UNPACKED_BYTES", 1 << 16)
    bomb = docx_of_body(paragraph(WORD), {"word/other.xml": bytes(1 << 20)})
    assert len(bomb) < 10_000
    refused(bomb, "a.docx", "unpacks to more than")
    # Pictures are not unpacked at all.
    picture = docx_of_body(paragraph(WORD), {"word/media/image.png": bytes(1 << 20)})
    assert document_from_bytes(picture, "a.docx").text == f"{WORD}\n"


def test_an_archive_that_lies_about_its_sizes_unpacks_to_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MOST_UNPACKED_BYTES", 1 << 16)
    body = f"<w:body>{paragraph(WORD)}</w:body>"
    honest = docx_of_body(body, {"word/other.xml": bytes(1 << 20)})
    size = (1 << 20).to_bytes(4, "little")
    assert honest.count(size) == 2  # in front of the content, and in the archive's directory
    refused(honest.replace(size, (100).to_bytes(4, "little")), "a.docx", "damaged or no DOCX")


def test_an_archive_of_very_many_parts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MOST_PARTS", 10)
    refused(
        docx_of_body(paragraph(WORD), {f"word/{n}.xml": b"" for n in range(20)}),
        "a.docx",
        "23 parts; expected 10",
    )


def test_a_pdf_that_unpacks_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MOST_UNPACKED_BYTES", 1 << 16)
    bomb = pdf_of_streams([stream(b" " * (1 << 20), packed=True)])
    assert len(bomb) < 10_000
    refused(bomb, "a.pdf", "unpacks to more than is read")


def test_a_pdf_of_too_many_pages_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MOST_PAGES", 2)
    refused(pdf_of_lines([[(10, WORD)]] * 3), "a.pdf", "3 pages; expected 2 at most")


def test_a_pdf_whose_forms_draw_each_other_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty forms, each drawing the next one twice, would be a million at the end."""
    now = iter(range(1_000_000))
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    forms = []
    for number in range(20):
        drawn = b"/X%d Do /X%d Do" % (number + 1, number + 1)
        others = b" ".join(b"/X%d %d 0 R" % (n, 6 + n) for n in range(20))
        entries = (
            b" /Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << /XObject << %s >> >>" % others
        )
        forms.append(stream(drawn, entries=entries))
    resources = b"/XObject << %s >>" % b" ".join(b"/X%d %d 0 R" % (n, 6 + n) for n in range(20))
    bomb = pdf_of_streams([stream(b"/X0 Do " * 100)], resources=resources, more=forms)
    refused(bomb, "a.pdf", "takes longer than 120 s")


# -- entities and addresses ------------------------------------------------------------------------

ENTITIES = (
    '<!DOCTYPE w [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">'
    '<!ENTITY c SYSTEM "file:///etc/passwd"><!ENTITY d SYSTEM "http://127.0.0.1:9/x">]>'
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_docx_with_entities_is_refused(encoding: str) -> None:
    document = f"{ENTITIES}<w:document/>".encode(encoding)
    refused(docx_of_body("", {"word/document.xml": document}), "a.docx", "has a DOCTYPE, which DOCX forbids")


def test_html_follows_no_entity_and_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("an address was looked up")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    page = f"{ENTITIES.replace('w [', 'html [')}<link href='http://example.org/x.css'><img src='http://example.org/x'>"
    text = document_from_bytes(
        f"{page}<p>{WORD} &b; &c; &d;<iframe src='file:///etc/passwd'>in</iframe>".encode(), "a.html"
    ).text
    assert WORD in text
    assert "root:" not in text
    assert "aaaa" not in text.partition(WORD)[2]


# -- nesting and size of tables ----------------------------------------------------------------------


def test_html_that_nests_without_end_is_refused_and_not_cut() -> None:
    deep = f"<p>first</p>{'<div>' * 100_000}{WORD}"
    try:
        assert WORD in document_from_bytes(deep.encode(), "a.html").text
    except BadDocument as error:
        assert "deeper than HTML is read" in str(error)  # noqa: PT017


def test_docx_that_nests_without_end_is_refused() -> None:
    deep = "<w:sdt><w:sdtContent>" * 50_000 + paragraph(WORD) + "</w:sdtContent></w:sdt>" * 50_000
    refused(docx_of_body(deep), "a.docx", "damaged or no DOCX")
    shallow = "<w:sdt><w:sdtContent>" * 100 + paragraph(WORD) + "</w:sdtContent></w:sdt>" * 100
    assert document_from_bytes(docx_of_body(shallow), "a.docx").text == f"{WORD}\n"


def test_pdf_that_nests_without_end_is_refused() -> None:
    refused(
        pdf_of_streams([stream(b"[" * 100_000)]), "a.pdf", "damaged or no PDF|no text in them|unpacks to more"
    )


def test_a_large_table_is_read_row_by_row() -> None:
    row = "<w:tr>" + f"<w:tc>{paragraph('x')}</w:tc>" * 20 + "</w:tr>"
    text = document_from_bytes(docx_of_body(f"<w:tbl>{row * 1000}</w:tbl>"), "a.docx").text
    assert text.count("\n") == 1000
    html = document_from_bytes(("<table>" + ("<tr>" + "<td>x" * 20) * 1000).encode(), "a.html").text
    assert html == text


def styled(styles: str, style: str) -> str:
    """What is read of a DOCX with these styles and a paragraph of one of them."""
    kind = "application/vnd.openxmlformats-officedocument.wordprocessingml.styles+xml"
    part = f'<Override PartName="/word/styles.xml" ContentType="{kind}"/></Types>'
    relation = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/styles"
    more = {
        "[Content_Types].xml": CONTENT_TYPES.replace("</Types>", part),
        "word/styles.xml": f"<w:styles {W}>{styles}</w:styles>",
        "word/_rels/document.xml.rels": '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/'
        f'relationships"><Relationship Id="r1" Type="{relation}" Target="styles.xml"/></Relationships>',
    }
    body = paragraph(WORD, f'<w:pStyle w:val="{style}"/>')
    content = docx_of_body(body, {name: text.encode() for name, text in more.items()})
    return document_from_bytes(content, "a.docx").text


def test_styles_that_are_made_of_each_other_end() -> None:
    styles = "".join(
        f'<w:style w:styleId="{one}"><w:basedOn w:val="{other}"/></w:style>'
        for one, other in ("ab", "bc", "ca")
    )
    assert styled(styles, "a") == f"{WORD}\n"


@pytest.mark.parametrize("name", ["heading 2", "other"])
def test_a_long_chain_of_styles_is_followed_once(name: str) -> None:
    chain = "".join(
        f'<w:style w:styleId="s{n}"><w:basedOn w:val="s{n + 1}"/></w:style>' for n in range(20_000)
    )
    last = f'<w:style w:styleId="s20000"><w:name w:val="{name}"/></w:style>'
    assert styled(chain + last, "s0") == ("## " if name != "other" else "") + f"{WORD}\n"


# -- text -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "# " + " " * 200_000 + "x",
        "\n" * 200_000 + "x" + "\n" * 200_000,
        "x" + "=" * 200_000 + " " * 200_000,
        "x\n" + "=" * 200_000 + "y",
        ("x" * 190 + "\n\n") * 3000,
        "<" * 100_000,
        "<a " * 50_000,
        "<!--" * 50_000,
        "&#" * 100_000,
    ],
    ids=[
        "spaces",
        "lines",
        "underline",
        "no underline",
        "paragraphs",
        "angles",
        "tags",
        "comments",
        "entities",
    ],
)
@pytest.mark.parametrize("filename", ["a.md", "a.html"])
def test_text_that_is_slow_to_search_is_read_at_once(text: str, filename: str) -> None:
    """Were any of this quadratic, it would take minutes."""
    try:
        document_from_bytes(f"word {text}\nx\n===\n".encode(), filename)
    except BadDocument as error:
        assert "depth" in str(error) or "deeper" in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    "text",
    [
        "# a" + "#" * 20_000 + "b",
        "# a" + "\u2003" * 20_000 + "b",
        "a\n" + "\u2003\n" * 20_000 + "b",
        "-\n" * 20_000,
        "“" * 20_000,
        "a" * 20_000,
        "| a | b |\n|---|---|\n" + "| c | d |\n" * 3_000,
        "Question" + " " * 20_000,
    ],
    ids=["marks", "spaces", "lines", "dashes", "quotes", "no spaces", "table", "no answer"],
)
def test_text_that_is_slow_to_search_is_divided_and_asked_about_at_once(text: str) -> None:
    """Not read from a file first, which leaves less of it. Were any of this quadratic, it would take minutes."""
    chunks = split(text, lambda part: len(part.split()), 100)
    assert all(len(chunk.text) < 10_000 for chunk in chunks)
    drawn(chunks, 8)
    fault_of("What?", text[:LONGEST_ANSWER], facts_of(text))
    assert not parse_pairs(text).pairs


def test_spaces_of_any_width_become_plain_ones() -> None:
    assert document_from_bytes("a\u2003\u3000b".encode(), "a.txt").text == "a  b\n"


def test_a_page_of_single_bytes_is_not_read_as_utf_16() -> None:
    page = b"<meta charset='utf-16'><p>The gate opens.</p>"
    assert document_from_bytes(page, "a.html").text == "The gate opens.\n"


def test_no_character_that_is_not_seen_is_left() -> None:
    text = document_from_bytes("a\u200bb\xadc\x1bd\x07e\ufefff\fg\u2028h".encode(), "a.txt").text
    assert text == "abcdef\ng\nh\n"
