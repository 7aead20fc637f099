"""What the database says about a version of a prefix; importable without a database library."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foreword.prefix import Prefix


LONGEST_FACTS = 1 << 16
"""Characters of JSON that are kept of a header; beyond, without the notes that its owner wrote into it."""


class Record:
    """A dataclass whose fields are plain data."""

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return dataclasses.asdict(self)  # type: ignore[call-overload, no-any-return]


@dataclass(frozen=True)
class Version(Record):
    """One version of a prefix; it never changes, only labels come and go.

    Attributes:
        name: its name, unique for the owner.
        number: 1 for the first version; a number is never given twice.
        digest: SHA-256 of the prefix file.
        size: of the file, in bytes.
        created: when it was put, UTC, ISO 8601.
        labels: labels that point at it now; "latest" is not among them.
        length: number of virtual tokens.
        fingerprint: digest of the base's weights, where the file says it.
        facts: the rest of the file's header: geometry, template, origin, licence, notes.
    """

    owner: str
    name: str
    number: int
    digest: str
    size: int
    created: str
    labels: tuple[str, ...]
    public: bool
    base: str
    length: int
    dtype: str
    fingerprint: str | None
    facts: Mapping[str, Any]

    @property
    def reference(self) -> str:
        """`owner/name@number`, which names this version forever."""
        return f"{self.owner}/{self.name}@{self.number}"

    def to_json(self) -> dict[str, Any]:
        """The fields by name, and the reference."""
        return {"reference": self.reference, **super().to_json()}


@dataclass(frozen=True)
class Description:
    """A version, and the prefix around it.

    Attributes:
        numbers: every version there is, oldest first.
        labels: each label and the number it points at.
        shared_with: owners who may read it; shown only to those who may write it.
    """

    version: Version
    numbers: tuple[int, ...]
    labels: Mapping[str, int]
    shared_with: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The version's fields and these, the prefix's under names of their own."""
        return {
            **self.version.to_json(),
            "versions": list(self.numbers),
            "all_labels": dict(self.labels),
            "shared_with": list(self.shared_with),
        }


def columns_of(prefix: Prefix) -> dict[str, Any]:
    """The columns of a prefix's row in `version`, so that listing prefixes opens no file."""
    facts = {
        "base": dataclasses.asdict(prefix.base),
        "geometry": str(prefix.geometry),
        "streams": {stream: prefix.stream_length(stream) for stream in prefix.streams},
        "template": prefix.template.to_json(),
        "origin": dataclasses.asdict(prefix.origin),
        "made": prefix.created,
        "licence": prefix.licence,
        "notes": dict(prefix.labels),
    }
    if len(json.dumps(facts)) > LONGEST_FACTS:  # of a file that is older than the limit of headers
        facts["notes"] = {}
    return {
        # PostgreSQL takes no NUL in text; the file itself keeps the name as it is.
        "base": prefix.base.name.replace("\0", "")[:256],
        "length": prefix.length,
        "dtype": str(prefix.dtype).removeprefix("torch."),
        "fingerprint": prefix.base.fingerprint and prefix.base.fingerprint.replace("\0", "")[:64],
        "facts": facts,
    }
