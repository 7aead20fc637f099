"""Files of conversations: what is saved is read again, and what is not about the document is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from foreword.documents.chunks import Chunk, split
from foreword.documents.conversations import Conversation, read_conversations, save_conversations
from foreword.errors import BadConversations, BadExamples, CannotRead, OutputExists

TEXT = """# Opening

The harbour office opens at seven in the morning. On holidays it stays closed.

# Berths

A berth costs 20 € a day. Anna Miller gives the berths out.

# Nets

Fishing nets are dried on the western pier, never on the eastern one.
"""


def chunks_of(text: str, most: int = 30) -> list[Chunk]:
    return split(text, lambda part: len(part.split()), most)


CHUNKS = chunks_of(TEXT)
MADE = [
    Conversation("When does it open?", "At seven, it says “in the morning”.", 0, "written: question"),
    Conversation(({"role": "user", "content": "Größe?"},), "None.", 1, "cloze"),
    Conversation("Name a colour.", "Blue", None, "unrelated"),
]


def lines(path: Path, *records: Any) -> Path:
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in records))
    return path


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    save_conversations(path, MADE, TEXT, CHUNKS, {"writer": "tiny", "seed": 3})
    read = read_conversations(path, TEXT, CHUNKS)
    assert list(read.conversations) == MADE
    assert read.made == {"writer": "tiny", "seed": 3}
    assert not read.rejected
    with pytest.raises(OutputExists):
        save_conversations(path, MADE, TEXT, CHUNKS, {})
    again = tmp_path / "again.jsonl"
    save_conversations(again, read.conversations, TEXT, CHUNKS, read.made)
    assert again.read_bytes() == path.read_bytes()


def test_with_other_chunks_each_gets_the_one_that_it_is_about(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    about_nets = Conversation("Where are fishing nets dried?", "On the western pier.", 2, "written: question")
    save_conversations(path, [about_nets, MADE[2]], TEXT, CHUNKS, {})
    others = chunks_of(TEXT, most=10)
    assert len(others) > len(CHUNKS)
    first, unrelated = read_conversations(path, TEXT, others).conversations
    assert first.chunk is not None
    assert "western pier" in others[first.chunk].text
    assert unrelated == MADE[2]


def test_saved_conversations_about_another_document_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    save_conversations(path, MADE, TEXT, CHUNKS, {})
    other = TEXT.replace("seven", "eight")
    with pytest.raises(BadConversations, match="about another document, or about another version of it"):
        read_conversations(path, other, chunks_of(other))


OWN = [
    {"question": "When does the harbour office open?", "answer": "At seven in the morning."},
    {
        "messages": [
            {"role": "user", "content": "What does a berth cost?"},
            {"role": "assistant", "content": "20 € a day"},
        ]
    },
    {"question": "Where are fishing nets dried?", "answer": "On the western pier."},
]


def test_a_users_own_file_needs_questions_and_answers_alone(tmp_path: Path) -> None:
    read = read_conversations(lines(tmp_path / "c.jsonl", *OWN, ""), TEXT, CHUNKS)
    assert [(one.chunk, one.kind) for one in read.conversations] == [(0, "given"), (1, "given"), (2, "given")]
    assert read.conversations[0].source == OWN[0]["question"]
    assert read.conversations[1].source == ({"role": "user", "content": "What does a berth cost?"},)
    assert read.conversations[1].target == "20 € a day"
    assert read.made == {}


def test_answers_that_the_text_does_not_bear_out_are_left_out_and_counted(tmp_path: Path) -> None:
    wrong = [
        {"question": "What does a berth cost a day?", "answer": "A berth costs 30 € a day."},
        {"question": "Who gives the berths out?", "answer": "The berths are given out by Bob."},
        {"question": "What is the capital of Peru?", "answer": "Lima"},
    ]
    read = read_conversations(lines(tmp_path / "c.jsonl", *OWN, *wrong), TEXT, CHUNKS)
    assert len(read.conversations) == 3
    assert dict(read.rejected) == {"number": 1, "name": 1, "about another text": 1}
    with pytest.raises(
        BadConversations, match=r"no conversation passes the check.*1 \(name\), 1 \(number\); expected"
    ):
        read_conversations(lines(tmp_path / "d.jsonl", *wrong[:2]), TEXT, CHUNKS)


def test_conversations_about_another_text_are_refused(tmp_path: Path) -> None:
    other = [
        {
            "question": "Which enzyme cuts the strand?",
            "answer": "A nuclease cuts both strands of the molecule.",
        },
        {"question": "How is yeast grown?", "answer": "In a medium of sugar and water at thirty degrees."},
        OWN[0],
    ]
    with pytest.raises(
        BadConversations, match="2 of 3 conversations have hardly a word in common with the document"
    ):
        read_conversations(lines(tmp_path / "c.jsonl", *other), TEXT, CHUNKS)


def header(tmp_path: Path) -> dict[str, Any]:
    save_conversations(tmp_path / "h.jsonl", MADE, TEXT, CHUNKS, {}, overwrite=True)
    read: dict[str, Any] = json.loads((tmp_path / "h.jsonl").read_text().splitlines()[0])
    return read


GOOD = {"question": "When?", "answer": "At seven.", "chunk": 0, "kind": "x"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 3: not JSON"),
        ("[]", "line 3: found a list; expected a JSON object"),
        ({**GOOD, "chunk": 99}, r"line 3: field 'chunk' is 99; expected a number below 3"),
        ({**GOOD, "chunk": True}, "line 3: field 'chunk' is true or false; expected the number"),
        ({**GOOD, "chunk": -1}, "line 3: field 'chunk' is a number; expected"),
        ({**GOOD, "kind": None}, "line 3: field 'kind' is null; expected text"),
        ({**GOOD, "answer": " "}, "line 3: target is empty"),
        ({**GOOD, "answer": None}, "line 3: target is null; expected text"),
        ({**GOOD, "question": [{"role": "user"}]}, "line 3: message 1 of the source"),
        ({**GOOD, "question": {"a": 1}}, "line 3: source is an object"),
    ],
)
def test_a_bad_line_of_a_saved_file_is_named(line: Any, message: str, tmp_path: Path) -> None:
    path = lines(tmp_path / "c.jsonl", header(tmp_path), GOOD, line)
    with pytest.raises(BadExamples, match=rf"c\.jsonl, {message}"):
        read_conversations(path, TEXT, CHUNKS)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        (
            {"q": 1, "answer": "x"},
            "line 2: found the fields 'q', 'answer'; expected question and answer, or messages",
        ),
        ({"question": 1, "answer": "x"}, "line 2: field 'question' is a number; expected text"),
        ({"question": "x", "answer": ""}, "line 2: target is empty"),
        ({"messages": []}, "line 2: the conversation is empty"),
        ({"messages": [{"role": "user", "content": "x"}]}, "line 2: no message of the assistant"),
    ],
)
def test_a_bad_line_of_a_users_own_file_is_named(line: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(BadExamples, match=rf"c\.jsonl, {message}"):
        read_conversations(lines(tmp_path / "c.jsonl", OWN[0], line), TEXT, CHUNKS)


def test_a_file_with_nothing_in_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadExamples, match=r"c\.jsonl is empty"):
        read_conversations(lines(tmp_path / "c.jsonl", "", " "), TEXT, CHUNKS)
    with pytest.raises(BadConversations, match="holds no conversation"):
        read_conversations(lines(tmp_path / "d.jsonl", header(tmp_path)), TEXT, CHUNKS)
    with pytest.raises(CannotRead, match="does not exist"):
        read_conversations(tmp_path / "none.jsonl", TEXT, CHUNKS)
    with pytest.raises(BadExamples, match="version 2 of conversations; this release reads 1"):
        read_conversations(
            lines(tmp_path / "e.jsonl", {**header(tmp_path), "foreword-conversations": 2}), TEXT, CHUNKS
        )
