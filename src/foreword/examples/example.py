"""Example: one source with its target, and whose it is."""

from __future__ import annotations

from dataclasses import dataclass

from foreword.errors import BadExamples
from foreword.template import Source


@dataclass(frozen=True, slots=True)
class Example:
    """A source x and the target y that the model shall write after it.

    Attributes:
        source: text, or chat messages as a tuple of {"role", "content"} (template style `chat`).
        target: text; must not be empty.
        owner: the user or tenant the example belongs to; None when there is only one.

    Raises:
        BadExamples: something else than text where text belongs, an empty target or owner, messages
            without role and content, or text that UTF-8 can't hold.
    """

    source: Source
    target: str
    owner: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.source, str):
            _check_text("source", self.source)
        elif isinstance(self.source, tuple):
            _check_messages(self.source)
        else:
            raise BadExamples(f"source is {kind(self.source)}; expected text or a tuple of messages")
        _check_text("target", self.target)
        if not self.target.strip():
            raise BadExamples("target is empty; there is nothing to learn from such an example, leave it out")
        if self.owner is not None:
            _check_text("owner", self.owner)
            if not self.owner.strip():
                raise BadExamples("owner is empty; name the owner, or leave the field out everywhere")


def kind(value: object) -> str:
    """What `value` is, in the words of a person who writes JSON."""
    names = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list"}
    return "null" if value is None else names.get(type(value)) or _other_kind(value)


def _other_kind(value: object) -> str:
    return "an object" if isinstance(value, dict) else f"of type {type(value).__name__}"


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise BadExamples(f"{name} is {kind(value)}; expected text")
    if value.isascii():
        return
    try:
        value.encode()
    except UnicodeEncodeError as error:
        # JSON can spell half an emoji (\ud83d) that no tokenizer and no UTF-8 file can hold.
        raise BadExamples(
            f"{name} holds half of a surrogate pair at character {error.start + 1}: an emoji that was cut; "
            "remove it"
        ) from error


def _check_messages(messages: tuple[object, ...]) -> None:
    if not messages:
        raise BadExamples("source has no messages; expected at least one in front of the target")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            found = sorted(map(str, message)) if isinstance(message, dict) else kind(message)
            raise BadExamples(f"message {number} of the source is {found}; expected role and content")
        _check_text(f"the role of message {number}", message["role"])
        _check_text(f"the content of message {number}", message["content"])
