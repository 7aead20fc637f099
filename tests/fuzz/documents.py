"""Documents and conversations about them: text, HTML, DOCX, PDF, JSON lines; read, divided, checked."""

from __future__ import annotations

import functools
import json
import logging
import random
import tempfile
from pathlib import Path

from foreword.documents.checking import facts_of, fault_of
from foreword.documents.chunks import Chunk, split
from foreword.documents.conversations import Conversation, read_conversations, save_conversations
from foreword.documents.reading import document_from_bytes
from foreword.documents.written import parse_pairs
from fuzz.harness import Target
from fuzz.mutations import changed, damaged, dumps
from support.made_documents import docx_of_body, paragraph, pdf_of_lines, pdf_of_streams, stream

MARKDOWN = """Harbour
=======

The office opens at 7:30 on 3 May 2024. Anna Miller runs it.

# Prices

| Berth | Price |
|---|---|
| A 1 | 20.50 € |

- nets
- ice
"""
HTML = (
    "<!DOCTYPE html><html><head><meta charset='utf-8'><title>x</title></head><body><h1>Harbour <b>rules</b></h1>"
    "<p>It opens at 7:30 &amp; &eacute;.<ul><li>a<ol><li>b</ol></ul><table><tr><th>k<td>v</table><pre>x\n y</pre>"
    "<script>1</script></body></html>"
)
BODY = (
    paragraph("Harbour", '<w:pStyle w:val="Heading1"/>')
    + paragraph("It opens at 7:30.", '<w:numPr><w:ilvl w:val="0"/></w:numPr>')
    + f"<w:tbl><w:tr><w:tc>{paragraph('A')}</w:tc><w:tc>{paragraph('B')}</w:tc></w:tr></w:tbl>"
    + "<w:sdt><w:sdtContent><w:p><w:ins><w:r><w:t>x</w:t><w:tab/><w:br/></w:r></w:ins></w:p></w:sdtContent></w:sdt>"
)
OWN = {"question": "When does the office open?", "answer": "At 7:30 on 3 May 2024."}
SUFFIXES = {"m": ".md", "h": ".html", "d": ".docx", "p": ".pdf"}


@functools.cache
def _pdfs() -> tuple[bytes, ...]:
    lines = [
        (20, "Harbour rules"),
        (10, "It opens at 7:30 on 3 May."),
        (14, "Prices"),
        (10, "- a"),
        (10, "b-"),
        (10, "c"),
    ]
    form = stream(b"BT /F1 9 Tf (in a form) Tj ET", entries=b" /Type /XObject /Subtype /Form /BBox [0 0 9 9]")
    drawn = stream(b"q BT /F1 12 Tf 50 700 Td [(He) -20 (llo)] TJ T* (x) ' ET Q /X0 Do", packed=True)
    return (
        pdf_of_lines([lines]),
        pdf_of_lines([lines] * 3),
        pdf_of_streams([drawn], resources=b"/XObject << /X0 6 0 R >>", more=[form]),
    )


@functools.cache
def _saved() -> tuple[str, ...]:
    path = Path(tempfile.mkdtemp(prefix="foreword-fuzz-")) / "c"
    kept = [Conversation("When?", "At 7:30.", 0, "x"), Conversation("What?", "Ice.", None, "unrelated")]
    save_conversations(path, kept, MARKDOWN, _chunks(MARKDOWN), {"seed": 1})
    return tuple(path.read_text().splitlines())


def _chunks(text: str) -> list[Chunk]:
    return split(text, lambda part: len(part.split()), 20)


def make(rng: random.Random) -> bytes:
    """A byte for the kind of file, and the file."""
    kind = rng.choice("mhhdddpppjj")
    if kind == "m":
        content = rng.choice((MARKDOWN.encode(), MARKDOWN.encode("utf-16")))
    elif kind == "h":
        content = HTML.encode()
    elif kind == "d":
        body = BODY.encode()
        if rng.random() < 0.8:
            body = damaged(body, rng) if rng.random() < 0.4 else _other_elements(body, rng)
        content = docx_of_body(body.decode(errors="replace"))
        if rng.random() < 0.8:
            return b"d" + content
    elif kind == "p":
        content = rng.choice(_pdfs())
    elif rng.random() < 0.5:
        content = dumps(changed(OWN, rng) if rng.random() < 0.8 else OWN, rng).encode(
            "utf-8", "surrogatepass"
        )
    else:
        lines = [json.loads(line) for line in _saved()]
        number = rng.randrange(len(lines))
        lines[number] = changed(lines[number], rng)
        content = "\n".join(dumps(line, rng) for line in lines).encode("utf-8", "surrogatepass")
    return kind.encode() + (damaged(content, rng) if rng.random() < 0.7 and kind != "j" else content)


def _other_elements(body: bytes, rng: random.Random) -> bytes:
    """The same elements, one of them doubled, renamed or taken out as a whole."""
    names = [b"<w:p>", b"<w:t>", b"<w:tc>", b"<w:tr>", b"<w:r>", b"<w:sdtContent>", b'w:val="0"', b"Heading1"]
    found = rng.choice(names)
    other = rng.choice((*names, b"<w:del>", b"<w:x>", b"<!-- -->", b'w:val="99"', b"&x;"))
    closing = (found.replace(b"<", b"</"), other.replace(b"<", b"</"))
    return body.replace(found, other).replace(*closing)


@functools.cache
def _path() -> Path:
    logging.getLogger("pypdf").disabled = True
    return Path(tempfile.mkdtemp(prefix="foreword-fuzz-")) / "c.jsonl"


def run(content: bytes) -> str:
    kind, content = content[:1].decode(), content[1:]
    path = _path()
    if kind == "j":
        path.write_bytes(content)
        read_conversations(path, MARKDOWN, _chunks(MARKDOWN))
        return "taken (j)"
    text = document_from_bytes(content, f"a{SUFFIXES[kind]}").text
    text.encode()
    chunks = _chunks(text)
    for pair in parse_pairs(f"Question: {text}\nAnswer: {text}").pairs:
        fault_of(*pair, facts_of(chunks[0].text if chunks else text))
    return f"taken ({kind})"


TARGET = Target("documents", make, run, share=0.02)
