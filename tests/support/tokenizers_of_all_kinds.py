"""Tiny tokenizers of the kinds that language models have, each with an end token 0."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

LETTERS = "abcnst.,!?'"
END = "<end>"
SPECIAL = "<mark>"


def _finished(tokenizer: Tokenizer, **options: Any) -> Any:
    tokenizer.add_special_tokens([AddedToken(SPECIAL, special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, **options)


def byte_level_bpe() -> Any:
    """GPT-2, Llama 3, Qwen: a token per byte, and one of several characters."""
    letters = [END, *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "Ġa"]
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b"), ("Ġ", "a")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    # Llama 3's file asks for it, and transformers does it for no BPE.
    return _finished(tokenizer, clean_up_tokenization_spaces=True)


def byte_fallback() -> Any:
    """Llama 2, Mistral, Phi-3: characters that the vocabulary lacks are spelt by tokens of a byte each."""
    letters = [END, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁a", *LETTERS]
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("▁", "a")], byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]  # as Llama 2's file has it
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _finished(tokenizer)


def word_piece() -> Any:
    """BERT: spaces come with whole words, and are taken out in front of punctuation."""
    letters = [END, "<unk>", *LETTERS, *(f"##{letter}" for letter in LETTERS), "n't", "'s", "'m"]
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return _finished(tokenizer, unk_token="<unk>", clean_up_tokenization_spaces=True)


def unigram() -> Any:
    """T5, XLNet, mBART."""
    pieces = [END, "<unk>", "▁", "▁a", "▁.", "▁'", *LETTERS]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=1))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _finished(tokenizer, unk_token="<unk>", clean_up_tokenization_spaces=True)


ALL_KINDS = {
    "byte-level BPE": byte_level_bpe(),
    "byte fallback": byte_fallback(),
    "WordPiece": word_piece(),
    "Unigram": unigram(),
}
