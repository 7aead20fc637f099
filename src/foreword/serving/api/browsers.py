"""Which requests that web pages send are answered by a server without keys.

Such a server takes whoever reaches it for the person at its machine. A browser on that machine reaches it,
too, and shows pages of anybody: what they ask for is told apart by headers that a page can't set, `Host`,
`Origin` and `Sec-Fetch-Site` (https://www.w3.org/TR/fetch-metadata/). With keys nothing needs to be told
apart: a page of another site has no key, and a browser adds none by itself, since there are no cookies.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from starlette.datastructures import Headers

from foreword.serving.config import Configuration, is_loopback
from foreword.serving.errors import Refused, shown

_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9.-]+))(?::[0-9]{1,5})?")
"""A name or an address, in brackets where it is one of IPv6, and a port."""


def check_site(configuration: Configuration, headers: Headers) -> None:
    """Without keys, refuse what a page of another site asks for, or asks under a name that is not ours.

    Raises:
        Refused: 403.
    """
    if not configuration.keys:
        host = headers.get("host", "").lower()
        check_host(host)
        allowed = configuration.allowed_origins
        check_origin(host, headers.get("origin"), headers.get("sec-fetch-site"), allowed)


def check_host(host: str) -> None:
    """Refuse a name of another machine that was made to point here ("DNS rebinding").

    Args:
        host: what the request calls this server, in lower case.

    Raises:
        Refused: 403, no loopback name.
    """
    parts = _HOST.fullmatch(host)
    if parts is None or not is_loopback(parts[1] or parts[2]):
        raise Refused(
            403,
            "this server has no keys and answers only under its machine's own names, but the request's Host "
            f"is {shown(host)}; expected localhost, 127.0.0.1 or [::1]",
        )


def check_origin(host: str, origin: str | None, site: str | None, allowed: Collection[str] = ()) -> None:
    """Refuse what a page of another origin asks for.

    Args:
        origin, site: the headers Origin and Sec-Fetch-Site; what is no browser sends neither.
        allowed: origins whose pages may ask, such as `http://localhost:3000`.

    Raises:
        Refused: 403.
    """
    if origin in allowed:
        return
    is_own = origin is None or origin.lower() in (f"http://{host}", f"https://{host}")
    if not is_own or site not in (None, "none", "same-origin"):
        page = shown(origin) if origin is not None else "another site"
        raise Refused(
            403,
            f"this server has no keys, and a page of {page} asks; only its own pages may. Serve with "
            "keys, or name the page's origin in cors_origins, to let it ask",
        )
