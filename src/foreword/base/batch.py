"""Batch: encoded examples as the tensors one forward pass takes.

Shapes: B rows, T tokens of the longest row, N tokens in all, M target tokens in all.

Flat layout: rows of different length end to end in one row of the model, without padding or repetition.

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
from typing import Any, Literal

import torch

from foreword.encoding import EncodedExample


@dataclass(frozen=True)
class PackedLayout:
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
    def token_positions(self) -> tuple[tuple[int, int], ...]:
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
        return torch.tensor(
            [row * self.longest + place for row, place in self.token_positions], device=self.device
        )

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


def pack_rows(
    texts: Sequence[Sequence[int]], kinds: Sequence[int | None], device: torch.device
) -> PackedLayout:
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
    return PackedLayout(tuple(tokens), device)


# -- Batch: encoded examples as the tensors one forward pass takes ---------------------------------


Layout = Literal["flat", "right", "left"]


@dataclass(frozen=True)
class Batch:
    """Inputs of one forward pass and where its targets are.

    Attributes:
        inputs: keyword arguments of the model's forward.
        layout: how a flat batch divides into rows; None for padded rows.
        place_M: index of the logits that predict each target token, in the flattened `[B * T]`
            (or `[N]`) sequence; ordered by row, then by place within the target.
        target_M: the target tokens' ids.
        targets: number of target tokens of each row.
        answers_from: place in each row (as attention sees rows) of the last source token, which predicts
            the first target token; empty for an encoder-decoder, whose source is apart.
    """

    inputs: dict[str, torch.Tensor]
    layout: PackedLayout | None
    logit_index_M: torch.Tensor
    target_M: torch.Tensor
    targets: tuple[int, ...]
    target_starts: tuple[int, ...] = ()


def decoder_batch(
    rows: Sequence[EncodedExample],
    offsets: Sequence[int],
    kinds: Sequence[int | None],
    *,
    layout: Layout,
    device: torch.device,
    positions: bool = True,
    pad_id: int = 0,
) -> Batch:
    """A batch for a decoder-only model: source and target in one text.

    Args:
        rows: B examples.
        offsets: where each row's text starts to count its positions: its prefix length.
        kinds: rows of one kind see the same in front of their text, so that those which begin alike can
            share tokens in a flat layout; rows of kind None share nothing.
        layout: `flat` puts the rows end to end; `right` and `left` pad them to the longest.
        positions: whether the model takes `position_ids`.
    """
    texts = [(*row.source_ids, *row.target_ids[:-1]) for row in rows]
    lengths = tuple(len(text) for text in texts)
    longest = max(lengths)
    gaps = [longest - length if layout == "left" else 0 for length in lengths]
    tokens_of: Sequence[Sequence[int]]
    flat = pack_rows(texts, kinds, device) if layout == "flat" else None
    if flat is not None:
        tokens_of = flat.tokens
        token_positions = flat.token_positions
        inputs = {
            "input_ids": torch.tensor([[texts[row][place] for row, place in token_positions]], device=device),
            "attention_mask": torch.ones(1, len(token_positions), dtype=torch.long, device=device),
            "position_ids": torch.tensor(
                [[offsets[row] + place for row, place in token_positions]], device=device
            ),
        }
    else:
        starts = [index * longest + gap for index, gap in enumerate(gaps)]
        tokens_of = tuple(range(start, start + length) for start, length in zip(starts, lengths, strict=True))
        steps_BT = torch.arange(longest, device=device)[None] - torch.tensor(gaps, device=device)[:, None]
        mask_BT = (steps_BT >= 0) & (steps_BT < torch.tensor(lengths, device=device)[:, None])
        ids_BT = torch.full((len(rows), longest), pad_id, dtype=torch.long, device=device)
        for index, (text, gap) in enumerate(zip(texts, gaps, strict=True)):
            ids_BT[index, gap : gap + len(text)] = torch.tensor(text, device=device)
        inputs = {
            "input_ids": ids_BT,
            "attention_mask": mask_BT.long(),
            # Clamped: a learned position table has no row for the places in front of the text.
            "position_ids": (steps_BT + torch.tensor(list(offsets), device=device)[:, None]).clamp(min=0)
            * mask_BT,
        }
    if not positions:
        del inputs["position_ids"]
    places = [
        token
        for tokens, row in zip(tokens_of, rows, strict=True)
        for token in tokens[len(row.source_ids) - 1 :]
    ]
    return Batch(
        inputs=inputs,
        layout=flat,
        logit_index_M=torch.tensor(places, device=device),
        target_M=torch.tensor([i for row in rows for i in row.target_ids], device=device),
        targets=tuple(len(row.target_ids) for row in rows),
        target_starts=tuple(gap + len(row.source_ids) - 1 for gap, row in zip(gaps, rows, strict=True)),
    )


def encoder_decoder_batch(
    rows: Sequence[EncodedExample], *, start_id: int, device: torch.device, pad_id: int = 0
) -> Batch:
    """A batch for an encoder-decoder: sources to the encoder, shifted targets to the decoder."""

    def padded(texts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        longest = max(len(text) for text in texts)
        ids = torch.full((len(texts), longest), pad_id, dtype=torch.long, device=device)
        for index, text in enumerate(texts):
            ids[index, : len(text)] = torch.tensor(text, device=device)
        lengths = torch.tensor([len(text) for text in texts], device=device)
        return ids, (torch.arange(longest, device=device)[None] < lengths[:, None]).long()

    source_BT, source_mask_BT = padded([row.source_ids for row in rows])
    target_BT, target_mask_BT = padded([(start_id, *row.target_ids[:-1]) for row in rows])
    inputs: dict[str, Any] = {
        "input_ids": source_BT,
        "attention_mask": source_mask_BT,
        "decoder_input_ids": target_BT,
        "decoder_attention_mask": target_mask_BT,
    }
    return Batch(
        inputs=inputs,
        layout=None,
        logit_index_M=target_mask_BT.flatten().nonzero().flatten(),
        target_M=torch.tensor([i for row in rows for i in row.target_ids], device=device),
        targets=tuple(len(row.target_ids) for row in rows),
    )
