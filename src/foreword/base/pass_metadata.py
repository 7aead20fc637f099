"""What a pass knows about its rows before the model runs: decided on the host, moved to each device once.

A GPU computes while Python goes on, as long as nobody reads a value from it or waits for a copy. So what
attention needs beside queries, keys and values (which columns each row sees, where rows lie in a flat batch,
how long they are, whether anything has to be masked or moved) is made from Python's own numbers, once for a
pass. A layer only looks it up: `PassMetadata.on(device)` keeps it for each device that has layers.

Shapes: B rows, T tokens of the longest row, N tokens of a flat batch, R distinct prefixes, P longest prefix,
K keys of all rows end to end, G segments, H key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.masking_utils import causal_mask_function

from foreword.base.batch import PackedLayout, to_device
from foreword.base.prefix_batch import PrefixBatch
from foreword.prefix import Stream


@dataclass(frozen=True)
class Segments:
    """Rows of a flat batch as variable-length attention takes them, end to end and without padding.

    A segment is the part of a row that no row before it computes, and its keys are all that the row sees:
    its own virtual tokens and its own text, what it shares with others among it.

    Attributes:
        key_index_K: which key stands where, among R * P virtual tokens and the N tokens behind them.
        query_ends_G1, key_ends_G1: where each segment begins, and the last one ends; int32.
        most_queries, most_keys: of a segment.
    """

    key_index_K: torch.Tensor
    query_ends_G1: torch.Tensor
    key_ends_G1: torch.Tensor
    most_queries: int
    most_keys: int


@dataclass
class PassMetadata:
    """The rows of a pass, as the host knows them.

    Attributes:
        prefixes: what each row sees in front of its text; None for nothing.
        layout: how a flat batch divides into rows; None for an ordinary `[B, T]` batch.
        target_starts: of each row, the first token that sees an infix.
        last_positions: of each row, the position of its last token in the first pass; empty: not known.
        unpadded: every row has a token in every column of the text.
    """

    prefixes: PrefixBatch | None = None
    layout: PackedLayout | None = None
    target_starts: tuple[int, ...] = ()
    last_positions: tuple[int, ...] = ()
    unpadded: bool = False
    _columns: tuple[int, int] = (0, 0)  # of the text, when the first pass ends and when this one does
    _on: dict[torch.device, DeviceMetadata] = field(default_factory=dict)
    _known: dict[Hashable, bool] = field(default_factory=dict)

    def on(self, device: torch.device) -> DeviceMetadata:
        """Its tensors on one device."""
        if device not in self._on:
            self._on[device] = DeviceMetadata(self, device)
        return self._on[device]

    def begin_pass(self, columns: int) -> None:
        """Say that a pass is about to begin, at whose end so many columns of text have been read."""
        self._columns = (self._columns[0] or columns, columns)

    def is_causal(self, wanted: Mapping[str, Any]) -> bool:
        """Whether a mask would say of each row that a token sees what stands before it, and no more.

        Args:
            wanted: what transformers hands to a function that makes its mask over the text.
        """
        # transformers does not allow to leave it out where something is laid over the causal pattern.
        if not wanted.get("allow_is_causal_skip", True):
            return False
        queries, read_before = wanted["q_length"], wanted.get("q_offset", 0)
        if self.layout is not None:
            longest = self.layout.longest
        elif self.unpadded and (queries == 1 or read_before == 0):
            longest = queries + read_before
        else:
            return False
        local = wanted.get("local_size")  # a window or chunk; it closes nothing for rows that fit into it
        return longest <= local if local is not None else wanted["mask_function"] is causal_mask_function

    def sees_all(self, stream: Stream, *, of_one_length: bool) -> bool:
        """Whether every token of every row sees all virtual tokens of its row: none of them is an infix.

        Args:
            of_one_length: all rows have P of them, too, so that the columns in front are the same for all.
        """
        prefixes = self.prefixes
        if prefixes is None or stream not in prefixes.blocks:
            return True
        if (name := (stream, of_one_length)) not in self._known:
            alike = not of_one_length or {*prefixes.lengths(stream)} == {prefixes.blocks[stream].longest}
            self._known[name] = alike and prefixes.infixes.isdisjoint(prefixes.of_row)
        return self._known[name]

    def beyond(self, window: int) -> bool:
        """Whether a token of this pass is too far from its row's prefix for a window of so many tokens.

        Where the positions are not known the answer is yes: moving a prefix by no step changes nothing.
        """
        if (name := (window, *self._columns)) not in self._known:
            reach = None if self.prefixes is None else self.prefixes.reach(window)
            first, now = self._columns
            self._known[name] = reach is not None and (
                not self.last_positions
                or any(last + now - first > far for last, far in zip(self.last_positions, reach, strict=True))
            )
        return self._known[name]


class DeviceMetadata:
    """The tensors of a pass on one device, each made when it is first asked for."""

    def __init__(self, of_pass: PassMetadata, device: torch.device) -> None:
        self._pass = of_pass
        self._device = device
        self._made: dict[Hashable, Any] = {}

    def _once(self, name: Hashable, make: Callable[[], Any]) -> Any:
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def prepare(self, rows: int, queries: int, *, causal: bool) -> None:
        """Make what layers will look up for `[rows, queries]` tokens.

        Args:
            causal: this device has kernels that take no mask.
        """
        if self._pass.prefixes is not None:
            self.row_index(rows)
            for stream in self._pass.prefixes.blocks:
                self.visible(stream, rows, queries)
        if self._pass.layout is not None:
            self._pass.layout.on(self._device)
            if causal:
                self.segments("decoder")

    def visible(self, stream: Stream, rows: int, queries: int) -> torch.Tensor:
        """Which virtual tokens each token sees; see `PrefixBatch.visible`."""
        prefixes = self._pass.prefixes
        assert prefixes is not None
        return self._once(  # type: ignore[no-any-return]
            ("visible", stream, rows, queries),
            lambda: to_device(
                prefixes.visible(stream, rows, queries, self._pass.target_starts), self._device
            ),
        )

    def prefix_rows(
        self, stream: Stream, layer: int, like: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Each row's keys and values of a layer, in front of `like`; see `PrefixBatch.rows`."""
        prefixes = self._pass.prefixes
        assert prefixes is not None
        return prefixes.rows(stream, layer, like, self.row_index(like.shape[0]))

    def prefix_layer(self, stream: Stream, layer: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Keys and values `[R, H, P, D]` of the distinct prefixes in a layer; None: no row has any."""
        prefixes = self._pass.prefixes
        if prefixes is None or stream not in prefixes.blocks:
            return None
        return prefixes.blocks[stream].layer_on(layer, self._device)

    def row_index(self, rows: int) -> torch.Tensor | None:
        """Which of the R prefixes each of so many rows has; see `PrefixBatch.row_places`."""
        prefixes = self._pass.prefixes
        assert prefixes is not None

        def make() -> torch.Tensor | None:
            places = prefixes.row_places(rows)
            return None if places is None else to_device(torch.tensor(places), self._device)

        return self._once(("rows", rows), make)  # type: ignore[no-any-return]

    def steps_beyond(self, window: int, position_ids: torch.Tensor, rows: int) -> torch.Tensor:
        """How far each token is beyond the position from which its row's prefix is seen, `[B, T]`."""
        prefixes, layout = self._pass.prefixes, self._pass.layout
        assert prefixes is not None
        farthest_B = self._once(
            ("farthest", window, rows),
            lambda: to_device(torch.tensor(prefixes.reach(window, rows)), self._device),
        )
        positions_BT = position_ids if layout is None else layout.of_rows(position_ids[0])
        beyond_BT: torch.Tensor = (positions_BT - farthest_B[:, None]).clamp(min=0)
        return beyond_BT

    def segments(self, stream: Stream) -> Segments:
        """The rows of a flat batch for variable-length attention."""
        return self._once(("segments", stream), lambda: self._make_segments(stream))  # type: ignore[no-any-return]

    def _make_segments(self, stream: Stream) -> Segments:
        prefixes, layout = self._pass.prefixes, self._pass.layout
        assert layout is not None
        lengths, longest, before = (0,) * layout.rows, 0, 0
        of_row: tuple[int | None, ...] = (None,) * layout.rows
        if prefixes is not None and (block := prefixes.blocks.get(stream)) is not None:
            lengths, longest, before = prefixes.lengths(stream), block.longest, block.distinct * block.longest
            of_row = prefixes.of_row
        keys, queries_G, keys_G = [], [], []
        for row, new in layout.new_tokens:
            text = layout.tokens[row]
            keys += [torch.arange(lengths[row]) + (of_row[row] or 0) * longest, torch.tensor(text) + before]
            queries_G.append(new)
            keys_G.append(lengths[row] + len(text))
        query_ends, key_ends = (
            torch.tensor([0, *sizes]).cumsum(0).to(torch.int32) for sizes in (queries_G, keys_G)
        )
        return Segments(
            to_device(torch.cat(keys), self._device),
            to_device(query_ends, self._device),
            to_device(key_ends, self._device),
            max(queries_G),
            max(keys_G),
        )
