"""Plan: which prefix goes into which blocks in the next step. Knows no server's classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from foreword.errors import ForewordError
from foreword.serving.vllm import ticket as tickets
from foreword.serving.vllm.pages import blocks_between, missing, slots


@dataclass(frozen=True)
class Asked:
    """What a request asks for.

    Attributes:
        digest: of the prefix.
        length: P.
        refusal: why it gets nothing; None for a ticket that holds.
    """

    digest: str
    length: int
    refusal: str | None = None


@dataclass(frozen=True)
class Load:
    """Tokens `start` to `stop` of a request, to be written in one step.

    Attributes:
        blocks: those that hold them; told to the server when the load fails.
        slots: one for each token.
        refusal: why nothing is to be loaded, and the load to be failed.
    """

    request: str
    digest: str
    start: int
    stop: int
    blocks: list[int]
    slots: list[int]
    refusal: str | None = None


def asked(
    secret: str, params: object, salt: str | None, token_ids: Sequence[int], *, reads_cache: bool
) -> Asked | None:
    """What a request asks for; None for one without prefix.

    Args:
        params: its `kv_transfer_params`.
        reads_cache: false where the server would compute the whole prompt anew, placeholders as if they
            were text (for log-probabilities of the prompt).
    """
    try:
        ticket = tickets.read(params)
        if ticket is None:
            return None
        tickets.verify(secret, ticket, salt, token_ids)
    except ForewordError as error:
        return _refused(str(error), token_ids)
    if not reads_cache:
        return _refused("there are no log-probabilities of a prefix", token_ids)
    return Asked(ticket.digest, ticket.length)


def _refused(why: str, token_ids: Sequence[int]) -> Asked:
    """All but the last token: the connector lets it find nothing in the cache, so there is a load to fail."""
    return Asked("", len(token_ids) - 1, why)


def load(request: str, want: Asked, block_ids: Sequence[int], block_size: int, count: int) -> Load:
    """The last `count` tokens of the prefix into the request's blocks."""
    start, stop = want.length - count, want.length
    return Load(
        request=request,
        digest=want.digest,
        start=start,
        stop=stop,
        blocks=blocks_between(block_ids, block_size, start, stop),
        slots=slots(block_ids, block_size, start, stop),
        refusal=want.refusal,
    )


def to_load(want: Asked | None, computed: int) -> int:
    """Tokens to be loaded for a request of which the cache holds the first `computed`."""
    return 0 if want is None else missing(computed, want.length)
