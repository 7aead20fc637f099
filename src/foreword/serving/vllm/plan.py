"""Which prefix goes into which blocks of vLLM's cache in the next step. Knows no server's classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from foreword.errors import ForewordError
from foreword.serving.vllm import ticket


@dataclass(frozen=True)
class PrefixRequest:
    """The prefix that a request asks for.

    Attributes:
        length: P.
        refusal: why it gets nothing; None where the signature holds.
    """

    digest: str
    length: int
    refusal: str | None = None


@dataclass(frozen=True)
class Load:
    """Tokens `start` to `stop` of a request, to be written in one step.

    Attributes:
        blocks: those that hold them; vLLM gets these when the load fails.
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


def prefix_request(
    secret: str, params: object, salt: str | None, token_ids: Sequence[int], *, reads_cache: bool
) -> PrefixRequest | None:
    """What a request asks for; None for one without prefix.

    Args:
        params: its `kv_transfer_params`.
        reads_cache: false where the server would compute the whole prompt anew, placeholders as if they
            were text (for log-probabilities of the prompt).
    """
    try:
        signed = ticket.read(params)
        if signed is None:
            return None
        ticket.verify(secret, signed, salt, token_ids)
    except ForewordError as error:
        return _refused(str(error), token_ids)
    if not reads_cache:
        return _refused("there are no log-probabilities of a prefix", token_ids)
    return PrefixRequest(signed.digest, signed.length)


def _refused(why: str, token_ids: Sequence[int]) -> PrefixRequest:
    """All but the last token: the connector lets it find nothing in the cache, so there is a load to fail."""
    return PrefixRequest("", len(token_ids) - 1, why)


def tokens_to_load(request: PrefixRequest | None, computed: int) -> int:
    """Tokens to be loaded for a request of which vLLM's cache holds the first `computed`.

    vLLM shares whole blocks only, so it may hold a part of a prefix, and text behind it too.
    """
    return 0 if request is None else max(0, request.length - computed)


def load(name: str, request: PrefixRequest, block_ids: Sequence[int], block_size: int, count: int) -> Load:
    """The last `count` tokens of the prefix into the request's blocks.

    `name` is the request's id; `block_ids` are its blocks, in the order of its tokens.
    """
    start, stop = request.length - count, request.length
    return Load(
        request=name,
        digest=request.digest,
        start=start,
        stop=stop,
        blocks=blocks_between(block_ids, block_size, start, stop),
        slots=slots(block_ids, block_size, start, stop),
        refusal=request.refusal,
    )


def slots(block_ids: Sequence[int], block_size: int, start: int, stop: int) -> list[int]:
    """Slots of the tokens `start` to `stop` of a request whose blocks are `block_ids`.

    A slot is a token's place in the cache as a whole: blocks lie one behind the other, those of one request
    in no order, so a token's slot is its block's first one and its place within the block.
    """
    return [block_ids[token // block_size] * block_size + token % block_size for token in range(start, stop)]


def blocks_between(block_ids: Sequence[int], block_size: int, start: int, stop: int) -> list[int]:
    """The blocks that hold the tokens `start` to `stop`; the first and last may hold others beside them."""
    return list(block_ids[start // block_size : -(-stop // block_size)])  # rounded down, and up


class CacheSalts:
    """Under which names one scheduler looks up the cache's blocks: anew after every load that failed.

    vLLM drops the blocks of a load that failed from its cache, but only those of requests that still run:
    where the client has gone in the same step, blocks that nobody has written would be found by the next
    request. So a failure ends everything that is cached under its salt.
    """

    def __init__(self) -> None:
        self._of_block: dict[int, str] = {}
        self._failures: Counter[str] = Counter()

    def now(self, salt: str) -> str:
        """The name under which a salt's blocks are looked up."""
        failures = self._failures[salt]
        return f"{salt}#{failures}" if failures else salt

    def placed(self, blocks: Collection[int], salt: str) -> None:
        """A load for a request of that salt goes into these blocks."""
        self._of_block.update(dict.fromkeys(blocks, salt))

    def failed(self, blocks: Collection[int]) -> set[str]:
        """The salts of loads into these blocks, which did not succeed; they have other names from now on."""
        salts = {self._of_block[block] for block in blocks if block in self._of_block}
        self._failures.update(salts)
        return salts
