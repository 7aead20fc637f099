"""The text of a row comes in pieces that are whole characters and no part of a stop text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from foreword.sampling import UNFINISHED
from foreword.serving.engine.detokenizer import RowText, TextDelta
from foreword.serving.engine.protocol import Token
from support.tokenizers_of_all_kinds import ALL_KINDS

END = 0


TOKENIZER = ALL_KINDS["byte-level BPE"]
CHARACTERS = st.one_of(
    st.sampled_from("abcnst.,!?' \n"), st.sampled_from("é€😀"), st.characters(exclude_categories=["Cs"])
)


def pieces_of(
    ids: list[int], stop: tuple[str, ...] = (), *, reason: str = "length", tokenizer: Any = TOKENIZER
) -> list[TextDelta]:
    row = RowText(tokenizer, 0, frozenset({END}), stop)
    found = []
    for place, token in enumerate(ids):
        last = place == len(ids) - 1
        piece = row.add(Token(token, finish_reason=reason if last else None))  # type: ignore[arg-type]
        found += [piece] if piece is not None else []
        if row.ended:
            break
    return found


@pytest.mark.parametrize("kind", ALL_KINDS)
@settings(max_examples=100, deadline=None)
@given(text=st.text(CHARACTERS, min_size=1, max_size=20))
def test_pieces_are_whole_characters_and_together_the_text(kind: str, text: str) -> None:
    tokenizer = ALL_KINDS[kind]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = pieces_of([*ids, END], reason="stop", tokenizer=tokenizer)
    assert "".join(piece.text for piece in pieces) == tokenizer.decode(ids, skip_special_tokens=True)
    assert sum(piece.tokens for piece in pieces) == len(ids) + 1
    if UNFINISHED not in text:
        assert not any(UNFINISHED in piece.text for piece in pieces)


@pytest.mark.parametrize("kind", ALL_KINDS)
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_pieces_of_tokens_that_no_tokenizer_would_write_are_together_their_text(
    kind: str, data: st.DataObject
) -> None:
    """As models write them: bytes that are no characters, special tokens in between, spaces anywhere."""
    tokenizer = ALL_KINDS[kind]
    often = [
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("😀", "é", " a", ".", " '", "a")
    ]
    usual = st.sampled_from(sorted({token for ids in often for token in ids}))
    anyone = st.integers(1, len(tokenizer) - 1)
    ids = data.draw(st.lists(st.one_of(usual, anyone), min_size=1, max_size=20))
    pieces = pieces_of([*ids, END], reason="stop", tokenizer=tokenizer)
    assert "".join(piece.text for piece in pieces) == tokenizer.decode(ids, skip_special_tokens=True)


def test_bytes_that_are_no_character_together_are_not_told_as_one_before() -> None:
    """With byte fallback a byte that fits nothing undoes the whole character in front of it."""
    tokenizer = ALL_KINDS["byte fallback"]
    names = ["a", "<0xC3>", "<0xA9>", "<0xFF>", "b", "<0xC3>", "<0xA9>", "b"]
    ids = tokenizer.convert_tokens_to_ids(names)
    pieces = [piece.text for piece in pieces_of([*ids, END], reason="stop", tokenizer=tokenizer)]
    assert pieces == ["a", UNFINISHED * 3 + "b", "éb", ""]


def test_a_word_is_told_when_the_next_one_begins_where_spaces_are_taken_out() -> None:
    tokenizer = ALL_KINDS["WordPiece"]
    ids = tokenizer.convert_tokens_to_ids(["a", "##b", "'", "s", ".", "b"])
    pieces = [piece.text for piece in pieces_of([*ids, END], reason="stop", tokenizer=tokenizer)]
    assert "".join(pieces) == tokenizer.decode(ids) == "ab's. b"
    assert [text for text in pieces if text] == ["ab", "'s", ".", " b"]


@example("bab", ["a", "bab"])
@settings(max_examples=300, deadline=None)
@given(
    st.text("abcé", min_size=1, max_size=20), st.lists(st.text("abcé", min_size=1, max_size=4), max_size=3)
)
def test_the_text_ends_at_the_first_stop_text(text: str, stop: list[str]) -> None:
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    pieces = pieces_of(ids, tuple(stop))
    # Whichever stop text is complete first ends the row; of those that one token completes ("ab" is one), the
    # one that begins first cuts it.
    expected, reason = text, "length"
    for count in range(1, len(ids) + 1):
        told = TOKENIZER.decode(ids[:count]).rstrip(UNFINISHED)
        cuts = [told.find(word) for word in stop if word in told]
        if cuts:
            expected, reason = told[: min(cuts)], "stop"
            break
    assert "".join(piece.text for piece in pieces) == expected
    assert pieces[-1].finish_reason == reason
    assert all(piece.finish_reason is None for piece in pieces[:-1])


def test_a_text_that_ends_within_a_character_says_so() -> None:
    ids = TOKENIZER("aé", add_special_tokens=False)["input_ids"]
    assert "".join(piece.text for piece in pieces_of(ids[:-1])) == "a\ufffd"


@pytest.mark.parametrize("stop", ["xyz", "zz"])
def test_what_may_be_a_stop_text_is_held_back_and_told_when_it_is_none(stop: str) -> None:
    pieces = pieces_of(TOKENIZER("abxyabzb", add_special_tokens=False)["input_ids"], (stop,))
    assert "".join(piece.text for piece in pieces) == "abxyabzb"
    told = ""
    for piece in pieces[:-1]:
        told += piece.text
        assert not any(told.endswith(stop[:n]) for n in range(1, len(stop)))
