"""ASGI middleware in front of vLLM's own HTTP server: refuses by name what only the gateway may send.

The connector holds without it (it fails a request that is not signed); here such a request gets a status and
a reason, before it costs anything. Given to vLLM as `--middleware foreword.serving.vllm.door.Door`: command
lines of deployments name this module and that class, so both names stay.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Iterator
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from foreword.serving.vllm.ticket import api_key, secret_of

HEADER = "x-foreword-signature"
"""HMAC of the whole body, with the secret of gateway and connector."""
OURS = ("kv_transfer_params", "cache_salt")
"""Set by the gateway only."""
OF_PROMPTS = ("prompt_logprobs", "echo")
"""For which vLLM computes the whole prompt, placeholders as if they were text."""
POLICY_VIOLATION = 1008
LARGEST_BODY = 64 << 20
"""Bytes; a prompt of a million token ids has fewer."""


class GatewayMiddleware:
    """Lets through what the gateway sends, and what carries no body.

    It stands in front of vLLM's own, so it asks for the key before it reads a body. vLLM asks for it on some
    of its routes only; here no request that carries a body is without.
    """

    def __init__(self, app: ASGIApp) -> None:
        """Raises UsageError when there is no secret."""
        self._app = app
        self._secret = secret_of(os.environ)
        self._key = f"Bearer {api_key(self._secret)}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer 400, 401 or 413; the gateway opens no WebSocket, so nobody may."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": POLICY_VIOLATION})
            return
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT", "PATCH"):
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("authorization", "").encode("utf-8", "replace")
        if not hmac.compare_digest(given, self._key):
            await _answer(401, "the key is missing or wrong; only the gateway has it")(scope, receive, send)
            return
        parts, size, messages = [], 0, []
        while True:
            message = await receive()
            messages.append(message)
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > LARGEST_BODY:
                await _answer(413, f"the body has more than {LARGEST_BODY} bytes")(scope, receive, send)
                return
            if not message.get("more_body", False):
                break
        body = b"".join(parts)
        signature = Headers(scope=scope).get(HEADER, "").encode("utf-8", "replace")
        expected = signature_of(self._secret, body).encode()
        why = refusal(body, signed=hmac.compare_digest(signature, expected))
        if why is not None:
            await _answer(400, why)(scope, receive, send)
            return
        again = iter(messages)

        async def replay() -> Message:
            return next(again, None) or await receive()

        await self._app(scope, replay, send)


Door = GatewayMiddleware


def _answer(status: int, why: str) -> JSONResponse:
    error = {"message": why, "type": "invalid_request_error", "param": None, "code": status}
    return JSONResponse({"error": error}, status)


def signature_of(secret: str, body: bytes) -> str:
    """What the gateway sends as `HEADER`."""
    return hmac.new(secret.encode(), b"body\0" + body, hashlib.sha256).hexdigest()


def refusal(body: bytes, *, signed: bool) -> str | None:
    """Why a body is not let through; None when it is."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return None if not any(name.encode() in body for name in OURS) else "the body is not JSON"
    # vLLM takes such fields in several places (`vllm_xargs`, `sampling_params`): none of them is allowed.
    given = {name for name, value in _fields(content) if value is not None and value is not False}
    for name in OURS:
        if name in given and not signed:
            return f"{name} is set by the server, never by its caller; leave it out"
    for name in OF_PROMPTS:
        if name in given and "kv_transfer_params" in given:
            return f"{name} is not possible with a prefix, which has no text; leave it out"
    return None


def _fields(content: Any) -> Iterator[tuple[str, Any]]:
    waiting = [content]
    while waiting:  # no recursion: a body may be nested as deep as its sender likes
        item = waiting.pop()
        if isinstance(item, dict):
            yield from item.items()
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(part for part in item if isinstance(part, dict | list))
