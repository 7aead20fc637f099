"""An engine that computes every token anew from the whole text: slow, and easy to be sure of."""

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import torch

from foreword import BaseModel
from foreword.errors import EngineStopped
from foreword.grammar import Following, masks_of
from foreword.serving.engine.protocol import NO_TOKEN, Likeliest, Row, Token
from support.by_hand import layers_of, logits


class PlainEngine:
    """Rows one after the other, a token each.

    Attributes:
        rows: rows that are under way now.
        freed: rows that were closed before their end.
        gate: clear it to hold every row before its next token.
    """

    def __init__(self, base: BaseModel) -> None:
        self._base = base
        # Of its own: the independent computation switches the model's attention while it runs.
        self._model = copy.deepcopy(base.model)
        self._thread = ThreadPoolExecutor(1)
        self.rows = 0
        self.freed = 0
        self.pause = 0.0
        self.stopped = False

    async def stream(self, row: Row) -> AsyncIterator[Token]:
        self.rows += 1
        finished = False
        try:
            ids = list(row.prompt_ids)
            noise = torch.Generator().manual_seed(row.sampling.seed)
            limit = self._base.max_text_tokens(row.prefix.length if row.prefix else 0)
            following = None if row.grammar is None else Following(row.grammar.state(), row.end_ids)
            prompt = self._prompt_logprobs(row) if row.sampling.prompt_logprobs is not None else ()
            if row.sampling.max_tokens == 0:
                finished = True
                yield Token(NO_TOKEN, finish_reason="length", prompt=prompt)
                return
            room = min(row.sampling.max_tokens, limit - len(ids) if limit is not None else math.inf)
            for number in range(int(room)):
                if self.stopped:
                    raise EngineStopped("the engine was closed")
                await asyncio.sleep(self.pause)
                loop = asyncio.get_running_loop()
                token = await loop.run_in_executor(self._thread, self._next, ids, row, noise, following)
                ids.append(token.token_id)
                ended = token.token_id in row.end_ids
                if following is not None and not ended:
                    following.state.take(token.token_id)
                    ended = following.state.complete
                reason = "stop" if ended else "length" if number + 1 == room else None
                finished = reason is not None
                yield Token(token.token_id, token.logprob, token.likeliest, reason, () if number else prompt)
                if finished:
                    return
        finally:
            self.rows -= 1
            self.freed += not finished

    def ready(self) -> bool:
        return not self.stopped

    async def close(self) -> None:
        self.stopped = True
        self._thread.shutdown()

    @torch.no_grad()
    def _prompt_logprobs(self, row: Row) -> tuple[tuple[float, Likeliest], ...]:
        prefix = layers_of(row.prefix) if row.prefix is not None else None
        logprobs_TV = logits(self._model, list(row.prompt_ids), prefix).double().log_softmax(-1)
        found = []
        for logprobs_V, token in zip(logprobs_TV, row.prompt_ids[1:], strict=False):
            best = logprobs_V.topk(row.sampling.prompt_logprobs or 0)
            likeliest = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
            found.append((float(logprobs_V[token]), likeliest))
        return tuple(found)

    @torch.no_grad()
    def _next(self, ids: list[int], row: Row, noise: torch.Generator, following: Following | None) -> Token:
        prefix = layers_of(row.prefix) if row.prefix is not None else None
        logits_V = logits(self._model, ids, prefix)[-1].double()
        sampling = row.sampling
        logprobs_V = logits_V.log_softmax(-1)
        if (masks := masks_of([following])) is not None:
            logits_V = masks.applied(logits_V[None])[0]
        if len(ids) - len(row.prompt_ids) < sampling.min_tokens:
            logits_V[list(row.end_ids)] = -math.inf
        if sampling.temperature == 0:
            chosen = int(logits_V.argmax())
        else:
            shares_V, order_V = (logits_V / sampling.temperature).softmax(-1).sort(descending=True)
            kept = int((shares_V.cumsum(0) - shares_V < sampling.top_p).sum())
            chosen = int(order_V[torch.multinomial(shares_V[:kept], 1, generator=noise)])
        if sampling.logprobs is None:
            return Token(chosen)
        best = logprobs_V.topk(sampling.logprobs)
        likeliest = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        return Token(chosen, float(logprobs_V[chosen]), likeliest)
