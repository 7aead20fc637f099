"""Signed requests: what the gateway sends along, so that vLLM loads a prefix and nobody else can ask for it.

All prefixes stand behind the same placeholder ids, so vLLM's cache tells them apart by the salt alone. Salts
are made from a secret that gateway and connector share: nobody without it can name one, or sign a request.
Run as a module, it prints vLLM's API key, which command lines of deployments ask it for.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foreword.errors import UsageError

SECRET = "FOREWORD_VLLM_SECRET"
"""Environment variable with the secret: a command line could be read by every user of the machine."""
SHORTEST_SECRET = 32
PLACEHOLDER = 0
"""Token id that stands for every virtual token. vLLM looks at it for nothing but the keys of its cache."""
FIELD = "foreword"
"""In the request's `kv_transfer_params`."""


@dataclass(frozen=True)
class SignedRequest:
    """The prefix of one request (a ticket, as messages call it).

    `signature` is of the other two, the request's salt and its token ids.
    """

    digest: str
    length: int
    signature: str

    def params(self) -> dict[str, Any]:
        """The request's `kv_transfer_params`."""
        return {FIELD: {"digest": self.digest, "length": self.length, "signature": self.signature}}


def secret_of(environment: Mapping[str, str] = os.environ) -> str:
    """The secret that gateway and connector share. Raises UsageError: not set, or too easily guessed."""
    secret = environment.get(SECRET, "")
    if len(secret) < SHORTEST_SECRET:
        problem = f"has {len(secret)} characters" if secret else "is not set"
        raise UsageError(
            f"{SECRET} {problem}; expected at least {SHORTEST_SECRET} random ones, the same for the gateway "
            "and for vLLM, such as those of: openssl rand -hex 32"
        )
    return secret


def api_key(secret: str) -> str:
    """The key that vLLM asks its callers for: only the gateway is meant to be one."""
    return _mac(secret, "api key")


def salt(secret: str, owner: str, digest: str | None) -> str:
    """The cache salt of an owner's requests behind a prefix, or behind none: 64 hexadecimal digits."""
    return _mac(secret, "salt", owner, digest or "")


def sign(secret: str, digest: str, length: int, salt: str, token_ids: Sequence[int]) -> SignedRequest:
    """The prefix of one request, signed; `token_ids` is the whole prompt, placeholders in front."""
    return SignedRequest(digest, length, _signature(secret, digest, length, salt, token_ids))


def read(params: Any) -> SignedRequest | None:
    """What the gateway signed, in a request's `kv_transfer_params`; None when there is none.

    Raises:
        UsageError: something that the gateway does not send.
    """
    if params is None:
        return None
    fields = params.get(FIELD) if isinstance(params, Mapping) else None
    if not isinstance(fields, Mapping) or set(fields) != {"digest", "length", "signature"}:
        raise UsageError("kv_transfer_params without a ticket of Foreword's gateway; leave them out")
    signed = SignedRequest(**fields)
    if type(signed.length) is not int or not isinstance(signed.digest, str) or signed.length < 1:
        raise UsageError("a ticket of another form than this release's; use one release on both sides")
    return signed


def verify(secret: str, signed: SignedRequest, salt: str | None, token_ids: Sequence[int]) -> None:
    """Refuse what the gateway did not sign for this very request.

    Raises:
        UsageError: says why, but nothing that would help to forge one.
    """
    expected = _signature(secret, signed.digest, signed.length, salt or "", token_ids)
    if not isinstance(signed.signature, str) or not hmac.compare_digest(
        expected.encode(), signed.signature.encode("utf-8", "replace")
    ):
        raise UsageError(
            f"a ticket that the gateway did not sign for this request; if it did, their {SECRET} differ"
        )
    if len(token_ids) <= signed.length or any(i != PLACEHOLDER for i in token_ids[: signed.length]):
        raise UsageError(
            f"expected {signed.length} placeholders and text behind them, found {len(token_ids)} tokens"
        )


def _signature(secret: str, digest: str, length: int, salt: str, token_ids: Sequence[int]) -> str:
    tokens = hashlib.sha256(array("q", token_ids).tobytes()).hexdigest()
    # The word is part of what is signed: it stays, or gateway and vLLM would have to change at once.
    return _mac(secret, "ticket", digest, str(length), salt, tokens)


def _mac(secret: str, *parts: str) -> str:
    message = json.dumps(parts).encode()  # no two lists of parts give one text
    return hmac.new(secret.encode(), message, hashlib.sha256).hexdigest()


if __name__ == "__main__":
    print(api_key(secret_of()))
