"""The tokens of one row as text for an answer: pieces with counts, log-probabilities and why it ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foreword.sampling import Detokenizer
from foreword.serving.engine.protocol import FinishReason, Token


@dataclass(frozen=True)
class TokenText:
    """A token with its log-probability, as text.

    Attributes:
        text: the token alone, decoded.
        logprob: natural logarithm.
        likeliest: the likeliest tokens in its place.
    """

    text: str
    logprob: float
    likeliest: tuple[tuple[str, float], ...]


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


class RowText:
    """The growing text of one row, with what was counted and asked for beside it."""

    def __init__(self, tokenizer: Any, row: int, end_ids: frozenset[int], stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._row = row
        self._end_ids = end_ids
        self._text = Detokenizer(tokenizer, stop)
        self._tokens = 0
        self._logprobs: list[TokenText] = []
        self.ended = False

    def add(self, token: Token) -> TextDelta | None:
        """The next token; a piece when some text became certain or the row ended."""
        self._tokens += 1
        final, ends = token.finish_reason is not None, token.token_id in self._end_ids
        if not ends and token.logprob is not None:
            likeliest = tuple((self._one(identifier), value) for identifier, value in token.likeliest)
            self._logprobs.append(TokenText(self._one(token.token_id), token.logprob, likeliest))
        text = self._text.add(None if ends else token.token_id, final=final)
        reason = "stop" if self._text.stopped else token.finish_reason
        if reason is None and not text:
            return None
        self.ended = reason is not None
        piece = TextDelta(self._row, text, self._tokens, tuple(self._logprobs), reason)
        self._tokens, self._logprobs = 0, []
        return piece

    def _one(self, identifier: int) -> str:
        return str(self._tokenizer.decode([identifier]))
