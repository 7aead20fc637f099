"""Row text: the tokens of one row as text, handed out as soon as it is certain.

The same text as of the whole row decoded at its end, cut at the first stop text, in pieces that
never hold half a character or the beginning of a stop text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foreword.serving.engine.protocol import FinishReason, Token

UNFINISHED = "\ufffd"


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
        row: which.
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
    """The growing text of one row."""

    def __init__(self, tokenizer: Any, row: int, end_ids: frozenset[int], stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._row = row
        self._end_ids = end_ids
        self._stop = tuple(stop)
        self._ids: list[int] = []
        # Only the tokens since `_from` are decoded: those in front of `_read` are told already and
        # stay for one round, because a tokenizer may spell a token differently at the very start.
        self._from = 0
        self._read = 0
        self._held = ""
        self._tokens = 0
        self._logprobs: list[TokenText] = []
        self.ended = False

    def add(self, token: Token) -> TextDelta | None:
        """The next token; a piece when some text became certain or the row ended."""
        self._tokens += 1
        if token.token_id not in self._end_ids:
            self._ids.append(token.token_id)
            if token.logprob is not None:
                self._logprobs.append(self._token_text(token))
            self._held += self._decoded(final=token.finish_reason is not None)
        elif token.finish_reason is not None:
            self._held += self._decoded(final=True)
        reason = token.finish_reason
        if (cut := self._stopped()) is not None:
            self._held, reason = self._held[:cut], "stop"
        if reason is None:
            certain = len(self._held) - self._may_stop()
            if certain <= 0:
                return None
        else:
            certain, self.ended = len(self._held), True
        text, self._held = self._held[:certain], self._held[certain:]
        piece = TextDelta(self._row, text, self._tokens, tuple(self._logprobs), reason)
        self._tokens, self._logprobs = 0, []
        return piece

    def _decoded(self, *, final: bool) -> str:
        """Text that the newest tokens add; none while they end within a character."""
        before = self._text(self._ids[self._from : self._read])
        now = self._text(self._ids[self._from :])
        if not final and (len(now) <= len(before) or now.endswith(UNFINISHED)):
            return ""
        self._from, self._read = self._read, len(self._ids)
        return now[len(before) :]

    def _text(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True)) if ids else ""

    def _stopped(self) -> int | None:
        places = [place for word in self._stop if (place := self._held.find(word)) >= 0]
        return min(places, default=None)

    def _may_stop(self) -> int:
        """Characters at the end that may be the beginning of a stop text."""
        starts = [n for word in self._stop for n in range(1, len(word)) if self._held.endswith(word[:n])]
        return max(starts, default=0)

    def _token_text(self, token: Token) -> TokenText:
        likeliest = tuple((self._one(identifier), value) for identifier, value in token.likeliest)
        return TokenText(self._one(token.token_id), token.logprob or 0.0, likeliest)

    def _one(self, identifier: int) -> str:
        return str(self._tokenizer.decode([identifier]))
