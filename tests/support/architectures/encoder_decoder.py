"""The encoder-decoders that work, each with an encoder less deep than its decoder."""

from __future__ import annotations

from typing import Any

from support.architectures.decoder_only import SOFT_CAP, VISIBLE
from support.architectures.zoo import DECODER_ONLY, WINDOW, Architecture


def _seq2seq(name: str, model_type: str, note: str = "", **settings: Any) -> Architecture:
    return Architecture(name, model_type, settings, note, kind="encoder-decoder")


def _gemma_side(layers: int) -> dict[str, Any]:
    sizes = {**DECODER_ONLY, "num_hidden_layers": layers, "sliding_window": WINDOW}
    return {**sizes, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 5.0}


ENCODER_DECODER_WORKING: tuple[Architecture, ...] = (
    _seq2seq("BART", "bart"),
    _seq2seq("mBART", "mbart"),
    _seq2seq("Marian, OPUS-MT", "marian"),
    _seq2seq("Pegasus", "pegasus"),
    _seq2seq("Blenderbot", "blenderbot"),
    _seq2seq("Blenderbot-Small", "blenderbot-small"),
    _seq2seq("PLBart", "plbart"),
    _seq2seq("M2M-100, NLLB", "m2m_100"),
    _seq2seq("T5, FLAN-T5, ByT5", "t5", "position bias as it is for the text, none for the prefix"),
    _seq2seq("mT5", "mt5", "as T5"),
    _seq2seq("UMT5", "umt5", "as T5, a bias in every layer"),
    _seq2seq(
        "T5Gemma",
        "t5gemma",
        f"{SOFT_CAP}; {VISIBLE}; the prefix does not move the text's rotary positions",
        encoder=_gemma_side(2),
        decoder=_gemma_side(3),
        tie_word_embeddings=True,
    ),
)
