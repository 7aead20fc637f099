"""WebNLG and DART: triples become the text that the original prefix-tuning code reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from foreword.errors import BadExamples, CannotRead
from foreword.examples import Example, examples_of
from foreword.examples.triples import read_dart, read_webnlg

ENTRY = """
    <entry category="Bridge" eid="Id7" size="2">
      <originaltripleset><otriple>Old_Bridge | len | 12.5</otriple></originaltripleset>
      <modifiedtripleset>
        <mtriple>Old_Bridge | Length | 12.5 (metres)</mtriple>
        <mtriple>Old_Bridge | location | "Sømna, north"</mtriple>
      </modifiedtripleset>
      <lex comment="good" lid="Id1">Old Bridge in Sømna is 12.5 metres long.</lex>
      <lex comment="toFix" lid="Id2">Old bridge, sømna, 12.5.</lex>
      <lex comment="good" lid="Id3">
        The Old Bridge (12.5 metres) crosses at Sømna &amp; is old.
      </lex>
      <lex comment="good" lid="Id4"> </lex>
    </entry>
"""
SOURCE = ' | Old_Bridge : Length : 12.5 (metres) | Old_Bridge : location : "Sømna, north"'
TEXTS = (
    "Old Bridge in Sømna is 12.5 metres long.",
    "Old bridge, sømna, 12.5.",
    "The Old Bridge (12.5 metres) crosses at Sømna & is old.",
)
RECORD = {
    "tripleset": [["Old Bridge", "LENGTH", "12.5 m"], ["Old Bridge", "CROSSES_A", "River Å"]],
    "subtree_was_extended": False,
    "annotations": [
        {"source": "mine", "text": "It is 12.5 m long. "},
        {"source": "mine", "text": "It crosses the Å."},
    ],
}


def xml(*entries: str) -> str:
    return f"<benchmark>\n  <entries>{''.join(entries)}</entries>\n</benchmark>\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data.xml"


def test_every_triple_of_webnlg_begins_with_a_bar_and_keeps_its_underscores(path):
    path.write_text(xml(ENTRY))
    (entry,) = read_webnlg(path)
    assert entry.source == SOURCE
    assert entry.references == TEXTS
    assert entry.category == "Bridge"


def test_only_good_texts_are_trained_on_and_all_are_scored_against(path):
    path.write_text(xml(ENTRY))
    entries = read_webnlg(path)
    assert examples_of(entries) == [Example(SOURCE, TEXTS[0]), Example(SOURCE, TEXTS[2])]
    assert [one.target for one in examples_of(entries, fit_only=False)] == list(TEXTS)


def test_entries_with_the_same_triples_stay_apart(path):
    path.write_text(xml(ENTRY, ENTRY.replace("Id7", "Id8").replace("12.5 metres long", "long")))
    first, second = read_webnlg(path)
    assert first.source == second.source
    assert first.references != second.references


def test_a_folder_is_read_file_by_file_in_the_order_of_names(tmp_path):
    for name in ("2triples/b.xml", "1triples/a.xml", "2triples/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(xml(ENTRY.replace("Bridge", f"Bridge_{name[0]}")))
    assert [entry.category for entry in read_webnlg(tmp_path)] == ["Bridge_1", "Bridge_2"]


def test_dart_puts_bars_between_triples_and_relations_in_lower_case(tmp_path):
    path = tmp_path / "dart.json"
    path.write_text(json.dumps([RECORD], indent=1))
    (entry,) = read_dart(path)
    assert entry.source == "Old Bridge : length : 12.5 m | Old Bridge : crosses_a : River Å"
    assert entry.references == ("It is 12.5 m long.", "It crosses the Å.")
    assert examples_of([entry]) == [Example(entry.source, one) for one in entry.references]


def test_dart_is_the_same_from_json_and_from_xml(tmp_path):
    (tmp_path / "dart.json").write_text(json.dumps([RECORD]))
    triples = "".join(f"<mtriple>{' | '.join(triple)}</mtriple>" for triple in RECORD["tripleset"])
    texts = "".join(f'<lex comment="mine" lid="Id1">{one["text"]}</lex>' for one in RECORD["annotations"])
    entry = (
        f'<entry category="MISC" eid="Id1"><modifiedtripleset>{triples}</modifiedtripleset>{texts}</entry>'
    )
    (tmp_path / "dart.xml").write_text(xml(entry))
    from_json, from_xml = read_dart(tmp_path / "dart.json"), read_dart(tmp_path / "dart.xml")
    assert examples_of(from_json) == examples_of(from_xml)  # comments there are sources, not judgements


@pytest.mark.parametrize(
    ("read", "content", "words"),
    [
        (read_webnlg, "<benchmark><entries>", ["not XML", "line 1"]),
        (read_webnlg, "mr,ref\n", ["begins with 'mr,ref'", "expected XML"]),
        (read_webnlg, xml(), ["no entry with a text"]),
        (
            read_webnlg,
            xml(ENTRY.replace(" | Length | ", " | ")),
            ["entry 1 (Id7)", "mtriple is", "subject | property"],
        ),
        (read_webnlg, xml(ENTRY.replace("mtriple", "striple")), ["entry 1 (Id7)", "at least one triple"]),
        (read_dart, "[1]", ["entry 1", "a number", "tripleset and annotations"]),
        (read_dart, "{}", ["holds an object", "list of objects"]),
        (read_dart, "[", ["not JSON"]),
        (
            read_dart,
            json.dumps([RECORD, {**RECORD, "tripleset": [["a", "b"]]}]),
            ["entry 2", "lists of three texts"],
        ),
        (read_dart, json.dumps([{"tripleset": []}]), ["'tripleset'", "expected an object with"]),
    ],
)
def test_a_fault_names_its_place(path, read, content, words):
    path.write_text(content)
    with pytest.raises(BadExamples) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert all(word in message for word in words), message


def test_a_folder_without_xml_and_a_file_that_is_absent_are_named(tmp_path):
    with pytest.raises(CannotRead, match=r"holds no \*\.xml"):
        read_webnlg(tmp_path)
    with pytest.raises(CannotRead, match="does not exist"):
        read_webnlg(tmp_path / "absent.xml")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('[{"tripleset": 5, "annotations": []}]', "tripleset is '5'"),
        ('[{"tripleset": [["a", "b", "c"]], "annotations": 5}]', "annotations is a number"),
        ('[{"tripleset": [["a", "b", "c"]], "annotations": null}]', "annotations is null"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_json_of_other_types_is_named(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "dart.json"
    file.write_text(content)
    with pytest.raises(BadExamples, match=words):
        read_dart(file)
