"""Example: one source with its target, and whose it is."""

from __future__ import annotations

from dataclasses import dataclass

from foreword.errors import BadExamples
from foreword.template import Source


@dataclass(frozen=True)
class Example:
    """A source x and the target y that the model shall write after it.

    Attributes:
        source: text, or chat messages as a tuple of {"role", "content"} (template style `chat`).
        target: text; must not be empty.
        owner: the user or tenant the example belongs to; None when there is only one.
    """

    source: Source
    target: str
    owner: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.source, (str, tuple)):
            raise BadExamples(f"source is {type(self.source).__name__}; expected text or a tuple of messages")
        if not isinstance(self.target, str):
            raise BadExamples(f"target is {type(self.target).__name__}; expected text")
        if not self.target.strip():
            raise BadExamples("target is empty; there is nothing to learn from such an example")
