"""Engine: what turns (prompt, prefix) rows into tokens, behind one protocol.

The gateway knows requests of people and their rights; an engine knows token ids and prefixes. Local
(transformers, in this process) and vLLM are behind the same calls.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal, Protocol

from foreword.prefix import Prefix

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Sampling:
    """How tokens of one row are chosen.

    Attributes:
        max_tokens: at most this many new tokens; the engine ends earlier where the window ends.
        temperature: 0 takes the likeliest token; above, samples.
        top_p: sample among the likeliest tokens of this share.
        seed: of sampling; the same seed, prompt and prefix give the same tokens whatever else runs.
        logprobs: how many of the likeliest tokens to tell with each new one; None for no log-probabilities.
        min_tokens: no token that ends the text comes before this many, or the window's end.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    logprobs: int | None = None
    min_tokens: int = 0


@dataclass(frozen=True)
class Row:
    """One text to be continued.

    Attributes:
        prompt_ids: the whole prompt, template applied; at least one.
        prefix: what it stands behind; None for the bare base model.
        owner: whose request it is, so that owners can be served fairly and never share a cache.
        sampling: how tokens are chosen.
        end_ids: tokens that end the text.
    """

    prompt_ids: tuple[int, ...]
    prefix: Prefix | None
    owner: str
    sampling: Sampling
    end_ids: frozenset[int]


@dataclass(frozen=True)
class Token:
    """A new token of a row.

    Attributes:
        token_id: the token; the one that ended the text is told, too.
        logprob: its log-probability before temperature and top_p, where asked for.
        likeliest: (token id, log-probability) of the likeliest, where asked for.
        finish_reason: set on the last token of a row.
    """

    token_id: int
    logprob: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()
    finish_reason: FinishReason | None = None


class Engine(Protocol):
    """Turns rows into tokens; all rows that are asked for at one time share batches."""

    def stream(self, row: Row) -> AsyncIterator[Token]:
        """The row's tokens as they come; closing the iterator frees the row.

        Raises:
            WindowExceeded: the prompt leaves no room for a token; before the first token.
            EngineStopped: the engine was closed meanwhile.
        """
        ...

    def ready(self) -> bool:
        """Whether it takes rows: it was not closed and has not failed for good."""
        ...

    async def close(self) -> None:
        """Let running rows finish, take no new ones, and free what is held."""
        ...
