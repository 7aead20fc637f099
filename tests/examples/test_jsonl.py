"""JSON lines: what becomes an example, and that every fault names its file, its line and a way out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreword.errors import BadExamples
from foreword.examples import Example, read_examples

OBJECT = '{"source": "a", "target": "b"}'
TEXT = st.text()
TARGET = st.text(min_size=1).filter(str.strip)


def fault(path: Path, content: str | bytes, **options: object) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadExamples) as caught:
        read_examples(path, format="jsonl", **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert message.startswith(str(path))
    return message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data.jsonl"


@given(rows=st.lists(st.tuples(TEXT, TARGET, st.none() | TARGET), min_size=1), ascii=st.booleans())
def test_what_is_written_is_what_is_read(tmp_path_factory, rows, ascii):
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    objects = [{"source": s, "target": t, "owner": o} for s, t, o in rows]
    path.write_bytes("\n".join(json.dumps(o, ensure_ascii=ascii) for o in objects).encode())
    assert read_examples(path) == [Example(*row) for row in rows]


def test_fields_may_have_other_names(path):
    path.write_text('{"body": "a", "subject": "b", "user": "ann"}\n')
    names = {"source": "body", "target": "subject", "owner": "user"}
    assert read_examples(path, fields=names) == [Example("a", "b", "ann")]


def test_sentences_are_joined_and_each_reference_is_an_example(path):
    path.write_text('{"source": ["One.", "Two."], "target": ["x", "y"]}\n')
    assert read_examples(path) == [Example("One. Two.", "x"), Example("One. Two.", "y")]


def test_a_number_serves_as_owner(path):
    path.write_text('{"source": "a", "target": "b", "owner": 7}\n')
    assert read_examples(path) == [Example("a", "b", "7")]


def test_the_fault_in_line_4213_is_found_in_line_4213(path):
    message = fault(path, f"{OBJECT}\n" * 4212 + '{"source": "a", "target": \n')
    assert "line 4213: not JSON" in message
    assert "expected one whole object a line" in message


def test_blank_lines_are_skipped_but_counted(path):
    assert "line 4:" in fault(path, f"{OBJECT}\n\n   \nnonsense\n")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"source": "a", "text": "b"}', ["no field 'target'", "'source', 'text'", 'fields={"target"']),
        ('{"target": "b"}', ["no field 'source'"]),
        ("{}", ["found none"]),
        ('{"source": 3, "target": "b"}', ["'source' is a number", "expected text"]),
        ('{"source": [], "target": "b"}', ["an empty list"]),
        ('{"source": ["a", null], "target": "b"}', ["a list with null in it"]),
        ('{"source": "a", "target": null}', ["'target' is null"]),
        ('{"source": "a", "target": true}', ["true or false"]),
        ('{"source": "a", "target": {"x": 1}}', ["an object"]),
        ('{"source": "a", "target": []}', ["an empty list"]),
        ('{"source": "a", "target": "  "}', ["target is empty", "leave it out"]),
        ('{"source": "a", "target": ["x", ""]}', ["target is empty"]),
        ('{"source": "a", "target": "b", "owner": true}', ["owner", "true or false"]),
        ('{"source": "a", "target": "b", "owner": ""}', ["owner is empty"]),
        ('{"source": "a", "target": "\\ud83d"}', ["surrogate", "character 1"]),
        ("[1, 2]", ["a list", "jq -c '.[]'"]),
        ('"text"', ["found text", "expected a JSON object"]),
        ('{"source": ' + "9" * 5000 + ', "target": "b"}', ["not JSON"]),
        ('{"source": ' + "[" * 100_000, ["not JSON"]),
    ],
)
def test_a_fault_says_what_was_found_and_expected(path, line, words):
    message = fault(path, f"{OBJECT}\n{line}\n{OBJECT}\n")
    assert f"{path}, line 2: " in message
    assert all(word in message for word in words), message
    assert len(message) < 600 + len(str(path))


def test_a_field_that_the_user_named_must_be_there(path):
    assert "no field 'user'" in fault(path, OBJECT, fields={"owner": "user"})


def test_null_is_nobody_unless_the_user_named_the_field(path):
    path.write_text('{"source": "a", "target": "b", "owner": null}\n')
    assert read_examples(path) == [Example("a", "b", None)]
    content = '{"source": "a", "target": "b", "user": "ann"}\n{"source": "a", "target": "b", "user": null}\n'
    message = fault(path, content, fields={"owner": "user"})
    assert "line 2: field 'user' is null; expected the owner's name as text" in message


ROWS = [{"source": "a", "target": "b"}, {"source": "c", "target": "d"}]


@pytest.mark.parametrize("indent", [None, 1])
def test_one_json_array_and_objects_over_several_lines_are_read_like_lines(path, indent):
    expected = [Example("a", "b"), Example("c", "d")]
    path.write_text("\n" + json.dumps(ROWS, indent=indent) + "\n")
    assert read_examples(path) == expected
    path.write_text("\n".join(json.dumps(row, indent=1) for row in ROWS))
    assert read_examples(path) == expected


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('[\n{"source": "a", "target": "b"},\n{"source": 3, "target": "b"}]', ["line 3", "a number"]),
        ('[\n{"source": "a", "target": "b"}\n{"source": "c"}]', ["line 3", "Expecting ',' or ']'"]),
        ('[\n{"source": "a", "target": "b"},\n  {"source": "a" "target"}]', ["line 3", "column 18"]),
        ('[\n{"source": "a", "target": "b"},\n', ["line 2", "not JSON"]),
        ('[\n{"source": "a", "target": "b"}\n', ["Expecting ',' or ']'"]),
        ('[\n{"source": "a", "target": "b"},\n7]', ["line 3: found a number; expected a JSON object"]),
        ('[\n{"source": "a", "target": "b"}]\n{"source": "c"}', ["line 3", "behind the JSON array"]),
        ("[]", ["is empty"]),
        ('[{"source": ' + "[" * 100_000, ["not JSON"]),
    ],
)
def test_a_fault_in_a_json_array_names_the_line_in_which_it_stands(path, content, words):
    message = fault(path, content)
    assert all(word in message for word in words), message
