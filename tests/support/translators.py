"""Tiny encoder-decoders with tokenizers of their own kind, which put special tokens around sources and targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    BartTokenizer,
    M2M100Config,
    MarianConfig,
    MBartConfig,
    MBartTokenizer,
    NllbTokenizer,
    PegasusConfig,
    PegasusTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5Tokenizer,
)

from foreword import BaseModel

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PIECES = [("▁", -1.0), *((letter, -1.0) for letter in LETTERS)]
FOUR = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]


class TwoVocabularies(PreTrainedTokenizerFast):
    """As Marian's tokenizer, which needs sentencepiece: a source and its target are split by different models."""

    def __init__(self) -> None:
        self._sides = [_unigram([*PIECES, ("ab", 0.0)]), _unigram([*PIECES, ("dc", 0.0)])]
        super().__init__(
            tokenizer_object=self._sides[0], eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
        )

    def _switch_to_input_mode(self) -> None:
        self._tokenizer = self._sides[0]

    def _switch_to_target_mode(self) -> None:
        self._tokenizer = self._sides[1]


def _unigram(pieces: list[tuple[str, float]]) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram([("</s>", 0.0), ("<unk>", 0.0), ("<pad>", 0.0), *pieces], unk_id=1))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    return tokenizer


def _nllb() -> NllbTokenizer:
    vocabulary = {piece: place for place, (piece, _) in enumerate(FOUR + PIECES)}
    codes = {"additional_special_tokens": ["eng_Latn", "fra_Latn", "deu_Latn"]}
    return NllbTokenizer(vocab=vocabulary, **codes, src_lang="eng_Latn", tgt_lang="fra_Latn")


def _mbart() -> MBartTokenizer:
    codes = [("en_XX", 0.0), ("ro_RO", 0.0), ("<mask>", 0.0)]
    return MBartTokenizer(vocab=FOUR + PIECES + codes, src_lang="en_XX", tgt_lang="ro_RO")


def _bart() -> BartTokenizer:
    pieces = [("Ġ", 0.0), *PIECES[1:]]
    return BartTokenizer(vocab={piece: place for place, (piece, _) in enumerate(FOUR + pieces)}, merges=[])


def _pegasus() -> PegasusTokenizer:
    return PegasusTokenizer(
        vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("<mask_2>", 0.0), *PIECES], offset=4
    )


def _t5() -> T5Tokenizer:
    return T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *PIECES], extra_ids=2)


_BART = {
    "d_model": 16,
    **{
        f"{side}_{what}": size
        for side in ("encoder", "decoder")
        for what, size in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 24))
    },
    "max_position_embeddings": 64,
    "init_std": 0.3,
}
_OF_FOUR = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
_T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "initializer_factor": 2.0}
_FAMILIES: dict[str, tuple[Callable[[], Any], Any, dict[str, Any]]] = {
    "t5": (_t5, T5Config, {**_T5, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}),
    "bart": (_bart, BartConfig, {**_BART, **_OF_FOUR, "decoder_start_token_id": 2}),
    # Without decoder_start_token_id, as mBART's pretrained checkpoints: the language is the first token.
    "mbart": (_mbart, MBartConfig, {**_BART, **_OF_FOUR}),
    "nllb": (_nllb, M2M100Config, {**_BART, **_OF_FOUR, "decoder_start_token_id": 2}),
    "marian": (
        TwoVocabularies,
        MarianConfig,
        {**_BART, "pad_token_id": 2, "eos_token_id": 0, "decoder_start_token_id": 2},
    ),
    "pegasus": (
        _pegasus,
        PegasusConfig,
        {**_BART, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0},
    ),
}
FAMILIES = tuple(_FAMILIES)


def translator(family: str) -> tuple[Any, Any]:
    """A model with random weights, the same in every call, and its tokenizer."""
    tokenizer, config, settings = _FAMILIES[family]
    made = tokenizer()
    torch.manual_seed(0)
    whole = config(vocab_size=len(made), forced_eos_token_id=None, **settings)
    return AutoModelForSeq2SeqLM.from_config(whole).eval(), made


def translator_base(family: str) -> BaseModel:
    """The same as a base model."""
    return BaseModel(*translator(family), name=f"tiny-{family}")
