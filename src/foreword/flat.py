"""Flat layout: rows of different length end to end in one row of the model, without padding.

Only attention needs to know where a row begins and ends; every other layer of a transformer works
token by token. So a batch of B rows runs as `[1, N]` real tokens, and attention alone sees `[B, T]`.

Shapes: B rows, T the longest row, N tokens in all, H heads, D head size.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class FlatLayout:
    """How N tokens divide into rows.

    Attributes:
        lengths: tokens of each row, in order; their sum is N.
        device: where the index tensors live.
    """

    lengths: tuple[int, ...]
    device: torch.device

    @property
    def rows(self) -> int:
        """B."""
        return len(self.lengths)

    @property
    def longest(self) -> int:
        """T."""
        return max(self.lengths)

    @functools.cached_property
    def lengths_B(self) -> torch.Tensor:
        """Tokens of each row as a tensor."""
        return torch.tensor(self.lengths, device=self.device)

    @functools.cached_property
    def starts_B(self) -> torch.Tensor:
        """Where each row begins among the N tokens."""
        return self.lengths_B.cumsum(0) - self.lengths_B

    @functools.cached_property
    def valid_BT(self) -> torch.Tensor:
        """True where a row has a token."""
        return torch.arange(self.longest, device=self.device)[None, :] < self.lengths_B[:, None]

    @functools.cached_property
    def _flat_index_BT(self) -> torch.Tensor:
        # Places beyond a row's end repeat its first token: any token will do, the mask closes them.
        steps = torch.arange(self.longest, device=self.device)[None, :] * self.valid_BT
        return (self.starts_B[:, None] + steps).flatten()

    @functools.cached_property
    def _row_index_N(self) -> torch.Tensor:
        return self.valid_BT.flatten().nonzero().flatten()

    def steps_N(self) -> torch.Tensor:
        """Each token's place within its row, from 0."""
        places = torch.arange(self.longest, device=self.device)[None, :].expand(self.rows, -1)
        return places.flatten()[self._row_index_N]

    def rows_N(self) -> torch.Tensor:
        """Each token's row."""
        return torch.arange(self.rows, device=self.device).repeat_interleave(self.lengths_B)

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
