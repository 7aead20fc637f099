"""An edited document: what of it is new, and what of the old is replayed while the new is learned."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from foreword.documents.chunks import Chunk
from foreword.documents.conversations import Conversation
from foreword.documents.settings import DocumentSettings
from foreword.errors import UsageError
from foreword.prefix import Prefix
from foreword.template import Template

if TYPE_CHECKING:
    from foreword.base.base_model import BaseModel

REPLAYED = 0.5
"""Share of the conversations about unchanged chunks that are trained on again."""

DIGEST_LETTERS = 12
"""Of a chunk's SHA-256 that a prefix file keeps: two chunks in 10^14 pairs look alike."""

MOST_CHUNKS = 900
"""Whose digests a prefix file keeps: of 16 bytes each, in a recipe of 16 KiB."""

MOST_WORSE = 0.03
"""By which a recovered share may be lower than the previous one: as much as two runs differ by."""

HARM_TIMES = 1.1
"""By which harm may be larger: as much as it is for another seed."""


def digests(chunks: Sequence[Chunk]) -> list[str]:
    """What a prefix file keeps of each chunk, so that an edit can be told from it."""
    return [hashlib.sha256(each.text.encode()).hexdigest()[:DIGEST_LETTERS] for each in chunks]


def known_chunks(recipe: Mapping[str, Any]) -> frozenset[str]:
    """The digests that the recipe of a document's prefix has.

    Raises:
        UsageError: the prefix was not made from a document, or keeps none.
    """
    found = recipe.get("document")
    kept = found.get("chunks") if isinstance(found, Mapping) else None
    if not isinstance(kept, list) or not kept:
        raise UsageError(
            "the prefix to go on from does not say which parts its document had; it must be made by compile "
            f"from a document of at most {MOST_CHUNKS} chunks"
        )
    return frozenset(str(each) for each in kept)


def going_on(
    base: BaseModel, settings: DocumentSettings, previous: Prefix, template: Template
) -> DocumentSettings:
    """The settings of a run that goes on from a document's prefix, whose length it keeps.

    Raises:
        UsageError: another method than `studied`, another length, other chunks, or a prefix of no document.
        GeometryMismatch, WrongBaseModel: a prefix of another base.
    """
    check_previous(settings, previous)
    base.check_fits(previous)
    if dataclasses.replace(previous.template, date=template.date) != template:
        raise UsageError(
            "the previous prefix has another template than documents of this base have now; compile anew"
        )
    return dataclasses.replace(settings, length=previous.length)


def check_previous(settings: DocumentSettings, previous: Prefix) -> None:
    """Refuse what `going_on` refuses, as far as it is known without a base.

    Raises:
        UsageError: another method than `studied`, another length, other chunks, or a prefix of no document.
    """
    if settings.method != "studied":
        raise UsageError(
            f"method is {settings.method}, but only studied goes on from a previous prefix; leave one out"
        )
    known_chunks(previous.recipe)
    if settings.ratio is not None or settings.length not in (None, previous.length):
        raise UsageError(
            f"the previous prefix has length {previous.length}, which the new one keeps; leave length and "
            "ratio out, or compile anew"
        )
    chunk_tokens = previous.recipe["document"].get("chunk_tokens")
    if chunk_tokens not in (None, settings.chunk_tokens):
        raise UsageError(
            f"the previous prefix was made with chunk_tokens {chunk_tokens}, and with "
            f"{settings.chunk_tokens} all of the document would count as new; give the same, or compile anew"
        )


def changed(chunks: Sequence[Chunk], known: Collection[str]) -> list[int]:
    """Numbers of the chunks that the old document did not have."""
    return [number for number, digest in enumerate(digests(chunks)) if digest not in known]


def replay(
    conversations: Sequence[Conversation], new: Collection[int], seed: int, share: float = REPLAYED
) -> list[Conversation]:
    """All conversations about the chunks in `new`, and a share of those about each other chunk, in order."""
    rng = random.Random(seed)
    by_chunk: dict[int | None, list[int]] = {}
    for number, each in enumerate(conversations):
        by_chunk.setdefault(each.chunk, []).append(number)
    kept: set[int] = set()
    for chunk, numbers in by_chunk.items():
        kept.update(numbers if chunk in new else rng.sample(numbers, round(len(numbers) * share)))
    return [conversations[number] for number in sorted(kept)]


def worse(gate: Mapping[str, Any]) -> str | None:
    """What is worse than with the previous prefix, in words; None where nothing is.

    Args:
        gate: of a report: both prefixes' figures, of the same questions and prompts.
    """
    found = []
    share, before = gate["recovered_share"], gate["recovered_share_before"]
    if before is not None and share is not None and share < before - MOST_WORSE:
        found.append(f"recovered share {share:.2f}, before {before:.2f}")
    if gate["harm"] > HARM_TIMES * gate["harm_before"]:
        found.append(f"harm {gate['harm']:.4g}, before {gate['harm_before']:.4g}")
    return "; ".join(found) or None
