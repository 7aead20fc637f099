"""From a GGUF file to a folder of safetensors, config and tokenizer that transformers loads like any other.

Weights are unpacked to float32, as GGUF defines the values; float16 or bfloat16 would round them once more.

transformers guesses a tokenizer class from the model's architecture, so a LLaMA-shaped model with a
GPT-2 tokenizer gets LLaMA's and produces garbled text. Here the tokenizer is put together from what
the file says about itself (`tokenizer.ggml.model` and `tokenizer.ggml.pre`), and a kind that this
file does not know is refused.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foreword.errors import CannotRead, UnsupportedArchitecture

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
        fields: metadata of the file as plain values, see `read_fields`.

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
        model_max_length=int(fields[f"{fields['general.architecture']}.context_length"]),
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
    ids = {name: fields.get(f"tokenizer.ggml.{key}_token_id") for name, key in keys.items()}
    return {name: pieces[i] for name, i in ids.items() if i is not None}


def read_fields(gguf: Path) -> dict[str, Any]:
    """Metadata of a GGUF file as plain values.

    Raises:
        CannotRead: it is absent, cut off, or no GGUF file.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(gguf)
        return {name: field.contents() for name, field in reader.fields.items()}
    except (OSError, ValueError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise CannotRead(f"{gguf} can't be read as a GGUF file: {error}") from error


def convert(gguf: Path, folder: Path) -> None:
    """Write model and tokenizer of `gguf` into the empty `folder`.

    Raises:
        CannotRead: no GGUF file.
        UnsupportedArchitecture: transformers or Foreword can't read this kind of model.
        OSError: `folder` can't be written.
    """
    tokenizer = tokenizer_from_gguf(read_fields(gguf))
    with _quiet():
        _dense_model(gguf).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _dense_model(gguf: Path) -> Any:
    """A plain float32 model with the file's weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, **_unpacked()
        )
    except (ValueError, KeyError, NotImplementedError) as error:
        raise UnsupportedArchitecture(f"{gguf.name} can't be turned into a model: {error}") from error
    settings = loaded.config.to_dict()
    # The loaded model calls itself quantized and refuses to be saved, so its (already dense) weights
    # move to a model that never was.
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path", "model_type"):
        settings.pop(key, None)
    config = AutoConfig.for_model(loaded.config.model_type, **settings)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict(), strict=True, assign=True)
    model.tie_weights()
    if wrong := [name for name, value in model.named_parameters() if value.dtype != torch.float32]:
        raise UnsupportedArchitecture(f"{gguf.name}: {wrong[0]} was not unpacked to float32")
    return model


def _unpacked() -> dict[str, Any]:
    """Ask for dense weights, where transformers would otherwise keep the packed blocks."""
    try:
        from transformers import GgufConfig
    except ImportError:  # before packed loading existed, every load was dense
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' advice on quantized models and its progress bars off the user's screen.

    One of the bars listens to no setting, hence the redirection; errors are raised, not printed.
    """
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
