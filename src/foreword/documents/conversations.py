"""Conversations about a document, from which a prefix that stands for it is trained, and their file.

A prefix is trained on question and answer, and the teacher reads the same with a chunk of the document in
its context. Where they come from: drawn.py makes them of the text's own sentences, written.py lets a model
write them, and a file can hold the user's own.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from foreword import files
from foreword.documents.checking import PartFinder, facts_of, fault_of
from foreword.documents.chunks import Chunk
from foreword.errors import BadConversations, BadExamples
from foreword.examples import Example
from foreword.examples.chat import read_chat
from foreword.examples.example import kind, text_of
from foreword.examples.jsonl import parse_objects, read_source_target
from foreword.examples.records import Fields, Line, read_lines
from foreword.template import Source

LEAST_ALIKE = 0.25
"""Share of its words, rare ones counting more, that a conversation about a document has in common with one of
its chunks, at least."""
LEAST_ABOUT = 0.5
"""Share of a file's conversations that must be about the document."""
ANOTHER_TEXT = "about another text"

_MARK = "foreword-conversations"
_VERSION = 1
_FIELDS = Fields(source="question", target="answer")


@dataclass(frozen=True)
class Conversation:
    """A question about a document, and an answer.

    Attributes:
        source: the question, or messages that end in one.
        target: the answer, on whose tokens the prefix is trained to predict as the teacher does.
        chunk: number of the chunk that the teacher has in its context; None: of an unrelated prompt, where
            the teacher is the base without anything.
        kind: how it was made, such as "continue", "cloze", "written", "given", "unrelated".
    """

    source: Source
    target: str
    chunk: int | None
    kind: str


