"""The running batch: rows that get a token each at every step, and join and leave between steps.

A row's prompt is read alone, behind its prefix. What that leaves, keys and values of prefix and text, joins
those of the other rows, aligned at the end: from then on a virtual token is a column like any other, and
what a row does not have in front is masked.

Shapes: B rows, L layers, H key/value heads, S columns held, D head size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers.cache_utils import Cache

from foreword.base.attention import AttentionContext, attention_context
from foreword.base.base_model import BaseModel
from foreword.base.kv_cache import PrefixedLayer, cache_argument, prefixed_cache
from foreword.base.loss import keeps_logits
from foreword.base.prefix_batch import PrefixBatch
from foreword.errors import NotFinite
from foreword.sampling import sampling_warpers
from foreword.serving.engine.protocol import FinishReason, Row, Token

GREEDY_BELOW = 1e-5
"""Temperature below which the likeliest token is taken: logits over less would leave float32."""

SPARE_COLUMNS = 64
"""Columns that a buffer has ahead, so that a step writes instead of copying."""


@dataclass(eq=False)
class RunningRow:
    """A row with what it needs between two steps.

    Attributes:
        row: what was asked for.
        room: new tokens that it may have.
        position: of the next token that is read.
        made: new tokens so far.
        last: the newest of them, which the next step reads.
    """

    row: Row
    room: int
    position: int = 0
    made: int = 0
    last: int = 0
    noise: torch.Generator = field(default_factory=torch.Generator)

    def __post_init__(self) -> None:
        self.noise.manual_seed(self.row.sampling.seed)

    @property
    def most_columns(self) -> int:
        """Columns that it can come to need: prefix, prompt and new tokens."""
        length = 0 if self.row.prefix is None else self.row.prefix.length
        return length + len(self.row.prompt_ids) + self.room

    def choose(self, logits_V: torch.Tensor) -> Token:
        """The next token, by the row's own sampling and its own randomness.

        Args:
            logits_V: float32, on the CPU, where the row's randomness is.

        Raises:
            NotFinite: logits of which none is the largest.
        """
        sampling = self.row.sampling
        if not math.isfinite(float(logits_V.max())):  # the largest of any NaN is NaN
            raise NotFinite("the model's answer is no number behind this prefix; train the prefix anew")
        allowed_V = logits_V
        if self.made < sampling.min_tokens:
            ends = torch.tensor(sorted(self.row.end_ids), dtype=torch.long)
            allowed_V = logits_V.index_fill(0, ends, -math.inf)
        if sampling.temperature < GREEDY_BELOW:
            chosen = int(allowed_V.argmax())
        else:
            scores_1V = allowed_V[None]
            for warp in sampling_warpers(sampling.temperature, 0, sampling.top_p):
                scores_1V = warp(None, scores_1V)
            chosen = int(torch.multinomial(scores_1V[0].softmax(-1), 1, generator=self.noise))
        self.made += 1
        self.last = chosen
        reason: FinishReason | None = None
        if chosen in self.row.end_ids:
            reason = "stop"
        elif self.made >= self.room:
            reason = "length"
        if sampling.logprobs is None:
            return Token(chosen, finish_reason=reason)
        logprobs_V = logits_V.log_softmax(-1)
        best = logprobs_V.topk(sampling.logprobs)
        likeliest = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        return Token(chosen, float(logprobs_V[chosen]), likeliest, reason)


class ContinuousBatch:
    """Rows and their keys and values."""

    def __init__(self, base: BaseModel) -> None:
        self.rows: list[RunningRow] = []
        self._base = base
        self._cache: Cache | None = None
        self._held_BS = torch.zeros(0, 0, dtype=torch.long, device=base.device)
        self._one = {"logits_to_keep": 1} if keeps_logits(base.model) else {}
        self._argument = cache_argument(base.model)

    @property
    def columns(self) -> int:
        """S: columns that every row takes."""
        return self._held_BS.shape[1]

    @torch.no_grad()
    def join(self, new: RunningRow) -> Token:
        """Read a row's prompt and choose its first token; unless that ends it, it runs with the others."""
        base, row = self._base, new.row
        prefixes = PrefixBatch.stack([row.prefix], base.device)
        length = 0 if row.prefix is None else row.prefix.length
        text = len(row.prompt_ids)
        cache = prefixed_cache(base.geometry, prefixes, text)
        ids_1T = torch.tensor([row.prompt_ids], device=base.device)
        positions_1T = torch.arange(length, length + text, device=base.device)[None]
        with attention_context(AttentionContext(prefixes=prefixes, in_cache=True, target_starts=(-1,))):
            logits_1TV = base.model(
                input_ids=ids_1T,
                attention_mask=torch.ones_like(ids_1T),
                position_ids=positions_1T,
                use_cache=True,
                **{self._argument: cache},
                **self._one,
            ).logits
        new.position = length + text
        token = new.choose(_for_choosing(logits_1TV)[0])
        if token.finish_reason is None:
            held_1S = torch.ones(1, length + text, dtype=torch.long, device=base.device)
            self._add(cache, held_1S)
            self.rows.append(new)
        return token

    @torch.no_grad()
    def step(self) -> list[Token | Exception]:
        """A token for every row, in the order of `rows`, or why it gets none; ended rows are gone then."""
        base, rows = self._base, self.rows
        device = base.device
        self._held_BS = torch.nn.functional.pad(self._held_BS, (0, 1), value=1)
        logits_B1V = base.model(
            input_ids=torch.tensor([[row.last] for row in rows], device=device),
            attention_mask=self._held_BS,
            position_ids=torch.tensor([[row.position] for row in rows], device=device),
            use_cache=True,
            **{self._argument: self._cache},
            **self._one,
        ).logits
        outcomes: list[Token | Exception] = []
        staying = []
        for row, logits_V in zip(rows, _for_choosing(logits_B1V), strict=True):
            row.position += 1
            try:
                token = row.choose(logits_V)
            except Exception as error:  # this row's alone, and its caller is told
                outcomes.append(error)
                continue
            outcomes.append(token)
            if token.finish_reason is None:
                staying.append(row)
        self.keep(staying)
        return outcomes

    def keep(self, staying: list[RunningRow]) -> None:
        """Let all other rows go, and columns that only they had."""
        if len(staying) == len(self.rows):
            return
        if not staying:
            self.clear()
            return
        places = torch.tensor([self.rows.index(row) for row in staying], device=self._base.device)
        held_BS = self._held_BS[places]
        first = int(held_BS.any(dim=0).nonzero()[0])
        pairs = [(layer.keys[places, :, first:], layer.values[places, :, first:]) for layer in self._layers()]
        cache = _cache_of(pairs)
        self.rows, self._held_BS, self._cache = staying, held_BS[:, first:], cache

    def clear(self) -> None:
        """Let all rows go."""
        self.rows, self._cache = [], None
        self._held_BS = self._held_BS.new_zeros(0, 0)

    def _add(self, cache: Cache, held_1S: torch.Tensor) -> None:
        columns = max(self.columns, held_1S.shape[1])
        if self.rows:
            pairs = [
                tuple(
                    torch.cat([_to_the_left(ours, columns), _to_the_left(theirs, columns)])
                    for ours, theirs in ((mine.keys, new.keys), (mine.values, new.values))
                )
                for mine, new in zip(self._layers(), cache.layers, strict=True)
            ]
            pad = torch.nn.functional.pad
            held = [pad(part, (columns - part.shape[1], 0)) for part in (self._held_BS, held_1S)]
            held_BS = torch.cat(held)
        else:
            pairs = [(layer.keys, layer.values) for layer in cache.layers]
            held_BS = held_1S
        # Both or neither: what fails above leaves the other rows as they are.
        self._cache, self._held_BS = _cache_of(pairs), held_BS

    def _layers(self) -> list[PrefixedLayer]:
        return [] if self._cache is None else self._cache.layers


def _for_choosing(logits_BTV: torch.Tensor) -> torch.Tensor:
    """The last logits `[B, V]` of all rows in one transfer: each waits for the device to be done."""
    return logits_BTV[:, -1].float().cpu()


def _to_the_left(states_BHSD: torch.Tensor, columns: int) -> torch.Tensor:
    """Filled up in front to so many columns."""
    return torch.nn.functional.pad(states_BHSD, (0, 0, columns - states_BHSD.shape[2], 0))


def _cache_of(pairs: Sequence[tuple[torch.Tensor, ...]]) -> Cache:
    """A cache that holds these keys and values `[B, H, S, D]` of each layer, with spare columns."""
    layers = []
    for number, (keys, values) in enumerate(pairs):
        layer = PrefixedLayer(number, None, keys.shape[2] + SPARE_COLUMNS)
        layer.update(keys, values)
        layers.append(layer)
    return Cache(layers=layers)
