"""Triples with the texts that tell them: the XML of WebNLG and DART, and DART's JSON.

`<entry category="Airport"> <modifiedtripleset> <mtriple>s | p | o</mtriple> ... <lex comment="good">text`
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from foreword.errors import BadExamples, CannotRead
from foreword.examples.example import Entry, Example, kind
from foreword.examples.records import excerpt, read_lines

Triple = tuple[str, str, str]
GOOD = "good"  # what WebNLG's annotators say of a text that tells its triples


def webnlg_source(triples: Iterable[Triple]) -> str:
    """As XiangLi1999/PrefixTuning writes WebNLG: a bar in front of every triple, the first one too."""
    return "".join(f" | {subject} : {relation} : {object_}" for subject, relation, object_ in triples)


def dart_source(triples: Iterable[Triple]) -> str:
    """As XiangLi1999/PrefixTuning writes DART: bars between triples, relations in lower case."""
    return " | ".join(f"{subject} : {relation.lower()} : {object_}" for subject, relation, object_ in triples)


def read_webnlg(path: str | os.PathLike[str]) -> list[Entry]:
    """Entries of WebNLG's XML: one file, or every *.xml in a folder and below, in the order of their names.

    Entries and texts that are empty, as a test set without texts has them, are left out, as the official
    evaluation does.

    Raises:
        CannotRead, BadExamples: see `read_dart`.
    """
    return _read_xml(path, webnlg_source, judged=True)


def read_dart(path: str | os.PathLike[str]) -> list[Entry]:
    """Entries of DART's JSON or XML. Every annotation is a reference; DART knows no better or worse ones.

    Raises:
        CannotRead: absent, or not to be opened.
        BadExamples: not the data set's format: names the file, the line or entry, and the fault.
    """
    if os.path.isdir(path) or first_text(path).startswith("<"):
        return _read_xml(path, dart_source, judged=False)
    return _read_json(path)


def first_text(path: str | os.PathLike[str]) -> str:
    """The first line of the file that is not blank, without white space in front; "" if there is none.

    Raises:
        CannotRead, BadExamples: see `read_lines`.
    """
    return next((line.text.lstrip() for line in read_lines(path) if not line.blank), "")


def _read_xml(
    path: str | os.PathLike[str], linearise: Callable[[Iterable[Triple]], str], *, judged: bool
) -> list[Entry]:
    folder = Path(path)
    files = sorted(folder.rglob("*.xml")) if folder.is_dir() else [folder]
    if not files:
        raise CannotRead(
            f"{folder} holds no *.xml; expected the data set's XML files, there or in folders below"
        )
    entries = []
    for file in files:
        for place, element in enumerate(_root(file).iter("entry"), 1):
            where = f"{file}, entry {place} ({element.get('eid', 'without eid')})"
            texts = [
                (lex.text or "", lex.get("comment", ""))
                for lex in element.iterfind("lex")
                if lex.get("lang", "en") in ("en", "")
            ]
            if any(text.strip() for text, _ in texts):  # else its triples may be anything
                source = linearise(_triples(element, where))
                entry = make_entry(source, texts, element.get("category"), judged=judged)
                entries += [_checked(entry, where)] if entry else []
    if not entries:
        raise BadExamples(f"{folder} holds no entry with a text; expected <entry> with <mtriple> and <lex>")
    return entries


def _root(file: Path) -> ElementTree.Element:
    start = first_text(file)  # says in our words what is absent, compressed, or in another encoding
    if not start.startswith("<"):
        raise BadExamples(
            f"{file} begins with {excerpt(start)}; expected XML with <entry>, <mtriple> and <lex>"
        )
    try:
        return ElementTree.parse(file).getroot()
    except ElementTree.ParseError as error:
        raise BadExamples(f"{file} is not XML that can be read: {error}; get the file again") from error


def split_triple(text: str) -> Triple:
    """`subject | property | object` as three texts.

    Raises:
        BadExamples: `text` has more or fewer parts.
    """
    parts = [part.strip() for part in text.split(" | ")]
    if len(parts) != 3:
        raise BadExamples(f"mtriple is {excerpt(text)}; expected subject | property | object")
    return parts[0], parts[1], parts[2]


def make_entry(
    source: str, texts: Iterable[tuple[str, str]], category: str | None = None, *, judged: bool = False
) -> Entry | None:
    """An entry from its texts, each with what annotators say of it; None where all texts are empty.

    Args:
        judged: they say whether a text tells the triples.
    """
    pairs = [(text.strip(), comment) for text, comment in texts if text.strip()]
    bad = tuple(text for text, comment in pairs if judged and comment not in (GOOD, ""))
    return Entry(source, tuple(text for text, _ in pairs), category, None, bad) if pairs else None


def _triples(element: ElementTree.Element, where: str) -> list[Triple]:
    try:
        triples = [split_triple(one.text or "") for one in element.iterfind("modifiedtripleset/mtriple")]
    except BadExamples as error:
        raise BadExamples(f"{where}: {error}") from error
    if not triples:
        raise BadExamples(f"{where}: no <modifiedtripleset> with <mtriple>; expected at least one triple")
    return triples


def _read_json(path: str | os.PathLike[str]) -> list[Entry]:
    text = "\n".join(line.text for line in read_lines(path))
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadExamples(
            f"{os.fspath(path)} is not JSON: {error}; expected DART's one list of objects, or its XML"
        ) from error
    if not isinstance(records, list) or not records:
        raise BadExamples(
            f"{os.fspath(path)} holds {kind(records)}; expected DART's list of objects, each with tripleset "
            "and annotations"
        )
    return [
        entry
        for place, record in enumerate(records, 1)
        if (entry := _record(record, f"{os.fspath(path)}, entry {place}")) is not None
    ]


def _record(record: Any, where: str) -> Entry | None:
    if not isinstance(record, dict) or not {"tripleset", "annotations"} <= set(record):
        given = ", ".join(map(repr, record)) if isinstance(record, dict) else kind(record)
        raise BadExamples(f"{where}: found {given}; expected an object with tripleset and annotations")
    triples = record["tripleset"]
    if (
        not isinstance(triples, list)
        or not triples
        or not all(
            isinstance(triple, list) and len(triple) == 3 and all(isinstance(part, str) for part in triple)
            for triple in triples
        )
    ):
        raise BadExamples(f"{where}: tripleset is {excerpt(str(triples))}; expected lists of three texts")
    if not isinstance(record["annotations"], list):
        given = kind(record["annotations"])
        raise BadExamples(f"{where}: annotations is {given}; expected a list of objects")
    objects = [each for each in record["annotations"] if isinstance(each, dict)]
    texts = [(text, "") for each in objects if isinstance(text := each.get("text"), str)]
    entry = make_entry(dart_source(triples), texts)
    return None if entry is None else _checked(entry, where)


def _checked(entry: Entry, where: str) -> Entry:
    """`entry`, after `Example` looked at every text of it."""
    for reference in entry.references:
        try:
            Example(entry.source, reference)
        except BadExamples as error:
            raise BadExamples(f"{where}: {error}") from error
    return entry
