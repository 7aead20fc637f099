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

from foreword.errors import UsageError
from foreword.prefix import Positions, Prefix
from foreword.prefix_sizes import Stream, stream_of
from foreword.template import Placement

KeyValuePair = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of one stream, each `[L, H, P, D]`; of one layer, `[H, P, D]`."""

KeyValues = dict[str, KeyValuePair]
"""Keys and values of one prefix by place (prefix_sizes.py): of each stream or, where sizes differ by layer,
of each of its layers. In training with a gradient."""

WITHIN_WINDOW: Positions = "text-after-prefix-within-window"


@dataclass(frozen=True)
class StreamBlock:
    """One stream's keys and values of R distinct prefixes.

    Attributes:
        key_RLHPD, value_RLHPD: the stacked prefixes, zero where a shorter one ends; where sizes differ by
            layer, `[R, H, P, D]` of each layer.
        lengths: the true length of each of the R prefixes.
    """

    key_RLHPD: torch.Tensor | tuple[torch.Tensor, ...]
    value_RLHPD: torch.Tensor | tuple[torch.Tensor, ...]
    lengths: tuple[int, ...]

    @property
    def longest(self) -> int:
        """P."""
        return int(self.layers[0][0].shape[2])

    @property
    def distinct(self) -> int:
        """R."""
        return int(self.layers[0][0].shape[0])

    @cached_property
    def layers(self) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        """Keys and values `[R, H, P, D]` of each layer.

        Taken apart once: the gradient of a single layer taken by its index is as large as all layers.
        """
        keys, values = (
            part if isinstance(part, tuple) else part.unbind(1) for part in (self.key_RLHPD, self.value_RLHPD)
        )
        return tuple(zip(keys, values, strict=True))

    def layer_on(self, layer: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values `[R, H, P, D]` of one layer, where that layer is."""
        key_RHPD, value_RHPD = self.layers[layer]
        return key_RHPD.to(device), value_RHPD.to(device)


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
            [
                {
                    place: (_moved(key, device), _moved(value, device))
                    for place, (key, value) in p.key_values().items()
                }
                for p in stacked
            ],
            [None if p is None else place[id(p)] for p in prefixes],
            [prefix.template.placement for prefix in stacked],
            [prefix.positions for prefix in stacked],
        )

    @classmethod
    def from_tensors(
        cls,
        distinct: Sequence[Mapping[str, KeyValuePair]],
        of_row: Sequence[int | None],
        placements: Sequence[Placement] = (),
        positions: Sequence[Positions] = (),
    ) -> PrefixBatch:
        """From keys and values by place, through which gradients flow back in training.

        Args:
            distinct: R prefixes; a stream that one of them lacks has no virtual tokens there.
            of_row: for each row, which of them it has, or None.
            placements, positions: of each of the R prefixes; left out: in front of the text, and seen from
                everywhere.
        """
        stacked: dict[Stream, dict[str, KeyValuePair]] = {}
        lengths: dict[Stream, tuple[int, ...]] = {}
        for place in dict.fromkeys(place for each in distinct for place in each):
            some_key, some_value = next(each[place] for each in distinct if place in each)
            empty = (some_key[..., :0, :], some_value[..., :0, :])
            keys, values = zip(*(each.get(place, empty) for each in distinct), strict=True)
            stacked.setdefault(stream_of(place), {})[place] = _stack_padded(keys), _stack_padded(values)
            lengths[stream_of(place)] = tuple(int(key.shape[-2]) for key in keys)
        blocks: dict[Stream, StreamBlock] = {}
        for stream, pairs in stacked.items():
            key, value = pairs[stream] if stream in pairs else zip(*pairs.values(), strict=True)
            blocks[stream] = StreamBlock(key, value, lengths[stream])
        return cls(blocks, tuple(of_row), _with("infix", placements), _with(WITHIN_WINDOW, positions))

    def only(self, places: Sequence[int]) -> PrefixBatch:
        """Those of some rows, padded to the same length as before, so that they fit a cache that is there."""
        return replace(self, of_row=tuple(self.of_row[place] for place in places))

    def key_values(self) -> list[KeyValues]:
        """Keys and values of each of the R prefixes, without padding; gradients flow through them."""
        found: list[KeyValues] = [{} for _ in range(max(block.distinct for block in self.blocks.values()))]
        for stream, block in self.blocks.items():
            # Taken apart once: the gradient of a single prefix taken by its index is as large as all.
            if isinstance(block.key_RLHPD, torch.Tensor) and isinstance(block.value_RLHPD, torch.Tensor):
                stacked = {str(stream): (block.key_RLHPD, block.value_RLHPD)}
            else:
                stacked = {f"{stream}.{layer}": pair for layer, pair in enumerate(block.layers)}
            for place, pair in stacked.items():
                both = zip(*(states.unbind(0) for states in pair), strict=True)
                for own, length, (key, value) in zip(found, block.lengths, both, strict=True):
                    own[place] = key[..., :length, :], value[..., :length, :]
        return found

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

    def rows(
        self, stream: Stream, layer: int, like: torch.Tensor, index_B: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values `[B, H, P, D]` of one layer in a stream that has a block; zeros for rows without.

        A row without a prefix sees none of it, but what is multiplied by nothing must be a number all the
        same: not infinite or NaN as another row's keys could be.

        Args:
            like: has B rows, or a multiple of B where beam search repeats every row that many times, and
                gives device and dtype: layers of one model can live on different devices.
            index_B: `row_places` of so many rows, as a tensor on that device.
        """
        key, value = self.blocks[stream].layer_on(layer, like.device)
        # Cast behind where gradients come back: those of rows that share a prefix are summed in its own type.
        behind = key.requires_grad
        if not behind:
            key, value = key.to(like.dtype), value.to(like.dtype)
        if index_B is not None:
            if None in self.of_row:
                key, value = (torch.cat([part, torch.zeros_like(part[:1])]) for part in (key, value))
            key, value = key.index_select(0, index_B), value.index_select(0, index_B)
        elif key.shape[0] == 1:
            key, value = (part.expand(like.shape[0], -1, -1, -1) for part in (key, value))
        return (key.to(like.dtype), value.to(like.dtype)) if behind else (key, value)

    def row_places(self, rows: int) -> list[int] | None:
        """Which of the R prefixes each of B rows (or a multiple) has, R for none of them.

        None: the one that there is, or they are in order.
        """
        distinct = max(block.distinct for block in self.blocks.values())
        places = [distinct if index is None else index for index in self._repeated(rows)]
        alone = distinct == 1 and None not in self.of_row
        return None if alone or places == list(range(distinct)) else places

    def visible(
        self, stream: Stream, rows: int, queries: int, target_starts: Sequence[int] = ()
    ) -> torch.Tensor:
        """Which virtual tokens each of T = `queries` tokens sees: `[rows, T, P]`, or `[rows, 1, P]` for all.

        Args:
            rows: B, or a multiple.
            target_starts: of each of the B rows the first token that sees an infix, counted as Python
                counts: -1 is the last of this pass.
        """
        block, of_row = self.blocks[stream], self._repeated(rows)
        lengths_B = torch.tensor([0 if i is None else block.lengths[i] for i in of_row])
        visible_BP = torch.arange(block.longest)[None, :] < lengths_B[:, None]
        if self.infixes.isdisjoint(of_row):
            return visible_BP[:, None, :]
        if len(target_starts) != len(self.of_row):
            raise UsageError("a row has an infix, but nobody says where its target begins")
        times = rows // len(self.of_row)
        begins = [place % queries for place in target_starts for _ in range(times)]
        first_B = torch.tensor(
            [begin if index in self.infixes else 0 for begin, index in zip(begins, of_row, strict=True)]
        )
        answers_BT = torch.arange(queries)[None, :] >= first_B[:, None]
        return visible_BP[:, None, :] & answers_BT[:, :, None]

    def reach(self, window: int, rows: int | None = None) -> list[int] | None:
        """The position from which a window sees each row's prefix at the farthest; None: from everywhere.

        A token at position t sees keys at t - window + 1 and behind it, so from position window - 1 it sees
        all of the prefix. One that is longer than the window is seen from where the text starts.

        Args:
            rows: B (where None), or a multiple.
        """
        of_row = self._repeated(len(self.of_row) if rows is None else rows)
        if self.within_window.isdisjoint(of_row):
            return None
        lengths, anywhere = self.blocks["decoder"].lengths, torch.iinfo(torch.long).max
        return [
            max(window - 1, lengths[index]) if index is not None and index in self.within_window else anywhere
            for index in of_row
        ]

    def _repeated(self, rows: int) -> tuple[int | None, ...]:
        times, rest = divmod(rows, len(self.of_row))
        if rest:
            raise UsageError(f"the model computes {rows} rows but there are prefixes for {len(self.of_row)}")
        return tuple(index for index in self.of_row for _ in range(times))


def _with(rule: str, rules: Sequence[str]) -> frozenset[int]:
    return frozenset(index for index, each in enumerate(rules) if each == rule)


def _moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    double = tensor.dtype == torch.float64 and device.type == "mps"  # which has no such type
    return (tensor.float() if double else tensor).to(device)


def _stack_padded(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """`[R, ..., P, D]`, zero where a shorter prefix ends."""
    longest = max(part.shape[-2] for part in parts)
    return torch.stack([pad(part, (0, 0, 0, longest - part.shape[-2])) for part in parts])
