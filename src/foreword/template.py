"""Template: how a source becomes the text in front of its target.

The template of the training text travels in the prefix file, so that generating, evaluating and
serving use exactly what training used. Source and target are tokenised apart: the tokens in front
of the target are the same whether the target is known (training) or not (generation).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

from foreword.errors import UsageError
from foreword.validation import check_fields

Message = dict[str, str]
Source = str | tuple[Message, ...]
Placement = Literal["prefix", "infix"]


@dataclass(frozen=True)
class Template:
    """How the text of one example is built.

    Attributes:
        style: `separator` puts `separator` behind the source; `chat` renders the source as messages
            with the tokenizer's chat template; `raw` takes the source as it is.
        separator: text between source and target, for `separator` only.
        begin: put the tokenizer's beginning-of-text token first (never for `chat`, whose template
            writes its own).
        end: text of the token that ends a target, or None if nothing marks the end.
        system: system message for `chat`; None leaves it to the chat template.
        placement: which text sees the virtual tokens: all of it (`prefix`), or the target alone, from
            the last source token on, which predicts its first (`infix`; docs/ablations.md).
    """

    style: Literal["separator", "chat", "raw"] = "separator"
    separator: str = "\n"
    begin: bool = False
    end: str | None = None
    system: str | None = None
    placement: Placement = "prefix"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.style not in ("separator", "chat", "raw"):
            raise UsageError(f"template style is {self.style!r}; expected separator, chat or raw")
        if self.system is not None and self.style != "chat":
            raise UsageError("a system message needs the template style 'chat'")
        if self.placement not in ("prefix", "infix"):
            raise UsageError(f"placement is {self.placement!r}; expected prefix or infix")

    def source_ids(self, tokenizer: Any, source: Source) -> list[int]:
        """Token ids of everything in front of the target.

        Raises:
            UsageError: messages without the chat style, or chat without a chat template.
        """
        if self.style == "chat":
            return _chat_ids(tokenizer, source, self.system)
        if not isinstance(source, str):
            raise UsageError(f"a source of chat messages needs the template style 'chat', not {self.style!r}")
        text = source + self.separator if self.style == "separator" else source
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        if self.begin and tokenizer.bos_token_id is None:
            raise UsageError(
                "the template begins with a beginning-of-text token, which this tokenizer does not have"
            )
        return [tokenizer.bos_token_id, *ids] if self.begin else ids

    def target_ids(self, tokenizer: Any, target: str) -> list[int]:
        """Token ids that carry the loss: the target and the token that ends it."""
        ids: list[int] = tokenizer(target, add_special_tokens=False)["input_ids"]
        end = self.end_id(tokenizer)
        return ids if end is None else [*ids, end]

    def end_id(self, tokenizer: Any) -> int | None:
        """Id of the token that ends a target, or None.

        Raises:
            UsageError: the tokenizer does not have `end` as one token.
        """
        if self.end is None:
            return None
        token_id = tokenizer.convert_tokens_to_ids(self.end)
        if token_id is None or (token_id == tokenizer.unk_token_id and self.end != tokenizer.unk_token):
            raise UsageError(f"the tokenizer has no token {self.end!r} to end a target with")
        return int(token_id)

    def rendering_digest(self, tokenizer: Any) -> str | None:
        """SHA-256 of the token ids that this template makes of a fixed conversation; None where it can't.

        docs/format.md has the conversation. A tokenizer, a chat template or a release of a library that makes
        other ids of it has another digest.
        """
        source = _CONVERSATION if self.style == "chat" else _CONVERSATION[0]["content"]
        try:
            ids = [
                self.source_ids(tokenizer, source),
                self.target_ids(tokenizer, _CONVERSATION[1]["content"]),
            ]
        except Exception:  # a chat template is a program of its own, and may refuse with any error
            return None
        return hashlib.sha256(json.dumps(ids, separators=(",", ":")).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Plain data for the prefix file."""
        data = dataclasses.asdict(self)
        if self.placement == "prefix":  # files from before there was a choice keep their digest
            del data["placement"]
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Template:
        """The reverse of `to_json`; unknown fields are an error, never ignored."""
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := set(data) - known:
            raise UsageError(f"template has unknown fields {sorted(unknown)}; expected {sorted(known)}")
        return cls(**data)


RAW = Template(style="raw")

_CONVERSATION: tuple[Message, ...] = (
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "The capital of France is Paris."},
    {"role": "user", "content": "How many people live there?"},
)


def default_template(tokenizer: Any, **changes: Any) -> Template:
    """What training uses when nothing is said: source, newline, target, end-of-text.

    A beginning-of-text token is added where the tokenizer itself would add one.
    """
    begins = (
        tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id] and tokenizer.bos_token_id is not None
    )
    return dataclasses.replace(Template(begin=begins, end=tokenizer.eos_token), **changes)


def _chat_ids(tokenizer: Any, source: Source, system: str | None) -> list[int]:
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(
            "the template style is 'chat' but this tokenizer has no chat template; use 'separator' or 'raw'"
        )
    messages = [{"role": "user", "content": source}] if isinstance(source, str) else [dict(m) for m in source]
    if system is not None and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    ids = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    return [int(i) for i in ids]
