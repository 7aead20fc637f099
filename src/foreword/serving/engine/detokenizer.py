"""The tokens of one row as text for an answer: pieces with counts, log-probabilities and why it ended."""

from __future__ import annotations

import codecs
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from foreword.sampling import UNFINISHED, Detokenizer
from foreword.serving.engine.protocol import NO_TOKEN, FinishReason, Likeliest, Token


@dataclass(frozen=True)
class Spelling:
    """A token alone.

    Attributes:
        text: as decoded; of a part of a character, the replacement character.
        bytes: what it adds to the UTF-8 of a text, real for a part of a character, too.
    """

    text: str
    bytes: bytes

    @property
    def key(self) -> str:
        """A name by the bytes; where they are no characters, `bytes:` and their escapes, as OpenAI does."""
        try:
            return self.bytes.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in self.bytes)


@dataclass(frozen=True)
class TokenText:
    """A token with its log-probability, as text.

    Attributes:
        spelling: of the token alone.
        logprob: natural logarithm; None of a prompt's first token.
        likeliest: the likeliest tokens in its place.
        offset: characters of the text in front of it; in front of its character, if it is a part of
            one that began before.
    """

    spelling: Spelling
    logprob: float | None
    likeliest: tuple[tuple[Spelling, float], ...]
    offset: int


@dataclass(frozen=True)
class TextDelta:
    """Some text of a row.

    Attributes:
        text: what is certain beyond the pieces before; may be empty.
        tokens: new tokens in it.
        logprobs: of those, where asked for; the token that ends a text has none.
        finish_reason: on the last piece of a row.
    """

    row: int
    text: str
    tokens: int
    logprobs: tuple[TokenText, ...] = ()
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class Echo:
    """The prompt of a row, that its text is to begin with.

    Attributes:
        ids: its tokens, where their log-probabilities are asked for.
    """

    text: str
    ids: tuple[int, ...] = ()


class RowText:
    """The growing text of one row, with what was counted and asked for beside it."""

    def __init__(
        self,
        tokenizer: Any,
        row: int,
        end_ids: frozenset[int],
        stop: Sequence[str],
        echo: Echo | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._row = row
        self._end_ids = end_ids
        self._special = frozenset(tokenizer.all_special_ids) if echo is not None else frozenset()
        self._text = Detokenizer(tokenizer, stop)
        self._tokens = 0
        self._logprobs: list[TokenText] = []
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._length = 0
        self._echo = echo
        self.ended = False

    def add(self, token: Token) -> TextDelta | None:
        """The next token; a piece when some text became certain or the row ended."""
        nothing = token.token_id == NO_TOKEN
        self._tokens += not nothing
        final, ends = token.finish_reason is not None, nothing or token.token_id in self._end_ids
        front = self._prompt(token)
        if not ends and token.logprob is not None:
            self._spell(token.token_id, token.logprob, token.likeliest)
        text = front + self._text.add(None if ends else token.token_id, final=final)
        reason = "stop" if self._text.stopped else token.finish_reason
        if reason is None and not text:
            return None
        self.ended = reason is not None
        piece = TextDelta(self._row, text, self._tokens, tuple(self._logprobs), reason)
        self._tokens, self._logprobs = 0, []
        return piece

    def _prompt(self, first: Token) -> str:
        """The text of the prompt, where it is to be said and was not yet."""
        if (echo := self._echo) is None:
            return ""
        self._echo = None
        beginning: tuple[float | None, Likeliest] = (None, ())
        for token, (logprob, likeliest) in zip(echo.ids, (beginning, *first.prompt), strict=bool(echo.ids)):
            self._spell(token, logprob, likeliest)
        self._length = len(echo.text)
        return echo.text

    def _spell(self, token: int, logprob: float | None, likeliest: Likeliest) -> None:
        spelling = spell(self._tokenizer, token)
        spelled = tuple((spell(self._tokenizer, each), value) for each, value in likeliest)
        self._logprobs.append(TokenText(spelling, logprob, spelled, self._length))
        if token not in self._special:
            self._length += len(self._characters.decode(spelling.bytes))


_BYTE = re.compile("<0x([0-9A-F]{2})>")
_SPACE = "▁"
"""What stands for a space in the vocabularies of SentencePiece."""


def spell(tokenizer: Any, token: int) -> Spelling:
    """Text and bytes of a token alone, for the kinds of tokenizers that models have."""
    text = str(tokenizer.decode([token]))
    piece = str(tokenizer.convert_ids_to_tokens(token))
    if (byte := _BYTE.fullmatch(piece)) is not None:  # byte fallback
        return Spelling(text, bytes.fromhex(byte[1]))
    if UNFINISHED in text and all(letter in _byte_letters() for letter in piece):
        return Spelling(text, bytes(_byte_letters()[letter] for letter in piece))
    if piece.startswith(_SPACE) and not text.startswith(" "):  # which decoding takes off what begins a text
        text = f" {text}"
    return Spelling(text, text.encode())


@functools.cache
def _byte_letters() -> dict[str, int]:
    """The byte that each letter stands for in byte-level BPE."""
    return {letter: byte for byte, letter in bytes_to_unicode().items()}
