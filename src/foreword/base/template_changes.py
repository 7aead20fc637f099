"""Whether a prefix's template makes the text that it made in training, with the tokenizer of a base.

A tokenizer, its chat template or a release of a library can change what stands in front of a target; a prefix
then sees tokens that it was not trained on.
"""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any

from foreword.errors import TemplateChanged
from foreword.prefix import Prefix
from foreword.template import Template
from foreword.validation import warn

MOST_KNOWN = 1024
"""Templates whose comparison is remembered."""


class TemplateChanges:
    """Compares templates with those of training, and warns once for each prefix."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._differences: dict[tuple[Template, str, str | None], str | None] = {}
        self._warned: set[str] = set()

    def warn(self, prefix: Prefix, name: str) -> None:
        """Warn (`TemplateChanged`) if the prefix's template makes other tokens than in training.

        Args:
            name: of the base, for the message.
        """
        if prefix.template_digest is None:
            return
        known = (prefix.template, prefix.template_digest, prefix.template_rendering)
        if len(self._differences) >= MOST_KNOWN:  # files from outside may name any number of digests
            self._differences.clear()
            self._warned.clear()
        if known not in self._differences:
            self._differences[known] = what_differs(
                prefix.template,
                self._tokenizer,
                prefix.template_digest,
                prefix.template_rendering,
                prefix.created,
            )
        if (difference := self._differences[known]) is not None and prefix.digest not in self._warned:
            self._warned.add(prefix.digest)
            warn(
                f"the prefix {prefix.digest[:12]} sees other tokens with {name} than it was trained on: "
                f"{difference}. Load the base with the tokenizer and chat template of the training, or train "
                "the prefix again",
                TemplateChanged,
            )


def what_differs(
    template: Template,
    tokenizer: Any,
    digest: str | None,
    rendering: str | None = None,
    created: str | None = None,
) -> str | None:
    """How what a template makes of the fixed conversation differs from training, in words.

    None if it is the same with this tokenizer, or if it is not known what it was.

    Args:
        digest, rendering: of training.
        created: time of training, ISO 8601.
    """
    if digest is None:
        return None
    now, written = template.rendering_digest(tokenizer), template.rendering(tokenizer)
    # The conversation of the digest has no system message; the rendering has one in its second part.
    if now == digest and (rendering is None or written is None or rendering == written):
        return None
    if now != digest and template.date is None and template.writes_date(tokenizer):
        for day in _days_around(created):
            dated = dataclasses.replace(template, date=day)
            if dated.rendering_digest(tokenizer) == digest:
                return (
                    f"its chat template writes today's date, and it was trained on {day}; to keep that, "
                    f"replace its template by one with date={day!r}"
                )
    if now is None:
        return "its template can't write the conversation by which templates are compared any more"
    if rendering is None or written is None or rendering == written:
        return "its template makes other tokens of the same text"
    place = next(
        (i for i, (old, new) in enumerate(zip(rendering, written, strict=False)) if old != new),
        min(len(rendering), len(written)),
    )
    before, old, new = written[max(0, place - 30) : place], rendering[place:][:30], written[place:][:30]
    where = f"behind {before!r}" if before else "at the beginning"
    return f"{where} its chat template now writes {new!r}, and wrote {old!r}"


def _days_around(created: str | None) -> list[str]:
    """The day of a time in UTC, and those beside it, one of which it was elsewhere; none if it is no time."""
    try:
        day = datetime.datetime.fromisoformat(created or "").date()
        return [(day + datetime.timedelta(days)).isoformat() for days in (0, -1, 1)]
    except (ValueError, OverflowError):  # a file may name the last day that there is
        return []
