"""The vLLM engine: rows go to a vLLM with the connector over HTTP, as token ids, and come back as tokens."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import httpx

from foreword.base.base_model import BaseModel
from foreword.base.rope import is_dynamic
from foreword.errors import EngineStopped, ForewordError, UnsupportedArchitecture, UsageError
from foreword.serving.engine.protocol import STOPPING, Row, Token, check_row
from foreword.serving.vllm import ticket
from foreword.serving.vllm.door import HEADER, signature_of
from foreword.serving.vllm.prefixes import JOINED
from foreword.serving.vllm.process import answers, base_url_of

SERVED_NAME = "foreword-base"
"""What vLLM calls the base model."""
SAME_LINE = "start it with the line that `foreword serve --vllm-line` prints, with the same secret"
"""What to do about a vLLM that does not fit the gateway."""
CONNECT_SECONDS = 5.0
MOST_LOGPROBS = 20
DATA, DONE = "data: ", "[DONE]"
TOKEN = "token_id:"


class Broken(Exception):
    """vLLM ended the answer with an error, or without an end."""


class VllmEngine:
    """Rows of all owners to one vLLM, which batches them."""

    def __init__(
        self,
        base: BaseModel,
        url: str,
        secret: str,
        *,
        max_positions: int | None = None,
        is_up: Callable[[], bool] = lambda: True,
        on_close: Callable[[], None] = lambda: None,
        silent_seconds: float | None = None,
        on_silence: Callable[[str], None] = lambda why: None,
        read: Callable[[str], object] = lambda digest: None,
    ) -> None:
        """
        Args:
            url: where vLLM listens, without `/v1`; see `process.py`.
            secret: shared with the connector.
            max_positions: of vLLM for prefix and text, if fewer than the base's.
            is_up: whether vLLM takes requests, answered at once.
            on_close: called when all rows are finished.
            silent_seconds: when no row has had a token for so long, all are given up; None waits for ever.
            on_silence: called then, with what is to be said of it.
            read: reads a prefix by its digest where vLLM does, to learn why vLLM could not.

        Raises:
            UnsupportedArchitecture: a base whose attention would lose sight of a prefix, or that vLLM's
                connector can't serve.
        """
        check_base(base)
        self._base = base
        self._url = url
        self._secret = secret
        self._max_positions = max_positions
        self._is_up = is_up
        self._on_close = on_close
        self._silent_seconds = silent_seconds
        self._on_silence = on_silence
        self._read = read
        self._heard = 0.0  # when vLLM last gave a token, to whichever row
        self._waits: set[asyncio.Timeout] = set()
        self._watcher: asyncio.Task[None] | None = None
        self._client: httpx.AsyncClient | None = None  # made in the loop that uses it
        self._running = self._rows = self._tokens = 0
        self._closing = False

    async def stream(self, row: Row) -> AsyncIterator[Token]:
        """See `Engine`.

        Raises:
            GeometryMismatch, WrongBaseModel, UsageError: the prefix does not fit the base or the engine.
            DamagedBlob, UnknownPrefix, StoreUnavailable: vLLM could not load the prefix.
            EngineStopped: as `Engine`; vLLM does not answer, or gives nobody a token any more.
        """
        max_new_tokens = check_row(
            self._base, row, max_positions=self._max_positions, where=", as vLLM was started"
        )
        if (row.sampling.logprobs or 0) > MOST_LOGPROBS:
            raise UsageError(
                f"logprobs is {row.sampling.logprobs}; vLLM tells {MOST_LOGPROBS} of the likeliest at most"
            )
        if row.sampling.prompt_logprobs is not None or row.sampling.max_tokens == 0:
            raise UsageError(
                "'echo' with 'logprobs' or with 'max_tokens' 0 is answered by the local engine alone: vLLM "
                "would take the places of a prefix for text. Leave 'logprobs' out and ask for tokens, or "
                "take a server with the local engine"
            )
        if self._closing:
            raise EngineStopped(STOPPING)
        if not self._running:
            self._heard = asyncio.get_running_loop().time()
        self._running += 1
        self._rows += 1
        if self._silent_seconds is not None and (self._watcher is None or self._watcher.done()):
            self._watcher = asyncio.create_task(self._watch(self._silent_seconds))
        try:
            async with contextlib.aclosing(self._request(row, max_new_tokens)) as stream:  # type: ignore[type-var]
                while (token := await self._next(stream)) is not None:
                    self._tokens += 1
                    yield token
        finally:
            self._running -= 1

    async def _next(self, stream: AsyncIterator[Token]) -> Token | None:
        """The next token, or None behind the last. Raises EngineStopped when `_watch` gives all rows up."""
        try:
            async with asyncio.timeout(None) as wait:
                self._waits.add(wait)
                try:
                    token = await anext(stream, None)
                finally:
                    self._waits.discard(wait)
        except TimeoutError as error:
            raise EngineStopped(f"vLLM gave no token for {self._silent_seconds:.0f} s") from error
        self._heard = asyncio.get_running_loop().time()
        return token

    async def _watch(self, silent_seconds: float) -> None:
        """While rows run: give all of them up when none has had a token for too long.

        A row alone may wait for long, behind others; a vLLM that works gives some row a token.
        """
        loop = asyncio.get_running_loop()
        while self._running:
            left = self._heard + silent_seconds - loop.time()
            if left <= 0:
                self._on_silence(f"no token for {silent_seconds:.0f} s, and {self._running} texts wait")
                for wait in self._waits:
                    wait.reschedule(loop.time())
                self._heard = loop.time()
            await asyncio.sleep(min(max(left, 0.0), 1.0))

    async def close(self) -> None:
        """See `Engine`."""
        self._closing = True
        while self._running:
            await asyncio.sleep(0.05)
        if self._client is not None:
            await self._client.aclose()
        await asyncio.to_thread(self._on_close)

    def ready(self) -> bool:
        """See `Engine`; whether vLLM answered at the last look."""
        return not self._closing and self._is_up()

    def measurements(self) -> Mapping[str, float]:
        """Rows that vLLM has now, and rows and tokens since the start; more is at vLLM's own `/metrics`."""
        return {"rows_running": self._running, "rows": self._rows, "tokens": self._tokens}

    def body(self, row: Row, max_new_tokens: int) -> dict[str, Any]:
        """The request for a row. Every setting that a model's own files could change is said."""
        sampling, prefix = row.sampling, row.prefix
        digest = None if prefix is None else JOINED.join(row.joined) or prefix.digest
        salt = ticket.salt(self._secret, row.owner, digest)
        prompt = list(row.prompt_ids)
        more: dict[str, Any] = {}
        if prefix is not None and digest is not None:
            prompt = [ticket.PLACEHOLDER] * prefix.length + prompt
            signed = ticket.sign(self._secret, digest, prefix.length, salt, prompt)
            more["kv_transfer_params"] = signed.params()
        if row.grammar is not None:
            more["structured_outputs"] = {"grammar": row.grammar.text}
        if sampling.logprobs is not None:
            more |= {"logprobs": sampling.logprobs, "return_tokens_as_token_ids": True}
        return {
            "model": SERVED_NAME,
            "prompt": prompt,
            "cache_salt": salt,
            "max_tokens": max_new_tokens,
            "min_tokens": min(sampling.min_tokens, max_new_tokens),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "frequency_penalty": 0.0,
            "presence_penalty": 0.0,
            "seed": sampling.seed,
            "stop_token_ids": sorted(row.end_ids),
            "ignore_eos": True,  # which tokens end the text is the row's to say
            "stream": True,
            "return_token_ids": True,
            **more,
        }

    async def _request(self, row: Row, max_new_tokens: int) -> AsyncIterator[Token]:
        content = json.dumps(self.body(row, max_new_tokens)).encode()
        headers = {
            "content-type": "application/json",
            "authorization": f"Bearer {ticket.api_key(self._secret)}",
            HEADER: signature_of(self._secret, content),
        }
        base_url, path = base_url_of(self._url)
        if self._client is None:
            timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
            transport = httpx.AsyncHTTPTransport(uds=path, limits=httpx.Limits(), trust_env=False)
            self._client = httpx.AsyncClient(timeout=timeout, transport=transport, trust_env=False)
        url = f"{base_url}/v1/completions"
        try:
            async with self._client.stream("POST", url, content=content, headers=headers) as response:
                if response.status_code != 200:
                    await response.aread()
                    raise Broken(f"status {response.status_code}: {_message(response)}")
                async for token in tokens(response.aiter_lines(), row, max_new_tokens):
                    yield token
        except httpx.HTTPError as error:
            raise EngineStopped(
                f"vLLM does not answer ({type(error).__name__}); start it, or wait for it"
            ) from error
        except Broken as error:
            raise await self._meaning(error, row) from error

    async def _meaning(self, error: Broken, row: Row) -> Exception:
        """A vLLM that lives has failed this request alone: only a load that failed does that."""
        text = str(error)
        if text.startswith("status 4"):
            # What clients ask for was checked before; this is between the server and its vLLM.
            return EngineStopped(f"vLLM refuses what the server asks for ({text}). {SAME_LINE.capitalize()}")
        if row.prefix is None or not await asyncio.to_thread(answers, self._url):
            return EngineStopped(f"vLLM broke off: {text}; its log says why")
        try:
            for digest in row.joined or (row.prefix.digest,):
                await asyncio.to_thread(self._read, digest)
        except ForewordError as cause:  # damaged, gone, or the store does not answer: here as there
            return cause
        return EngineStopped(
            f"vLLM could not load the prefix {row.prefix.digest[:12]}... ({text}), which can be read here; "
            "its log says why"
        )


