"""The prefixes of one batch: what each row sees in front of its text.

Distinct prefixes are stacked once and rows point at them, so a batch of 16 rows with one prefix
holds one copy. Prefixes of different length are padded to the longest and the padding is hidden.

Shapes: R distinct prefixes, B rows, T text tokens, L layers, H key/value heads, P longest prefix,
D head size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch.nn.functional import pad

from foreword.base.batch import take
from foreword.errors import UsageError
from foreword.prefix import Positions, Prefix, Stream
from foreword.template import Placement

KeyValuePair = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of one stream, each `[L, H, P, D]`."""

KeyValues = dict[Stream, KeyValuePair]
"""Keys and values of all streams of one prefix, as tensors; in training with a gradient."""

WITHIN_WINDOW: Positions = "text-after-prefix-within-window"


@dataclass(frozen=True)
class StreamBlock:
    """One stream's keys and values of R distinct prefixes.

    Attributes:
        key_RLHPD, value_RLHPD: the stacked prefixes, zero where a shorter one ends.
        lengths: the true length of each of the R prefixes.
    """

    key_RLHPD: torch.Tensor
    value_RLHPD: torch.Tensor
    lengths: tuple[int, ...]

    @property
    def longest(self) -> int:
        """P."""
        return int(self.key_RLHPD.shape[3])

    @cached_property
    def layers(self) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        """Keys and values `[R, H, P, D]` of each layer.

        Taken apart once: the gradient of a single layer taken by its index is as large as all layers.
        """
        return tuple(zip(self.key_RLHPD.unbind(1), self.value_RLHPD.unbind(1), strict=True))


