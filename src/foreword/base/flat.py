"""Flat layout: rows of different length end to end in one row of the model, without padding or repetition.

Only attention needs to know which tokens make a row; every other layer of a transformer works token by
token. So a batch of B rows runs as `[1, N]` real tokens, and attention alone sees `[B, T]`. Rows that
begin alike under the same prefix have the same states there, so those tokens are computed once and stand
in all of these rows: references to one source, chats with one system prompt.

Shapes: B rows, T the longest row, N distinct tokens in all, H heads, D head size.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class FlatLayout:
    """Which of N tokens make each row.

    Attributes:
        tokens: of each row the places among the N, in the row's order.
        device: where the index tensors live.
    """

    tokens: tuple[tuple[int, ...], ...]
    device: torch.device

    @property
    def rows(self) -> int:
        """B."""
        return len(self.tokens)

    @functools.cached_property
    def longest(self) -> int:
        """T."""
        return max(len(row) for row in self.tokens)

    @functools.cached_property
    def seats(self) -> tuple[tuple[int, int], ...]:
        """Of each of the N tokens one (row, place in it) where it stands."""
        found: dict[int, tuple[int, int]] = {}
        for row, tokens in enumerate(self.tokens):
            for place, token in enumerate(tokens):
                found.setdefault(token, (row, place))
        return tuple(found[token] for token in range(len(found)))

    @functools.cached_property
    def valid_BT(self) -> torch.Tensor:
        """True where a row has a token."""
        lengths_B = torch.tensor([len(row) for row in self.tokens], device=self.device)
        return torch.arange(self.longest, device=self.device)[None, :] < lengths_B[:, None]

    @functools.cached_property
    def _flat_index_BT(self) -> torch.Tensor:
        # Places beyond a row's end repeat its first token: any token will do, the mask closes them.
        padded = [[*row, *(row[:1] * (self.longest - len(row)))] for row in self.tokens]
        return torch.tensor(padded, device=self.device).flatten()

    @functools.cached_property
    def _row_index_N(self) -> torch.Tensor:
        return torch.tensor([row * self.longest + place for row, place in self.seats], device=self.device)

    def of_rows(self, tokens_N: torch.Tensor) -> torch.Tensor:
        """`[N]` to `[B, T]`."""
        return tokens_N.index_select(0, self._flat_index_BT).view(self.rows, self.longest)

    def to_rows(self, states_1HND: torch.Tensor) -> torch.Tensor:
        """`[1, H, N, D]` to `[B, H, T, D]`."""
        _, heads, _, size = states_1HND.shape
        gathered = states_1HND[0].transpose(0, 1).index_select(0, self._flat_index_BT)
        return gathered.view(self.rows, self.longest, heads, size).transpose(1, 2)

    def to_flat(self, states_BTHD: torch.Tensor) -> torch.Tensor:
        """`[B, T, H, D]` to `[1, N, H, D]`."""
        return states_BTHD.flatten(0, 1).index_select(0, self._row_index_N)[None]


def lay_out(texts: Sequence[Sequence[int]], kinds: Sequence[int | None], device: torch.device) -> FlatLayout:
    """A layout of B texts (token ids) in which texts of one kind share the tokens that they begin with.

    Args:
        kinds: of each text; those of different kinds share nothing, those of kind None not even with
            each other.
    """
    # In sorted order, a text shares most with the one before it.
    order = sorted(range(len(texts)), key=lambda row: (-1 if (k := kinds[row]) is None else k, texts[row]))
    tokens: list[tuple[int, ...]] = [()] * len(texts)
    count, before = 0, None
    for row in order:
        alike = 0
        if before is not None and kinds[row] is not None and kinds[row] == kinds[before]:
            pairs = zip(texts[before], texts[row], strict=False)
            alike = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        new = len(texts[row]) - alike
        tokens[row] = (*(tokens[before][:alike] if before is not None else ()), *range(count, count + new))
        count, before = count + new, row
    return FlatLayout(tuple(tokens), device)
