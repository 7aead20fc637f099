"""Keys and values of rows that run together, each as long as it is, and attention of new tokens to them.

A pass reads tokens of many rows end to end, `[1, N]`: one of each row that is being continued, and parts of
texts that are still to be read. All layers but attention work token by token and need no padding. Attention
finds a row's keys and values in a block, which has room for C columns of each of a few rows. Rows of like
length share a block, and so a call of the kernel; a row that outgrows its block moves to another one. So no
row pays for the length of one that is much longer, and a block is never made larger: rows that come and go
copy no other row.

A row whose text is being read has a block of its own. With the last part of the text it takes a place
beside others. What a prefix holds stands in the columns in front of the text.

Shapes: B rows of a block, C columns that a row has room for, S columns of the longest row, N tokens of a
pass, T tokens of one row in it, Q query heads, H key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from foreword.base.batch import to_device
from foreword.base.prefix_batch import PrefixBatch

LEAST_ROOM, FINE_ROOM = 64, 512
"""Columns: room is a power of two from the first on, and from twice the second on a multiple of it. So few
sizes have to be told apart, and a row has room for twice its length at most."""

BLOCK_COLUMNS = 2048
"""Of all rows of a block together, if one row does not need more."""

Kernel = Callable[..., torch.Tensor]
"""Attention `[B, T, Q, D]` of queries `[B, Q, T, D]` to keys and values `[B, H, S, D]`, under a boolean
`mask=`, or None for no mask."""


def room_for(columns: int) -> int:
    """C, columns that are held for a row which has so many."""
    if columns > 2 * FINE_ROOM:
        return -(-columns // FINE_ROOM) * FINE_ROOM
    return max(LEAST_ROOM, 1 << (columns - 1).bit_length())


class RowBlock:
    """Places for a few rows that have at most `room` columns each; the rows stand in the first places."""

    def __init__(self, room: int, places: int) -> None:
        self.room = room
        self.places = places
        self.rows: list[RowStates] = []
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def layer(
        self, number: int, key_BHSD: torch.Tensor, value_BHSD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values `[B, H, C, D]` of one layer, made like those when first asked for.

        Zeros: what a masked column holds must be a number, since zero times infinity is none.
        """
        if number not in self.layers:
            key, value = (
                like.new_zeros(self.places, like.shape[1], self.room, like.shape[3])
                for like in (key_BHSD, value_BHSD)
            )
            self.layers[number] = key, value
        return self.layers[number]


@dataclass(eq=False)
class RowStates:
    """The keys and values of one row.

    Attributes:
        prefixes: those of this row alone, until they stand in the block; None for none.
        columns: that are filled; before the first pass, those of the prefix, which come with it.
    """

    prefixes: PrefixBatch | None
    columns: int
    block: RowBlock | None = None

    @property
    def place(self) -> int:
        """In its block."""
        assert self.block is not None
        return self.block.rows.index(self)


