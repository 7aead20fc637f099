"""How many characters a token may stand for: a bound that no text of any tokenizer breaks, or none."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from foreword.encoding import most_characters_per_token
from support.stand_ins import byte_tokenizer
from support.tokenizers_of_all_kinds import ALL_KINDS

TEXTS = (
    "can't stop, can't",
    " " * 300,
    "aaaaaaaaaa" * 30,
    "e\u0301" * 200,
    "\u03b1\u0313\u0300\u0345" * 50,
    "日本語" * 50,
)


def byte_level(merges: tuple[tuple[str, str], ...] = (), normalizer: Any = None) -> Any:
    pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(first + second for first, second in merges)]
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_the_longest_token_is_the_bound() -> None:
    assert most_characters_per_token(byte_level()) == 1
    assert most_characters_per_token(byte_level((("a", "a"), ("aa", "aa")))) == 4
    assert most_characters_per_token(byte_level((), normalizers.NFC())) == 4


@pytest.mark.parametrize(
    "tokenizer",
    [
        byte_level((("a", "a"), ("aa", "aa"))),
        byte_level((), normalizers.NFC()),
        byte_level((), normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" ", "__")])),
        *ALL_KINDS.values(),
    ],
)
def test_no_text_has_fewer_tokens_than_the_bound_says(tokenizer: Any) -> None:
    if (bound := most_characters_per_token(tokenizer)) is None:
        return
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert len(text) <= bound * len(ids)


def test_there_is_no_bound_where_characters_are_dropped_or_run_together() -> None:
    assert most_characters_per_token(byte_level((), normalizers.Strip())) is None
    assert most_characters_per_token(byte_level((), normalizers.Replace("  ", " "))) is None
    assert most_characters_per_token(byte_tokenizer()) is None  # drops what it has no letter for
    assert most_characters_per_token(object()) is None
    greedy = byte_level()
    greedy.add_tokens([AddedToken("<mark>", lstrip=True)])
    assert most_characters_per_token(greedy) is None