def check_base(base: BaseModel) -> None:
    """Refuse a base that a prefix on vLLM would be wrong for.

    Raises:
        UnsupportedArchitecture: an encoder-decoder, or attention that would lose sight of the prefix.
    """
    if base.is_hybrid:
        raise UnsupportedArchitecture(
            f"{base.name} can't be served by vLLM with prefixes: it is a hybrid, and vLLM takes a prefix for "
            "text that the layers beside attention have read. `foreword generate` runs this one"
        )
    if base.is_encoder_decoder or not base.takes_positions or base.positions != "text-after-prefix":
        raise UnsupportedArchitecture(
            f"{base.name} can't be served by vLLM with prefixes: it needs a decoder-only model whose "
            "layers all see the whole text. `foreword generate` runs this one"
        )
    if is_dynamic(base.model.config):  # vLLM stretches every text as if it were as long as can be
        raise UnsupportedArchitecture(
            f"{base.name} has dynamic rotary embeddings, which turn a text by other angles in vLLM than in "
            "transformers, so prefixes would not fit. Take engine local"
        )


def _message(response: httpx.Response) -> str:
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        return response.text[:200]
    return str(error.get("message") if isinstance(error, dict) else error)


async def tokens(lines: AsyncIterator[str], row: Row, max_new_tokens: int) -> AsyncIterator[Token]:
    """The tokens of a stream of server-sent events, the last with its reason.

    The reason is the row's own: an end token, or as many tokens as it may have.

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
                if ended or count == max_new_tokens:
                    yield Token(token.token_id, token.logprob, token.likeliest, "stop" if ended else "length")
                    return
                yield token
    raise Broken(f"the stream ended after {count} tokens")


def _tokens(choice: dict[str, Any], row: Row) -> list[Token]:
    ids = choice.get("token_ids") or []
    wanted = row.sampling.logprobs
    if wanted is None:
        return [Token(token_id) for token_id in ids]
    logprobs = choice["logprobs"]
    return [
        Token(token_id, logprob, _likeliest(likeliest or {}, wanted))
        for token_id, logprob, likeliest in zip(
            ids, logprobs["token_logprobs"], logprobs["top_logprobs"] or [None] * len(ids), strict=True
        )
    ]


def _likeliest(by_name: dict[str, float], wanted: int) -> tuple[tuple[int, float], ...]:
    """By value; vLLM adds the chosen token where it is not among the likeliest."""
    pairs = [(int(name.removeprefix(TOKEN)), logprob) for name, logprob in by_name.items()]
    return tuple(sorted(pairs, key=lambda pair: -pair[1])[:wanted])
