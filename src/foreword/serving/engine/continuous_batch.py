"""A continuous batch: rows that get a token each at every step, and enter and leave between steps.

A row's prompt is prefilled alone, behind its prefix. The keys and values that this leaves, of prefix and
text, are put beside those of the other rows, aligned at their ends: from then on a virtual token is a column
like any other, and the columns that a shorter row does not have in front are masked.

Shapes: B rows, T tokens of a prompt, H key/value heads, S columns of the cache, D head size, V vocabulary.
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
        position: of the next token that is read.
        last: the newest of them, which the next step reads.
    """

    row: Row
    max_new_tokens: int
    position: int = 0
    made: int = 0
    last: int = 0
    noise: torch.Generator = field(default_factory=torch.Generator)

    def __post_init__(self) -> None:
        self.noise.manual_seed(self.row.sampling.seed)

    @property
    def most_columns(self) -> int:
        """Columns that it can come to need: prefix, prompt and new tokens."""
        return self.row.prefix_length + len(self.row.prompt_ids) + self.max_new_tokens

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
        elif self.made >= self.max_new_tokens:
            reason = "length"
        if sampling.logprobs is None:
            return Token(chosen, finish_reason=reason)
        logprobs_V = logits_V.log_softmax(-1)
        best = logprobs_V.topk(sampling.logprobs)
        likeliest = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        return Token(chosen, float(logprobs_V[chosen]), likeliest, reason)


class ContinuousBatch:
    """Rows, and their keys and values in one cache with a line for each."""

    def __init__(self, base: BaseModel) -> None:
        self.rows: list[RunningRow] = []
        self._base = base
        self._cache: Cache | None = None
        # Which columns of the cache are a row's own: the model takes it as the attention mask.
        self._mask_BS = torch.zeros(0, 0, dtype=torch.long, device=base.device)
        self._last_logits = {"logits_to_keep": 1} if keeps_logits(base.model) else {}
        self._cache_argument = cache_argument(base.model)

    @property
    def columns(self) -> int:
        """S: columns that every row takes."""
        return self._mask_BS.shape[1]

    @torch.no_grad()
    def prefill(self, new: RunningRow) -> Token:
        """Read a row's prompt and choose its first token; unless that ends it, it runs with the others."""
        base, row = self._base, new.row
        prefixes = PrefixBatch.stack([row.prefix], base.device)
        length, text = row.prefix_length, len(row.prompt_ids)
        cache = prefixed_cache(base.geometry, prefixes, text)
        ids_1T = torch.tensor([row.prompt_ids], device=base.device)
        positions_1T = torch.arange(length, length + text, device=base.device)[None]
        attention = AttentionContext(prefixes=prefixes, in_cache=True, target_starts=(-1,), unpadded=True)
        with attention_context(attention):
            logits_1TV = self._logits(ids_1T, torch.ones_like(ids_1T), positions_1T, cache)
        new.position = length + text
        token = new.choose(_last_on_cpu(logits_1TV)[0])
        if token.finish_reason is None:
            mask_1S = torch.ones(1, length + text, dtype=torch.long, device=base.device)
            self._add(cache, mask_1S)
            self.rows.append(new)
        return token

    @torch.no_grad()
    def step(self) -> list[Token | Exception]:
        """A token for every row, in the order of `rows`, or why it gets none; ended rows are gone then."""
        rows, device = self.rows, self._base.device
        # The token that each row reads now is the first of a new column, which no row is without.
        self._mask_BS = torch.nn.functional.pad(self._mask_BS, (0, 1), value=1)
        ids_B1 = torch.tensor([[row.last] for row in rows], device=device)
        positions_B1 = torch.tensor([[row.position] for row in rows], device=device)
        logits_B1V = self._logits(ids_B1, self._mask_BS, positions_B1, self._cache)
        outcomes: list[Token | Exception] = []
        staying = []
        for row, logits_V in zip(rows, _last_on_cpu(logits_B1V), strict=True):
            row.position += 1
            try:
                token = row.choose(logits_V)
            except Exception as error:  # this row's alone, and goes to its caller
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
        kept_B = torch.tensor([self.rows.index(row) for row in staying], device=self._base.device)
        mask_BS = self._mask_BS[kept_B]
        # Rows are aligned at their ends, so what only the longest had is in front.
        first = int(mask_BS.any(dim=0).nonzero()[0])
        pairs = [(layer.keys[kept_B, :, first:], layer.values[kept_B, :, first:]) for layer in self._layers()]
        cache = _cache_of(pairs)
        self.rows, self._mask_BS, self._cache = staying, mask_BS[:, first:], cache

    def clear(self) -> None:
        """Let all rows go."""
        self.rows, self._cache = [], None
        self._mask_BS = self._mask_BS.new_zeros(0, 0)

    def _logits(
        self, ids_BT: torch.Tensor, mask_BS: torch.Tensor, positions_BT: torch.Tensor, cache: Cache | None
    ) -> torch.Tensor:
        output = self._base.model(
            input_ids=ids_BT,
            attention_mask=mask_BS,
            position_ids=positions_BT,
            use_cache=True,
            **{self._cache_argument: cache},
            **self._last_logits,
        )
        return output.logits  # type: ignore[no-any-return]

    def _add(self, cache: Cache, mask_1S: torch.Tensor) -> None:
        """One more line in the cache, for a row that was prefilled alone; the shorter is padded in front."""
        columns, pad = max(self.columns, mask_1S.shape[1]), torch.nn.functional.pad
        if self.rows:
            pairs = [
                tuple(
                    torch.cat([pad(part, (0, 0, columns - part.shape[2], 0)) for part in (running, new)])
                    for running, new in ((ours.keys, theirs.keys), (ours.values, theirs.values))
                )
                for ours, theirs in zip(self._layers(), cache.layers, strict=True)
            ]
            mask_BS = torch.cat([pad(m, (columns - m.shape[1], 0)) for m in (self._mask_BS, mask_1S)])
        else:
            pairs = [(layer.keys, layer.values) for layer in cache.layers]
            mask_BS = mask_1S
        # Both or neither: what fails above, such as memory, leaves the other rows as they are.
        self._cache, self._mask_BS = _cache_of(pairs), mask_BS

    def _layers(self) -> list[PrefixedLayer]:
        return [] if self._cache is None else self._cache.layers


def _last_on_cpu(logits_BTV: torch.Tensor) -> torch.Tensor:
    """The last logits `[B, V]` of all rows in one transfer: each waits for the device to be done."""
    return logits_BTV[:, -1].float().cpu()


def _cache_of(pairs: Sequence[tuple[torch.Tensor, ...]]) -> Cache:
    """A cache that holds these keys and values `[B, H, S, D]` of each layer, with spare columns."""
    layers = []
    for number, (keys, values) in enumerate(pairs):
        layer = PrefixedLayer(number, None, keys.shape[2] + SPARE_COLUMNS)
        layer.update(keys, values)
        layers.append(layer)
    return Cache(layers=layers)
