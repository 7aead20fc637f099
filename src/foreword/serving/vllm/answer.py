"""Answer: what vLLM streams back, as tokens."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from foreword.serving.engine.protocol import Row, Token

DATA, DONE = "data: ", "[DONE]"
TOKEN = "token_id:"


class Broken(Exception):
    """vLLM ended the answer with an error, or without an end."""


async def tokens(lines: AsyncIterator[str], row: Row, room: int) -> AsyncIterator[Token]:
    """The tokens of a stream of server-sent events, the last with its reason.

    The reason is the row's own: an end token, or no room for more.

    Raises:
        Broken: the stream ended before the text did.
    """
    count = 0
    async for line in lines:
        if not line.startswith(DATA) or (text := line[len(DATA) :]) == DONE:
            continue
        event = json.loads(text)
        if "error" in event:
            raise Broken(str(event["error"].get("message")))
        for choice in event["choices"]:
            for token in _tokens(choice, row):
                count += 1
                ended = token.token_id in row.end_ids
                if ended or count == room:
                    yield Token(token.token_id, token.logprob, token.likeliest, "stop" if ended else "length")
                    return
                yield token
    raise Broken(f"the stream ended after {count} tokens")


def _tokens(choice: dict[str, Any], row: Row) -> list[Token]:
    ids = choice.get("token_ids") or []
    wanted = row.sampling.logprobs
    if wanted is None:
        return [Token(token_id) for token_id in ids]
    told = choice["logprobs"]
    return [
        Token(token_id, logprob, _likeliest(likeliest or {}, wanted))
        for token_id, logprob, likeliest in zip(
            ids, told["token_logprobs"], told["top_logprobs"] or [None] * len(ids), strict=True
        )
    ]


def _likeliest(told: dict[str, float], wanted: int) -> tuple[tuple[int, float], ...]:
    """vLLM tells the chosen token, too, where it is not among the likeliest."""
    pairs = [(int(name.removeprefix(TOKEN)), logprob) for name, logprob in told.items()]
    return tuple(sorted(pairs, key=lambda pair: -pair[1])[:wanted])
