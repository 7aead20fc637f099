"""Tokenizers built from GGUF, compared with the two algorithms written out by hand."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword.errors import CannotRead, UnsupportedArchitecture
from foreword.models import gguf
from foreword.models.cache_dir import model_folder
from foreword.models.gguf import merges_from_scores, tokenizer_from_gguf
from foreword.models.resolve import read_record

TEXTS = [
    "The capital of France is",
    "  two leading spaces, two trailing  ",
    "tabs\tand\n\nnew lines\r\n\n\n",
    "12345 and 6,789.01",
    "def f(x):\n    return {'a': [x, 1]}  # comment\n",
    "emoji 👩‍👩‍👧‍👦 🇫🇷 👍🏽 and é, e\u0301, ß, Ω",
    "日本語 テスト, العربية, हिन्दी, русский",
    "it's we're I'LL don't",
    "a , b . c ! d",
    "",
    " ",
]


# -- byte-level BPE by hand ------------------------------------------------------------------------

# GPT-2's rule (encoder.py of openai/gpt-2).
GPT2 = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


def bytes_as_characters() -> dict[int, str]:
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}


CHARACTER = bytes_as_characters()


def merged(pieces: list[str], rank: dict[tuple[str, str], int]) -> list[str]:
    while len(pieces) > 1:
        pairs = list(itertools.pairwise(pieces))
        best = min(pairs, key=lambda pair: rank.get(pair, 1 << 60))
        if best not in rank:
            break
        at = pairs.index(best)
        pieces = [*pieces[:at], pieces[at] + pieces[at + 1], *pieces[at + 2 :]]
    return pieces


def byte_level_by_hand(text: str, vocabulary: dict[str, int], rank: dict[tuple[str, str], int]) -> list[int]:
    ids = []
    for part in regex.findall(r"\p{N}|\P{N}+", text):  # every digit alone
        for word in GPT2.findall(part):
            characters = [CHARACTER[byte] for byte in word.encode() if CHARACTER[byte] in vocabulary]
            ids += [vocabulary[piece] for piece in merged(characters, rank)]
    return ids


# -- SentencePiece's BPE by hand -------------------------------------------------------------------


def by_score_by_hand(text: str, pieces: list[str], scores: list[float], whole: list[str]) -> list[str]:
    """Join the neighbours whose union scores best, leftmost first; bytes for what is left over."""
    score = dict(zip(pieces, scores, strict=True))
    out: list[str] = []
    pattern = regex.compile(
        "|".join(regex.escape(w) for w in sorted(whole, key=len, reverse=True)) or r"\b\B"
    )
    at = 0
    text = text.replace(" ", "▁")
    for match in [*pattern.finditer(text), None]:
        symbols = list(text[at : match.start() if match else len(text)])
        while True:
            unions = [
                (-score[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(symbols)) if a + b in score
            ]
            if not unions:
                break
            _, i = min(unions)
            symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
        for symbol in symbols:
            out += [symbol] if symbol in score else [f"<0x{byte:02X}>" for byte in symbol.encode()]
        if match:
            out.append(match.group())
            at = match.end()
    return out


# Pieces that are never split. No merge leads to the last one, and it is there only after spaces
# were replaced.
WHOLE = ["\n\n", "<b>", "▁▁▁", "g▁f"]


def sentencepiece_fields() -> dict[str, Any]:
    learned = ["▁t", "he", "▁the", "in", "ing", "▁in", "th", "▁▁", "an"]
    letters = list("▁abcdefghint.\n")
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", *WHOLE]
    types = [3] * 4 + [4] * len(WHOLE)
    pieces += [f"<0x{byte:02X}>" for byte in range(256)] + learned + letters
    types += [6] * 256 + [1] * (len(learned) + len(letters))
    scores = (
        [-1000.0] * (4 + len(WHOLE))
        + [0.0] * 256
        + [-float(i) for i in range(len(learned))]
        + [-100.0] * len(letters)
    )
    return {
        "general.architecture": "gemma3",
        "gemma3.context_length": 64,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": False,
    }


# -- promises --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def byte_level(tiny_gguf) -> Any:
    return tokenizer_from_gguf(gguf.read_fields(tiny_gguf.path))


@pytest.fixture(scope="module")
def sentencepiece() -> Any:
    return tokenizer_from_gguf(sentencepiece_fields())


def test_text_gets_no_special_token(byte_level) -> None:
    assert byte_level("x")["input_ids"] == byte_level("x", add_special_tokens=False)["input_ids"]
    assert len(byte_level("x")["input_ids"]) == 1


def test_special_tokens_are_those_of_the_file(byte_level) -> None:
    named = byte_level.bos_token_id, byte_level.eos_token_id, byte_level.pad_token_id, byte_level.unk_token_id
    assert named == (1, 2, 2, 0)
    assert byte_level("a<|im_end|>b")["input_ids"][1] == 2
    assert byte_level.decode([2], skip_special_tokens=True) == ""


def test_digits_stand_alone(byte_level) -> None:
    """The vocabulary has a merge of "1 2" and one of "Ġ 1", which the rule for digits forbids."""
    assert byte_level.tokenize("12 12") == ["1", "2", "Ġ", "1", "2"]


def test_chat_template_is_the_files(byte_level) -> None:
    rendered = byte_level.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert rendered == "<|im_start|>user\nhi<|im_end|>\n"


def test_saved_tokenizer_comes_back_the_same(byte_level, tiny_gguf, tmp_path: Path) -> None:
    """Beside a config.json that says llama, from which transformers would guess another class."""
    from transformers import AutoTokenizer

    tiny_gguf.model.config.save_pretrained(tmp_path)
    byte_level.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is type(byte_level)
    assert loaded.chat_template == byte_level.chat_template
    for text in TEXTS:
        assert loaded(text)["input_ids"] == byte_level(text)["input_ids"]


@pytest.mark.parametrize("text", TEXTS)
def test_byte_level_text_comes_back_exactly(byte_level, text: str) -> None:
    assert byte_level.decode(byte_level(text)["input_ids"]) == text


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_byte_level_agrees_with_the_algorithm(byte_level, text: str) -> None:
    model = json.loads(byte_level.backend_tokenizer.to_str())["model"]
    rank = {tuple(merge): n for n, merge in enumerate(model["merges"])}
    assert byte_level(text)["input_ids"] == byte_level_by_hand(text, model["vocab"], rank)


@given(st.text(alphabet="abthegf   \n<>ß👍") | st.text())
@settings(max_examples=200, deadline=None)
def test_sentencepiece_agrees_with_the_algorithm(sentencepiece, text: str) -> None:
    fields = sentencepiece_fields()
    pieces, scores = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.scores"]
    normal = [p for p, kind in zip(pieces, fields["tokenizer.ggml.token_type"], strict=True) if kind == 1]
    normal_scores = [
        s for s, kind in zip(scores, fields["tokenizer.ggml.token_type"], strict=True) if kind == 1
    ]
    by_hand = by_score_by_hand(text, normal, normal_scores, WHOLE)
    ids = sentencepiece(text, add_special_tokens=False)["input_ids"]
    assert sentencepiece.convert_ids_to_tokens(ids) == by_hand
    assert sentencepiece.decode(ids) == text.replace("▁", " ")


def test_pieces_with_spaces_are_found_whole(sentencepiece) -> None:
    assert sentencepiece.tokenize("a   bg f") == ["a", "▁▁▁", "b", "g▁f"]


def test_sentencepiece_text_begins_with_its_token(sentencepiece) -> None:
    assert sentencepiece("the")["input_ids"][0] == sentencepiece.bos_token_id == 2


def test_merges_put_the_best_score_first() -> None:
    assert merges_from_scores(["a", "b", "ab", "abb"], [0.0, 0.0, -2.0, -1.0]) == [("ab", "b"), ("a", "b")]


@pytest.mark.parametrize(
    "change",
    [{"tokenizer.ggml.model": "bert"}, {"tokenizer.ggml.pre": "other", "tokenizer.ggml.model": "gpt2"}],
)
def test_unknown_kind_is_refused(change: dict[str, str]) -> None:
    with pytest.raises(UnsupportedArchitecture, match=r"bert|other"):
        tokenizer_from_gguf({**sentencepiece_fields(), **change})


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model at all, but long enough to look"])
def test_file_that_is_no_gguf_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(CannotRead, match=r"x\.gguf"):
        gguf.read_fields(tmp_path / "x.gguf")


# -- the real ones ---------------------------------------------------------------------------------

# The vocabulary has no token for these bytes, in the published tokenizer neither: control characters,
# and the first byte of characters in planes that Unicode has not assigned.
SMOLLM_KNOWS = st.text(
    st.characters(
        exclude_characters="\x04\x06\x13\x14\x16\x1d",
        exclude_categories=["Cs"],
    ).filter(lambda character: not 0x40000 <= ord(character) < 0xC0000)
)


@pytest.fixture(scope="module")
def smollm_tokenizer(smollm_path: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm_path)


@pytest.fixture(scope="module")
def smollm_bpe(smollm_path: Path) -> tuple[dict[str, int], dict[tuple[str, str], int]]:
    model = json.loads((smollm_path / "tokenizer.json").read_text())["model"]
    merges = [merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"]]
    return model["vocab"], {tuple(merge): n for n, merge in enumerate(merges)}


@pytest.mark.real_model
def test_smollm_known_strings_have_the_published_ids(smollm_tokenizer) -> None:
    """Ids that the published tokenizer gives, as found in other projects' test data."""
    assert smollm_tokenizer("The capital of France is")["input_ids"] == [504, 3575, 282, 4649, 314]
    assert smollm_tokenizer("Once upon a time")["input_ids"] == [6403, 1980, 253, 655]


