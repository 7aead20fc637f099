"""A continuous batch: rows of which each step reads some tokens, and which enter and leave between steps.

A step is one pass of the model over the newest token of every row that has its text read, and over parts of
the texts of others, end to end without padding. Where all of a row's text has been read, the step gives its
next token. What was read is kept in a `RaggedCache`; a row that is put out loses it, and reads its text anew,
its own new tokens among it, when it comes back.

Shapes: N tokens of a pass, B rows that get a token, V vocabulary, A rows that ask for log-probabilities,
K of the likeliest, Q prompt tokens whose log-probabilities are asked for, S = B + Q.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import torch

from foreword.base.attention import AttentionContext, attention_context
from foreword.base.base_model import BaseModel
from foreword.base.batch import to_device
from foreword.base.loss import keeps_logits
from foreword.base.prefix_batch import PrefixBatch
from foreword.base.ragged_cache import RaggedCache, RaggedPass, RowStates, room_for
from foreword.errors import NotFinite
from foreword.grammar import Following, masks_of
from foreword.sampling import RowSampling, TokenSampler
from foreword.serving.engine.protocol import NO_TOKEN, FinishReason, Likeliest, Row, Token

NOT_FINITE = -1
"""In place of a token: the row's logits are no numbers."""


@dataclass(eq=False)
class RunningRow:
    """A row from its request to its last token, with what is known of it between two steps.

    Attributes:
        number: counts rows in the order in which they were asked for.
        gone: nobody wants its tokens any more.
        text: the prompt and the new tokens so far.
        read: of these, so many are held.
        made: new tokens so far.
        made_before: of these, so many were there when it entered the batch.
        states: what is held of it; None while it waits.
        following: where it is in its grammar, if it has one; stays with it while it waits.
        prompt_logprobs: of the prompt's tokens but its first, those that were read so far; see `Token`.
    """

    row: Row
    max_new_tokens: int
    number: int = 0
    gone: bool = False
    text: list[int] = field(init=False)
    read: int = 0
    made: int = 0
    made_before: int = 0
    states: RowStates | None = None
    following: Following | None = None
    prompt_logprobs: list[tuple[float, Likeliest]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.text = list(self.row.prompt_ids)
        if (grammar := self.row.grammar) is not None:
            self.following = Following(grammar.state(), self.row.end_ids)

    @property
    def owner(self) -> str:
        """Whose row it is."""
        return self.row.owner

    @property
    def unread(self) -> int:
        """Tokens that must be read before its next one is known."""
        return len(self.text) - self.read

    @property
    def decodes(self) -> bool:
        """Whether all of its text was read but the newest token."""
        return self.read > 0 and self.unread == 1

    @property
    def room(self) -> int:
        """Columns that are held for it when all of its text is read."""
        return room_for(self.row.prefix_length + len(self.text))

    @property
    def most_room(self) -> int:
        """Columns that it comes to have, if it becomes as long as it may."""
        return room_for(self.row.prefix_length + len(self.row.prompt_ids) + self.max_new_tokens)

    @property
    def row_sampling(self) -> RowSampling:
        """How its tokens are chosen."""
        sampling = self.row.sampling
        return RowSampling(sampling.temperature, sampling.top_p, seed=sampling.seed)

    def unscored(self, count: int) -> range:
        """Of the next so many tokens, those that tell how likely the prompt's token behind them is.

        A row that is read anew has some of these log-probabilities already.
        """
        if self.row.sampling.prompt_logprobs is None:
            return range(0)
        last = len(self.row.prompt_ids) - 1
        return range(max(self.read, len(self.prompt_logprobs)), min(self.read + count, last))

    def forget(self) -> None:
        """Nothing is held of it any more."""
        self.states, self.read, self.made_before = None, 0, self.made

    def take(self, chosen: int, logprob: float | None = None, likeliest: Likeliest = ()) -> Token:
        """The token that was chosen for the row, with why the text ends there.

        Raises:
            NotFinite: `NOT_FINITE` was chosen.
            BadSchema: to follow its grammar any further takes too much.
        """
        prompt = tuple(self.prompt_logprobs) if self.made == 0 else ()
        if chosen == NOT_FINITE or not all(math.isfinite(own) for own, _ in prompt):
            raise NotFinite("the model's answer is no number behind this prefix; train the prefix anew")
        if self.max_new_tokens == 0:
            return Token(NO_TOKEN, finish_reason="length", prompt=prompt)
        self.made += 1
        self.text.append(chosen)
        reason: FinishReason | None = None
        if chosen in self.row.end_ids or self._completes(chosen):
            reason = "stop"
        elif self.made >= self.max_new_tokens:
            reason = "length"
        return Token(chosen, logprob, likeliest, reason, prompt)

    def _completes(self, chosen: int) -> bool:
        """Whether the row's grammar lets nothing follow this token."""
        if self.following is None:
            return False
        self.following.state.take(chosen)
        return self.following.state.complete


class ContinuousBatch:
    """The model, and the rows of which something is held."""

    def __init__(self, base: BaseModel) -> None:
        self.rows: list[RunningRow] = []
        self._base = base
        self._cache = RaggedCache()
        self._keeps_logits = keeps_logits(base.model)
        self._sampled: list[RunningRow] = []
        self._sampler: TokenSampler | None = None  # of `_sampled`
        self._masking = ThreadPoolExecutor(1, thread_name_prefix="foreword-grammar")

    @torch.no_grad()
    def step(self, reads: Mapping[RunningRow, int]) -> list[tuple[RunningRow, Token | Exception]]:
        """Read so many tokens of each row; the next token of those that are read to the end, or why it fails.

        Every row that decodes must be among them, with one token. A step that raises, whatever it is, leaves
        all rows as they were, so that it can be made again with the same rows or fewer.
        """
        for row, count in reads.items():
            self._reserve(row, count)
        rows = {row.states: row for row in reads if row.states is not None}
        step = RaggedPass({states: reads[row] for states, row in rows.items()})
        ordered = [rows[states] for states in step.rows]
        ids = [token for row in ordered for token in row.text[row.read : row.read + reads[row]]]
        ready = [row for row in ordered if row.unread == reads[row]]
        places, place = [], -1
        scored: list[tuple[RunningRow, int, int]] = []  # whose prompt, the place in front, the token there
        for row in ordered:
            begins = place + 1 - row.read
            scored += [(row, begins + n, row.text[n + 1]) for n in row.unscored(reads[row])]
            place += reads[row]
            if row.unread == reads[row]:
                places.append(place)
        places += [before for _, before, _ in scored]
        # All that the step needs of the rows in one transfer, and all that comes of it in another: each
        # waits for the device.
        sizes = [len(ids), len(ids), len(places), len(ready)]
        sent = _sent([*ids, *step.columns, *places, *(row.made for row in ready)], self._base.device)
        ids_N, columns_N, places_S, made_B = sent.split(sizes)
        step.use_columns(columns_N)
        # What may come next is known from the tokens so far: it is computed while the model is.
        following = [row.following for row in ready]
        masking = self._masking.submit(masks_of, following) if any(following) else None
        try:
            logits_SV = self._logits(ids_N, columns_N, places_S, places, step)
        finally:
            wait([masking] if masking is not None else [])  # another attempt asks for the same masks
        logits_BV, prompt_QV = logits_SV.split([len(ready), len(scored)])
        masks = None if masking is None else masking.result()
        allowed_BV = logits_BV if masks is None else masks.applied(logits_BV)
        answers = (
            choose_tokens(ready, logits_BV, allowed_BV, made_B, self._sampler_of(ready)) if ready else []
        )
        scores = _prompt_logprobs(prompt_QV, [(row, token) for row, _, token in scored])
        step.done()
        for (row, _, _), score in zip(scored, scores, strict=True):
            row.prompt_logprobs.append(score)
        for row in ordered:
            row.read += reads[row]
        failed = {} if masks is None else masks.failed
        outcomes = zip(ready, answers, strict=True)
        return [
            (row, failed.get(place) or _taken(row, answer)) for place, (row, answer) in enumerate(outcomes)
        ]

    def keep(self, staying: Sequence[RunningRow]) -> None:
        """Let all other rows go; they begin anew when they come back."""
        for row in [row for row in self.rows if row not in staying]:
            if row.states is not None:
                self._cache.release(row.states)
            self.rows.remove(row)
            row.forget()

    def clear(self) -> None:
        """Let all rows go, and the memory that they had."""
        self._cache, self._sampled, self._sampler = RaggedCache(), [], None
        for row in self.rows:
            row.forget()
        self.rows = []

    def _reserve(self, row: RunningRow, count: int) -> None:
        """See that there is room for what is read next."""
        if row.states is None or row.states.block is None:  # the second: memory ran out on the way to a block
            row.forget()
            prefixes = PrefixBatch.stack([row.row.prefix], self._base.device)
            row.states = RowStates(prefixes, row.row.prefix_length)
            if row not in self.rows:
                self.rows.append(row)
        if row.decodes:
            self._cache.reserve_shared(row.states, row.states.columns + count)
        else:
            self._cache.reserve_alone(row.states, row.states.columns + row.unread)

    def _sampler_of(self, rows: list[RunningRow]) -> TokenSampler:
        if self._sampler is None or rows != self._sampled:
            self._sampler = TokenSampler([row.row_sampling for row in rows], self._base.device)
            self._sampled = rows
        return self._sampler

    def _logits(
        self,
        ids_N: torch.Tensor,
        positions_N: torch.Tensor,
        places_S: torch.Tensor,
        places: list[int],
        step: RaggedPass,
    ) -> torch.Tensor:
        """The logits `[S, V]` at S of the N tokens, in float32."""
        kept: dict[str, Any] = {}
        if self._keeps_logits:
            # accelerate would move a tensor to the first device, and the states are on the last.
            several = len(getattr(self._base.model, "hf_device_map", ())) > 1
            kept["logits_to_keep"] = places if several else places_S
        with attention_context(AttentionContext(ragged=step)):
            output = self._base.model(
                input_ids=ids_N[None],
                attention_mask=torch.ones_like(ids_N)[None],
                position_ids=positions_N[None],
                use_cache=False,
                **kept,
            )
        logits = output.logits[0] if self._keeps_logits else output.logits[0, places_S]
        return logits.float()  # type: ignore[no-any-return]


def _taken(row: RunningRow, answer: Answer) -> Token | Exception:
    try:
        return row.take(*answer)
    except Exception as error:  # this row's alone, and goes to its caller
        return error


PROMPT_TOKENS_AT_ONCE = 256
"""Whose log-probabilities of all tokens are held beside the logits."""


def _prompt_logprobs(
    prompt_QV: torch.Tensor, wanted: Sequence[tuple[RunningRow, int]]
) -> list[tuple[float, Likeliest]]:
    """The log-probabilities of prompts' tokens, each with the likeliest in its place, as its row asks."""
    found: list[tuple[float, Likeliest]] = []
    for start in range(0, len(wanted), PROMPT_TOKENS_AT_ONCE):
        part = wanted[start : start + PROMPT_TOKENS_AT_ONCE]
        counts = [row.row.sampling.prompt_logprobs or 0 for row, _ in part]
        logprobs_QV = prompt_QV[start : start + len(part)].log_softmax(-1)
        best_QK = logprobs_QV.topk(max(counts))
        own_Q1 = logprobs_QV.gather(1, _sent([token for _, token in part], prompt_QV.device)[:, None])
        answers = zip(
            counts, own_Q1[:, 0].tolist(), best_QK.indices.tolist(), best_QK.values.tolist(), strict=True
        )
        found += [(own, tuple(zip(ids[:most], best[:most], strict=True))) for most, own, ids, best in answers]
    return found


Answer = tuple[int, float | None, Likeliest]
"""A chosen token, its log-probability, and the likeliest tokens with theirs: see `Token`."""


def choose_tokens(
    rows: Sequence[RunningRow],
    logits_BV: torch.Tensor,
    allowed_BV: torch.Tensor,
    made_B: torch.Tensor,
    sampler: TokenSampler,
) -> list[Answer]:
    """The next token of every row, by its own settings, with log-probabilities where they are asked for.

    Tokens are chosen by `allowed_BV`, which are the logits but for what a row's grammar excludes;
    log-probabilities are the model's own. Only the answers leave the device, in one transfer. A row of whose
    logits none is the largest gets `NOT_FINITE`.
    """
    device = logits_BV.device
    finite_B = logits_BV.amax(-1).isfinite()  # the largest of any NaN is NaN
    ends = [
        (place, token)
        for place, row in enumerate(rows)
        if row.made < row.row.sampling.min_tokens
        for token in sorted(row.row.end_ids)
    ]
    if ends:
        place_N, token_N = _sent(ends, device).unbind(1)
        closed = torch.full((), -torch.inf, device=device)
        allowed_BV = allowed_BV.index_put((place_N, token_N), closed)
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