def unrelated() -> list[Conversation]:
    """Conversations that have nothing to do with any document, which keep a prefix from changing others."""
    text = importlib.resources.files(__package__).joinpath("unrelated.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    return [Conversation(row["source"], row["target"], None, "unrelated") for row in rows]


@dataclass(frozen=True)
class ReadConversations:
    """What a file of conversations holds.

    Attributes:
        made: what its writer said of how they were made; empty of a user's own file.
        rejected: how many were left out, by reason.
    """

    conversations: tuple[Conversation, ...]
    made: Mapping[str, Any] = field(default_factory=dict)
    rejected: Counter[str] = field(default_factory=Counter)


def question_of(source: Source) -> str:
    """The text of a source: the question, or all that was said before the answer."""
    return source if isinstance(source, str) else "\n".join(message["content"] for message in source)


def text_digest(text: str) -> str:
    """SHA-256 of a document's text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def save_conversations(
    path: Path,
    conversations: Sequence[Conversation],
    text: str,
    chunks: Sequence[Chunk],
    made: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> None:
    """Write conversations about a text as JSON lines: one that says what they are of, then one for each.

    Args:
        made: what made them, as plain data.

    Raises:
        OutputExists, CannotWrite: as `files.writing`.
    """
    with (
        files.writing(path, overwrite=overwrite) as temporary,
        open(temporary, "w", encoding="utf-8", newline="\n") as out,
    ):
        out.writelines(saved_lines(conversations, text, chunks, made))


def saved_lines(
    conversations: Sequence[Conversation], text: str, chunks: Sequence[Chunk], made: Mapping[str, Any]
) -> Iterator[str]:
    """The lines of the file that `save_conversations` writes."""
    header = {_MARK: _VERSION, "document": text_digest(text), "chunks": _chunks_digest(chunks), "made": made}
    yield json.dumps(header) + "\n"
    for one in conversations:
        record = {"question": one.source, "answer": one.target, "chunk": one.chunk, "kind": one.kind}
        yield json.dumps(record, ensure_ascii=False) + "\n"


def read_conversations(path: str | Path, text: str, chunks: Sequence[Chunk]) -> ReadConversations:
    """The conversations of a file about this text: of one that was saved, or of a user's own.

    A user's own needs `{"question": …, "answer": …}` a line, or what examples have: `{"messages": […]}` or
    `{"source": …, "target": …}`. Each of its answers is checked against the whole text, and gets the chunk
    that it has most in common with; so does what was saved with other chunks, made for another base or of
    another size.

    Raises:
        CannotRead: the file is absent or can't be read.
        BadExamples: a line with a fault; names it.
        BadConversations: they are about another text, or none passes the check.
    """
    return conversations_in(read_lines(path), str(path), text, chunks)


def conversations_in(
    lines: Iterator[Line], file: str, text: str, chunks: Sequence[Chunk]
) -> ReadConversations:
    """As `read_conversations`, of lines that are open already; `file` is for messages."""
    first, header, rest = _begun(lines, file)
    if _MARK in header:
        return _saved(file, first, header, rest, text, chunks)
    return _given(file, _examples(chain([first], rest)), text, chunks)


def examples_in(lines: Iterator[Line], file: str) -> Iterator[Example]:
    """The conversations of such a file as examples, whatever text they are about.

    Raises:
        BadExamples: as `read_conversations`.
    """
    first, header, rest = _begun(lines, file)
    if _MARK not in header:
        yield from _examples(chain([first], rest))
        return
    for line in rest:
        one = _conversation(line, None)
        yield Example(one.source, one.target)


def _begun(lines: Iterator[Line], file: str) -> tuple[Line, dict[str, Any], Iterator[Line]]:
    """The first line that is not blank, its object, and the others that are not."""
    lines = (line for line in lines if not line.blank)
    first = next(lines, None)
    if first is None:
        raise BadExamples(f"{file} is empty; expected a line with question and answer for each conversation")
    ((_, header),) = parse_objects([first])
    return first, header, lines


def _examples(lines: Iterable[Line]) -> Iterator[Example]:
    for line in lines:
        ((_, record),) = parse_objects([line])
        if "messages" in record:
            yield from read_chat(line, record, _FIELDS)
        elif "question" in record and "answer" in record:
            yield from read_source_target(line, record, _FIELDS)
        elif "source" in record and "target" in record:
            yield from read_source_target(line, record, Fields())
        else:
            found = ", ".join(map(repr, list(record)[:8])) or "none"
            raise line.fault(f"found the fields {found}; expected question and answer, or messages")


def _given(file: str, examples: Iterator[Example], text: str, chunks: Sequence[Chunk]) -> ReadConversations:
    finder, facts = PartFinder([chunk.text for chunk in chunks]), facts_of(text)
    rejected: Counter[str] = Counter()
    kept = []
    for example in examples:
        question, answer = question_of(example.source), text_of(example)
        chunk, alike = finder.find(f"{question}\n{answer}")
        fault = ANOTHER_TEXT if alike < LEAST_ALIKE else fault_of(question, answer, facts)
        if fault is None:
            kept.append(Conversation(example.source, answer, chunk, "given"))
        else:
            rejected[fault] += 1
    whole = len(kept) + rejected.total()
    if rejected[ANOTHER_TEXT] > (1 - LEAST_ABOUT) * whole:
        raise BadConversations(
            f"{file}: {rejected[ANOTHER_TEXT]} of {whole} conversations have hardly a word in common with "
            "the document; expected conversations about it: check that file and document belong together"
        )
    if not kept:
        raise BadConversations(none_pass(file, rejected))
    return ReadConversations(tuple(kept), {}, rejected)


def none_pass(what: str, rejected: Mapping[str, int]) -> str:
    """The message where the check leaves nothing."""
    counts = ", ".join(f"{count} ({reason})" for reason, count in sorted(rejected.items()))
    return (
        f"{what}: no conversation passes the check against the text; rejected: {counts or 'none was made'}; "
        "expected answers whose numbers, dates and names stand in the text"
    )


def _saved(
    file: str,
    first: Line,
    header: dict[str, Any],
    lines: Iterator[Line],
    text: str,
    chunks: Sequence[Chunk],
) -> ReadConversations:
    if header[_MARK] != _VERSION:
        raise first.fault(f"version {header[_MARK]!r} of conversations; this release reads {_VERSION}")
    if header.get("document") != text_digest(text):
        raise BadConversations(
            f"{file} holds conversations about another document, or about another version of it (SHA-256 "
            f"{str(header.get('document'))[:12]}…; this one has {text_digest(text)[:12]}…); make new ones"
        )
    made = header.get("made")
    if not isinstance(made, dict):
        raise first.fault(f"field 'made' is {kind(made)}; expected an object")
    same_chunks = header.get("chunks") == _chunks_digest(chunks)
    found = [_conversation(line, len(chunks) if same_chunks else None) for line in lines]
    if not found:
        raise BadConversations(f"{file} holds no conversation, only what it is about; make new ones")
    if not same_chunks:
        finder = PartFinder([chunk.text for chunk in chunks])
        found = [_moved(one, finder) for one in found]
    return ReadConversations(tuple(found), made)


def _conversation(line: Line, chunks: int | None) -> Conversation:
    ((_, record),) = parse_objects([line])
    question, number, how = record.get("question"), record.get("chunk"), record.get("kind")
    if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 0):
        raise line.fault(f"field 'chunk' is {kind(number)}; expected the number of a chunk, or null")
    if number is not None and chunks is not None and number >= chunks:
        raise line.fault(f"field 'chunk' is {number}; expected a number below {chunks}, or null")
    if not isinstance(how, str):
        raise line.fault(f"field 'kind' is {kind(how)}; expected text")
    source: Any = tuple(question) if isinstance(question, list) else question
    example = line.example(source, record.get("answer"), None)  # type: ignore[arg-type]
    return Conversation(example.source, text_of(example), number, how)


def _moved(one: Conversation, finder: PartFinder) -> Conversation:
    if one.chunk is None:
        return one
    number, _ = finder.find(f"{question_of(one.source)}\n{one.target}")
    return Conversation(one.source, one.target, number, one.kind)


def _chunks_digest(chunks: Sequence[Chunk]) -> str:
    return text_digest("\0".join(chunk.text for chunk in chunks))
