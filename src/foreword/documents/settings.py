"""Settings of a compiled document, each defined once; docs/documents.md measures the defaults.

The options of `foreword compile`, the method of a job and the keywords of `compile_document` come from them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, TypedDict

from foreword.errors import UsageError
from foreword.training.settings import TrainingSettings
from foreword.validation import (
    LARGEST_SEED,
    SMALLEST_SEED,
    check_settings,
    from_mapping,
    setting,
    settings_of,
)

Method = Literal["studied", "matched", "exact"]
Precision = Literal["float32", "bfloat16"]

TOGETHER = "together"
"""In a prefix's recipe: the same text for all that were trained with each other in sight, to be joined."""

DEFAULT_RATIO = 10.0

FOLDER = "Folder of documents"
"""Section of the help that settings of many documents stand in."""

of_folder = functools.partial(setting, section=FOLDER)

UNUSED: Mapping[Method, frozenset[str]] = {
    "studied": frozenset({"precision"}),
    "matched": frozenset({"steps", "batch_size", "learning_rate", "unrelated", "precision"}),
    "exact": frozenset({"steps", "batch_size", "learning_rate", "unrelated", "draw"}),
}
"""Settings that change nothing of what a method makes, and are refused where they are given."""


@dataclass(frozen=True)
class DocumentSettings:
    """How a document becomes a prefix.

    Every field is an option of `foreword compile`, where its help says what it is.
    """

    method: Method = setting(
        "studied", help="studied: trained; matched: computed in seconds; exact: all keys and values"
    )
    length: int | None = setting(None, ge=1, metavar="P", help="Virtual tokens, instead of a ratio")
    ratio: float | None = setting(
        None, ge=1, default_text="10", help="How many times shorter than the document the prefix is"
    )
    steps: int = setting(200, ge=1, help="Optimiser steps")
    batch_size: int = setting(8, ge=1, help="Conversations a step")
    learning_rate: float = setting(0.02, gt=0, help="Peak learning rate of AdamW")
    draw: int = setting(1600, ge=8, help="Conversations to draw from the text")
    chunk_tokens: int = setting(160, ge=16, help="Tokens of the text that the teacher has in its context")
    unrelated: float = setting(
        0.1, ge=0, lt=1, help="Share of unrelated prompts, with the bare base as teacher"
    )
    max_harm: float | None = setting(
        None,
        ge=0,
        metavar="H",
        help="Fail where answers to unrelated prompts change by more: mean KL to the base, in nats",
    )
    precision: Precision = setting(
        "float32", help="Of the numbers that exact keeps; what bfloat16 changes is in the report"
    )
    seed: int = setting(
        0, ge=SMALLEST_SEED, le=LARGEST_SEED, help="Seed of the start, conversations and order"
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.length is not None and self.ratio is not None:
            raise UsageError("give length or ratio, not both")
        if self.method == "exact" and (self.length is not None or self.ratio is not None):
            raise UsageError("exact keeps every token of the document; leave length and ratio out")

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> Self:
        """Settings from keywords, a table of a file, a job's method; None stands for the default.

        Raises:
            UsageError: one out of range, or one that the method does not use.
        """
        made: Self = from_mapping(cls, given, "document options")
        for name in given:
            if name in UNUSED[made.method] and given[name] is not None:
                raise UsageError(
                    f"{name} is {given[name]}, which method {made.method} does not use; leave it out"
                )
        return made

    def length_for(self, tokens: int) -> int:
        """P for a document of so many tokens, those in front of it in its template among them.

        Raises:
            UsageError: a document that is not longer than that.
        """
        if self.method == "exact":
            return tokens
        length = self.length or max(2, round(tokens / (self.ratio or DEFAULT_RATIO)))
        if length >= tokens:
            raise UsageError(
                f"the document has {tokens} tokens, and the prefix would have {length}; take a length below "
                "that, or method exact, or put the text into the prompt"
            )
        return length

    def training(self, length: int, share: float = 1.0) -> TrainingSettings:
        """Of the training run that `studied` is.

        Args:
            share: of the conversations that a document which is compiled anew has.
        """
        return TrainingSettings.from_mapping(
            {
                "length": length,
                "parameterization": "scaled",
                "freeze_first": True,
                "steps": max(1, round(self.steps * share)),
                "batch_size": self.batch_size,
                "learning_rate": self.learning_rate,
                "seed": self.seed,
            }
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data for the prefix file: the settings that the method uses."""
        unused = UNUSED[self.method]
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in unused}


@dataclass(frozen=True)
class TogetherSettings:
    """How documents of one run see each other in training, so that their prefixes can be joined."""

    together: bool = of_folder(
        False, help="Train all documents in one run, each with others in sight, to join their prefixes later"
    )
    neighbours: int = of_folder(
        4,
        ge=1,
        help="Together: other documents that a row is read behind, at most; join as many and one more",
    )
    mixed: float = of_folder(
        0.25, gt=0, le=1, help="Together: share of the rows that are read behind other documents, too"
    )

    def __post_init__(self) -> None:
        check_settings(self)
        for name in () if self.together else ("neighbours", "mixed"):
            if (given := getattr(self, name)) != getattr(type(self), name):
                raise UsageError(f"{name} is {given}, but it is about documents that are trained together")


class DocumentOptions(TypedDict, total=False):
    """The fields of `DocumentSettings`, as keywords."""

    method: Method | None
    length: int | None
    ratio: float | None
    steps: int | None
    batch_size: int | None
    learning_rate: float | None
    draw: int | None
    chunk_tokens: int | None
    unrelated: float | None
    max_harm: float | None
    precision: Precision | None
    seed: int | None


class DocumentsOptions(DocumentOptions, total=False):
    """The fields of `DocumentSettings` and `TogetherSettings`, as keywords."""

    together: bool | None
    neighbours: int | None
    mixed: float | None


def documents_settings(options: Mapping[str, Any]) -> tuple[TogetherSettings, DocumentSettings]:
    """The settings of a run of many documents, from keywords.

    Raises:
        UsageError: an option out of range or unknown, or a method whose prefixes are not trained.
    """
    known = {each.name for each in settings_of(TogetherSettings)}
    theirs = {name: value for name, value in options.items() if name in known and value is not None}
    together = TogetherSettings(**theirs)
    rest = {name: value for name, value in options.items() if name not in known}
    settings = DocumentSettings.from_mapping(rest)
    if together.together and settings.method != "studied":
        raise UsageError(
            f"method is {settings.method}, but only prefixes of studied are trained together; leave one out"
        )
    return together, settings
