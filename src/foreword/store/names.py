"""Names: what owners, prefixes and labels may be called, and how a caller points at a version.

ASCII only: two names that look alike but differ (a Cyrillic а, a full-width Ａ) can't both exist,
and every name is safe as a file name and in a URL.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from foreword.errors import BadName

LONGEST = 128
LATEST = "latest"
SHORTEST_DIGEST = 6

_ALLOWED = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{LONGEST - 1}}}")
_DIGEST = re.compile(rf"[0-9a-f]{{{SHORTEST_DIGEST},64}}")
_RULE = (
    f"expected 1 to {LONGEST} ASCII letters, digits, '.', '_' or '-', "
    "the first a letter or a digit, without '..'"
)


@dataclass(frozen=True)
class Reference:
    """One version of one prefix: by number, label or digest; the latest when none is given."""

    owner: str
    name: str
    number: int | None = None
    label: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        selector = self.number or self.label or (self.digest and f"sha256:{self.digest}")
        return f"{self.owner}/{self.name}" + (f"@{selector}" if selector else "")


def check_owner(owner: str) -> str:
    """`owner`, when it may be one. Raises BadName: says which characters are accepted."""
    return _checked("owner", owner)


def check_label(label: str) -> str:
    """`label`, when a caller may set it.

    Raises:
        BadName: other characters, only digits (those are version numbers), or "latest".
    """
    _checked("label", label)
    if label == LATEST:
        raise BadName("the label 'latest' always names the newest version; choose another label")
    if label.isdigit():
        raise BadName(f"label {label!r} reads like a version number; expected at least one letter in a label")
    return label


def parse_name(text: str) -> tuple[str, str]:
    """Owner and name of `owner/name`.

    Raises:
        BadName: not of that form, or with characters that are not accepted.
    """
    owner, slash, name = text.partition("/") if isinstance(text, str) else ("", "", "")
    if not slash or "/" in name:
        raise BadName(f"prefix {shown(text)} is not a name; expected owner/name, for example alice/reviews")
    return _checked("owner", owner), _checked("name", name)


def parse(text: str) -> Reference:
    """The version that `owner/name`, `@3`, `@production` or `@sha256:<digest>` behind it means.

    Raises:
        BadName: not of that form.
    """
    full, at, selector = text.partition("@") if isinstance(text, str) else (text, "", "")
    owner, name = parse_name(full)
    if not at or selector == LATEST:
        return Reference(owner, name)
    if selector.isascii() and selector.isdigit() and len(selector) <= 9 and int(selector) > 0:
        return Reference(owner, name, number=int(selector))
    if selector.startswith("sha256:"):
        digest = selector.removeprefix("sha256:")
        if not _DIGEST.fullmatch(digest):
            raise BadName(
                f"digest {shown(digest)} is not one; expected {SHORTEST_DIGEST} to 64 lower-case hex digits"
            )
        return Reference(owner, name, digest=digest)
    return Reference(owner, name, label=check_label(selector))


def folder_name(owner: str) -> str:
    """A folder for `owner` that is another one for another owner, on every file system.

    Capitals become "!" and the small letter (the rule of Go's module cache): "Alice" and "alice"
    are one folder on disks that ignore case.
    """
    return re.sub("[A-Z]", lambda match: "!" + match.group().lower(), owner)


def shown(text: object, most: int = 60) -> str:
    """`text` quoted for a message: control characters escaped, never endless."""
    plain = ascii(text)
    return plain if len(plain) <= most else f"{plain[: most - 20]}... ({len(plain)} characters)"


def _checked(what: str, text: str) -> str:
    if not _ALLOWED.fullmatch(text) or ".." in text:
        raise BadName(f"{what} {shown(text)} is not accepted; {_RULE}")
    return text
