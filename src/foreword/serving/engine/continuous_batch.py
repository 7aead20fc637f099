"""A continuous batch: rows that get a token each at every step, and enter and leave between steps.

A row's prompt is prefilled alone, behind its prefix. The keys and values that this leaves, of prefix and
text, are put beside those of the other rows: from then on a virtual token is a column like any other, and the
columns that a shorter row does not have behind its end are masked.

Shapes: B rows, T tokens of a prompt, S columns of the cache, V vocabulary, A rows that ask for
log-probabilities, K of the likeliest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache

from foreword.base.attention import AttentionContext, attention_context
from foreword.base.base_model import BaseModel
from foreword.base.batch import to_device
from foreword.base.kv_cache import RowCache, cache_argument, prefixed_cache
from foreword.base.loss import keeps_logits
from foreword.base.prefix_batch import PrefixBatch
from foreword.errors import NotFinite
from foreword.sampling import RowSampling, TokenSampler
from foreword.serving.engine.protocol import FinishReason, Row, Token

NOT_FINITE = -1
"""In place of a token: the row's logits are no numbers."""


@dataclass(eq=False)
class RunningRow:
    """A row with what it needs between two steps.

    Attributes:
        position: of the next token that is read; so many columns of the cache it has.
        made: new tokens so far.
        last: the newest of them, which the next step reads.
    """

    row: Row
    max_new_tokens: int
    position: int = 0
    made: int = 0
    last: int = 0

    @property
    def most_columns(self) -> int:
        """Columns that it can come to need: prefix, prompt and new tokens."""
        return self.row.prefix_length + len(self.row.prompt_ids) + self.max_new_tokens

    @property
    def row_sampling(self) -> RowSampling:
        """How its tokens are chosen."""
        sampling = self.row.sampling
        return RowSampling(sampling.temperature, sampling.top_p, seed=sampling.seed)

    def take(
        self, chosen: int, logprob: float | None = None, likeliest: tuple[tuple[int, float], ...] = ()
    ) -> Token:
        """The token that was chosen for the row, with why the text ends there.

        Raises:
            NotFinite: `NOT_FINITE` was chosen.
        """
        if chosen == NOT_FINITE:
            raise NotFinite("the model's answer is no number behind this prefix; train the prefix anew")
        self.made += 1
        self.last = chosen
        reason: FinishReason | None = None
        if chosen in self.row.end_ids:
            reason = "stop"
        elif self.made >= self.max_new_tokens:
            reason = "length"
        return Token(chosen, logprob, likeliest, reason)


class ContinuousBatch:
    """Rows, and their keys and values in one cache with a line for each."""

    def __init__(self, base: BaseModel) -> None:
        self.rows: list[RunningRow] = []
        self._base = base
        self._cache = RowCache()
        self._sampler: TokenSampler | None = None  # of `rows`, made when they have changed
        self._last_logits = {"logits_to_keep": 1} if keeps_logits(base.model) else {}
        self._cache_argument = cache_argument(base.model)

    @torch.no_grad()
    def prefill(self, new: RunningRow) -> Token:
        """Read a row's prompt and choose its first token; unless that ends it, it runs with the others."""
        base, row = self._base, new.row
        prefixes = PrefixBatch.stack([row.prefix], base.device)
        length, text = row.prefix_length, len(row.prompt_ids)
        cache = prefixed_cache(base.geometry, prefixes, text)
        ids_1T = _sent([row.prompt_ids], base.device)
        positions_1T = torch.arange(length, length + text, device=base.device)[None]
        attention = AttentionContext(prefixes=prefixes, in_cache=True, target_starts=(-1,), unpadded=True)
        logits_1V = self._logits(ids_1T, torch.ones_like(ids_1T), positions_1T, cache, attention)
        new.position = length + text
        sampler = TokenSampler([new.row_sampling], logits_1V.device)
        (answer,) = choose_tokens([new], logits_1V, torch.zeros_like(ids_1T[0, :1]), sampler)
        token = new.take(*answer)
        if token.finish_reason is None:
            self._cache.add(len(self.rows), cache, new.position)
            self.rows.append(new)
            self._sampler = None
        return token

    @torch.no_grad()
    def step(self) -> list[Token | Exception]:
        """A token for every row, in the order of `rows`, or why it gets none; ended rows are gone then."""
        rows, device = list(self.rows), self._base.device
        # All that the step needs of the rows in one transfer, and all that comes of it in another: each
        # waits for the device. Masks and places are made there.
        ids_B, positions_B, made_B = _sent([[r.last, r.position, r.made] for r in rows], device).unbind(1)
        self._cache.begin_step(positions_B)
        columns_S = torch.arange(self._cache.columns, device=device)
        mask_BS = (columns_S <= positions_B[:, None]).long()
        # In force without a prefix, too: those are in the cache, and without this attention would be the
        # model's own, which repeats keys for query heads that share them.
        logits_BV = self._logits(
            ids_B[:, None], mask_BS, positions_B[:, None], self._cache, AttentionContext()
        )
        if self._sampler is None:
            self._sampler = TokenSampler([row.row_sampling for row in rows], logits_BV.device)
        outcomes: list[Token | Exception] = []
        staying = []
        for row, answer in zip(rows, choose_tokens(rows, logits_BV, made_B, self._sampler), strict=True):
            row.position += 1
            try:
                token = row.take(*answer)
            except Exception as error:  # this row's alone, and goes to its caller
                outcomes.append(error)
                continue
            outcomes.append(token)
            if token.finish_reason is None:
                staying.append(row)
        self.keep(staying)
        return outcomes

    def keep(self, staying: list[RunningRow]) -> None:
        """Let all other rows go; the last ones take their places."""
        if len(staying) == len(self.rows):
            return
        if not staying:
            self.clear()
            return
        count, stays = len(staying), set(staying)
        free = [place for place in range(count) if self.rows[place] not in stays]
        moved = [place for place in range(count, len(self.rows)) if self.rows[place] in stays]
        self._cache.move(moved, free, max(row.position for row in staying))
        for place, source in zip(free, moved, strict=True):
            self.rows[place] = self.rows[source]
        self.rows, self._sampler = self.rows[:count], None

    def clear(self) -> None:
        """Let all rows go, and the memory that they had."""
        self.rows, self._cache, self._sampler = [], RowCache(), None

    def _logits(
        self,
        ids_BT: torch.Tensor,
        mask_BS: torch.Tensor,
        positions_BT: torch.Tensor,
        cache: Cache,
        attention: AttentionContext,
    ) -> torch.Tensor:
        """The logits `[B, V]` of the last token of each row, in float32."""
        with attention_context(attention):
            output = self._base.model(
                input_ids=ids_BT,
                attention_mask=mask_BS,
                position_ids=positions_BT,
                use_cache=True,
                **{self._cache_argument: cache},
                **self._last_logits,
            )
        return output.logits[:, -1].float()  # type: ignore[no-any-return]


