"""Salts: under which names the cache's blocks are looked up, anew after every load that failed.

vLLM drops the blocks of a load that failed from its cache, but only those of requests that still run: where
the client has gone in the same step, blocks that nobody has written would be found by the next request. So a
failure ends everything that is cached under its salt.
"""

from __future__ import annotations

from collections.abc import Collection


class Salts:
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