@dataclass(frozen=True)
class PrefixBatch:
    """The prefixes of a batch.

    Attributes:
        blocks: per stream, the distinct prefixes.
        of_row: for each row, which of the R prefixes it has, or None.
        infixes: those of the R that are seen by the target alone, not by the source.
        within_window: those of the R that a sliding window sees from no farther than it reaches.
    """

    blocks: dict[Stream, StreamBlock]
    of_row: tuple[int | None, ...]
    infixes: frozenset[int] = frozenset()
    within_window: frozenset[int] = frozenset()

    @classmethod
    def stack(cls, prefixes: Sequence[Prefix | None], device: torch.device) -> PrefixBatch | None:
        """From one prefix (or None) per row; None when no row has any.

        The same object given for several rows is stacked once.
        """
        # By identity, within this call alone: hashing the tensors of every row would cost more than a copy.
        distinct: dict[int, Prefix] = {id(p): p for p in prefixes if p is not None}
        if not distinct:
            return None
        place = {identity: index for index, identity in enumerate(distinct)}
        stacked = list(distinct.values())
        return cls.from_tensors(
            [{s: (p.key(s).to(device), p.value(s).to(device)) for s in p.streams} for p in stacked],
            [None if p is None else place[id(p)] for p in prefixes],
            [prefix.template.placement for prefix in stacked],
            [prefix.positions for prefix in stacked],
        )

    @classmethod
    def from_tensors(
        cls,
        distinct: Sequence[Mapping[Stream, KeyValuePair]],
        of_row: Sequence[int | None],
        placements: Sequence[Placement],
        positions: Sequence[Positions],
    ) -> PrefixBatch:
        """From keys and values `[L, H, P, D]`, through which gradients flow back in training.

        Args:
            distinct: R prefixes; a stream that one of them lacks has no virtual tokens there.
            of_row: for each row, which of them it has, or None.
            placements, positions: of each of the R prefixes.
        """
        blocks: dict[Stream, StreamBlock] = {}
        for stream in dict.fromkeys(stream for each in distinct for stream in each):
            some_key, some_value = next(each[stream] for each in distinct if stream in each)
            empty = (some_key[:, :, :0], some_value[:, :, :0])
            keys, values = zip(*(each.get(stream, empty) for each in distinct), strict=True)
            lengths = tuple(int(key_LHPD.shape[2]) for key_LHPD in keys)
            blocks[stream] = StreamBlock(_stack_padded(keys), _stack_padded(values), lengths)
        return cls(blocks, tuple(of_row), _with("infix", placements), _with(WITHIN_WINDOW, positions))

    def only(self, places: Sequence[int]) -> PrefixBatch:
        """Those of some rows, padded to the same length as before, so that they fit a cache that is there."""
        return replace(self, of_row=tuple(self.of_row[place] for place in places))

    def lengths(self, stream: Stream) -> tuple[int, ...]:
        """The prefix length of every row in one stream; 0 for rows without."""
        if stream not in self.blocks:
            return (0,) * len(self.of_row)
        lengths = self.blocks[stream].lengths
        return tuple(0 if index is None else lengths[index] for index in self.of_row)

    def sharing_groups(self) -> tuple[int | None, ...]:
        """Equal for rows whose text meets the same prefix; None for one whose source does not see it."""
        none = len(self.of_row)
        return tuple(none if i is None else None if i in self.infixes else i for i in self.of_row)

    def rows(self, stream: Stream, layer: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values `[B, H, P, D]` of one layer in a stream that has a block; zeros for rows without.

        A row without a prefix sees none of it, but what is multiplied by nothing must be a number all the
        same: not infinite or NaN as another row's keys could be.

        `like` has B rows, or a multiple of B where beam search repeats every row that many times, and
        gives device and dtype: layers of one model can live on different devices.
        """
        block = self.blocks[stream]
        places = self._repeated(like.shape[0])
        # Cast last: gradients of rows that have one prefix are summed before they are rounded, if ever.
        key_BHPD, value_BHPD = (
            _gather(part.to(like.device), places, like.dtype) for part in block.layers[layer]
        )
        return key_BHPD, value_BHPD

    def visible(
        self, stream: Stream, rows: int, queries: int, device: torch.device, target_starts: Sequence[int] = ()
    ) -> torch.Tensor:
        """Which virtual tokens each of T = `queries` tokens sees: `[rows, T, P]`, or `[rows, 1, P]` for all.

        Args:
            rows: B, or a multiple.
            target_starts: of each of the B rows the first token that sees an infix, counted as Python
                counts: -1 is the last of this pass.
        """
        block, of_row = self.blocks[stream], self._repeated(rows)
        lengths_B = torch.tensor([0 if i is None else block.lengths[i] for i in of_row], device=device)
        visible_BP = torch.arange(block.longest, device=device)[None, :] < lengths_B[:, None]
        if self.infixes.isdisjoint(of_row):
            return visible_BP[:, None, :]
        if len(target_starts) != len(self.of_row):
            raise UsageError("a row has an infix, but nobody says where its target begins")
        times = rows // len(self.of_row)
        begins = [place % queries for place in target_starts for _ in range(times)]
        first_B = torch.tensor(
            [begin if index in self.infixes else 0 for begin, index in zip(begins, of_row, strict=True)],
            device=device,
        )
        answers_BT = torch.arange(queries, device=device)[None, :] >= first_B[:, None]
        return visible_BP[:, None, :] & answers_BT[:, :, None]

    def farthest(self, window: int, rows: int, device: torch.device) -> torch.Tensor | None:
        """The position from which a window sees each row's prefix at the farthest, `[rows]`; None: from all.

        A token at position t sees keys at t - window + 1 and behind it, so from position window - 1 it sees
        all of the prefix. One that is longer than the window is seen from where the text starts.
        """
        of_row = self._repeated(rows)
        if self.within_window.isdisjoint(of_row):
            return None
        lengths, anywhere = self.blocks["decoder"].lengths, torch.iinfo(torch.long).max
        limits = [
            max(window - 1, lengths[index]) if index is not None and index in self.within_window else anywhere
            for index in of_row
        ]
        return torch.tensor(limits, device=device)

    def _repeated(self, rows: int) -> tuple[int | None, ...]:
        times, rest = divmod(rows, len(self.of_row))
        if rest:
            raise UsageError(f"the model computes {rows} rows but there are prefixes for {len(self.of_row)}")
        return tuple(index for index in self.of_row for _ in range(times))


def _with(rule: str, rules: Sequence[str]) -> frozenset[int]:
    return frozenset(index for index, each in enumerate(rules) if each == rule)


def _gather(states_RHPD: torch.Tensor, places: Sequence[int | None], dtype: torch.dtype) -> torch.Tensor:
    """`[B, H, P, D]`: for each row the prefix it points at or zeros, without a copy where that can be."""
    distinct = states_RHPD.shape[0]
    if None in places:
        states_RHPD = torch.cat([states_RHPD, torch.zeros_like(states_RHPD[:1])])
    elif list(places) == list(range(distinct)):
        return states_RHPD.to(dtype)
    index_B = torch.tensor([distinct if i is None else i for i in places], device=states_RHPD.device)
    return take(states_RHPD, index_B, dtype)


def _stack_padded(parts_LHPD: Sequence[torch.Tensor]) -> torch.Tensor:
    """`[R, L, H, P, D]`, zero where a shorter prefix ends."""
    longest = max(part.shape[2] for part in parts_LHPD)
    return torch.stack([pad(part, (0, 0, 0, longest - part.shape[2])) for part in parts_LHPD])