Answer = tuple[int, float | None, tuple[tuple[int, float], ...]]
"""A chosen token, its log-probability, and the likeliest tokens with theirs: see `Token`."""


def choose_tokens(
    rows: Sequence[RunningRow], logits_BV: torch.Tensor, made_B: torch.Tensor, sampler: TokenSampler
) -> list[Answer]:
    """The next token of every row, by its own settings, with log-probabilities where they are asked for.

    Only the answers leave the device, in one transfer. A row of whose logits none is the largest gets
    `NOT_FINITE`.
    """
    device = logits_BV.device
    finite_B = logits_BV.amax(-1).isfinite()  # the largest of any NaN is NaN
    ends = [
        (place, token)
        for place, row in enumerate(rows)
        if row.made < row.row.sampling.min_tokens
        for token in sorted(row.row.end_ids)
    ]
    allowed_BV = logits_BV
    if ends:
        place_N, token_N = _sent(ends, device).unbind(1)
        closed = torch.full((), -torch.inf, device=device)
        allowed_BV = logits_BV.index_put((place_N, token_N), closed)
    chosen_B = sampler.choose(allowed_BV, made_B).masked_fill(~finite_B, NOT_FINITE)
    wanted = [row.row.sampling.logprobs for row in rows]
    asked = [place for place, number in enumerate(wanted) if number is not None]
    if not asked:
        return [(chosen, None, ()) for chosen in chosen_B.tolist()]
    asked_A, most = _sent(asked, device), max(number or 0 for number in wanted)
    logprobs_AV = logits_BV[asked_A].log_softmax(-1)
    best_AK = logprobs_AV.topk(most)
    own_A1 = logprobs_AV.gather(1, chosen_B[asked_A, None].clamp(min=0))
    # The bits of the floats travel as whole numbers beside the ids.
    values = torch.cat([own_A1, best_AK.values], dim=1).view(torch.int32).long()
    answer = torch.cat([chosen_B, best_AK.indices.flatten(), values.flatten()]).cpu()
    chosen, ids, bits = answer.split([len(rows), len(asked) * most, len(asked) * (most + 1)])
    by_place = {
        place: (own, tuple(zip(best[: wanted[place]], likeliest[: wanted[place]], strict=True)))
        for place, best, (own, *likeliest) in zip(
            asked,
            ids.view(len(asked), most).tolist(),
            bits.int().view(torch.float32).view(len(asked), most + 1).tolist(),
            strict=True,
        )
    }
    return [(token, *by_place.get(place, (None, ()))) for place, token in enumerate(chosen.tolist())]


def _sent(numbers: Any, device: torch.device) -> torch.Tensor:
    """Whole numbers on the device."""
    return to_device(torch.tensor(numbers, dtype=torch.long), device)
