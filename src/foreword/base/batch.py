"""Encoded examples as the tensors that one forward pass takes, padded or end to end.

Only attention needs to know which tokens make a row; every other layer of a transformer works token by token.
So in the flat layout a batch of B rows runs as `[1, N]` real tokens without padding, and attention alone sees
`[B, T]`. Rows that begin alike under the same prefix have the same states there, so those tokens are computed
once and stand in all of these rows: references to one source, chats with one system prompt.

Shapes: B rows, T tokens of the longest row, N distinct tokens in all, M target tokens in all, H heads, D head
size.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch.autograd.function import once_differentiable

from foreword.encoding import EncodedExample


def take(states: torch.Tensor, index_B: torch.Tensor) -> torch.Tensor:
    """`states[index_B]`, with the gradients of repeated entries summed in float32.

    In 16 bits torch's own sum rounds after every term: of hundreds of rows that share a token, the last ones
    would be lost.
    """
    if states.dtype.itemsize > 2 or not states.requires_grad:
        return states.index_select(0, index_B)
    taken: torch.Tensor = _Take.apply(states, index_B)
    return taken


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, index_B: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(index_B)
        ctx.shape, ctx.dtype = states.shape, states.dtype
        return states.index_select(0, index_B)

    @staticmethod
    @once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (index_B,), wide = ctx.saved_tensors, gradients[0].float()
        return wide.new_zeros(ctx.shape).index_add_(0, index_B, wide).to(ctx.dtype), None


@dataclass(frozen=True)
class PackedLayout:
    """Which of N tokens make each row.

    Attributes:
        tokens: of each row the indices among the N, in the row's order.
    """

    tokens: tuple[tuple[int, ...], ...]
    _indices: dict[torch.device, PackedIndices] = field(default_factory=dict, compare=False, repr=False)

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
        first: dict[int, tuple[int, int]] = {}
        for row, tokens in enumerate(self.tokens):
            for place, token in enumerate(tokens):
                first.setdefault(token, (row, place))
        return tuple(first[token] for token in range(len(first)))

    @functools.cached_property
    def new_tokens(self) -> tuple[tuple[int, int], ...]:
        """(row, number of tokens) of each row that has tokens of its own, in the order of the N.

        What a row shares with one before it stands in front, so its own tokens are its last ones.
        """
        found, count = [], 0
        for row in sorted(range(self.rows), key=lambda row: self.tokens[row][-1]):
            if (new := self.tokens[row][-1] + 1 - count) > 0:
                found.append((row, new))
                count += new
        return tuple(found)

    def on(self, device: torch.device) -> PackedIndices:
        """Its index tensors on one device, made for it once."""
        if device not in self._indices:
            lengths_B = torch.tensor([len(row) for row in self.tokens])
            # Places beyond a row's end repeat its first token: any token will do, the mask closes them.
            padded = [[*row, *(row[:1] * (self.longest - len(row)))] for row in self.tokens]
            places = [row * self.longest + place for row, place in self.token_positions]
            self._indices[device] = PackedIndices(
                valid_BT=to_device(torch.arange(self.longest)[None, :] < lengths_B[:, None], device),
                flat_index=to_device(torch.tensor(padded).flatten(), device),
                row_index_N=to_device(torch.tensor(places), device),
            )
        return self._indices[device]

    def of_rows(self, tokens_N: torch.Tensor) -> torch.Tensor:
        """`[N]` to `[B, T]`."""
        index = self.on(tokens_N.device).flat_index
        return tokens_N.index_select(0, index).view(self.rows, self.longest)

    def to_rows(self, states_1HND: torch.Tensor) -> torch.Tensor:
        """`[1, H, N, D]` to `[B, H, T, D]`."""
        _, heads, _, size = states_1HND.shape
        gathered = take(states_1HND[0].transpose(0, 1), self.on(states_1HND.device).flat_index)
        return gathered.view(self.rows, self.longest, heads, size).transpose(1, 2)

    def to_flat(self, states_BTHD: torch.Tensor) -> torch.Tensor:
        """`[B, T, H, D]` to `[1, N, H, D]`."""
        return states_BTHD.flatten(0, 1).index_select(0, self.on(states_BTHD.device).row_index_N)[None]


@dataclass(frozen=True)
class PackedIndices:
    """A layout on one device.

    Attributes:
        valid_BT: true where a row has a token.
        flat_index: `[B * T]`, of each place of each row the token among the N.
        row_index_N: of each of the N tokens one place where it stands.
    """

    valid_BT: torch.Tensor
    flat_index: torch.Tensor
    row_index_N: torch.Tensor


def pack_rows(texts: Sequence[Sequence[int]], groups: Sequence[int | None]) -> PackedLayout:
    """A layout of B texts (token ids) in which texts of one group share the tokens that they begin with.

    Args:
        groups: of each text; texts of different groups share nothing, those of group None not even with
            each other.
    """
    # In sorted order, a text shares most with the one before it.
    order = sorted(range(len(texts)), key=lambda row: (-1 if (g := groups[row]) is None else g, texts[row]))
    tokens: list[tuple[int, ...]] = [()] * len(texts)
    count, before = 0, None
    for row in order:
        alike = 0
        if before is not None and groups[row] is not None and groups[row] == groups[before]:
            pairs = zip(texts[before], texts[row], strict=False)
            alike = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        new = len(texts[row]) - alike
        tokens[row] = (*(tokens[before][:alike] if before is not None else ()), *range(count, count + new))
        count, before = count + new, row
    return PackedLayout(tuple(tokens))


def pad_rows(
    texts: Sequence[Sequence[int]], *, left: bool, pad_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Texts (token ids) padded to the longest, on the left or the right.

    Returns:
        Token ids `[B, T]`; true where there is text; each place's position in its text, negative in front
        of it.
    """
    lengths = [len(text) for text in texts]
    longest = max(lengths)
    gaps = [longest - length if left else 0 for length in lengths]
    lengths_B, gaps_B = (torch.tensor(numbers) for numbers in (lengths, gaps))
    steps_BT = torch.arange(longest)[None] - gaps_B[:, None]
    ids_BT = torch.full((len(texts), longest), pad_id, dtype=torch.long)
    for row, (text, gap) in enumerate(zip(texts, gaps, strict=True)):
        ids_BT[row, gap : gap + len(text)] = torch.tensor(text)
    mask_BT = (steps_BT >= 0) & (steps_BT < lengths_B[:, None])
    return to_device(ids_BT, device), to_device(mask_BT, device), to_device(steps_BT, device)


