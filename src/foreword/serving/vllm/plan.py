"""Plan: which prefix goes into which blocks in the next step. Knows no server's classes.

Salts: under which names the cache's blocks are looked up, anew after every load that failed.

vLLM drops the blocks of a load that failed from its cache, but only those of requests that still run: where
the client has gone in the same step, blocks that nobody has written would be found by the next request. So a
failure ends everything that is cached under its salt.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
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


# -- Salts: under which names the cache's blocks are looked up, anew after every load that failed --


class CacheSalts:
    """Of one scheduler."""

    def __init__(self) -> None:
        self._of_block: dict[int, str] = {}
        self._failures: dict[str, int] = {}

    def now(self, salt: str) -> str:
        """The name under which a salt's blocks are looked up."""
        failures = self._failures.get(salt, 0)
        return f"{salt}#{failures}" if failures else salt

    def placed(self, blocks: Collection[int], salt: str) -> None:
        """A load for a request of that salt goes into these blocks."""
        self._of_block.update(dict.fromkeys(blocks, salt))

    def failed(self, blocks: Collection[int]) -> set[str]:
        """The salts of loads into these blocks, which did not succeed; they have other names from now on."""
        found = {self._of_block[block] for block in blocks if block in self._of_block}
        for salt in found:
            self._failures[salt] = self._failures.get(salt, 0) + 1
        return found