@pytest.mark.real_model
def test_smollm_special_tokens(smollm_tokenizer) -> None:
    ids = smollm_tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    assert ids == [0, 1, 2]
    assert (smollm_tokenizer.bos_token_id, smollm_tokenizer.eos_token_id, smollm_tokenizer.pad_token_id) == (
        1,
        2,
        2,
    )
    chat = smollm_tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, tokenize=False
    )
    assert chat.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.real_model
@pytest.mark.parametrize("text", TEXTS)
def test_smollm_text_comes_back_exactly(smollm_tokenizer, text: str) -> None:
    assert smollm_tokenizer.decode(smollm_tokenizer(text)["input_ids"]) == text


@pytest.mark.real_model
@given(SMOLLM_KNOWS)
@settings(max_examples=300, deadline=None)
def test_smollm_agrees_with_the_algorithm(smollm_tokenizer, smollm_bpe, text: str) -> None:
    ids = smollm_tokenizer(text)["input_ids"]
    assert ids == byte_level_by_hand(text, *smollm_bpe)
    assert smollm_tokenizer.decode(ids) == text


@pytest.fixture(scope="module")
def gemma_tokenizer() -> Any:
    from transformers import AutoTokenizer

    if read_record(model_folder("gemma3-270m")) is None:
        pytest.skip("run `foreword pull gemma3-270m` to test its tokenizer")
    return AutoTokenizer.from_pretrained(model_folder("gemma3-270m"))


@pytest.mark.real_model
def test_gemma_known_strings_have_the_published_ids(gemma_tokenizer) -> None:
    """Ids that the published tokenizer gives, as found in other projects' test data."""
    assert gemma_tokenizer("The capital of France is")["input_ids"] == [2, 818, 5279, 529, 7001, 563]
    assert gemma_tokenizer("The capital of Germany is")["input_ids"] == [2, 818, 5279, 529, 9405, 563]


@pytest.mark.real_model
@pytest.mark.parametrize("text", TEXTS)
def test_gemma_text_comes_back_exactly(gemma_tokenizer, text: str) -> None:
    ids = gemma_tokenizer(text)["input_ids"]
    assert gemma_tokenizer.decode(ids, skip_special_tokens=True) == text