def to_device(made_on_host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """On the device, in one copy for which nobody waits."""
    # CUDA has read ordinary memory, which is not pinned, when the call returns.
    return made_on_host.to(device, non_blocking=True)


Layout = Literal["flat", "right", "left"]


@dataclass(frozen=True)
class Batch:
    """Inputs of one forward pass and where its targets are.

    Attributes:
        inputs: keyword arguments of the model's forward.
        layout: how a flat batch divides into rows; None for padded rows.
        logit_index_M: index of the logits that predict each target token, in the flattened `[B * T]`
            (or `[N]`) sequence; ordered by row, then by position in the target.
        logit_places_K: the distinct ones of these, ascending: rows that share tokens share them, too.
        target_M: the target tokens' ids.
        targets: number of target tokens of each row.
        target_starts: place in each row (as attention sees rows) of the last source token, which predicts
            the first target token; empty for an encoder-decoder, whose source is apart.
        last_positions: of each row the position of its last token; empty for an encoder-decoder.
    """

    inputs: dict[str, torch.Tensor]
    layout: PackedLayout | None
    logit_index_M: torch.Tensor
    logit_places_K: torch.Tensor
    target_M: torch.Tensor
    targets: tuple[int, ...]
    target_starts: tuple[int, ...] = ()
    last_positions: tuple[int, ...] = ()


def decoder_batch(
    rows: Sequence[EncodedExample],
    offsets: Sequence[int],
    groups: Sequence[int | None],
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
        groups: rows of one group see the same in front of their text, so that those which begin alike can
            share tokens in a flat layout; rows of group None share nothing.
        layout: `flat` puts the rows end to end; `right` and `left` pad them to the longest.
        positions: whether the model takes `position_ids`.
    """
    texts = [(*row.source_ids, *row.target_ids[:-1]) for row in rows]
    longest = max(len(text) for text in texts)
    gaps = [longest - len(text) if layout == "left" else 0 for text in texts]
    tokens_of: Sequence[Sequence[int]]  # of each row, its tokens' places in the flattened sequence
    flat = pack_rows(texts, groups) if layout == "flat" else None
    if flat is not None:
        tokens_of = flat.tokens
        ids = [texts[row][place] for row, place in flat.token_positions]
        # Positions count within a row, behind its prefix: where the token stands among the N says nothing.
        positions_N = [offsets[row] + place for row, place in flat.token_positions]
        inputs = {
            "input_ids": to_device(torch.tensor([ids]), device),
            "attention_mask": torch.ones(1, len(ids), dtype=torch.long, device=device),
            "position_ids": to_device(torch.tensor([positions_N]), device),
        }
    else:
        starts = [index * longest + gap for index, gap in enumerate(gaps)]
        tokens_of = [range(start, start + len(text)) for start, text in zip(starts, texts, strict=True)]
        ids_BT, mask_BT, steps_BT = pad_rows(texts, left=layout == "left", pad_id=pad_id, device=device)
        offsets_B = to_device(torch.tensor(list(offsets)), device)
        inputs = {
            "input_ids": ids_BT,
            "attention_mask": mask_BT.long(),
            # Clamped: a learned position table has no row for the places in front of the text.
            "position_ids": (steps_BT + offsets_B[:, None]).clamp(min=0) * mask_BT,
        }
    if not positions:
        del inputs["position_ids"]
    # The last source token predicts the first target token, and the last target token predicts nothing.
    predicting = [
        token
        for tokens, row in zip(tokens_of, rows, strict=True)
        for token in tokens[len(row.source_ids) - 1 :]
    ]
    return Batch(
        inputs=inputs,
        layout=flat,
        logit_index_M=to_device(torch.tensor(predicting), device),
        logit_places_K=to_device(torch.tensor(sorted(set(predicting))), device),
        target_M=to_device(torch.tensor([i for row in rows for i in row.target_ids]), device),
        targets=tuple(len(row.target_ids) for row in rows),
        target_starts=tuple(gap + len(row.source_ids) - 1 for gap, row in zip(gaps, rows, strict=True)),
        last_positions=tuple(offset + len(text) - 1 for offset, text in zip(offsets, texts, strict=True)),
    )


def encoder_decoder_batch(
    rows: Sequence[EncodedExample], *, start_id: int, device: torch.device, pad_id: int = 0
) -> Batch:
    """A batch for an encoder-decoder: sources to the encoder, shifted targets to the decoder.

    Args:
        start_id: what a decoder reads first, of rows that do not say.
    """
    sources = [row.source_ids for row in rows]
    targets = [(start_id if row.start_id is None else row.start_id, *row.target_ids[:-1]) for row in rows]
    source_BT, source_mask_BT, _ = pad_rows(sources, left=False, pad_id=pad_id, device=device)
    target_BT, target_mask_BT, _ = pad_rows(targets, left=False, pad_id=pad_id, device=device)
    longest = target_BT.shape[1]
    predicting = [row * longest + place for row, ids in enumerate(targets) for place in range(len(ids))]
    return Batch(
        inputs={
            "input_ids": source_BT,
            "attention_mask": source_mask_BT.long(),
            "decoder_input_ids": target_BT,
            "decoder_attention_mask": target_mask_BT.long(),
        },
        layout=None,
        logit_index_M=to_device(torch.tensor(predicting), device),
        logit_places_K=to_device(torch.tensor(sorted(set(predicting))), device),
        target_M=to_device(torch.tensor([i for row in rows for i in row.target_ids]), device),
        targets=tuple(len(row.target_ids) for row in rows),
    )


PREFIX_TOKENS = 1 << 17
"""Virtual tokens of the rows of one batch: a layer's kernel has a prefix's keys and values once a row."""


def batches_by_length(
    encoded: Sequence[EncodedExample], batch_tokens: int, prefix_length: int = 0
) -> Iterator[list[int]]:
    """Indices in batches of rows of like length, each of at most `batch_tokens` (or one row).

    Args:
        prefix_length: of the longest prefix in front of a row: no more than `PREFIX_TOKENS` in a batch.
    """
    most_rows = max(1, PREFIX_TOKENS // max(1, prefix_length))
    order = sorted(range(len(encoded)), key=lambda i: encoded[i].tokens)
    batch: list[int] = []
    for index in order:
        # Padded layouts cost the longest row times the rows; in this order that is the last one.
        full = len(batch) == most_rows or encoded[index].tokens * (len(batch) + 1) > batch_tokens
        if batch and full:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