class RaggedCache:
    """The blocks of all rows that run."""

    def __init__(self) -> None:
        self._shared: dict[int, list[RowBlock]] = {}

    def reserve_alone(self, row: RowStates, columns: int) -> None:
        """A block of its own for a row whose text is to be read; it has so many columns then."""
        if row.block is None:
            row.block = RowBlock(room_for(columns), 1)
            row.block.rows.append(row)

    def reserve_shared(self, row: RowStates, columns: int) -> None:
        """A place beside other rows for a row of so many columns, with what it holds."""
        before, room = row.block, room_for(columns)
        if before is not None and before.room >= columns and before in self._shared.get(before.room, ()):
            return
        block = self._block_with_a_place(room)
        if before is not None:
            place = len(block.rows)
            for number, pair in before.layers.items():
                for to, source in zip(block.layer(number, *pair), pair, strict=True):
                    to[place, :, : row.columns] = source[row.place, :, : row.columns]
                    to[place, :, row.columns :] = 0
            self.release(row)
        block.rows.append(row)
        row.block = block
        blocks = self._shared.setdefault(room, [])
        if block not in blocks:
            blocks.append(block)

    def release(self, row: RowStates) -> None:
        """Let a row go; the last one of its size takes its place, which takes no memory."""
        block = row.block
        if block is None:
            return
        blocks = self._shared.get(block.room, [])
        if block in blocks:
            last = blocks[-1].rows[-1]
            place = row.place
            if last is not row:
                for number, pair in block.layers.items():
                    for to, source in zip(pair, blocks[-1].layers[number], strict=True):
                        to[place] = source[len(blocks[-1].rows) - 1]
            # Only now, so that a row which failed to move is still where it was.
            block.rows[place], last.block = last, block
            blocks[-1].rows.pop()
            if not blocks[-1].rows:
                blocks.pop()
        row.block = None

    def _block_with_a_place(self, room: int) -> RowBlock:
        blocks = self._shared.get(room)
        if blocks and len(blocks[-1].rows) < blocks[-1].places:
            return blocks[-1]
        return RowBlock(room, max(1, BLOCK_COLUMNS // room))


@dataclass
class _Part:
    """Tokens of a pass that stand side by side and whose rows have one block.

    Attributes:
        start: the first token, among the N.
        queries: T of each row; more than one only where the block has a single row.
        longest: S, when the pass is done.
    """

    block: RowBlock
    rows: Sequence[RowStates]
    start: int
    queries: int
    longest: int
    masks: dict[torch.device, torch.Tensor | None] = field(default_factory=dict)

    @property
    def end(self) -> int:
        return self.start + len(self.rows) * self.queries


class RaggedPass:
    """One pass over new tokens of many rows.

    Attributes:
        rows: in the order in which their tokens stand.
    """

    def __init__(self, reads: Mapping[RowStates, int]) -> None:
        """`reads`: rows with how many tokens are read of each; of those that share a block, one."""
        self._reads = reads
        self._parts: list[_Part] = []
        self._columns: dict[torch.device, torch.Tensor] = {}
        blocks = dict.fromkeys(row.block for row in reads)
        for block in blocks:
            assert block is not None
            queries, start = reads[block.rows[0]], self._parts[-1].end if self._parts else 0
            longest = max(row.columns for row in block.rows) + queries
            self._parts.append(_Part(block, tuple(block.rows), start, queries, longest))
        self.rows = [row for part in self._parts for row in part.rows]

    @property
    def columns(self) -> list[int]:
        """Of each of the N tokens, the column of its row where its keys and values come."""
        return [row.columns + step for row in self.rows for step in range(self._reads[row])]

    def use_columns(self, columns_N: torch.Tensor) -> None:
        """Take `columns` as they are on a device already."""
        self._columns[columns_N.device] = columns_N

    def attend(
        self,
        layer: int,
        query_1QND: torch.Tensor,
        key_1HND: torch.Tensor,
        value_1HND: torch.Tensor,
        kernel: Kernel,
    ) -> torch.Tensor:
        """Keep the new keys and values of a layer, and attend to all of each token's row, `[1, N, Q, D]`."""
        outputs = []
        for part in self._parts:
            key_BHCD, value_BHCD = part.block.layer(layer, key_1HND, value_1HND)
            query, key, value = (
                states[0, :, part.start : part.end] for states in (query_1QND, key_1HND, value_1HND)
            )
            if part.queries > 1 or len(part.rows) == 1:
                (row,) = part.rows
                if row.prefixes is not None:
                    length = row.prefixes.blocks["decoder"].longest
                    prefix = row.prefixes.blocks["decoder"].layer_on(layer, key.device)
                    key_BHCD[0, :, :length], value_BHCD[0, :, :length] = prefix[0][0], prefix[1][0]
                new = slice(row.columns, row.columns + part.queries)
                key_BHCD[0, :, new], value_BHCD[0, :, new] = key, value
                query_BQTD = query[None]
            else:
                end_B = self._columns_of(part, key.device)
                row_B = torch.arange(len(part.rows), device=key.device)
                key_BHCD[row_B, :, end_B] = key.transpose(0, 1)
                value_BHCD[row_B, :, end_B] = value.transpose(0, 1)
                query_BQTD = query.transpose(0, 1)[:, :, None]
            rows, columns = len(part.rows), slice(part.longest)
            mask = self._mask(part, key.device)
            output_BTQD = kernel(
                query_BQTD, key_BHCD[:rows, :, columns], value_BHCD[:rows, :, columns], mask=mask
            )
            outputs.append(output_BTQD.flatten(0, 1))
        return torch.cat(outputs)[None]

    def done(self) -> None:
        """The pass has been made: its tokens are columns now."""
        for row in self.rows:
            row.columns += self._reads[row]
            row.prefixes = None

    def _columns_of(self, part: _Part, device: torch.device) -> torch.Tensor:
        if device not in self._columns:
            self._columns[device] = to_device(torch.tensor(self.columns), device)
        return self._columns[device][part.start : part.end]

    def _mask(self, part: _Part, device: torch.device) -> torch.Tensor | None:
        """Which columns each token sees, `[B, 1, T, S]`; None: all."""
        if device not in part.masks:
            alone, alike = len(part.rows) == 1, len({row.columns for row in part.rows}) == 1
            part.masks[device] = None
            if part.queries > 1 or not alike:
                columns_S = torch.arange(part.longest, device=device)
                sees_NS = columns_S <= self._columns_of(part, device)[:, None]
                part.masks[device] = sees_NS[None, None] if alone else sees_NS[:, None, None]
        return part.masks[device]
