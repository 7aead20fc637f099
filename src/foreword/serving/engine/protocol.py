"""The protocol of engines, which turn (prompt, prefix) rows into tokens, and what each checks of a row.

The gateway knows requests of people and their rights; an engine knows token ids and prefixes. Local
(transformers, in this process) and vLLM are behind the same calls and refuse the same rows.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal, Protocol

from foreword.base.base_model import BaseModel
from foreword.errors import UsageError, WindowExceeded
from foreword.grammar import Grammar
from foreword.prefix import Prefix

FinishReason = Literal["stop", "length"]
NO_TOKEN = -2
"""In place of a token of a row that is to have no new ones."""
STOPPING = "the engine is stopping and takes no new requests; try again later"
"""What EngineStopped says to a new row of an engine that lets its last ones finish."""


@dataclass(frozen=True)
class Sampling:
    """How tokens of one row are chosen.

    Attributes:
        max_tokens: at most this many new tokens; the engine ends earlier where the window ends. 0: the
            prompt is read, and that is all.
        temperature: 0 takes the likeliest token; above, samples.
        top_p: sample among the likeliest tokens of this share.
        seed: of sampling; the same seed, prompt and prefix give the same tokens whatever else runs.
        logprobs: how many of the likeliest tokens to give with each new one; None for no log-probabilities.
        min_tokens: no token that ends the text comes before this many, or the window's end.
        prompt_logprobs: the same as `logprobs`, of the prompt's own tokens.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    logprobs: int | None = None
    min_tokens: int = 0
    prompt_logprobs: int | None = None


@dataclass(frozen=True)
class Row:
    """One text to be continued.

    Attributes:
        prompt_ids: the whole prompt, template applied; at least one.
        prefix: what it stands behind; None for the bare base model.
        owner: whose request it is, so that owners can be served fairly and never share a cache.
        joined: digests of the stored prefixes that `prefix` joins; none for one that is stored itself.
        grammar: what its text has to be; None for any. Where nothing may follow, the text ends.
    """

    prompt_ids: tuple[int, ...]
    prefix: Prefix | None
    owner: str
    sampling: Sampling
    end_ids: frozenset[int]
    joined: tuple[str, ...] = ()
    grammar: Grammar | None = None

    @property
    def prefix_length(self) -> int:
        """P; 0 for the bare base model."""
        return 0 if self.prefix is None else self.prefix.length


Likeliest = tuple[tuple[int, float], ...]
"""Token ids with their log-probabilities."""


@dataclass(frozen=True)
class Token:
    """A new token of a row.

    Attributes:
        token_id: the token; the one that ended the text comes, too. `NO_TOKEN` of a row that has none.
        logprob: its log-probability before temperature, top_p and the row's grammar, where asked for.
        likeliest: (token id, log-probability) of the likeliest, where asked for.
        finish_reason: set on the last token of a row.
        prompt: on the first token of a row, where asked for: the log-probability of each of the prompt's
            tokens but its first, with the likeliest in that place.
    """

    token_id: int
    logprob: float | None = None
    likeliest: Likeliest = ()
    finish_reason: FinishReason | None = None
    prompt: tuple[tuple[float, Likeliest], ...] = ()


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


def check_row(base: BaseModel, row: Row, *, max_positions: int | None = None, where: str = "") -> int:
    """Refuse a row that no engine can run; how many new tokens it may have.

    Args:
        max_positions: for prefix and text, where an engine has fewer than the base.
        where: said behind the base's name when the prompt is too long.

    Raises:
        GeometryMismatch, WrongBaseModel: a prefix of another base.
        UsageError: a prefix that does not stand in front of the text, or a token without an embedding.
        WindowExceeded: the prompt leaves no room for a token.
    """
    base.per_row(row.prefix, rows=1)
    base.check_ids(row.prompt_ids, "the prompt")
    if row.prefix is not None and row.prefix.template.placement == "infix":
        raise UsageError(
            "the prefix is an infix, which stands behind the source; engines put a prefix in front. "
            "`foreword evaluate` measures infixes"
        )
    limits = (base.max_text_tokens(row.prefix_length), max_positions and max_positions - row.prefix_length)
    limit = min((limit for limit in limits if limit is not None), default=None)
    if limit is None:
        return row.sampling.max_tokens
    max_new_tokens = min(row.sampling.max_tokens, limit - len(row.prompt_ids))
    if max_new_tokens < min(1, row.sampling.max_tokens):
        raise WindowExceeded(
            f"the prompt has {len(row.prompt_ids)} tokens; {limit} fit in {base.shown_name}{where}"
            f"{base.window_note}, new tokens among them. Shorten it"
        )
    return max_new_tokens
