"""The text of a row comes in pieces that are whole characters and no part of a stop text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from foreword.serving.engine.detokenizer import RowText, TextDelta
from foreword.serving.engine.protocol import Token

END = 0


def all_bytes_tokenizer() -> Any:
    """A token per byte: every other character takes several."""
    vocabulary = {
        "<end>": END,
        **{b: i + 1 for i, b in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))},
    }
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


TOKENIZER = all_bytes_tokenizer()


def pieces_of(ids: list[int], stop: tuple[str, ...] = (), *, reason: str = "length") -> list[TextDelta]:
    row = RowText(TOKENIZER, 0, frozenset({END}), stop)
    found = []
    for place, token in enumerate(ids):
        last = place == len(ids) - 1
        piece = row.add(Token(token, finish_reason=reason if last else None))  # type: ignore[arg-type]
        found += [piece] if piece is not None else []
        if row.ended:
            break
    return found


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_pieces_are_whole_characters_and_together_the_text(text: str) -> None:
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    pieces = pieces_of([*ids, END], reason="stop")
    assert "".join(piece.text for piece in pieces) == TOKENIZER.decode(ids)
    assert sum(piece.tokens for piece in pieces) == len(ids) + 1
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece.text for piece in pieces)


@settings(max_examples=300, deadline=None)
@given(
    st.text("abcé", min_size=1, max_size=20), st.lists(st.text("abcé", min_size=1, max_size=4), max_size=3)
)
def test_the_text_ends_at_the_first_stop_text(text: str, stop: list[str]) -> None:
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    pieces = pieces_of(ids, tuple(stop))
    # Whichever stop text is complete first ends the row; of those, the one that begins first cuts it.
    expected, reason = text, "length"
    for length in range(1, len(text) + 1):
        cuts = [text[:length].find(word) for word in stop if word in text[:length]]
        if cuts:
            expected, reason = text[: min(cuts)], "stop"
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
