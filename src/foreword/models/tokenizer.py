"""Tokenizers built from the vocabulary in a GGUF file.

transformers guesses a tokenizer class from the model's architecture, so a LLaMA-shaped model with a
GPT-2 tokenizer gets LLaMA's and produces garbled text. Here the tokenizer is put together from what
the file says about itself (`tokenizer.ggml.model` and `tokenizer.ggml.pre`), and a kind that this
page does not know is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foreword.errors import UnsupportedArchitecture

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Token types as llama.cpp numbers them (enum llama_token_type in llama.h).
CONTROL = 3
USER_DEFINED = 4

SPACE = "\u2581"  # SentencePiece writes a space as this character

# What llama.cpp calls the pre-tokenizers that are GPT-2's with every digit a word of its own
# (llama-vocab.cpp: the regular expressions "\p{N}" and then GPT-2's).
DIGITS_APART = ("smollm",)
PLAIN_GPT2 = ("gpt-2", "gpt2", "default")


def tokenizer_from_gguf(fields: dict[str, Any]) -> Any:
    """Build a transformers fast tokenizer from the metadata of a GGUF file.

    Args:
        fields: metadata of the file as plain values, see `conversion.read_fields`.

    Raises:
        UnsupportedArchitecture: a kind of tokenizer that is not known here.
    """
    from transformers import PreTrainedTokenizerFast

    kind = fields.get("tokenizer.ggml.model")
    if kind == "gpt2":
        tokenizer = _byte_level(fields)
    elif kind == "llama":
        tokenizer = _byte_fallback(fields)
    else:
        raise UnsupportedArchitecture(
            f"the GGUF file has a tokenizer of the kind {kind!r}; Foreword builds 'gpt2' and 'llama'. "
            "Use a model folder with its own tokenizer.json instead"
        )
    _add_special_tokens(tokenizer, fields)
    _add_frame(tokenizer, fields)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,  # would eat the space in " ," and break the round trip
        model_max_length=_context_length(fields),
        **_named_tokens(fields),
    )
    if template := fields.get("tokenizer.chat_template"):
        wrapped.chat_template = template
    return wrapped


def _byte_level(fields: dict[str, Any]) -> Tokenizer:
    """GPT-2's: every byte is a character of the vocabulary, merges are listed."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    split = fields.get("tokenizer.ggml.pre", "default")
    if split not in DIGITS_APART + PLAIN_GPT2:
        raise UnsupportedArchitecture(
            f"the GGUF file splits text by the rule {split!r}; Foreword knows {DIGITS_APART + PLAIN_GPT2}. "
            "Use a model folder with its own tokenizer.json instead"
        )
    pieces: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(line.split(" ", 1)) for line in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges))
    bytes_as_characters = pre_tokenizers.ByteLevel(
        add_prefix_space=bool(fields.get("tokenizer.ggml.add_space_prefix", False))
    )
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytes_as_characters])
        if split in DIGITS_APART
        else bytes_as_characters
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _byte_fallback(fields: dict[str, Any]) -> Tokenizer:
    """SentencePiece's BPE: merges follow from the scores, unknown characters become byte pieces."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    pieces: list[str] = fields["tokenizer.ggml.tokens"]
    unknown = pieces[fields.get("tokenizer.ggml.unknown_token_id", 0)]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=merges_from_scores(pieces, fields["tokenizer.ggml.scores"]),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix_space = bool(fields.get("tokenizer.ggml.add_space_prefix", True))
    spaces = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = (
        normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefix_space else spaces
    )
    # Nothing is left to split after the normalizer; the rule stands as in the published tokenizers
    # of this family, where it keeps one call of the merge loop from seeing the whole text.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    steps: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix_space:
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def merges_from_scores(pieces: list[str], scores: list[float]) -> list[tuple[str, str]]:
    """The merge list that makes plain BPE choose what SentencePiece chooses by score.

    SentencePiece joins the neighbours whose union has the best score. A list of all pairs that give
    a piece, best piece first, says the same; among pairs of one piece the order of their halves in
    the vocabulary decides, as in the conversion that published tokenizers went through.
    """
    ids = {piece: i for i, piece in enumerate(pieces)}
    ranked: list[tuple[float, int, int, str, str]] = []
    for piece, score in zip(pieces, scores, strict=True):
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in ids and right in ids:
                ranked.append((-score, ids[left], ids[right], left, right))
    ranked.sort()
    return [(left, right) for *_, left, right in ranked]


def _add_special_tokens(tokenizer: Tokenizer, fields: dict[str, Any]) -> None:
    from tokenizers import AddedToken

    special, always_whole = [], []
    for piece, kind in zip(fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"], strict=True):
        if kind == CONTROL:
            special.append(AddedToken(piece, special=True, normalized=False))
        elif kind == USER_DEFINED:
            # Found in the normalized text: SentencePiece looks for them there, spaces already replaced.
            always_whole.append(AddedToken(piece, special=False, normalized=True))
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(always_whole)


def _add_frame(tokenizer: Tokenizer, fields: dict[str, Any]) -> None:
    """The tokens that the model expects around every text."""
    from tokenizers import processors

    names = _named_tokens(fields)
    before = [names["bos_token"]] if fields.get("tokenizer.ggml.add_bos_token", False) else []
    after = [names["eos_token"]] if fields.get("tokenizer.ggml.add_eos_token", False) else []
    if before or after:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after],
            pair=[*before, "$A", *after, *before, "$B", *after],
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in dict.fromkeys(before + after)],
        )


def _named_tokens(fields: dict[str, Any]) -> dict[str, str]:
    pieces: list[str] = fields["tokenizer.ggml.tokens"]
    keys = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    found = {name: fields.get(f"tokenizer.ggml.{key}_token_id") for name, key in keys.items()}
    return {name: pieces[i] for name, i in found.items() if i is not None}


def _context_length(fields: dict[str, Any]) -> int:
    return int(fields[f"{fields['general.architecture']}.context_length"])
